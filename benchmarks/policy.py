"""Speed and memory of the sampler on random weights of real shapes: prefill, bandwidth, adapters, skew, loading, turns.

    python benchmarks/policy.py {prefill,bound,stages,int8,lora,update,skew,load,turns} [--shape 0.1b] [--dtype bfloat16]

Variants run in turns for several rounds, in one process; ratios are of the same round, given as median (minimum-maximum).
Prints Markdown tables. ``--small`` is for the smoke test, and its figures mean nothing. Against torch: policy_torch.py.
"""

import argparse
import ctypes
import functools
import gc
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decode, decoder, prefill, sampler
from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.shape import PROJECTIONS, DecoderConfig, LoraConfig
from exit_jax.step.policy import make_reshard

# vocabulary, layers, D, heads, kv heads, head size, MLP
SHAPES = {
    "tiny": (256, 2, 64, 4, 2, 16, 128),
    "0.1b": (32000, 12, 768, 12, 4, 64, 2048),
    "0.5b": (151936, 24, 896, 14, 2, 64, 4864),  # Qwen2.5-0.5B, without biases
    "1.5b": (151936, 28, 1536, 12, 2, 128, 8960),  # Qwen2.5-1.5B, likewise
    "1b": (128256, 16, 2048, 32, 8, 64, 8192),  # Llama-3.2-1B
    "3b": (128256, 28, 3072, 24, 8, 128, 8192),  # Llama-3.2-3B
}
MESH = meshes.MeshConfig(1, 1, 1)
# Where others keep the cores busy, waits at the threads' barriers grow without bound, torch's most of all. Then CPU seconds are
# the fairer clock, with one core a side: taskset -c 0 python ... --cpu_time --num_threads 1
now = time.process_time if "--cpu_time" in sys.argv else time.perf_counter


def make_config(shape: str, dtype: str, decode_stages: int = 1, rank: int = 0) -> DecoderConfig:
    """Return a Llama of one of SHAPES, with tied embeddings as Llama 3.2 has them."""
    vocab_size, num_layers, embed_dim, num_heads, num_kv_heads, head_dim, mlp_dim = SHAPES[shape]
    return DecoderConfig(
        vocab_size,
        num_layers,
        embed_dim,
        num_heads,
        num_kv_heads,
        head_dim,
        mlp_dim,
        rope_theta=500000.0,
        rope_scaling=(),
        norm_eps=1e-5,
        tie_embeddings=True,
        qkv_bias=False,
        qk_norm=False,
        dtype=dtype,
        param_dtype=dtype,
        attention="auto",
        remat="none",
        unroll_layers=False,
        decode_stages=decode_stages,
        lora=LoraConfig(rank, 2.0 * rank, PROJECTIONS) if rank else LoraConfig(0, 1.0, ()),
    )


def sampler_params(config: DecoderConfig, params=None, int8: bool = False):
    """Return the sampler's copy of the parameters, as training makes it; of fresh ones if none are given."""
    reshard = make_reshard(config, meshes.make_mesh(MESH), int8)
    if params is None:
        return jax.jit(lambda: reshard(decoder.init(config, jax.random.key(0))))()
    return jax.jit(reshard)(params)


