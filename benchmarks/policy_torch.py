"""Speed of the sampler and of the learner against transformers on torch, on this CPU and on the same random weights.

    pip install -e ".[parity]" && python benchmarks/policy_torch.py {generate,learn} [--shape 0.1b]

See policy.py for how it is measured. ``generate``: one process, torch without torch.compile, as transformers runs on a CPU.
Each side's variants of dtype, cache and attention are tried in a short run, and the best compete. No token stops a row.
Decoding alone is all that follows the first token's logits; torch gets a prompt read once and its cache copied G times, too.
``learn``: log-probs, GRPO loss and its gradient in float32; torch reads each rollout as a row of prompt and response.
"""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import runpy
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from policy import (
    device_name,
    in_turns,
    make_config,
    make_generate,
    make_prompts,
    make_start,
    now,
    parse,
    peak_memory,
    ratio,
    sampler_params,
    spread,
    timed,
    tree_bytes,
)
from transformers.cache_utils import DynamicCache

from exit_jax.algorithm import grpo
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.policy import decoder, sampler
from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.decoder import DecoderConfig
from exit_jax.policy.hf.export import export
from exit_jax.types import Instances, Rollouts

DTYPES = ("float32", "bfloat16")
CONFIG = pathlib.Path(__file__).parents[1] / "configs/sudoku.py"
Rival = Callable[[int], dict[str, float]]  # tokens to sample -> seconds of "prefill" and of "decode"


def load_theirs(config: DecoderConfig, params, *dtypes: str) -> dict[str, Any]:
    """Return transformers' models of our parameters, one a dtype."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "checkpoint"
        export(params, config, folder, None, "float32")
        read = transformers.AutoModelForCausalLM.from_pretrained
        models = {dtype: read(folder, dtype=getattr(torch, dtype)).eval() for dtype in dtypes}
    return models


def check_same(config: DecoderConfig, params, model, prompt: jax.Array) -> None:
    """Raise unless the two give the same float32 logits."""
    positions = jnp.arange(prompt.shape[1])[None, None]
    hidden, _ = decoder.apply(config, params, prompt[:1, None], positions, jnp.ones(positions.shape, bool))
    ours = decoder.logits(config, params, hidden[0, 0, -1])
    with torch.no_grad():
        theirs = model(torch.tensor(np.asarray(prompt[:1])), logits_to_keep=1).logits[0, -1]
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-3)


class Clock(transformers.LogitsProcessor):
    """Notes when the first token's logits are there."""

    first = 0.0

    def __call__(self, input_ids, scores):
        self.first = self.first or now()
        return scores


def ours(config: DecoderConfig, params, a: argparse.Namespace) -> Rival:
    """Return our sampler in one dtype."""
    config = dataclasses.replace(config, dtype=a.dtype)
    params = sampler_params(config, params)
    start = make_start(config, a.group_size, a.max_tokens - 1)
    generates = functools.lru_cache(lambda count: make_generate(config, SamplingConfig(count, (), 1.0)))
    prompt, length = make_prompts(config, a.num_prompts, a.prompt_width)

    def run(count: int) -> dict[str, float]:
        reading, prefill = timed(start, params, prompt=prompt, prompt_length=length)
        _, decode = timed(generates(count), params, reading, jax.random.key(2))
        return {"prefill": prefill, "decode": decode, "both": prefill + decode}

    return run


def theirs(model, cache: str, attention: str, prompt: np.ndarray, group_size: int, once: bool) -> Rival:
    """Return ``generate`` of transformers, where ``once`` says that a group's prompt is read once and its cache copied."""
    rows = torch.tensor(prompt).repeat_interleave(group_size, 0)

    @torch.inference_mode()
    def run(count: int) -> dict[str, float]:
        model.set_attn_implementation(attention)
        clock, given = Clock(), {"cache_implementation": cache}
        started = now()
        if once:
            given = {"past_key_values": DynamicCache(config=model.config)}
            model(torch.tensor(prompt[:, :-1]), past_key_values=given["past_key_values"], logits_to_keep=1)
            given["past_key_values"].batch_repeat_interleave(group_size)
        tokens = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=count,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            eos_token_id=None,
            logits_processor=transformers.LogitsProcessorList([clock]),
            **given,
        )
        ended = now()
        assert tokens.shape == (len(rows), prompt.shape[1] + count)
        return {"prefill": clock.first - started, "decode": ended - clock.first, "both": ended - started}

    return run


