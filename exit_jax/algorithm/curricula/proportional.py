"""Units in proportion to a score of their groups: eva's max - mean (arXiv 2411.00062), or the learnability of ExIt's buffer.

v ← v + α (mean score of the unit's groups - v), at its first draw v = that mean; P ∝ v, but for a share that is uniform. A unit
that was never drawn has the largest v there is, so that it comes soon.
"""

from typing import Any

import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, by_unit, with_floor
from exit_jax.algorithm.learnability import SCORES
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array

READS = ("score", "rate", "floor")


def create(config: CurriculumConfig, units: Units) -> Array:
    """Return v, float32 [X], NaN before a unit was drawn."""
    return jnp.full(units.count, jnp.nan, jnp.float32)


def observe(config: CurriculumConfig, units: Units, state: Array, told: Told) -> Array:
    """Move v of the units that were drawn."""
    mean, number = by_unit(SCORES[config.score](told.group), told, units.count)
    moved = jnp.where(jnp.isnan(state), mean, state + config.rate * (mean - state))
    return jnp.where(number > 0, moved, state)


def weights(config: CurriculumConfig, units: Units, state: Array, step: Any) -> Array:
    """Return v, and a share that is uniform; all of it while no unit was drawn, or all have v = 0."""
    highest = jnp.nanmax(jnp.append(state, 0.0))
    return with_floor(jnp.where(jnp.isnan(state), highest, state), units, config.floor)