def make_prompts(config: DecoderConfig, num_prompts: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Return random prompts [B, P], all of the full width, and their lengths."""
    prompt = jax.random.randint(jax.random.key(1), (num_prompts, width), 0, config.vocab_size)
    return prompt, jnp.full(num_prompts, width, jnp.int32)


def make_start(config: DecoderConfig, group_size: int, width: int):
    """Return the jitted reading of prompts: (params, prompt, length) -> DecodeCursor."""
    return jax.jit(functools.partial(prefill.start, config, group_size=group_size, width=width))


def make_generate(config: DecoderConfig, sampling: SamplingConfig):
    """Return jitted decoding: (params, cursor, key) -> (cursor, rollouts); the cursor is donated, as in training."""
    return jax.jit(functools.partial(decode.generate, config, sampling), donate_argnums=1)


def timed(call: Callable, *args, **kwargs) -> tuple[Any, float]:
    """Return the call's value and its seconds."""
    started = now()
    value = jax.block_until_ready(call(*args, **kwargs))
    return value, now() - started


def in_turns(calls: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Call all of them, round by round, and collect what each measured; a first round compiles and is not counted."""
    results: dict[str, dict[str, list[float]]] = {name: {} for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            for what, value in call().items():
                results[name].setdefault(what, []).extend([value] if index else [])
    return results


def spread(values: list[float], scale: float = 1.0, digits: int = 3) -> str:
    """Return "median (minimum-maximum)"."""
    median, least, most = (
        f"{scale * x:#.{digits}g}".rstrip(".") for x in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({least}-{most})"


def ratio(above: list[float], below: list[float]) -> str:
    """Return the spread of the ratios of the same rounds."""
    return spread([a / b for a, b in zip(above, below)])


def tree_bytes(tree) -> int:
    """Return the bytes of all arrays of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def device_name() -> str:
    """Return what computes here, and how busy it is."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    names = [row for row in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("model name")]
    return f"{names[0].partition(': ')[2]}, {len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}"


def measure_bandwidth(num_bytes: int, repeats: int = 10) -> float:
    """Return the best rate of reading, or of reading and writing, a large array, bytes a second."""
    x = jnp.ones(num_bytes // 4, jnp.float32)
    rates = []
    for call, touched in ((jax.jit(jnp.sum), num_bytes), (jax.jit(lambda x: x + 1.0), 2 * num_bytes)):
        jax.block_until_ready(call(x))
        rates += [touched / timed(call, x)[1] for _ in range(repeats)]
    return max(rates)


def measure_flops(dtype: str, size: int, repeats: int = 10) -> float:
    """Return the best rate of a square product on this device, operations a second."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(x, x))
    return 2.0 * size**3 / min(timed(product, x, x)[1] for _ in range(repeats))


def prompts_once(a: argparse.Namespace) -> None:
    """Read a group's prompt once, against once a rollout."""
    config = make_config(a.shape, a.dtype)
    params = sampler_params(config)
    prompt, length = make_prompts(config, a.num_prompts, a.prompt_width)
    rivals = {
        "shared": (make_start(config, a.group_size, a.max_tokens - 1), prompt, length),
        "unshared": (
            make_start(config, 1, a.max_tokens - 1),
            jnp.repeat(prompt, a.group_size, 0),
            jnp.repeat(length, a.group_size),
        ),
    }
    size, work = {}, {}

    def measure(name: str) -> dict[str, float]:
        call, prompt, length = rivals[name]
        cursor, secs = timed(call, params, prompt=prompt, prompt_length=length)
        size[name] = tree_bytes(cursor.cache)
        if name not in work:
            compiled: Any = call.lower(params, prompt=prompt, prompt_length=length).compile()
            work[name] = compiled.memory_analysis().temp_size_in_bytes
        return {"secs": secs}

    secs = in_turns({name: functools.partial(measure, name) for name in rivals}, a.rounds)
    print(
        f"{a.num_prompts} prompts of {a.prompt_width} tokens, {a.group_size} rollouts each, room for {a.max_tokens}\n"
    )
    print("| prompts | s (min-max) | cache MB | working memory MB |\n|---|---|---|---|")
    for name in rivals:
        print(f"| {name} | {spread(secs[name]['secs'])} | {size[name] / 1e6:.0f} | {work[name] / 1e6:.0f} |")
    faster = ratio(secs["unshared"]["secs"], secs["shared"]["secs"])
    print(
        f"| unshared / shared | {faster} | {size['unshared'] / size['shared']:.2f} | {work['unshared'] / work['shared']:.2f} |"
    )


def bytes_a_step(config: DecoderConfig, params, num_prompts: int, group_size: int, prompt_width: int, own: float):
    """Return the bytes that a step of decoding must read at least: parameters, and filled slots of the cache.

    A tied embedding is read whole, as the head. Each of G rollouts has ``own`` tokens of its own, the group one prompt.
    """
    slot = 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(config.dtype).itemsize
    return tree_bytes(params), num_prompts * (prompt_width + group_size * own) * slot


def bound(a: argparse.Namespace) -> None:
    """Decode against what the measured bandwidth, and the measured rate of a product, allow."""
    config = make_config(a.shape, a.dtype)
    params = sampler_params(config)
    one_copy = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))  # the sampler's may hold the head twice
    start = {}
    batches = [(1, 1), (1, a.group_size), (a.num_prompts, a.group_size)]
    generate = make_generate(config, SamplingConfig(a.max_tokens, (), 1.0))

    def measure(num_prompts: int, group_size: int) -> dict[str, float]:
        if group_size not in start:
            start[group_size] = make_start(config, group_size, a.max_tokens - 1)
        prompt, length = make_prompts(config, num_prompts, a.prompt_width)
        cursor = jax.block_until_ready(start[group_size](params, prompt=prompt, prompt_length=length))
        return {
            "step": timed(generate, params, cursor, jax.random.key(2))[1] / a.max_tokens,
            "bandwidth": measure_bandwidth(a.bandwidth_bytes),
            "flops": measure_flops(a.dtype, a.product_size),
        }

    results = in_turns({str(batch): functools.partial(measure, *batch) for batch in batches}, a.rounds)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(one_copy))
    everything = lambda what: max(max(result[what]) for result in results.values())
    bandwidth, flops = everything("bandwidth"), everything("flops")
    print(
        f"{num_params / 1e9:.2f}B parameters in {a.dtype}, prompts of {a.prompt_width} tokens, {a.max_tokens} new ones;"
    )
    print(f"measured {bandwidth / 1e9:.1f} GB/s, {flops / 1e9:.0f} GFLOP/s in a product of {a.product_size}²\n")
    print(
        "| rows | ms a step (min-max) | parameters MB | cache MB | share of bandwidth bound | share of product bound |"
    )
    print("|---|---|---|---|---|---|")
    for (num_prompts, group_size), result in zip(batches, results.values()):
        own = (a.max_tokens - 1) / 2
        weights, cache = bytes_a_step(config, one_copy, num_prompts, group_size, a.prompt_width, own)
        step = statistics.median(result["step"])
        by_bytes = (weights + cache) / bandwidth / step
        by_flops = 2.0 * num_params * num_prompts * group_size / flops / step
        print(
            f"| {num_prompts} x {group_size} | {spread(result['step'], 1e3)} | {weights / 1e6:.0f} | {cache / 1e6:.0f} "
            f"| {by_bytes:.0%} | {by_flops:.0%} |"
        )


