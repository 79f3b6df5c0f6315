"""SFL: half of a batch from the most learnable units (Sampling for Learnability, arXiv 2408.15099; code: amacrutherford/sfl).

Every E iterations the K units of the highest S are chosen; half of the draws are uniform among these, half among all. SFL
scores by a sweep of rollouts that are not learnt from; here S is of the unit's newest groups in training, at no cost.
"""

from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, by_unit, uniform, with_floor
from exit_jax.algorithm.learnability import SCORES
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array, pytree

READS = ("score", "top", "every")


@pytree
class Chosen:
    """Scores of the units, and which were the highest when it was last looked."""

    score: Array  # float32 [X], of the newest groups; -1 before any
    chosen: Array  # bool [X]


def create(config: CurriculumConfig, units: Units) -> Chosen:
    """Return a state in which all units are chosen."""
    return Chosen(jnp.full(units.count, -1.0, jnp.float32), jnp.ones(units.count, bool))


def observe(config: CurriculumConfig, units: Units, state: Chosen, told: Told) -> Chosen:
    """Note the scores, and choose anew when E iterations are over; ties are broken by chance."""
    mean, number = by_unit(SCORES[config.score](told.group), told, units.count)
    score = jnp.where(number > 0, mean, state.score)
    order = jax.lax.sort((-score, jax.random.bits(told.key, score.shape), jnp.arange(units.count)), num_keys=2)[2]
    chosen = jnp.zeros(units.count, bool).at[order[: config.top]].set(True)
    due = (told.step + 1) % config.every == 0
    return Chosen(score, jnp.where(due, chosen, state.chosen))


def weights(config: CurriculumConfig, units: Units, state: Chosen, step: Any) -> Array:
    """Return half of the weight for the chosen, half for all."""
    return with_floor(jnp.where(state.chosen, uniform(units), 0.0), units, 0.5)
