"""What one accelerator does, in eight minutes: decoding, prefill, learner, copying, whole iterations, beside torch's rivals.

    pip install -e ".[cuda,parity]" && python benchmarks/gpu.py --out gpu.json

One machine, no network, random weights of the shapes of Qwen2.5-0.5B and -1.5B and of Llama-3.2-3B in bfloat16. Sections run
from the cheapest on, each measured several times after its compilation; one for which no time is left, or that fails, says so
and costs nothing else. Shares are of the bandwidth and of the rate of a square product measured here, not of a data sheet.
Rivals: ``generate`` of transformers, TRL's GRPOTrainer on the same amount of work (trl_step.py says what is equal), and vLLM
where it is installed. Memory is what XLA planned for a program beside the most that the device held, which only grows.
``--small`` is for the smoke test on a CPU, and its figures mean nothing.
"""

import argparse
import dataclasses
import functools
import gc
import importlib
import importlib.util
import json
import pathlib
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from policy import (
    bytes_a_step,
    device_name,
    make_config,
    make_generate,
    make_prompts,
    make_start,
    measure_bandwidth,
    measure_flops,
    sampler_params,
    timed,
    tree_bytes,
)

from exit_jax.algorithm import grpo
from exit_jax.algorithm.prompts import pack, piece
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.config import default, variants
from exit_jax.config.parse import validate
from exit_jax.config.schema import Config
from exit_jax.domains.domain import Domain
from exit_jax.policy import costs, decoder, sampler
from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.shape import DecoderConfig
from exit_jax.settings import setting
from exit_jax.step.device import Constants
from exit_jax.step.program import make_program
from exit_jax.training import train
from exit_jax.types import Grades, History, Instances, Rollouts, make_history

Row = dict[str, Any]
REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Work:
    """How much is done."""

    shapes: tuple[str, ...] = ("0.5b", "1.5b", "3b")
    dtype: str = "bfloat16"
    num_prompts: int = 8
    group_size: int = 8
    prompt_width: int = 512
    max_tokens: int = 256
    num_microbatches: int = 2
    token_chunk: int = 128
    bandwidth_bytes: int = 1 << 32
    product_size: int = 8192


SMALL = Work(("tiny",), "float32", 2, 2, 16, 8, 1, 4, 1 << 20, 128)


def seconds(call: Callable, *args) -> float:
    """Return the median seconds of a call after one that compiles it."""
    timed(call, *args)
    return statistics.median(timed(call, *args)[1] for _ in range(REPEATS))


def peaks(work: Work) -> tuple[float, float]:
    """Return bytes and operations a second that this device reaches."""
    return measure_bandwidth(work.bandwidth_bytes), measure_flops(work.dtype, work.product_size)


# Sections: (work, shape, measured bandwidth, measured rate) -> rows


def decode(work: Work, shape: str, bandwidth: float, flops: float) -> Iterator[Row]:
    """Prefill, and decoding of one group and of all, against what bandwidth and products allow."""
    config = make_config(shape, work.dtype)
    params = sampler_params(config)
    one_copy = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    start = make_start(config, work.group_size, work.max_tokens - 1)
    generate = make_generate(config, SamplingConfig(work.max_tokens, (), 1.0))
    for num_prompts in (1, work.num_prompts):
        prompt, length = make_prompts(config, num_prompts, work.prompt_width)
        read = functools.partial(start, params, prompt=prompt, prompt_length=length)
        prefill = seconds(read)
        secs = []
        for index in range(REPEATS + 1):  # the cursor is given away
            cursor = jax.block_until_ready(read())
            secs += [timed(generate, params, cursor, jax.random.key(index))[1]] if index else []
            if not index:
                jax.block_until_ready(generate(params, cursor, jax.random.key(index)))
        step = statistics.median(secs) / work.max_tokens
        own = (work.max_tokens - 1) / 2
        moved = sum(bytes_a_step(config, one_copy, num_prompts, work.group_size, work.prompt_width, own))
        rows = num_prompts * work.group_size
        work_done = costs.prefill_flops(config, num_prompts, work.prompt_width)
        yield {
            "rows": rows,
            "ms a step": 1e3 * step,
            "tokens/s": rows / step,
            "share of bandwidth": moved / bandwidth / step,
            "prefill tokens/s": num_prompts * work.prompt_width / prefill,
            "prefill, share of product rate": work_done / flops / prefill,
        }