def stages(a: argparse.Namespace) -> None:
    """Decode long responses, reading all own slots at each step, or those of the stage that the step falls into."""
    counts = (1, 2, 4, 8)
    params = sampler_params(make_config(a.shape, a.dtype))
    prompt, length = make_prompts(make_config(a.shape, a.dtype), a.num_prompts, a.prompt_width)
    start = make_start(make_config(a.shape, a.dtype), a.group_size, a.max_tokens - 1)
    sampling = SamplingConfig(a.max_tokens, (), 1.0)
    generate = {n: make_generate(make_config(a.shape, a.dtype, decode_stages=n), sampling) for n in counts}
    first = {}

    def measure(n: int) -> dict[str, float]:
        cursor = jax.block_until_ready(start(params, prompt=prompt, prompt_length=length))
        secs = timed(generate[n], params, cursor, jax.random.key(2))[1]
        first.setdefault(n, secs)
        return {"step": secs / a.max_tokens}

    results = in_turns({str(n): functools.partial(measure, n) for n in counts}, a.rounds)
    rows = f"{a.num_prompts} prompts of {a.prompt_width} tokens x {a.group_size} rollouts of {a.max_tokens}"
    print(
        f"{rows}, {a.dtype}\n\n| stages | own slots read a step | ms a step (min-max) | times as fast | first call s |"
    )
    print("|---|---|---|---|---|")
    for n in counts:
        step = results[str(n)]["step"]
        read = f"{(n + 1) / (2 * n):.0%}"
        print(f"| {n} | {read} | {spread(step, 1e3)} | {ratio(results['1']['step'], step)} | {first[n]:.1f} |")


