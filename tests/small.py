"""A decoder small enough to be checked by hand, for all tests of the policy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.policy import decoder
from exit_jax.policy.decoder import DecoderConfig, LoraConfig

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
