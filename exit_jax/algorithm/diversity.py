"""The diversity bonus, a factor on the advantages of a group (ExIt §4.2, eq. 6)."""

import jax.numpy as jnp

from exit_jax.types import Array


def diversity(embedding: Array, cap: float) -> Array:
    """Return d [B, G], each response's distance to its group's centroid over the group's range of distances.

    d_i = ‖e_i - ē‖ / (max_j ‖e_j - ē‖ - min_j ‖e_j - ē‖). The paper subtracts no minimum in the numerator, so d may exceed
    1. Where the range is at most 1e-4 of the largest distance (all alike, or all equally far apart), d = 1.

    Args:
      embedding: float [B, G, E].
      cap: upper bound on d.
    """
    embedding = embedding.astype(jnp.float32)
    offset = embedding - embedding.mean(axis=1, keepdims=True)
    distance = jnp.linalg.norm(offset, axis=-1)
    largest = distance.max(axis=1, keepdims=True)
    spread = largest - distance.min(axis=1, keepdims=True)
    varied = spread > 1e-4 * largest
    d = jnp.where(varied, distance / jnp.where(varied, spread, 1.0), 1.0)
    return jnp.minimum(d, cap)