def int8(a: argparse.Namespace) -> None:
    """Decode with the kernels of the layers as they are, and in int8."""
    config = make_config(a.shape, a.dtype)
    copies = {a.dtype: sampler_params(config), "int8": sampler_params(config, int8=True)}
    prompt, length = make_prompts(config, a.num_prompts, a.prompt_width)
    start = make_start(config, a.group_size, a.max_tokens - 1)
    generate = make_generate(config, SamplingConfig(a.max_tokens, (), 1.0))

    def measure(name: str) -> dict[str, float]:
        cursor = jax.block_until_ready(start(copies[name], prompt=prompt, prompt_length=length))
        return {"step": timed(generate, copies[name], cursor, jax.random.key(2))[1] / a.max_tokens}

    results = in_turns({name: functools.partial(measure, name) for name in copies}, a.rounds)
    print(f"{a.num_prompts} prompts of {a.prompt_width} tokens x {a.group_size} rollouts of {a.max_tokens}\n")
    print("| kernels | copy MB | ms a step (min-max) | times as fast |\n|---|---|---|---|")
    for name, copy in copies.items():
        step = results[name]["step"]
        print(
            f"| {name} | {tree_bytes(copy) / 1e6:.0f} | {spread(step, 1e3)} | {ratio(results[a.dtype]['step'], step)} |"
        )


def merge_all(config: DecoderConfig, params):
    """Return parameters with the adapters of all layers merged into kernels of the same dtype."""

    def merge(node):
        if not isinstance(node, dict):
            return node
        if "lora_a" not in node:
            return {name: merge(value) for name, value in node.items()}
        kernel = decoder.merge(node["kernel"], node["lora_a"], node["lora_b"], config.lora.scale)
        return node | {"kernel": kernel.astype(node["kernel"].dtype)}

    return decoder.split_adapters(merge(params))[1]


def lora(a: argparse.Namespace) -> None:
    """Decode with adapters merged into the kernels, and with adapters beside them, in bfloat16 and in int8."""
    merged, apart = make_config(a.shape, a.dtype), make_config(a.shape, a.dtype, rank=a.rank)
    params = jax.jit(lambda: decoder.init(apart, jax.random.key(0)))()
    plain = jax.jit(functools.partial(merge_all, apart))(params)
    rivals = {
        f"{a.dtype}, merged": (merged, sampler_params(merged, plain)),
        f"{a.dtype}, apart": (apart, sampler_params(apart, params)),
        "int8, merged": (merged, sampler_params(merged, plain, int8=True)),
        "int8, apart": (apart, sampler_params(apart, params, int8=True)),
    }
    prompt, length = make_prompts(merged, a.num_prompts, a.prompt_width)
    sampling = SamplingConfig(a.max_tokens, (), 1.0)
    calls = {
        config: (make_start(config, a.group_size, a.max_tokens - 1), make_generate(config, sampling))
        for config in (merged, apart)
    }

    def measure(name: str) -> dict[str, float]:
        config, copy = rivals[name]
        start, generate = calls[config]
        cursor, read = timed(start, copy, prompt=prompt, prompt_length=length)
        return {"read": read, "step": timed(generate, copy, cursor, jax.random.key(2))[1] / a.max_tokens}

    results = in_turns({name: functools.partial(measure, name) for name in rivals}, a.rounds)
    rows = f"{a.num_prompts} prompts of {a.prompt_width} tokens x {a.group_size} rollouts of {a.max_tokens}"
    print(f"{rows}, rank {a.rank}\n")
    print("| sampler's copy | MB | prompts s | ms a step (min-max) | ms over merged |\n|---|---|---|---|---|")
    for name, (_, copy) in rivals.items():
        result, against = results[name], results[f"{name.partition(',')[0]}, merged"]
        cost = ratio(result["step"], against["step"])
        print(
            f"| {name} | {tree_bytes(copy) / 1e6:.0f} | {spread(result['read'])} | {spread(result['step'], 1e3)} | {cost} |"
        )


