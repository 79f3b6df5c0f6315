"""PLR: units by the rank of their score, and by how long they have not been drawn (arXiv 2010.03934; code: level-replay).

P = (1 - ρ) P_score + ρ P_stale over the units that were drawn before, P_score ∝ rank^(-1/β), rank 1 the highest score, P_stale
∝ iterations since the last draw. Units that were never drawn get a share 1 - p_replay while there are any. The score is that of
the unit's newest groups; |A| is the authors' "value_l1", with the group's mean for a critic.
"""

from typing import Any

import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, by_unit, normal, uniform
from exit_jax.algorithm.learnability import SCORES
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array, pytree

READS = ("score", "staleness", "rank_exponent", "replay_prob")
NEVER = -1


@pytree
class Levels:
    """Scores of the units, and when each was drawn last."""

    score: Array  # float32 [X]
    last: Array  # int32 [X]: iteration of the newest draw, NEVER before one
    best: Array  # float32 [X]: highest reward there was, for MaxMC


def create(config: CurriculumConfig, units: Units) -> Levels:
    """Return units that were never drawn."""
    blank = jnp.zeros(units.count, jnp.float32)
    return Levels(blank, jnp.full(units.count, NEVER, jnp.int32), blank)


def observe(config: CurriculumConfig, units: Units, state: Levels, told: Told) -> Levels:
    """Note the scores of the units that were drawn."""
    return observe_score(units, state, told, by_unit(SCORES[config.score](told.group), told, units.count)[0])


def observe_score(units: Units, state: Levels, told: Told, score: Array) -> Levels:
    """Note new scores float32 [X] of the units that were drawn."""
    drawn = jnp.zeros(units.count, bool).at[told.unit].set(True, mode="drop")
    return Levels(
        score=jnp.where(drawn, score, state.score),
        last=jnp.where(drawn, told.step, state.last),
        best=state.best.at[told.unit].max(told.group.reward.max(1), mode="drop"),
    )


def weights(config: CurriculumConfig, units: Units, state: Levels, step: Any) -> Array:
    """Return the mixture of replay and of units that were never drawn."""
    seen = state.last > NEVER
    age = jnp.where(seen, step - state.last, 0).astype(jnp.float32)
    by_rank = rank_weights(state.score, seen, config.rank_exponent)
    replay = (1.0 - config.staleness) * normal(by_rank) + config.staleness * normal(age)
    fresh = normal(jnp.where(seen, 0.0, uniform(units)))
    share = jnp.where(seen.any(), jnp.where(seen.all(), 1.0, config.replay_prob), 0.0)
    return share * replay + (1.0 - share) * fresh


def rank_weights(score: Array, held: Array, exponent: float) -> Array:
    """Return rank^(-1/β), float32 [X], 0 for what is not held; of equal scores the first ranks higher.

    Args:
      score: float32 [X].
      held: bool [X].
    """
    rank = jnp.argsort(jnp.argsort(jnp.where(held, -score, jnp.inf), stable=True), stable=True) + 1.0
    return jnp.where(held, rank ** (-1.0 / exponent), 0.0)
