"""Settings under which a run would learn nothing, or less than it seems: refused where they are surely a mistake, else told.

All of it is said before anything compiles; ``metrics.Watch`` tells what shows itself only while a run goes on.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exit_jax.config.schema import Config, OptimizerConfig

MAY_BE_INFINITE = ("algorithm.diversity_cap", "optimizer.max_grad_norm", "warm_start.optimizer.max_grad_norm")
# Weights of language models are about 0.02, where float32 has steps of 2e-9 and bfloat16 of 1e-4.
SMALLEST_RATE = 1e-9
BY_OUTCOME = ("nft", "nft_std", "rft", "rwr")  # objectives that ask for no advantage
SMALLEST_TEMPERATURE = 1e-3  # logits of 30 over less are beyond what softmax tells apart: the likeliest token, always


def faults_of(c: "Config") -> list[str]:
    """Return why the training that a config asks for would be for nothing, one sentence a fault."""
    faults = [*_not_finite(c), *_too_coarse(c)]
    for name, optimizer, num_updates in _phases(c):
        faults += _idle_optimizer(c, name, optimizer, num_updates)
    return faults + (_idle_algorithm(c) if c.run.num_iterations else [])


def warnings_of(c: "Config") -> list[str]:
    """Return what may be meant but learns less than it seems, one line each."""
    found = [
        line for name, optimizer, num_updates in _phases(c) for line in _slow_optimizer(name, optimizer, num_updates)
    ]
    if not c.run.num_iterations:
        as_it_is = "run.num_iterations = 0: there is no RL, and the policy is evaluated as it is"
        return found if c.variant == "base" else [*found, as_it_is]  # a study's base policy is meant to be
    a = c.algorithm
    if not c.checkpoint and not c.warm_start.num_steps:
        found.append(
            "warm_start.num_steps = 0 without a checkpoint: RL begins from random weights, whose responses are noise"
        )
    if a.kl_coef > 1.0:
        found.append(
            f"algorithm.kl_coef = {a.kl_coef} outweighs rewards, which end at 1, and holds the policy where it began"
        )
    if abs(a.entropy_coef) > 1.0:
        found.append(f"algorithm.entropy_coef = {a.entropy_coef} outweighs rewards, which end at 1")
    if not 0.1 <= a.temperature <= 2.0:
        alike = "responses of a group hardly differ" if a.temperature < 1 else "responses are close to noise"
        found.append(
            f"algorithm.temperature = {a.temperature} is not in [0.1, 2]: {alike}, so few groups have an advantage"
        )
    if c.sampling.top_p < 0.1 or c.sampling.min_p > 0.9:
        found.append(
            f"sampling.top_p = {c.sampling.top_p} and sampling.min_p = {c.sampling.min_p} leave few tokens to choose from: "
            "responses of a group hardly differ"
        )
    if a.advantage_norm in ("group", "batch") and a.advantage_eps > 0.1:
        found.append(
            f"algorithm.advantage_eps = {a.advantage_eps} is not small beside the standard deviation of rewards, 0.5 at most: "
            "advantages shrink"
        )
    if a.objective in BY_OUTCOME and a.diversity_bonus:
        found.append(
            f"algorithm.diversity_bonus scales advantages, which algorithm.objective = {a.objective!r} does not ask for: it "
            "has no effect"
        )
    if a.rounds.iterations and (left := c.run.num_iterations % a.rounds.iterations):
        found.append(
            f"run.num_iterations = {c.run.num_iterations} is no multiple of algorithm.rounds.iterations = "
            f"{a.rounds.iterations}: the last {left} are sampled and not learnt from"
        )
    if not a.selection_prob and a.divergence_prob:
        found.append(
            f"algorithm.divergence_prob = {a.divergence_prob} with algorithm.selection_prob = 0: only what is drawn from the "
            "buffer diverges, and nothing is"
        )
    if a.selection_prob == 1.0:
        found.append(
            "algorithm.selection_prob = 1.0: no base task is drawn once the buffer holds algorithm.min_buffer_size entries"
        )
    return found


def response_faults(c: "Config", max_tokens: int) -> list[str]:
    """Return why no response of ``max_tokens`` could ever end."""
    faults = []
    if max_tokens < 2:
        faults.append(
            f"responses of {max_tokens} token have room for a stop token alone; raise the domain's max_tokens"
        )
    if c.sampling.min_tokens >= max_tokens:
        faults.append(
            f"sampling.min_tokens = {c.sampling.min_tokens} leaves no room for a stop token within the {max_tokens} of a "
            "response; lower it"
        )
    return faults


def buffer_fault(a: Any, num_iterations: int, num_tasks: int, children_per_rollout: int) -> tuple[str, bool]:
    """Return why the buffer is never drawn from, "" if it may be; and whether no number of iterations helps.

    An iteration of B prompts inserts at most its B base tasks, each once in all, and what children its rollouts have.

    Args:
      a: the settings of Algorithm 1, ``ExItConfig``.
      children_per_rollout: U, or 0 where no child enters the buffer.
    """
    if not a.selection_prob or not num_iterations:
        return "", False
    per_prompt = children_per_rollout * (1 if a.children in ("best", "one") else a.group_size)
    before_last = num_iterations - 1 - a.rollout_lag  # batches learnt from when the last one is selected
    reachable = min(a.num_prompts * before_last, num_tasks) + a.num_prompts * per_prompt * before_last
    never = not per_prompt and num_tasks < a.min_buffer_size
    if not never and reachable >= a.min_buffer_size:
        return "", False
    cause = (
        f"only base tasks enter it, of which there are {num_tasks}"
        if never
        else f"{num_iterations} iterations put at most {max(reachable, 0)} entries there"
    )
    return (
        f"algorithm.min_buffer_size = {a.min_buffer_size} is never reached: {cause}, so that nothing is drawn from the buffer "
        "and this is GRPO on the base tasks; lower it, or set algorithm.selection_prob to 0 if that is meant"
    ), never


def _phases(c: "Config") -> Iterator[tuple[str, "OptimizerConfig", int]]:
    """Yield (name of its optimiser, the optimiser, the steps that it takes) of each phase that trains."""
    if c.warm_start.num_steps:
        yield "warm_start.optimizer", c.warm_start.optimizer, c.warm_start.num_steps
    if c.run.num_iterations:
        yield "optimizer", c.optimizer, c.run.num_iterations * c.algorithm.num_epochs


def _not_finite(c: "Config") -> list[str]:
    """Find NaN, which passes all comparisons that ask for a fault, and infinity where it stands for nothing."""
    faults = []

    def look(name: str, value: Any) -> None:
        if isinstance(value, float) and not math.isfinite(value) and (math.isnan(value) or name not in MAY_BE_INFINITE):
            faults.append(f"{name} = {value} is no finite number")
        for field, inner in vars(value).items() if hasattr(value, "__dataclass_fields__") else ():
            look(f"{name}.{field}", inner)

    for group in ("algorithm", "optimizer", "warm_start", "policy", "sampling", "eval"):
        look(group, getattr(c, group))
    return faults


def _too_coarse(c: "Config") -> list[str]:
    if c.policy.param_dtype == "float32" or c.policy.lora.rank or not list(_phases(c)):
        return []
    return [
        f"policy.param_dtype = {c.policy.param_dtype!r} without adapters: updates are smaller than the steps between its "
        "numbers and vanish (at a rate of 1e-6 fewer than 1 in 100 weights ever moved); keep float32 parameters, which "
        "policy.dtype computes with in bfloat16 and run.mesh.fsdp spreads over devices, or train adapters, policy.lora.rank"
    ]


def _idle_optimizer(c: "Config", name: str, o: "OptimizerConfig", num_updates: int) -> list[str]:
    if c.run.allow_idle_updates:
        return []
    asked = "run.allow_idle_updates = True if that is meant"
    if o.learning_rate < SMALLEST_RATE:
        return [
            f"{name}.learning_rate = {o.learning_rate} would change no float32 weight; raise it, evaluate the policy as it is "
            f"with run.num_iterations = 0 and warm_start.num_steps = 0, or say {asked}"
        ]
    if o.decay_steps and o.decay_steps < num_updates:
        count, steps = ("warm_start.num_steps", "") if name != "optimizer" else ("run.num_iterations", " x num_epochs")
        return [
            f"{name}.decay_steps = {o.decay_steps} is below the {num_updates} optimiser steps of {count}{steps}: the rate "
            f"would be 0 for the last {num_updates - o.decay_steps}; set it to {num_updates}, to 0 for no decay, or say {asked}"
        ]
    if o.warmup_steps and num_updates == 1:
        return [f"{name}.warmup_steps = {o.warmup_steps}: the rate is 0 in the one step that is taken; set it to 0"]
    return []


def _slow_optimizer(name: str, o: "OptimizerConfig", num_updates: int) -> list[str]:
    found = []
    if num_updates > 1 and o.warmup_steps >= num_updates:
        found.append(
            f"{name}.warmup_steps = {o.warmup_steps} is not below the {num_updates} optimiser steps, so that the rate ends at "
            f"{o.learning_rate * (num_updates - 1) / o.warmup_steps:.3g}"
        )
    if o.kind == "adafactor" and o.learning_rate < 1e-5:
        found.append(
            f"{name}.learning_rate = {o.learning_rate}: adafactor's is relative to a parameter's size, so that {num_updates} "
            f"steps change it by a share of {o.learning_rate * num_updates:.2g} at most; 1e-4 to 1e-2 are usual"
        )
    shrunk = o.weight_decay * num_updates * (1.0 if o.kind == "adafactor" else o.learning_rate)
    if shrunk > 0.5:
        once = "which adafactor does not multiply by the rate" if o.kind == "adafactor" else "times the rate"
        found.append(
            f"{name}.weight_decay = {o.weight_decay}, {once}, would shrink weights to {math.exp(-shrunk):.2g} of their size in "
            f"{num_updates} steps"
        )
    if o.kind == "adamw" and o.max_grad_norm < 1e-3:
        found.append(
            f"{name}.max_grad_norm = {o.max_grad_norm} cuts gradients to the size of AdamW's epsilon, 1e-8 an entry, below "
            "which updates shrink"
        )
    return found


def _idle_algorithm(c: "Config") -> list[str]:
    a, lora, faults = c.algorithm, c.policy.lora, []
    for name in ("clip_low", "clip_high"):
        if getattr(a, name) == 0:
            faults.append(f"algorithm.{name} = 0 would clip the ratio of every token at once; the paper's is 0.2")
    if a.rounds.iterations > c.run.num_iterations:
        faults.append(
            f"algorithm.rounds.iterations = {a.rounds.iterations} is above run.num_iterations = {c.run.num_iterations}: no "
            "round would end, and nothing would be learnt; lower it, or set it to 0 for no rounds"
        )
    if a.diversity_bonus and a.diversity_cap <= 0:
        faults.append(f"algorithm.diversity_cap = {a.diversity_cap} would multiply all advantages by 0; inf caps none")
    if a.temperature < SMALLEST_TEMPERATURE:
        faults.append(
            f"algorithm.temperature = {a.temperature} is greedy: responses of a group are alike, with no advantage"
        )
    if c.sampling.top_k == 1 or c.sampling.min_p == 1.0:
        faults.append(
            f"sampling.top_k = {c.sampling.top_k} and sampling.min_p = {c.sampling.min_p} leave only the likeliest token: "
            "responses of a group are alike, with no advantage; 0 and 0.0 keep all tokens"
        )
    if lora.rank and lora.alpha <= 0:
        faults.append(f"policy.lora.alpha = {lora.alpha} is not above 0: adapters are multiplied by alpha / rank")
    return faults