def learn(work: Work, shape: str, bandwidth: float, flops: float) -> Iterator[Row]:
    """One update of the learner by AdamW: its share of the product rate (MFU), and memory planned and seen."""
    config = dataclasses.replace(make_config(shape, work.dtype), remat="layer")
    params = jax.jit(lambda: decoder.init(config, jax.random.key(0)))()
    optimizer, algorithm = optax.adamw(1e-6), ExItConfig(kl_coef=0.0, zero_variance="keep")
    shape_BGT = work.num_prompts, work.group_size, work.max_tokens
    rng = np.random.default_rng(0)
    prompt, length = make_prompts(config, work.num_prompts, work.prompt_width)
    logp = jnp.full(shape_BGT, -np.log(config.vocab_size), jnp.float32)
    tokens = jnp.asarray(rng.integers(config.vocab_size, size=shape_BGT), jnp.int32)
    nothing: Any = None
    rollouts = Rollouts(tokens, jnp.ones(shape_BGT, bool), logp, logp, jnp.ones(shape_BGT[:2], bool), nothing)
    instances = Instances(nothing, nothing, nothing, nothing, prompt, length)
    advantage = jnp.asarray(rng.normal(size=shape_BGT[:2]), jnp.float32)
    logprobs = functools.partial(sampler.logprobs, config, 1.0, work.token_chunk)

    def update(params, opt_state):
        return grpo.update(
            algorithm,
            logprobs,
            optimizer,
            num_microbatches=work.num_microbatches,
            max_tokens=work.max_tokens,
            params=params,
            reference=None,
            opt_state=opt_state,
            instances=instances,
            rollouts=rollouts,
            advantage=advantage,
        )[:2]

    state = params, jax.jit(optimizer.init)(params)
    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*state).compile()
    planned: Any = compiled.memory_analysis()
    state = jax.block_until_ready(compiled(*state))
    secs = []
    for _ in range(REPEATS):
        state, took = timed(compiled, *state)
        secs.append(took)
    sizes = work.num_prompts, work.group_size, work.prompt_width, work.max_tokens
    asked = costs.forward_flops(config, *sizes) + costs.backward_flops(config, *sizes)
    step = statistics.median(secs)
    held = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    yield {
        "s an update": step,
        "MFU": asked / flops / step,
        "tokens learnt/s": np.prod(shape_BGT) / step,
        "planned GB": (planned.argument_size_in_bytes + planned.temp_size_in_bytes) / 1e9,
        "most held so far GB": held / 1e9,
    }


def copy(work: Work, shape: str, bandwidth: float, flops: float) -> Iterator[Row]:
    """The sampler's copy of the learner's float32 parameters."""
    learner = dataclasses.replace(make_config(shape, work.dtype), param_dtype="float32")
    params = jax.jit(lambda: decoder.init(learner, jax.random.key(0)))()
    secs = seconds(functools.partial(sampler_params, learner), params)
    yield {"float32 GB": tree_bytes(params) / 1e9, "ms": 1e3 * secs, "GB/s read": tree_bytes(params) / 1e9 / secs}


def iteration(work: Work, shape: str, bandwidth: float, flops: float) -> Iterator[Row]:
    """One whole iteration, sampling, grading, learning and buffer in one program."""
    config = run_config(work, shape)
    program = make_program(config)
    constants = Constants(train.base_tasks(config, "train"), None)
    state = program.init(program.init_params(0), 0)
    secs = []
    for index in range(REPEATS + 1):
        (state, _), took = timed(program.train, constants, state)
        secs += [took] if index else []
    step = statistics.median(secs)
    rollouts = work.num_prompts * work.group_size
    yield {"s an iteration": step, "rollouts/s": rollouts / step, "tokens/s": rollouts * work.max_tokens / step}


