"""Settings that contradict each other: a sentence each, with the values, the rule and the remedy."""

from exit_jax import settings
from exit_jax.config.learning import BY_OUTCOME
from exit_jax.config.schema import Config
from exit_jax.domains.traits import Traits
from exit_jax.policy.shape import PROJECTIONS


class Faults(list[str]):
    """What is wrong, a sentence each."""

    def require(self, holds: object, message: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.append(message)


def contradictions(c: Config, num_devices: int) -> list[str]:
    """Return one sentence a fault: values out of their bounds, then those that do not go together."""
    faults = Faults(settings.faults(c))
    _check_algorithm(c, faults)
    _check_objective(c, faults)
    _check_policy(c, faults)
    _check_mesh(c, num_devices, faults)
    _check_run(c, faults)
    _check_evaluation(c, faults)
    _check_domain(c, faults)
    return faults


def _check_algorithm(c: Config, faults: Faults) -> None:
    a = c.algorithm
    faults.require(
        a.min_buffer_size <= a.buffer_size,
        f"algorithm.min_buffer_size = {a.min_buffer_size} is above algorithm.buffer_size = {a.buffer_size}, "
        "so nothing would ever be drawn from the buffer; lower the first",
    )
    faults.require(
        a.self_iteration or not a.divergence_prob,
        "algorithm.divergence_prob > 0 needs algorithm.self_iteration: without it nothing is held to diverge from",
    )
    faults.require(
        not a.rollout_lag or not a.recompute_logp or a.importance != "none",
        f"algorithm.recompute_logp with algorithm.rollout_lag = {a.rollout_lag}: the learner has moved on since the batch was "
        "sampled, so the ratio can only be taken against the sampler's log-probs; set one of the two off, or weigh tokens by "
        "how far it has moved, algorithm.importance",
    )
    faults.require(
        a.recompute_logp or a.importance == "none",
        f"algorithm.importance = {a.importance!r} weighs by the learner's log-probs over the sampler's, and without "
        'algorithm.recompute_logp the ratio holds that already; set it, or this to "none"',
    )
    faults.require(
        a.diversity_embedding == "grades" or not c.encoder.checkpoint,
        f"encoder.checkpoint = {c.encoder.checkpoint!r} would not be used with algorithm.diversity_embedding = "
        f'{a.diversity_embedding!r}; set that to "grades"',
    )


def _check_objective(c: Config, faults: Faults) -> None:
    a = c.algorithm
    faults.require(
        (a.advantage_norm == "ema") == (a.baseline_decay > 0),
        f"algorithm.advantage_norm = {a.advantage_norm!r} with algorithm.baseline_decay = {a.baseline_decay}: the running "
        'baseline is what "ema" takes advantages from, and nothing else does; set both, as to 0.95, or neither',
    )
    faults.require(
        len(a.clip_cov_band) == 2 and a.clip_cov_band[0] < a.clip_cov_band[1],
        f"algorithm.clip_cov_band = {a.clip_cov_band} is not (low, high)",
    )
    faults.require(
        not a.self_distillation or not Traits.of(c.domain).plays_episodes,
        f"algorithm.self_distillation = {a.self_distillation}: the domain {c.domain_name} plays episodes of several turns, "
        "of which the last alone would be read with its feedback; set it to 0",
    )
    faults.require(
        a.objective not in BY_OUTCOME or not a.self_distillation,
        f"algorithm.self_distillation = {a.self_distillation} is a share of the advantage, which algorithm.objective = "
        f"{a.objective!r} does not ask for; set one of the two to its default",
    )


def _check_policy(c: Config, faults: Faults) -> None:
    a, p = c.algorithm, c.policy
    for name in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
        faults.require(
            getattr(p, name) >= 1,
            f"policy.{name} = {getattr(p, name)} is below 1; give the shape, or name a checkpoint",
        )
    faults.require(p.head_dim % 2 == 0, f"policy.head_dim = {p.head_dim} is odd, but rotary embeddings turn pairs")
    faults.require(
        p.num_kv_heads < 1 or p.num_heads % p.num_kv_heads == 0,
        f"policy.num_heads = {p.num_heads} is not a multiple of policy.num_kv_heads = {p.num_kv_heads}",
    )
    faults.require(
        len(p.rope_scaling) in (0, 1, 4, 6),
        f"policy.rope_scaling = {p.rope_scaling} is neither () nor (factor,), (factor, low, high, original length) or yarn's "
        "six numbers; give one of them",
    )
    faults.require(
        len(p.layer_windows) in (0, p.num_layers) and min(p.layer_windows, default=0) >= 0,
        f"policy.layer_windows = {p.layer_windows} must be a number of tokens, or 0, for each of policy.num_layers = "
        f"{p.num_layers}; or ()",
    )
    faults.require(
        p.attention != "cudnn" or p.dtype == "bfloat16",
        'policy.attention = "cudnn" has no kernel for policy.dtype = "float32"; take "bfloat16", or "xla"',
    )
    faults.require(
        p.attention != "cudnn" or not p.attention_cap,
        f'policy.attention = "cudnn" has no kernel for policy.attention_cap = {p.attention_cap}; take "xla"',
    )
    faults.require(
        all(0 <= layer < p.num_layers for layer in p.no_rope_layers),
        f"policy.no_rope_layers = {p.no_rope_layers} names layers beyond the {p.num_layers} that there are, from 0 on",
    )
    faults.require(
        p.experts_per_token <= p.num_experts and bool(p.experts_per_token) == bool(p.num_experts),
        f"policy.experts_per_token = {p.experts_per_token} must be from 1 to policy.num_experts = {p.num_experts}, or both 0",
    )
    of_experts = sorted({"gate", "up", "down"} & set(p.lora.targets))
    faults.require(
        not (p.lora.rank and p.num_experts and of_experts),
        f"policy.lora.targets names {', '.join(of_experts)}, which are experts' kernels with policy.num_experts = "
        f"{p.num_experts} and have no adapters; name some of query, key, value and out",
    )
    faults.require(
        not p.lora.rank or p.lora.targets,
        f"policy.lora.rank = {p.lora.rank} without policy.lora.targets would train nothing; name some of {PROJECTIONS}",
    )
    faults.require(
        not p.lora.rank or not a.kl_coef or a.reference_mix == 1.0,
        f"algorithm.reference_mix = {a.reference_mix} with policy.lora: a mixture of adapters is not the mixture of the "
        "weights that they stand for; set it to 1.0",
    )


def _check_mesh(c: Config, num_devices: int, faults: Faults) -> None:
    a, p, r, e, w, mesh = c.algorithm, c.policy, c.run, c.eval, c.warm_start, c.run.mesh
    for name, value, axis in (
        ("policy.num_heads", p.num_heads, "tensor"),
        ("policy.num_kv_heads", p.num_kv_heads, "tensor"),
        ("policy.mlp_dim", p.mlp_dim, "tensor"),
        ("policy.embed_dim", p.embed_dim, "fsdp"),
    ):
        size = getattr(mesh, axis)
        faults.require(size < 1 or value % size == 0, f"{name} = {value} is not a multiple of run.mesh.{axis} = {size}")
    faults.require(
        mesh.num_devices <= num_devices,
        f"run.mesh takes {mesh.data} x {mesh.fsdp} x {mesh.tensor} = {mesh.num_devices} devices, but there are {num_devices}; "
        "data = 0 takes what is there",
    )
    shards = mesh.num_batch_shards
    for name, value, parts in (
        ("algorithm.num_prompts", a.num_prompts, r.num_microbatches),
        ("algorithm.replay.rows", a.replay.rows if a.replay.size else 0, r.num_microbatches),
        ("warm_start.num_states", w.num_states, 1),
        ("eval.batch_size", e.batch_size, 1),
    ):
        times = f" times run.num_microbatches = {parts}" if parts > 1 else ""
        faults.require(
            shards * parts < 1 or value % (shards * parts) == 0,
            f"{name} = {value} is not a multiple of run.mesh.data x fsdp = {shards}{times}; change it, or the mesh",
        )


def _check_run(c: Config, faults: Faults) -> None:
    a, r, w = c.algorithm, c.run, c.warm_start
    faults.require(
        r.sampler_slots <= a.group_size,
        f"run.sampler_slots = {r.sampler_slots} is above algorithm.group_size = {a.group_size}; 0 stands for a slot each",
    )
    for name, o in (("optimizer", c.optimizer), ("warm_start.optimizer", w.optimizer)):
        faults.require(
            not o.decay_steps or o.warmup_steps < o.decay_steps,
            f"{name}.warmup_steps = {o.warmup_steps} is not below {name}.decay_steps = {o.decay_steps}, where the rate ends",
        )
    for name, value in (
        ("run.num_iterations", r.num_iterations),
        ("run.checkpoint_every", r.checkpoint_every),
        ("run.eval_every", r.eval_every),
        ("warm_start.num_steps", w.num_steps),
    ):
        faults.require(
            r.steps_per_call < 1 or value % r.steps_per_call == 0,
            f"{name} = {value} is not a multiple of run.steps_per_call = {r.steps_per_call}",
        )


def _check_evaluation(c: Config, faults: Faults) -> None:
    faults.require(c.eval.steps, "eval.steps = () must list at least one k >= 0")
    known = Traits.of(c.domain).splits
    for name, splits in (("eval.splits", c.eval.splits), ("run.eval_splits", c.run.eval_splits)):
        for split in splits:
            faults.require(split in known, f"{name}: {split!r} is not one of {known}")
    steps, kept = sorted(set(c.eval.steps)), c.run.keep_best
    names = [
        f"eval/{split}/{name}@{k}" for split in sampled_splits(c) for name in ("accuracy", "quality") for k in steps
    ]
    faults.require(
        not kept or kept in names,
        f"run.keep_best = {kept!r} is no figure of evaluations during training; those are {', '.join(names)}",
    )
    faults.require(
        not kept or c.run.eval_every,
        f"run.keep_best = {kept!r} asks for evaluations during training; set run.eval_every, too",
    )


def sampled_splits(c: Config) -> tuple[str, ...]:
    """Return the splits that evaluations during training are made on."""
    return c.run.eval_splits or (("validation",) if "validation" in Traits.of(c.domain).splits else c.eval.splits)


def _check_domain(c: Config, faults: Faults) -> None:
    """Find what is asked of a domain that does not do it."""
    a, r, e, traits = c.algorithm, c.run, c.eval, Traits.of(c.domain)
    faults.require(
        not traits.plays_episodes
        or not (a.rollout_lag or r.sampler_slots or e.restart_every or e.greedy or e.scaffolds),
        f"algorithm.rollout_lag = {a.rollout_lag}, run.sampler_slots = {r.sampler_slots}, eval.restart_every = "
        f"{e.restart_every}, eval.greedy = {e.greedy} and eval.scaffolds = {e.scaffolds}: the domain {c.domain_name} plays "
        "episodes of several turns, which know none of them; set the first three to 0, eval.greedy to False and eval.scaffolds "
        "to ()",
    )
    faults.require(
        not traits.on_host or r.steps_per_call == 1,
        f"run.steps_per_call = {r.steps_per_call}: the domain {c.domain_name} is graded on the host, between the programs of "
        "one iteration; set it to 1",
    )
    faults.require(
        a.diversity_embedding != "solution" or (traits.num_children == 1 and traits.on_host),
        f'algorithm.diversity_embedding = "solution": a response of the domain {c.domain_name} leaves no single solution on '
        'the host; take "policy" or "grades"',
    )
    faults.require(
        traits.on_host or not (r.prompt_buckets or r.response_buckets or a.rollout_lag),
        f"run.prompt_buckets = {r.prompt_buckets}, run.response_buckets = {r.response_buckets} and algorithm.rollout_lag = "
        f"{a.rollout_lag}: the domain {c.domain_name} is graded on the device, in one program of one width with nothing to "
        "wait for; leave both empty and the lag 0",
    )
    faults.require(traits.has_demonstrations is not False or not c.warm_start.num_steps, no_demonstrations(c))


def no_demonstrations(c: Config) -> str:
    """Return what is wrong with a warm start on nothing."""
    return (
        f"warm_start.num_steps = {c.warm_start.num_steps}: the domain {c.domain_name} has no demonstrations to learn from; set "
        "it to 0"
    )
