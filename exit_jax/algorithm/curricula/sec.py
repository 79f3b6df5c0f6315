"""SEC: a bandit over categories, each valued by its mean |A| (arXiv 2505.14970; code: Vincent-La/cofa, priority.py).

Q ← (1 - α) Q + α · mean |A| of the category's rollouts, P = softmax(Q / τ). As in the code, which the paper is not, a category
that was not drawn counts as one of 0.
"""

from typing import Any

import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, by_unit, softmax
from exit_jax.algorithm.learnability import SCORES
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array

READS = ("score", "rate", "temperature", "forget_undrawn")


def create(config: CurriculumConfig, units: Units) -> Array:
    """Return Q, float32 [X]."""
    return jnp.zeros(units.count, jnp.float32)


def observe(config: CurriculumConfig, units: Units, state: Array, told: Told) -> Array:
    """Move Q toward the mean score of each unit's groups; SEC's score is "advantage"."""
    mean, number = by_unit(SCORES[config.score](told.group), told, units.count)
    moved = state + config.rate * (mean - state)
    return moved if config.forget_undrawn else jnp.where(number > 0, moved, state)


def weights(config: CurriculumConfig, units: Units, state: Array, step: Any) -> Array:
    """Return softmax(Q / τ)."""
    return softmax(state, config.temperature)
