"""Draws from the task buffer: which partial histories the next iteration goes on from (ExIt §4.1, and what others do instead).

To add one, write its function here and its row: the choices of ``algorithm.selection``, their check and docs/settings.md
follow.
"""

from collections.abc import Callable

import jax.numpy as jnp

from exit_jax.algorithm import buffer as buffers
from exit_jax.algorithm.curricula.core import normal
from exit_jax.algorithm.curricula.plr import rank_weights
from exit_jax.algorithm.draws import draw_by_weight
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import Array, TaskBuffer


def softmax(config: ExItConfig, buffer: TaskBuffer, step: Array, key: Array, count: int) -> Array:
    """P(i) ∝ exp(κ S_i) (ExIt §4.1)."""
    full = buffers.filled(buffer)
    logits = jnp.where(full, config.score_temperature * jnp.where(full, buffer.score, 0.0), -jnp.inf)
    weight = jnp.where(full, jnp.exp(logits - jnp.where(full.any(), logits.max(), 0.0)), 0.0)
    return draw_by_weight(_with_staleness(config, buffer, step, weight), key, count)


def uniform(config: ExItConfig, buffer: TaskBuffer, step: Array, key: Array, count: int) -> Array:
    """All entries alike."""
    weight = buffers.filled(buffer).astype(jnp.float32)
    return draw_by_weight(_with_staleness(config, buffer, step, weight), key, count)


def rank(config: ExItConfig, buffer: TaskBuffer, step: Array, key: Array, count: int) -> Array:
    """P(i) ∝ rank^(-1/β) of S_i, rank 1 the highest score, of equal ones the older (PLR, arXiv 2010.03934)."""
    weight = rank_weights(buffer.score, buffers.filled(buffer), config.selection_exponent)
    return draw_by_weight(_with_staleness(config, buffer, step, weight), key, count)


def puct(config: ExItConfig, buffer: TaskBuffer, step: Array, key: Array, count: int) -> Array:
    """The highest Q + c · range · P √(1 + T) / (1 + n), each once before any comes twice (TTT-Discover, arXiv 2601.16175).

    Q is the best quality of the entry's children, or its own before it had any; P falls linearly with the rank of the entry's
    own quality; n counts its draws, T those of all entries; the range is that of the qualities held. The authors' Q and n are
    of all descendants, here of children alone.
    """
    full, quality = buffers.filled(buffer), buffer.history.quality
    value = jnp.where(jnp.isneginf(buffer.best), quality, buffer.best)
    place = jnp.argsort(jnp.argsort(jnp.where(full, -quality, jnp.inf), stable=True), stable=True)
    prior = normal(jnp.where(full, full.sum() - place, 0).astype(jnp.float32))
    spread = jnp.where(full, quality, -jnp.inf).max() - jnp.where(full, quality, jnp.inf).min()
    draws = jnp.where(full, buffer.num_draws, 0)
    bonus = config.puct_exploration * spread * prior * jnp.sqrt(1.0 + draws.sum()) / (1.0 + draws)
    order = jnp.argsort(jnp.where(full, -(value + bonus), jnp.inf), stable=True)
    return order[jnp.arange(count) % jnp.maximum(full.sum(), 1)].astype(jnp.int32)


def _with_staleness(config: ExItConfig, buffer: TaskBuffer, step: Array, weight: Array) -> Array:
    """Mix in P ∝ iterations since the score was taken, as PLR does: an S that is never refreshed is of an older policy."""
    if not config.selection_staleness:
        return weight
    age = jnp.where(buffers.filled(buffer), step - buffer.scored, 0).astype(jnp.float32)
    own, share = normal(weight), config.selection_staleness
    return (1.0 - share) * own + share * jnp.where(age.sum() > 0, normal(age), own)


# (settings, buffer, iterations done, key, count) -> slots int32 [count], with replacement; of an empty buffer any
DRAWS: dict[str, Callable[[ExItConfig, TaskBuffer, Array, Array, int], Array]] = {
    "softmax": softmax,
    "uniform": uniform,
    "rank": rank,
    "puct": puct,
}
