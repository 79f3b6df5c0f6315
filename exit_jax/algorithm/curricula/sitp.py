"""SITP: tasks whose success rate has just changed (Success Induced Task Prioritization, arXiv 2301.00691; code: nortem/SITP).

When n results of a unit are in, their mean s̄ gives m ← s̄ - s and s ← s̄, and the count begins anew; P = softmax(T |m|), but for
a unit with s above a cap, whose logit is -1/2. At first m = 2 and s = 0. T = 1 bounds the ratio of two weights by e: weak, by
design; the authors' other code has T = 5. A result is the reward, which is a success or not where rewards are 0 or 1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, softmax
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array, pytree

READS = ("window", "temperature", "cap")
CAPPED = -0.5  # logit of a unit that is mastered


@pytree
class Progress:
    """Success of each unit, all float32 [X]."""

    change: Array  # m
    success: Array  # s
    total: Array  # sum of the results since s was taken
    count: Array  # their number


def create(config: CurriculumConfig, units: Units) -> Progress:
    """Return what is taken of units that were never tried."""
    zero = jnp.zeros(units.count, jnp.float32)
    return Progress(zero + 2.0, zero, zero, zero)


def observe(config: CurriculumConfig, units: Units, state: Progress, told: Told) -> Progress:
    """Count the results one by one, in the order of the batch."""

    def add(state: Progress, result: tuple[Array, Array]) -> tuple[Progress, None]:
        unit, reward = result
        total, count = state.total.at[unit].add(reward, mode="drop"), state.count.at[unit].add(1.0, mode="drop")
        full = count >= config.window
        mean = total / jnp.maximum(count, 1.0)
        return Progress(
            change=jnp.where(full, mean - state.success, state.change),
            success=jnp.where(full, mean, state.success),
            total=jnp.where(full, 0.0, total),
            count=jnp.where(full, 0.0, count),
        ), None

    reward = told.group.reward
    return jax.lax.scan(add, state, (jnp.repeat(told.unit, reward.shape[1]), reward.reshape(-1)))[0]


def weights(config: CurriculumConfig, units: Units, state: Progress, step: Any) -> Array:
    """Return softmax of the changes times T = 1 / τ, and of -1/2 above the cap."""
    logit = jnp.where(state.success > config.cap, CAPPED, jnp.abs(state.change) / config.temperature)
    return softmax(logit, 1.0)