def update(a: argparse.Namespace) -> None:
    """Train adapters for some steps of AdamW; how much of what float32 has learnt do others see of it, in log-probs?

    The share is the slope of a regression of the change that a form of the policy shows on the change in float32.
    """
    exact = make_config(a.shape, "float32", rank=a.rank)
    rounded = make_config(a.shape, "bfloat16", rank=a.rank)
    plain = make_config(a.shape, "bfloat16")
    init = jax.jit(lambda: decoder.cast(decoder.init(exact, jax.random.key(0)), "bfloat16"))()
    adapters, frozen = decoder.split_adapters(init)
    prompt, length = make_prompts(exact, a.num_prompts, a.prompt_width)
    tokens = jax.random.randint(jax.random.key(3), (a.num_prompts, a.group_size, a.max_tokens), 0, exact.vocab_size)
    advantage = jax.random.normal(jax.random.key(4), tokens.shape[:2])

    def logp(config, params):
        return sampler.logprobs(config, 1.0, 8, decoder.cast(params, config.dtype), prompt, length, tokens)[0]

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(a.learning_rate))

    @jax.jit
    def step(adapters, state):
        loss = lambda adapters: -(logp(rounded, decoder.join(adapters, frozen)).mean(-1) * advantage).mean()
        updates, state = optimizer.update(jax.grad(loss)(adapters), state, adapters)
        return optax.apply_updates(adapters, updates), state

    whole = jax.jit(lambda params: logp(exact, jax.tree.map(lambda x: x.astype(jnp.float32), params)))
    forms = {
        "adapters apart, bfloat16": jax.jit(lambda params: logp(rounded, params)),
        "merged into bfloat16": jax.jit(lambda params: logp(plain, merge_all(exact, params))),
    }
    before = {name: form(init) for name, form in forms.items()} | {"": whole(init)}
    kernel = lambda params, name: params["blocks"]["mlp"]["up"][name]
    state = optimizer.init(adapters)
    print(f"rank {a.rank}, AdamW at {a.learning_rate}, {tokens.size} tokens\n")
    print("| steps | change of log-probs, rms nats | weights merged into bfloat16 | " + " | ".join(forms) + " |")
    print("|---|---|---|---|---|")
    for count in range(1, max(a.steps) + 1):
        adapters, state = step(adapters, state)
        if count not in a.steps:
            continue
        params = decoder.join(adapters, frozen)
        learnt = kernel(params, "lora_a") @ kernel(params, "lora_b") * exact.lora.scale
        kept = kernel(merge_all(exact, params), "kernel").astype(jnp.float32) - kernel(params, "kernel").astype(
            jnp.float32
        )
        true = whole(params) - before[""]
        share = lambda change, true: f"{float((change * true).sum() / (true * true).sum()):.0%}"
        shares = [share(form(params) - before[name], true) for name, form in forms.items()]
        rms = float(jnp.sqrt((true**2).mean()))
        print(f"| {count} | {rms:.2g} | {share(kept, learnt)} | " + " | ".join(shares) + " |")


