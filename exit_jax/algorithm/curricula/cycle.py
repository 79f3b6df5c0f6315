"""CCL: the share of the units that is admitted grows and shrinks by turns (Cyclical Curriculum Learning, arXiv 2202.05531).

The share of an epoch is .25, .5, 1, .5, .25, ...; an epoch is as many draws as units are admitted, which are sampled without
replacement in proportion to their easiness. CCL takes that from a model trained before (and its code reports the best epoch on
test data); here it is the unit's mean reward in training, averaged by α, and 1 before it was drawn.
"""

from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, by_unit, uniform
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array, pytree

READS = ("rate",)
SHARES = (0.25, 0.5, 1.0, 0.5)  # of the epochs of a cycle
SMALLEST = 1e-3  # easiness of what is always failed, so that it may be admitted


@pytree
class Cycle:
    """The epoch of a cycle, and what it admits."""

    easiness: Array  # float32 [X]
    admitted: Array  # bool [X]
    epoch: Array  # int32 []
    left: Array  # int32 []: draws until the next one


def create(config: CurriculumConfig, units: Units) -> Cycle:
    """Return the first epoch, which admits the easiest of a difficulty, as nothing was drawn yet."""
    number = _number(units, jnp.int32(0))
    return Cycle(jnp.ones(units.count, jnp.float32), units.place() < number, jnp.int32(0), number)


def observe(config: CurriculumConfig, units: Units, state: Cycle, told: Told) -> Cycle:
    """Count the draws of the epoch, and begin the next one when they are over."""
    reward, number = by_unit(told.group.reward.mean(1), told, units.count)
    easiness = jnp.where(number > 0, state.easiness + config.rate * (reward - state.easiness), state.easiness)
    left = state.left - (told.unit < units.count).sum(dtype=jnp.int32)
    over, epoch = left <= 0, state.epoch + 1
    admitted = without_replacement(jnp.maximum(easiness, SMALLEST), told.key, _number(units, epoch))
    return Cycle(
        easiness=easiness,
        admitted=jnp.where(over, admitted, state.admitted),
        epoch=jnp.where(over, epoch, state.epoch),
        left=jnp.where(over, _number(units, epoch), left),
    )


def _number(units: Units, epoch: Array) -> Array:
    """Return how many units an epoch admits, int32 [], at least one."""
    share = jnp.array(SHARES, jnp.float32)[epoch % len(SHARES)]
    return jnp.maximum((units.count * share).astype(jnp.int32), 1)


def without_replacement(weight: Array, key: Array, number: Array) -> Array:
    """Sample a set of units, each next one in proportion to its weight among those left (the Gumbel top-k trick); bool [X]."""
    noisy = jnp.log(weight) + jax.random.gumbel(key, weight.shape)
    rank = jnp.argsort(jnp.argsort(-noisy))
    return rank < number


def weights(config: CurriculumConfig, units: Units, state: Cycle, step: Any) -> Array:
    """Return the number of tasks of each unit that is admitted."""
    return jnp.where(state.admitted, uniform(units), 0.0)