def trl(work: Work, shape: str, bandwidth: float, flops: float) -> Iterator[Row]:
    """One step of TRL's GRPOTrainer on the same amount of work, by ``generate`` of transformers."""
    from trl_step import make_theirs

    on_cpu = jax.default_backend() == "cpu"
    changes = {"use_cpu": on_cpu, "bf16": not on_cpu, "per_device_train_batch_size": work.num_prompts * work.group_size}
    if work.num_microbatches > 1:
        changes["per_device_train_batch_size"] //= work.num_microbatches
        changes |= {"gradient_accumulation_steps": work.num_microbatches, "gradient_checkpointing": True}
    with tempfile.TemporaryDirectory() as folder:
        measure = make_theirs(run_config(work, shape), "sdpa", pathlib.Path(folder), work.dtype, **changes)
        step = measure()["secs"]
    rollouts = work.num_prompts * work.group_size
    yield {"s a step": step, "rollouts/s": rollouts / step, "tokens/s, at most": rollouts * work.max_tokens / step}


def transformers(work: Work, shape: str, bandwidth: float, flops: float) -> Iterator[Row]:
    """``generate`` of transformers with its static cache, prompts read once a row."""
    import torch
    from trl_step import make_llama

    config = make_config(shape, work.dtype)
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    llama: Any = make_llama(config, None, work.dtype)
    model = llama.to(device).eval()
    prompt = np.asarray(make_prompts(config, work.num_prompts, work.prompt_width)[0])
    rows = torch.tensor(prompt, device=device).repeat_interleave(work.group_size, 0)

    @torch.inference_mode()
    def sample(count: int) -> float:
        started = time.perf_counter()
        mask = torch.ones_like(rows)
        given = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        out = model.generate(rows, attention_mask=mask, max_new_tokens=count, cache_implementation="static", **given)
        assert out.cpu().shape[1] == work.prompt_width + count
        return time.perf_counter() - started

    sample(work.max_tokens)
    both = statistics.median(sample(work.max_tokens) for _ in range(REPEATS))
    first = statistics.median(sample(1) for _ in range(REPEATS))
    step = (both - first) / (work.max_tokens - 1)
    yield {"rows": len(rows), "ms a step": 1e3 * step, "tokens/s": len(rows) / step, "prefill and one token s": first}


def vllm(work: Work, shape: str, bandwidth: float, flops: float) -> Iterator[Row]:
    """The engine of vLLM on the same prompts, where it is installed."""
    if importlib.util.find_spec("vllm") is None:
        yield {"note": "not installed"}
        return
    from trl_step import make_llama

    engines = importlib.import_module("vllm")
    config = make_config(shape, work.dtype)
    prompt = np.asarray(make_prompts(config, work.num_prompts, work.prompt_width)[0])
    with tempfile.TemporaryDirectory() as folder:
        make_llama(config, None, work.dtype).save_pretrained(folder)
        room = work.prompt_width + work.max_tokens
        engine = engines.LLM(
            folder, skip_tokenizer_init=True, dtype=work.dtype, max_model_len=room, gpu_memory_utilization=0.3
        )
        wanted = engines.SamplingParams(
            n=work.group_size, max_tokens=work.max_tokens, ignore_eos=True, detokenize=False
        )
        given = [{"prompt_token_ids": row.tolist()} for row in prompt]
        secs = []
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            engine.generate(given, wanted, use_tqdm=False)
            secs.append(time.perf_counter() - started)
    rows = work.num_prompts * work.group_size
    yield {"rows": rows, "tokens/s, prefill included": rows * work.max_tokens / statistics.median(secs[1:])}


# A domain of random tokens, for whole iterations


@dataclasses.dataclass(frozen=True)
class RandomConfig:
    """Widths, and how many tasks."""

    on_host: ClassVar = False
    vocab_size: int = setting(256, "tokens")
    num_tasks: int = setting(512, "base tasks")
    prompt_width: int = setting(512, "tokens of a prompt, all of them the task's")
    max_tokens: int = setting(256, "tokens of a response")