def skew(a: argparse.Namespace) -> None:
    """Stop rows with a fixed probability a step, and count what the longest row costs."""
    config = make_config(a.shape, a.dtype)
    params = sampler_params(config)
    num_stops = max(round(config.vocab_size / a.mean_length), 1)
    flat = 1e6  # at this temperature all tokens are equally likely, so each of the stop tokens ends a row
    width = a.max_tokens - 1
    start = make_start(config, a.group_size, width)

    def read(num_prompts: int):
        prompt, length = make_prompts(config, num_prompts, a.prompt_width)
        return jax.block_until_ready(start(params, prompt=prompt, prompt_length=length))

    stopping = make_generate(config, SamplingConfig(a.max_tokens, tuple(range(num_stops)), flat))
    _, rollouts = stopping(params, read(a.num_prompts), jax.random.key(2))
    length = np.asarray(rollouts.mask.sum(-1)).ravel()
    mean, longest = max(round(length.mean()), 1), int(length.max())
    # the same steps and fewer rows, for the price of a step at a part of the batch
    parts = [a.num_prompts >> i for i in range(a.num_prompts.bit_length())]
    plain = make_generate(config, SamplingConfig(mean, (), flat))

    def measure(generate, num_prompts: int) -> dict[str, float]:
        return {"secs": timed(generate, params, read(num_prompts), jax.random.key(2))[1]}

    def in_slots(num_slots: int) -> dict[str, float]:
        prompt, length = make_prompts(config, a.num_prompts, a.prompt_width)
        return {"secs": timed(whole[num_slots], params, prompt, length, jax.random.key(2))[1]}

    settings = SamplingConfig(a.max_tokens, tuple(range(num_stops)), flat)
    counts = [a.group_size, *(n for n in (a.group_size // 2, a.group_size // 4) if n)]
    whole = {n: jax.jit(functools.partial(sampler.sample, config, settings, a.group_size, num_slots=n)) for n in counts}
    calls = {"skewed": functools.partial(measure, stopping, a.num_prompts)}
    calls |= {f"slots {n}": functools.partial(in_slots, n) for n in counts}
    calls |= {f"even {part}": functools.partial(measure, plain, part) for part in parts}
    results = in_turns(calls, a.rounds)
    even, skewed = results[f"even {a.num_prompts}"]["secs"], results["skewed"]["secs"]
    step = {part * a.group_size: statistics.median(results[f"even {part}"]["secs"]) / mean for part in parts}

    alive = np.array([(length > t).sum() for t in range(longest)])
    rows = a.num_prompts * a.group_size
    halving = sum(min(cost for size, cost in step.items() if size >= min(n, rows)) for n in alive)
    full = step[rows] * longest
    print(
        f"{rows} rows, lengths: mean {length.mean():.0f}, median {np.median(length):.0f}, longest {longest} of {a.max_tokens}\n"
    )
    print("| what | value |\n|---|---|")
    print(f"| row-steps of rows that have ended | {1 - length.sum() / (rows * longest):.0%} |")
    print(f"| s, and s if all rows had the mean length | {spread(skewed)}, {spread(even)} |")
    print(f"| skewed / even | {ratio(skewed, even)} |")
    print(f"| ms a step by rows | {', '.join(f'{n}: {1e3 * cost:.1f}' for n, cost in step.items())} |")
    print(f"| halving the batch as rows end, its copies free | {full / halving:.2f} times as fast |")
    for n in counts[1:]:
        saved = ratio(results[f"slots {a.group_size}"]["secs"], results[f"slots {n}"]["secs"])
        print(f"| {n} slots a prompt, refilled (measured, prompts read, too) | {saved} times as fast |")
    print(f"| refilling slots at once, prefill free | {full / (step[rows] * length.sum() / rows):.2f} times as fast |")


def peak_memory(call: Callable[[], Any]) -> int:
    """Return by how many bytes this process grew at most during the call (Linux with glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is freed and still held would hide growth
    read = lambda field: next(
        int(row.split()[1]) * 1024
        for row in pathlib.Path("/proc/self/status").read_text().splitlines()
        if row.startswith(field)
    )
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = read("VmRSS:")
    kept = jax.block_until_ready(call())
    del kept
    return read("VmHWM:") - before


def load(a: argparse.Namespace) -> None:
    """Load a checkpoint of several files in a process of its own, and see how far it grows."""
    from exit_jax.policy.hf.export import export
    from exit_jax.policy.hf.load import load as read

    config = make_config(a.shape, a.dtype)
    shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    if a.folder:
        where = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
        jax.block_until_ready(jnp.ones(1))  # what JAX itself takes is no part of it
        started = now()
        print(peak_memory(lambda: read(a.folder, config, where)), now() - started)
        return
    size = tree_bytes(shapes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "checkpoint"
        export(jax.jit(lambda: decoder.init(config, jax.random.key(0)))(), config, folder, None, a.dtype, size // 3)
        command = [sys.executable, __file__, "load", "--shape", a.shape, "--dtype", a.dtype, "--folder", str(folder)]
        run = functools.partial(subprocess.run, command, text=True, stdout=subprocess.PIPE, check=True)
        rounds = [run().stdout.split() for _ in range(a.rounds)]
    peaks, secs = ([float(row[i]) for row in rounds] for i in range(2))
    largest = max(tree_bytes(leaf) for leaf in jax.tree.leaves(shapes))
    print("| model MB | largest parameter MB | peak host MB | peak / model | s |\n|---|---|---|---|---|")
    print(
        f"| {size / 1e6:.0f} | {largest / 1e6:.0f} | {spread(peaks, 1e-6)} | {spread(peaks, 1 / size)} | {spread(secs)} |"
    )


def turns(a: argparse.Namespace) -> None:
    """Read what is new at each turn of an episode over one cache, against reading the whole transcript again."""
    config = make_config(a.shape, a.dtype)
    params, num_turns, step = sampler_params(config), a.num_turns, a.max_tokens
    prompt, length = make_prompts(config, a.num_prompts, a.prompt_width)
    start = make_start(config, a.group_size, (num_turns - 1) * (step + 1))
    extend = jax.jit(functools.partial(prefill.extend, config), donate_argnums=1)
    read = jax.jit(functools.partial(prefill.start, config, group_size=1, width=1))
    shape = (a.num_prompts, a.group_size, step)
    seen, count = jnp.ones(shape, jnp.int32), jnp.full(shape[:2], step)
    rows = a.num_prompts * a.group_size
    work = {"cache extended": 0, "read again": 0}

    def extended() -> dict[str, float]:
        cursor, secs = timed(start, params, prompt=prompt, prompt_length=length)
        work["cache extended"] = prompt.size + (num_turns - 1) * rows * (step + 1)
        for _ in range(num_turns - 1):
            cursor, more = timed(extend, params, cursor, seen, count)
            secs += more
        return {"secs": secs}

    def again() -> dict[str, float]:
        secs = timed(read, params, prompt=prompt, prompt_length=length)[1]
        work["read again"] = prompt.size
        for turn in range(1, num_turns):
            whole = jnp.repeat(jnp.pad(prompt, ((0, 0), (0, turn * step))), a.group_size, axis=0)
            work["read again"] += whole.size
            secs += timed(read, params, prompt=whole, prompt_length=jnp.full(rows, whole.shape[1]))[1]
        return {"secs": secs}

    results = in_turns({"cache extended": extended, "read again": again}, a.rounds)
    print(f"{num_turns} turns of {step} tokens behind prompts of {a.prompt_width}; the tokens of turns all given\n")
    print("| what | tokens read | s | seconds over those of the cache |\n|---|---|---|---|")
    for name, measured in results.items():
        best = results["cache extended"]["secs"]
        print(f"| {name} | {work[name]:,} | {spread(measured['secs'])} | {ratio(measured['secs'], best)} |")


COMMANDS = {
    "prefill": prompts_once,
    "bound": bound,
    "stages": stages,
    "int8": int8,
    "lora": lora,
    "update": update,
    "skew": skew,
    "load": load,
    "turns": turns,
}
SMALL = {
    "shape": "tiny",
    "num_prompts": 2,
    "group_size": 2,
    "prompt_width": 8,
    "max_tokens": 8,
    "mean_length": 3,
    "num_turns": 3,
    "rank": 2,
    "steps": (1, 2),
    "rounds": 1,
}
SMALL |= {"bandwidth_bytes": 1 << 20, "product_size": 64, "num_threads": 1}


def parse(commands: dict[str, Callable], description: str) -> argparse.Namespace:
    """Return the arguments of a benchmark; ``--small`` sets those of the smoke test, which others may follow."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--shape", choices=SHAPES, default="0.1b")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--num_prompts", type=int, default=8)
    parser.add_argument("--group_size", type=int, default=8)
    parser.add_argument("--prompt_width", type=int, default=512)
    parser.add_argument("--max_tokens", type=int, default=128)
    parser.add_argument("--mean_length", type=int, default=32, help="of skewed responses")
    parser.add_argument(
        "--rank", type=int, default=32, help="of adapters on all projections, whose alpha is twice that"
    )
    parser.add_argument("--learning_rate", type=float, default=2e-5, help="of adapters")
    parser.add_argument("--steps", type=int, nargs="*", default=(1, 5, 20), help="of training adapters")
    parser.add_argument("--num_turns", type=int, default=10, help="of an episode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--bandwidth_bytes", type=int, default=1 << 28, help="of the array that is read; beyond any cache"
    )
    parser.add_argument("--product_size", type=int, default=2048)
    parser.add_argument("--cpu_time", action="store_true", help="measure seconds of the CPU and not of the wall")
    parser.add_argument("--num_threads", type=int, default=2, help="of torch")
    parser.add_argument("--peers", nargs="*", help="of torch's variants; without, a short run chooses the best")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    if "--small" in sys.argv:
        parser.set_defaults(**SMALL)
    return parser.parse_args()


def main() -> None:
    """Print the table of one command."""
    a = parse(COMMANDS, "speed and memory of the sampler")
    if not a.folder:
        print(f"{a.command}: {device_name()}\n")
    COMMANDS[a.command](a)


if __name__ == "__main__":
    main()
