"""Clip-Cov: tokens whose log-prob and advantage covary most get no gradient from the objective (arXiv 2505.22617).

SPEAR (arXiv 2509.22601) regularises with it: 2 % of the tokens, drawn among those whose covariance is between 1 and 40.
"""

import jax
import jax.numpy as jnp

from exit_jax.types import Array


def left_out(advantage: Array, logp: Array, mask: Array, share: float, band: tuple[float, float], key: Array) -> Array:
    """Draw tokens that are to have no gradient, bool [B, G, T]: a share of all that count, at least one, if there are as many.

    They are drawn uniformly among tokens with low < (A - mean A)(log π - mean log π) < high, means over tokens that count.

    Args:
      advantage: float32 [B, G, 1], or [B, G, T].
      logp: float32 [B, G, T], nats, anything where masked.
      mask: bool [B, G, T], tokens that count.
    """
    count = jnp.maximum(mask.sum(), 1)
    keep = lambda value: jnp.where(mask, value, 0.0)
    centred = lambda value: keep(keep(value) - keep(value).sum() / count)
    covariance = centred(advantage) * centred(logp)
    inside = mask & (covariance > band[0]) & (covariance < band[1])
    wanted = jnp.maximum(jnp.floor(share * mask.sum()), 1)
    lot = jnp.where(inside, jax.random.uniform(key, mask.shape), jnp.inf).reshape(-1)
    rank = jnp.argsort(jnp.argsort(lot)).reshape(mask.shape)
    return inside & (rank < wanted)