def make_domain(config: RandomConfig) -> Domain:
    """Build a domain whose responses are the better the more of their tokens are even; graded on the device."""
    width = config.prompt_width + config.max_tokens

    def tasks(split: str) -> History:
        rng = np.random.default_rng(len(split))
        tokens = np.zeros((config.num_tasks, width), np.int32)
        tokens[:, : config.prompt_width] = rng.integers(2, config.vocab_size, (config.num_tasks, config.prompt_width))
        lengths = np.tile(np.array([0, config.prompt_width, 0, 0], np.int32), (config.num_tasks, 1))
        return make_history(tokens, lengths, np.arange(config.num_tasks, dtype=np.int32))

    def grade(instances: Instances, rollouts: Rollouts) -> Grades:
        count = jnp.maximum(rollouts.mask.sum(-1), 1)
        quality = jnp.where(rollouts.mask, rollouts.tokens % 2 == 0, False).sum(-1) / count
        shape = (*quality.shape, 1)
        held = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[:, None, None], (*shape, *leaf.shape[1:])), instances.history
        )
        solution = rollouts.tokens[:, :, None], rollouts.mask.sum(-1)[..., None]
        tokens, lengths = pack({"request": piece(held, "request", config.prompt_width), "solution": solution}, width)
        children = make_history(tokens, lengths, held.task, held.turn, held.step + 1, quality[..., None])
        valid = jnp.ones_like(quality, bool)
        return Grades(quality, valid, quality[..., None], children, valid[..., None], {})

    return Domain(
        name="random",
        vocab_size=config.vocab_size,
        history_width=width,
        prompt_width=config.prompt_width,
        max_tokens=config.max_tokens,
        stop_tokens=(1,),
        templates=dict.fromkeys(("base", "improve", "diverge"), ("request",)),
        tasks=tasks,
        grade=grade,
        describe=lambda history: [""] * history.task.shape[0],
        on_host=False,
    )


def run_config(work: Work, shape: str) -> Config:
    """Return the config of a run of GRPO on random tokens."""
    c = default(f"{pathlib.Path(__file__).resolve()}:make_domain", name="gpu", seed=0)
    decoder_shape: DecoderConfig = make_config(shape, work.dtype)
    d, p, a = c.domain, c.policy, c.algorithm
    d.vocab_size, d.prompt_width, d.max_tokens = decoder_shape.vocab_size, work.prompt_width, work.max_tokens
    for name in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "tie_embeddings"):
        p[name] = getattr(decoder_shape, name)
    p.dtype = p.param_dtype = work.dtype
    p.remat = "layer"
    a.num_prompts, a.group_size, a.buffer_size, a.min_buffer_size = work.num_prompts, work.group_size, 512, 64
    a.kl_coef, a.diversity_embedding, a.zero_variance = 0.0, "grades", "keep"
    c.warm_start.num_steps = 0
    c.optimizer.learning_rate = 1e-6
    c.run.num_microbatches, c.run.token_chunk, c.run.mesh.data = work.num_microbatches, work.token_chunk, 1
    variants.apply(c, "grpo")
    return validate(c, 1)


SECTIONS = {
    "decode": decode,
    "learn": learn,
    "copy": copy,
    "iteration": iteration,
    "transformers": transformers,
    "trl": trl,
    "vllm": vllm,
}


def show(name: str, rows: list[Row]) -> None:
    """Print a section's table."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    print(f"\n{name}\n\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print(
            "| "
            + " | ".join(f"{v:.3g}" if isinstance(v := row.get(key, ""), float) else str(v) for key in names)
            + " |"
        )


def main() -> None:
    """Run the sections while there is time, print their tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=460.0, help="seconds after which no section begins")
    parser.add_argument("--out", type=pathlib.Path, help="file for the figures, as JSON, after each section")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--small", action="store_true", help="sizes that measure nothing")
    a = parser.parse_args()
    work, started = SMALL if a.small else Work(), time.monotonic()
    bandwidth, flops = peaks(work)
    found: dict[str, Any] = {
        "device": device_name(),
        "jax": jax.__version__,
        "GB/s": bandwidth / 1e9,
        "TFLOP/s": flops / 1e12,
    }
    print(f"{found['device']}: measured {found['GB/s']:.0f} GB/s and {found['TFLOP/s']:.1f} TFLOP/s in {work.dtype}")
    for name in a.sections:
        rows: list[Row] = []
        for shape in work.shapes:
            if time.monotonic() - started > a.budget:
                rows.append({"shape": shape, "note": "no time left"})
                continue
            try:
                rows += [{"shape": shape} | row for row in SECTIONS[name](work, shape, bandwidth, flops)]
            except Exception as error:  # a rival that is missing, or a device that is too small, costs its section
                traceback.print_exc()
                rows.append({"shape": shape, "note": f"failed: {error!r:.80}"})
            gc.collect()
        show(name, rows)
        found[name] = rows
        if a.out:
            a.out.write_text(json.dumps(found, indent=1))
    print(f"\n{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
