"""ALP: units in proportion to their absolute learning progress (ALP-GMM, arXiv 1910.07224; code: flowersteam/teachDeepRL).

ALP = |r - r'|, r and r' the unit's mean reward now and when it was last drawn, averaged by α; P ∝ ALP, but for a share that is
uniform. ALP-GMM fits Gaussians over a task's continuous parameters; here a unit stands for a Gaussian.
"""

from typing import Any

import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, by_unit, with_floor
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array, pytree

READS = ("rate", "floor")


@pytree
class LearningProgress:
    """Progress of each unit, float32 [X]."""

    progress: Array
    reward: Array  # when it was last drawn, NaN before


def create(config: CurriculumConfig, units: Units) -> LearningProgress:
    """Return no progress of units that were never drawn."""
    return LearningProgress(jnp.zeros(units.count, jnp.float32), jnp.full(units.count, jnp.nan, jnp.float32))


def observe(config: CurriculumConfig, units: Units, state: LearningProgress, told: Told) -> LearningProgress:
    """Measure the progress of units that were drawn before."""
    reward, number = by_unit(told.group.reward.mean(1), told, units.count)
    again = (number > 0) & ~jnp.isnan(state.reward)
    change = jnp.abs(reward - jnp.where(again, state.reward, reward))
    progress = jnp.where(again, state.progress + config.rate * (change - state.progress), state.progress)
    return LearningProgress(progress, jnp.where(number > 0, reward, state.reward))


def weights(config: CurriculumConfig, units: Units, state: LearningProgress, step: Any) -> Array:
    """Return the progress, and a share that is uniform; all of it while there is none."""
    return with_floor(state.progress, units, config.floor)
