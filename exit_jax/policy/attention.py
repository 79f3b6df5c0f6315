"""Attention over the group's shared prompt and each rollout's own tokens, by the kernel that suits the platform.

``grouped`` is plain XLA and serves all platforms, and every step of decoding. ``flash`` never forms the matrix of scores:
splash attention (Pallas) on TPU, cuDNN on GPU. It serves whole sequences, that is prefill and the learner.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from exit_jax.parallel.mesh import BATCH
from exit_jax.policy.cache import LayerCache
from exit_jax.types import Array

_LANES = 128  # splash wants lengths in multiples of this


def resolve(backend: str, platform: str, dtype: str, cap: float = 0.0) -> str:
    """Return the kernel that "auto" stands for on a platform: "cpu", "gpu" or "tpu". cuDNN has none for float32 or a cap."""
    if backend != "auto":
        return backend
    return {"tpu": "splash", "gpu": "cudnn" if dtype == "bfloat16" and not cap else "xla"}.get(platform, "xla")


def grouped(
    query: Array, cache: LayerCache, prompt_mask: Any, mask: Array, scale: float = 0.0, cap: float = 0.0
) -> Array:
    """Attend with a score for each pair of tokens.

    Args:
      query: [B, G, S, H, h].
      cache: with own keys [B, G, K, T, h], and with a prompt [B, K, P, h] or without.
      prompt_mask: bool [B, P], or [B, G, S, P] where queries see different tokens; None without a prompt.
      mask: bool [B, G, S, T], the own slots that each query sees.
      scale: what scores are multiplied by; 0 for h^-0.5.
      cap: bound of the scores, cap * tanh(score / cap); 0 for none.

    Returns:
      [B, G, S, H, h].
    """
    B, G, S, H, h = query.shape
    K = cache.key.shape[2]
    R = H // K
    scale = scale or h**-0.5
    bound = lambda score: cap * jnp.tanh(score / cap) if cap else score
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # The R query heads of a kv head are rows of one matmul; so is the whole group against its shared prompt.
    query = query.reshape(B, G, S, K, R, h)
    own = query.transpose(0, 1, 3, 2, 4, 5).reshape(B, G, K, S * R, h)
    score = bound(einsum("bgkqh,bgkth->bgkqt", own, cache.key) * scale)
    score = jnp.where(jnp.repeat(mask[:, :, None], R, axis=3), score, -1e30)
    top = jax.lax.stop_gradient(score).max(-1)
    if cache.prompt_key is not None:
        by_prompt = lambda x: x.swapaxes(1, 2).reshape(B, K, G * S * R, *x.shape[4:])
        by_row = lambda x: x.reshape(B, K, G, S * R, *x.shape[3:]).swapaxes(1, 2)
        shared = bound(einsum("bkqh,bkph->bkqp", by_prompt(own), cache.prompt_key) * scale)
        if prompt_mask.ndim == 2:
            seen = prompt_mask[:, None, None]
        else:
            seen = jnp.repeat(prompt_mask, R, axis=2).reshape(B, 1, G * S * R, -1)
        shared = jnp.where(seen, shared, -1e30)
        top = jnp.maximum(top, by_row(jax.lax.stop_gradient(shared).max(-1)))
        shared = jnp.exp(shared - by_prompt(top)[..., None])
    # What is summed is divided by the total at the end: h numbers of each query instead of P + T.
    weight = jnp.exp(score - top[..., None])
    total = weight.sum(-1)
    mixed = einsum("bgkqt,bgkth->bgkqh", weight.astype(query.dtype), cache.value)
    if cache.prompt_value is not None:
        total += by_row(shared.sum(-1))
        mixed += by_row(einsum("bkqp,bkph->bkqh", shared.astype(query.dtype), cache.prompt_value))
    mixed = (mixed / total[..., None]).astype(query.dtype)
    return mixed.reshape(B, G, K, S, R, h).transpose(0, 1, 3, 2, 4, 5).reshape(B, G, S, H, h)


def flash(
    backend: str,
    query: Array,
    cache: LayerCache,
    prompt_mask: Any,
    mask: Array,
    window: int = 0,
    scale: float = 0.0,
    cap: float = 0.0,
) -> Array:
    """As ``grouped`` for S new tokens that see the prompt and each other causally, without a matrix of scores.

    Each rollout is a row of its own here, its prompt's keys in front of its own: token i sees keys 0 .. P + i.

    Args:
      mask: bool [B, G, S], which of the new tokens are real; padding is behind them.
      window: tokens that each one sees, itself among them; 0 for all.
      cap: 0 for "cudnn", which has no bound of scores.
    """
    B, G = mask.shape[:2]
    key, value, valid = cache.key, cache.value, mask
    if cache.prompt_key is not None:
        prompt_key, prompt_value = cache.prompt_key, cache.prompt_value
        if window:  # a prompt's padding goes in front of it, so that the keys between two tokens are their distance
            width = prompt_mask.shape[-1]
            order = (jnp.arange(width)[None] + prompt_mask.sum(-1, keepdims=True)) % width
            move = lambda x: jnp.take_along_axis(x, order[:, None, :, None], axis=2)
            prompt_key, prompt_value = move(prompt_key), move(prompt_value)
            prompt_mask = jnp.take_along_axis(prompt_mask, order, axis=1)
        spread = lambda x: jnp.broadcast_to(x[:, None], (B, G, *x.shape[1:]))
        key = jnp.concatenate([spread(prompt_key), key], axis=3)
        value = jnp.concatenate([spread(prompt_value), value], axis=3)
        valid = jnp.concatenate([spread(prompt_mask), valid], axis=2)
    scale = scale or query.shape[-1] ** -0.5
    if backend == "cudnn":
        return _cudnn(query, key, value, valid, window, scale)
    return _splash(query, key, value, valid, window, scale, cap, interpret=backend == "splash_interpret")


def _cudnn(query: Array, key: Array, value: Array, valid: Array, window: int, scale: float) -> Array:
    """[B, G, S, H, h], [B, G, K, P + S, h] twice, bool [B, G, P + S] -> [B, G, S, H, h]."""
    B, G, S, H, h = query.shape
    width = key.shape[3]
    rows = lambda x: x.swapaxes(2, 3).reshape(B * G, width, -1, h)
    distance = (width - S + jnp.arange(S))[:, None] - jnp.arange(width)[None]
    causal = distance >= 0
    if window:
        causal &= distance < window
    mask = causal[None] & valid.reshape(B * G, 1, width)
    # XLA's is for tests, which hold the same call against ``grouped``
    implementation = "cudnn" if jax.default_backend() == "gpu" else "xla"
    mixed = jax.nn.dot_product_attention(
        query.reshape(B * G, S, H, h),
        rows(key),
        rows(value),
        mask=mask[:, None],
        scale=scale,
        implementation=implementation,
    )
    return mixed.reshape(B, G, S, H, h)


def _splash(
    query: Array,
    key: Array,
    value: Array,
    valid: Array,
    window: int,
    scale: float,
    cap: float,
    interpret: bool = False,
) -> Array:
    """As ``_cudnn``. XLA does not partition Pallas kernels, so each device is given its rows and heads by shard_map."""
    S, width = query.shape[2], key.shape[3]

    def pad(x, axis):
        return jnp.pad(x, [(0, -size % _LANES if i == axis else 0) for i, size in enumerate(x.shape)])

    def attend(query, key, value, valid):
        b, g, padded, heads, h = query.shape
        shape, offset = (padded, key.shape[3]), width - S
        causal = splash_mask.CausalMask(shape, offset=offset)
        if window:
            causal = splash_mask.LocalMask(shape, (window - 1, 0), offset)
        kernel = splash.make_splash_mha_single_device(
            splash_mask.MultiHeadMask([causal] * heads),
            block_sizes=_block_sizes(padded, key.shape[3]),
            attn_logits_soft_cap=cap or None,
            interpret=interpret,
        )
        rows = lambda x: x.reshape(b * g, *x.shape[2:])
        segment = splash.SegmentIds(jnp.ones((b * g, padded), jnp.int32), rows(valid).astype(jnp.int32))
        mixed: Any = jax.vmap(kernel)(rows(query.swapaxes(2, 3)), rows(key), rows(value), segment)
        return mixed.swapaxes(1, 2).reshape(b, g, padded, heads, h)

    if not jax.sharding.get_abstract_mesh().empty:
        by_rows, by_kv_head = PartitionSpec(BATCH), PartitionSpec(BATCH, None, "tensor")
        by_head = PartitionSpec(BATCH, None, None, "tensor")
        specs = (by_head, by_kv_head, by_kv_head, by_rows)
        attend = jax.shard_map(attend, in_specs=specs, out_specs=by_head, check_vma=False)
    scaled = query * jnp.asarray(scale, query.dtype)
    return attend(pad(scaled, 2), pad(key, 3), pad(value, 3), pad(valid, 2))[:, :, :S]


def _block_sizes(num_queries: int, num_keys: int) -> splash.BlockSizes:
    """Return the largest tiles up to 512 that divide the lengths; larger ones outgrow the memory next to the cores."""
    largest = lambda size: max(block for block in (128, 256, 512) if size % block == 0)
    q, kv = largest(num_queries), largest(num_keys)
    return splash.BlockSizes(block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv)
