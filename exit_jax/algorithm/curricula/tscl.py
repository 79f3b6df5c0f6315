"""TSCL: teacher-student curriculum by the speed of learning (arXiv 1707.00183, the window-free online form; code: nortem/SITP).

Q ← Q + α (r - r' - Q), r and r' the unit's mean reward now and when it was last drawn; P = softmax(|Q| / τ), so that what is
being forgotten is drawn as well.
"""

from typing import Any

import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, by_unit, softmax
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array, pytree

READS = ("rate", "temperature")


@pytree
class Slopes:
    """Rewards of each unit, float32 [X]."""

    slope: Array  # Q
    reward: Array  # when it was last drawn, 0 at first


def create(config: CurriculumConfig, units: Units) -> Slopes:
    """Return slopes of 0."""
    return Slopes(jnp.zeros(units.count, jnp.float32), jnp.zeros(units.count, jnp.float32))


def observe(config: CurriculumConfig, units: Units, state: Slopes, told: Told) -> Slopes:
    """Move the slopes of the units that were drawn."""
    reward, number = by_unit(told.group.reward.mean(1), told, units.count)
    moved = state.slope + config.rate * (reward - state.reward - state.slope)
    drawn = number > 0
    return Slopes(jnp.where(drawn, moved, state.slope), jnp.where(drawn, reward, state.reward))


def weights(config: CurriculumConfig, units: Units, state: Slopes, step: Any) -> Array:
    """Return softmax(|Q| / τ)."""
    return softmax(jnp.abs(state.slope), config.temperature)
