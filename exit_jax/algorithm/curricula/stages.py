"""Stages: the easiest units first, and a harder one beside them whenever the newest is mastered (CRAFT-GUI, MaskSearch).

The hardest unit that is open has a mean reward, averaged by α; once it reaches the target, or after ``every`` iterations, the
next one opens. Draws are uniform over the tasks of all open units.
"""

from typing import Any

import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, by_unit, uniform
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array, pytree

READS = ("rate", "target", "every")


@pytree
class Stage:
    """How far the stages have come."""

    number: Array  # int32 []: units that are open, less one
    began: Array  # int32 []: iteration at which the newest opened
    reward: Array  # float32 []: mean reward of the newest, from 0


def create(config: CurriculumConfig, units: Units) -> Stage:
    """Return the first stage."""
    return Stage(jnp.int32(0), jnp.int32(0), jnp.float32(0.0))


def observe(config: CurriculumConfig, units: Units, state: Stage, told: Told) -> Stage:
    """Open the next unit if the newest is mastered, or its time is over."""
    mean, number = by_unit(told.group.reward.mean(1), told, units.count)
    newest = jnp.asarray(units.order)[state.number]
    moved = state.reward + config.rate * (mean[newest] - state.reward)
    reward = jnp.where(number[newest] > 0, moved, state.reward)
    over = told.step + 1 - state.began >= config.every
    opens = ((reward >= config.target) | over) & (state.number < units.count - 1)
    return Stage(
        number=state.number + opens,
        began=jnp.where(opens, told.step + 1, state.began),
        reward=jnp.where(opens, 0.0, reward),
    )


def weights(config: CurriculumConfig, units: Units, state: Stage, step: Any) -> Array:
    """Return the number of tasks of each open unit."""
    return jnp.where(units.place() <= state.number, uniform(units), 0.0)
