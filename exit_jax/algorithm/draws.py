"""Draws in proportion to weights, inside jit."""

import jax
import jax.numpy as jnp

from exit_jax.types import Array


def draw_by_weight(weight: Array, key: Array, count: int) -> Array:
    """Draw indices int32 [count], with replacement, P(i) ∝ weight[i] of float32 [N], none below 0.

    One binary search a draw. Where all weights are 0 it gives the last index, which the caller must not use.
    """
    # a parallel sum may grow by an ulp over entries of zero weight, which must stay out of reach
    cumulative = jax.lax.cummax(jnp.where(weight > 0, jnp.cumsum(weight), 0.0))
    target = jax.random.uniform(key, (count,)) * cumulative[-1]
    target = jnp.minimum(target, jnp.nextafter(cumulative[-1], 0.0))  # u · total may round up to the total
    index = jnp.searchsorted(cumulative, target, side="right")  # right: entries of zero weight are passed over
    return jnp.clip(index, 0, weight.size - 1).astype(jnp.int32)