def choose(rivals: dict[str, Rival], max_tokens: int) -> list[str]:
    """Return the best end to end and the best in decoding, by a run of few tokens whose decoding is extrapolated."""
    few = max(max_tokens // 16, 2)
    total, decode = {}, {}
    for name, run in rivals.items():
        if name.startswith("exit_jax"):
            run(few)  # compiles
        secs = run(few)
        decode[name] = secs["decode"] / few * max_tokens
        total[name] = secs["prefill"] + decode[name]
        print(f"tried {name}: prefill {secs['prefill']:.3g} s, decoding {1e3 * secs['decode'] / few:.0f} ms a token")
    return list(dict.fromkeys([min(total, key=lambda name: total[name]), min(decode, key=lambda name: decode[name])]))


def generate(a: argparse.Namespace) -> None:
    """Sample G responses to each prompt, ours against theirs."""
    config = make_config(a.shape, "float32")
    params = jax.jit(lambda: decoder.init(config, jax.random.key(0)))()
    models = load_theirs(config, params, *DTYPES)
    prompt, _ = make_prompts(config, a.num_prompts, a.prompt_width)
    check_same(config, params, models["float32"], prompt)

    def peer(dtype: str, cache: str, attention: str, once: bool) -> Rival:
        return theirs(models[dtype], cache, attention, np.asarray(prompt), a.group_size, once)

    mine = {
        f"exit_jax {dtype}": ours(config, params, argparse.Namespace(**vars(a) | {"dtype": dtype})) for dtype in DTYPES
    }
    plain = {
        f"torch {' '.join(variant)}": peer(*variant, once=False)
        for variant in itertools.product(DTYPES, ("dynamic", "static"), ("sdpa", "eager"))
    }
    once = {
        f"torch {dtype} {attention}, prompts read once": peer(dtype, "dynamic", attention, once=True)
        for dtype, attention in itertools.product(DTYPES, ("sdpa", "eager"))
    }
    rivals = mine | plain | once
    kept = a.peers or [name for group in (mine, plain, once) for name in choose(group, a.max_tokens)]
    results = in_turns({name: functools.partial(rivals[name], a.max_tokens) for name in kept}, a.rounds)
    median = lambda name, what: statistics.median(results[name][what])
    best = min((name for name in kept if name in mine), key=lambda name: median(name, "both"))
    count = a.num_prompts * a.group_size * a.max_tokens
    print(
        f"\n{a.num_prompts} prompts of {a.prompt_width} tokens x {a.group_size} rollouts of {a.max_tokens} tokens; ",
        end="",
    )
    print(f"ratios are seconds over those of {best}\n")
    print("| what | prefill s | ms a step | end to end s | tokens/s | decode ratio | end to end ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in kept:
        r = results[name]
        print(
            f"| {name} | {spread(r['prefill'])} | {spread(r['decode'], 1e3 / a.max_tokens)} | {spread(r['both'])} "
            f"| {count / median(name, 'both'):.0f} | {ratio(r['decode'], results[best]['decode'])} "
            f"| {ratio(r['both'], results[best]['both'])} |"
        )


def make_rollouts(config: DecoderConfig, a: argparse.Namespace) -> tuple[Instances, Rollouts, np.ndarray, np.ndarray]:
    """Return random prompts and full-length responses, advantages [B, G], and the reference's log-probs [B, G, T]."""
    rng = np.random.default_rng(0)
    shape = (a.num_prompts, a.group_size, a.max_tokens)
    prompt, length = make_prompts(config, a.num_prompts, a.prompt_width)
    old, reference = rng.normal(-np.log(config.vocab_size), 0.3, (2, *shape)).astype(np.float32)
    whole: Any = None
    return (
        Instances(whole, whole, whole, whole, prompt, length),
        Rollouts(
            jnp.asarray(rng.integers(config.vocab_size, size=shape), jnp.int32),
            jnp.ones(shape, bool),
            jnp.asarray(old),
            jnp.asarray(old),
            jnp.ones(shape[:2], bool),
            whole,
        ),
        rng.normal(size=shape[:2]).astype(np.float32),
        reference,
    )


def our_step(config: DecoderConfig, algorithm: ExItConfig, token_chunk: int, params, given):
    """Return the compiled loss and gradient, and its arguments."""
    instances, rollouts, advantage, reference = given

    def objective(params, batch: grpo.Batch):
        arrays = batch.prompt, batch.prompt_length, batch.tokens
        logp, entropy = sampler.logprobs(config, algorithm.temperature, token_chunk, params, *arrays)
        return grpo.loss(algorithm, logp, entropy, batch)[0]

    width = rollouts.tokens.shape[-1]
    batch = grpo.make_batch(algorithm, instances, rollouts, jnp.asarray(advantage), jnp.asarray(reference), width)
    return jax.jit(jax.value_and_grad(objective)).lower(params, batch).compile(), (params, batch)


def their_step(model, algorithm: ExItConfig, checkpointing: bool, given) -> Callable[[], float]:
    """Return the same in torch: the gradients are left in the model."""
    instances, rollouts, advantage, reference = given
    tensor = lambda x: torch.tensor(np.asarray(x)).flatten(0, 1)
    tokens, old, reference = tensor(rollouts.tokens).long(), tensor(rollouts.logp), tensor(reference)
    advantage = tensor(advantage)[:, None]
    group_size, width = rollouts.tokens.shape[1:]
    rows = torch.cat([torch.tensor(np.asarray(instances.prompt)).long().repeat_interleave(group_size, 0), tokens], 1)
    model.set_attn_implementation("sdpa")

    def step() -> float:
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            model.activation_checkpointing_disable()
        model.zero_grad()
        logits = model(rows, attention_mask=torch.ones_like(rows), use_cache=False, logits_to_keep=width + 1).logits
        logits = logits[:, :-1] / algorithm.temperature
        logp = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
        ratio = (logp - old).exp()
        clipped = ratio.clamp(1.0 - algorithm.clip_low, 1.0 + algorithm.clip_high)
        x = reference - logp
        loss = -torch.minimum(ratio * advantage, clipped * advantage) + algorithm.kl_coef * (x.exp() - x - 1.0)
        loss = loss.mean()
        loss.backward()
        return loss.item()

    return step


def learn(a: argparse.Namespace) -> None:
    """Take loss and gradient on the same rollouts, ours against theirs, and see how far each lets its process grow."""
    algorithm = runpy.run_path(str(CONFIG))["get_config"]()
    algorithm = ExItConfig(**algorithm.algorithm)
    algorithm = dataclasses.replace(algorithm, kl_coef=0.04, kl_estimator="k3", entropy_coef=0.0, temperature=1.0)
    algorithm = dataclasses.replace(
        algorithm, ratio_level="token", aggregation="sequence_mean", zero_variance="keep", mask_overlong=False
    )
    chunk = max(a.max_tokens // 4, 1)
    ours = {"exit_jax": ("none", 0), "exit_jax, layers recomputed": ("layer", chunk)}
    theirs = {"torch": False, "torch, layers recomputed": True}
    config = make_config(a.shape, "float32")
    params = jax.jit(lambda: decoder.init(config, jax.random.key(0)))()
    given = make_rollouts(config, a)
    model = load_theirs(config, params, "float32")["float32"]
    steps: dict[str, Callable[[], Any]] = {}
    planned, losses = {}, {}
    for name, (remat, token_chunk) in ours.items():
        step, arguments = our_step(dataclasses.replace(config, remat=remat), algorithm, token_chunk, params, given)
        steps[name] = functools.partial(step, *arguments)
        memory: Any = step.memory_analysis()
        planned[name] = memory.temp_size_in_bytes + memory.output_size_in_bytes
    for name, checkpointing in theirs.items():
        steps[name] = their_step(model, algorithm, checkpointing, given)

    def measure(name: str) -> dict[str, float]:
        value, secs = timed(steps[name])
        losses[name] = value[0] if name in ours else value
        return {"secs": secs}

    secs = {
        name: r["secs"] for name, r in in_turns({n: functools.partial(measure, n) for n in steps}, a.rounds).items()
    }
    np.testing.assert_allclose(list(losses.values()), losses["torch"], rtol=1e-3, atol=1e-5)
    peaks = {}
    for name, step in steps.items():
        model.zero_grad()  # the gradients of the last step would hide growth
        peaks[name] = peak_memory(step)
    print(
        f"{a.num_prompts} prompts of {a.prompt_width} tokens x {a.group_size} rollouts of {a.max_tokens} tokens, float32; ",
        end="",
    )
    print(f"parameters {tree_bytes(params) / 1e6:.0f} MB, gradients alike and part of the growth\n")
    print(
        "| what | s (min-max) | torch / exit_jax | process grew by MB | of that planned by XLA |\n|---|---|---|---|---|"
    )
    for name, values in secs.items():
        rival = name.replace("exit_jax", "torch")
        faster = ratio(secs[rival], values) if name in ours else "1"
        note = f"{planned[name] / 1e6:.0f}" if name in ours else ""
        print(f"| {name} | {spread(values)} | {faster} | {peaks[name] / 1e6:.0f} | {note} |")


COMMANDS = {"generate": generate, "learn": learn}


def main() -> None:
    """Print the table of one command."""
    a = parse(COMMANDS, "sampler and learner against torch")
    torch.set_num_threads(a.num_threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"{a.command}: {device_name()}, torch {torch.__version__} on {a.num_threads} threads\n")
    COMMANDS[a.command](a)


if __name__ == "__main__":
    main()
