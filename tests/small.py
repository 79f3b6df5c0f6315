"""A decoder small enough to be checked by hand, for all tests of the policy; and a run of the math domain that is as small."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.config.parse import validate
from exit_jax.policy import decoder
from exit_jax.policy.decoder import DecoderConfig, LoraConfig

ROOT = pathlib.Path(__file__).parents[1]
NO_LORA = LoraConfig(rank=0, alpha=1.0, targets=())
LLAMA = DecoderConfig(
    vocab_size=17,
    num_layers=2,
    embed_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=24,
    rope_theta=100.0,
    rope_scaling=(),
    norm_eps=1e-6,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    dtype="float32",
    param_dtype="float32",
    attention="auto",
    remat="none",
    unroll_layers=False,
    decode_stages=1,
    lora=NO_LORA,
)


@functools.cache
def random_params(config: DecoderConfig, seed: int = 2):
    """Return parameters of which none is zero or one, as biases and norms are at first."""
    shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.4, leaf.shape), leaf.dtype), shapes)


@functools.partial(jax.jit, static_argnums=0)
def read(config: DecoderConfig, params, tokens_BGS, start=0, cache=None, mask=None):
    """Return logits [B, G, S, V] of tokens at positions from ``start``, and the cache."""
    mask = jnp.ones(tokens_BGS.shape, bool) if mask is None else mask
    position_BGS = start + jnp.broadcast_to(jnp.arange(tokens_BGS.shape[-1]), tokens_BGS.shape)
    hidden_BGSD, cache = decoder.apply(config, params, tokens_BGS, position_BGS, mask, cache)
    return decoder.logits(config, params, hidden_BGSD), cache


TINY_MATH = {
    "domain.num_train": 64,
    "domain.max_request_tokens": 40,
    "domain.max_solution_tokens": 60,
    "domain.max_tokens": 60,
    "domain.prompt_width": 110,
    "domain.num_validation": 8,
    "domain.num_test": 8,
    "domain.num_workers": 1,
    "policy.num_layers": 1,
    "policy.embed_dim": 32,
    "policy.num_heads": 2,
    "policy.num_kv_heads": 1,
    "policy.mlp_dim": 48,
    "warm_start.num_steps": 3,
    "warm_start.num_states": 8,
    "warm_start.optimizer.warmup_steps": 1,
    "warm_start.optimizer.decay_steps": 4,
    "algorithm.num_prompts": 8,
    "algorithm.group_size": 2,
    "algorithm.buffer_size": 32,
    "algorithm.min_buffer_size": 8,
    "eval.steps": (0, 1, 2),
    "eval.samples_per_task": 1,
    "eval.batch_size": 8,
    "run.num_iterations": 4,
    "run.checkpoint_every": 2,
    "run.mesh.data": 1,
}


TINY_TOOLS = {name: value for name, value in TINY_MATH.items() if not name.startswith("domain.")} | {
    "domain.num_train": 24,
    "domain.num_validation": 4,
    "domain.num_test": 8,
    "domain.max_turns": 6,
    "domain.max_transcript_tokens": 96,
    "domain.test_max_turns": 6,
    "domain.test_max_transcript_tokens": 96,
    "run.prompt_buckets": (128,),
    "run.response_buckets": (),
}


TINY_MLE = {name: value for name, value in TINY_MATH.items() if not name.startswith("domain.")} | {
    "domain.num_workers": 2,
    "algorithm.num_prompts": 4,
    "algorithm.buffer_size": 8,
    "algorithm.min_buffer_size": 3,
    "eval.splits": ("train",),
    "eval.steps": (0, 1),
    "eval.restart_every": 0,
    "eval.batch_size": 3,
}


TINY_GYM = {name: value for name, value in TINY_MATH.items() if not name.startswith("domain.")} | {
    "domain.num_train": 24,
    "domain.num_validation": 4,
    "domain.num_test": 8,
    "domain.num_workers": 2,
    "eval.splits": ("test",),
}


def tiny_gym(data_dir: pathlib.Path, **changes):
    """Return configs/gym_cpu.py for a few iterations."""
    return _shrink("gym_cpu", TINY_GYM, data_dir, changes)


def tiny_mle(data_dir: pathlib.Path, **changes):
    """Return configs/mle_tiny.py for a few iterations, with a cache of its own."""
    return _shrink("mle_tiny", TINY_MLE, data_dir, {"domain__cache_dir": str(data_dir / "runs")} | changes)


def tiny_tools(data_dir: pathlib.Path, **changes):
    """Return configs/tools_tiny.py for a few iterations; a field is given as ``run__num_iterations``."""
    return _shrink("tools_tiny", TINY_TOOLS, data_dir, changes)


def tiny_math(data_dir: pathlib.Path, **changes):
    """Return configs/arithmetic_cpu.py for a few iterations of a second each; a field is given as ``run__num_iterations``."""
    return _shrink("arithmetic_cpu", TINY_MATH, data_dir, changes)


def _shrink(name: str, smaller: dict, data_dir: pathlib.Path, changes: dict):
    content = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]()
    named = {name.replace("__", "."): value for name, value in changes.items()}
    content.update_from_flattened_dict(smaller | {"domain.data_dir": str(data_dir)} | named)
    return validate(content, jax.device_count())
