"""Thompson sampling: units whose success rate, by a draw from its posterior, is nearest to a target (PrimeIntellect prime-rl).

a and b count successes and failures of each unit, from 1, discounted by γ an iteration; every draw of a batch takes
θ ~ Beta(a, b) of all units, and the unit whose θ is nearest to the target. A reward between 0 and 1 counts as that
much of a success.
"""

from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array, pytree

READS = ("discount", "target")


@pytree
class Posterior:
    """Beta(a, b) of each unit's success rate, float32 [X]."""

    successes: Array  # a
    failures: Array  # b


def create(config: CurriculumConfig, units: Units) -> Posterior:
    """Return uniform priors."""
    return Posterior(jnp.ones(units.count, jnp.float32), jnp.ones(units.count, jnp.float32))


def observe(config: CurriculumConfig, units: Units, state: Posterior, told: Told) -> Posterior:
    """Discount what was counted, and count the batch."""
    reward = told.group.reward

    def count(before: Array, new: Array) -> Array:
        return (1.0 + (before - 1.0) * config.discount).at[told.unit].add(new, mode="drop")

    return Posterior(count(state.successes, reward.sum(1)), count(state.failures, (1.0 - reward).sum(1)))


def choose(config: CurriculumConfig, units: Units, state: Posterior, key: Array, count: int) -> Array:
    """Draw units int32 [count]; of several at the same distance, the first."""
    rate = jax.random.beta(key, state.successes, state.failures, (count, units.count))
    return jnp.argmin(jnp.abs(rate - config.target), axis=1).astype(jnp.int32)


def weights(config: CurriculumConfig, units: Units, state: Posterior, step: Any) -> Array:
    """Return how near the posterior means are to the target; for people to read, as draws are made by ``choose``."""
    mean = state.successes / (state.successes + state.failures)
    return 1.0 - jnp.abs(mean - config.target)
