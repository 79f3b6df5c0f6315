"""How much of a gold solution a base task starts with: a level in [0, 1] of each task, and what a group's rewards do to it.

To add a rule, write it here with its row in LEVELS: the choices of ``algorithm.starts.level_by``, their check and
docs/settings.md follow.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.algorithm.method_settings import StartsConfig
from exit_jax.types import Array, StartLevel


class Constant:
    """The same level always."""

    def first(self, config: StartsConfig) -> float:
        """Return the level of a task that was never tried."""
        return config.level

    def at(self, config: StartsConfig, level: Array, step: Array, key: Array) -> Array:
        """Return the level that tasks [B] of this level start at, float32 [B]."""
        return level

    def moved(self, config: StartsConfig, reward: Array) -> Array:
        """Return the change of a level by the rewards [B, G] of its group, float32 [B]."""
        return jnp.zeros(reward.shape[0])


class Uniform(Constant):
    """Uniform between 0 and the level, at each draw anew (R3's mixture of prefixes, arXiv 2402.05808)."""

    def at(self, config: StartsConfig, level: Array, step: Array, key: Array) -> Array:
        """Return draws."""
        return level * jax.random.uniform(key, level.shape)


class Failed(Constant):
    """A stride more, up to the level, after a group that failed as a whole, a stride less after one that reached the target.

    GHPO's 25, 50 and 75% (arXiv 2507.10628), but at the task's next visit in place of at once.
    """

    def first(self, config: StartsConfig) -> float:
        """Return 0."""
        return 0.0

    def moved(self, config: StartsConfig, reward: Array) -> Array:
        """Return a stride up, down or none."""
        return config.stride * (1.0 * (reward.max(1) <= 0) - 1.0 * (reward.mean(1) >= config.target))


class Reverse(Constant):
    """From the level down, a stride after each group that reached the target (R3's staged form, QWeb)."""

    def moved(self, config: StartsConfig, reward: Array) -> Array:
        """Return a stride down, or none."""
        return -config.stride * (reward.mean(1) >= config.target)


class Anneal(Constant):
    """From the level to 0, evenly over so many iterations (privileged information that is withdrawn)."""

    def at(self, config: StartsConfig, level: Array, step: Array, key: Array) -> Array:
        """Return what is left of the level."""
        return level * jnp.maximum(1.0 - step / config.over, 0.0)


LEVELS: dict[str, Any] = {
    "constant": Constant(),
    "uniform": Uniform(),
    "failed": Failed(),
    "reverse": Reverse(),
    "anneal": Anneal(),
}


def create(config: StartsConfig, num_tasks: int, first: int) -> StartLevel:
    """Return the levels of all tasks, numbered from ``first``, before any was tried."""
    level = jnp.full(num_tasks, LEVELS[config.level_by].first(config), jnp.float32)
    return StartLevel(level, jnp.int32(first))


def draw(config: StartsConfig, state: StartLevel, task: Array, step: Array, key: Array) -> Array:
    """Return the level that tasks start at, float32 [B]; one that is in no table starts like one that was never tried."""
    rule, row = LEVELS[config.level_by], task - state.first
    known, last = (row >= 0) & (row < state.level.size), state.level.size - 1
    level = jnp.where(known, state.level[jnp.clip(row, 0, last)], rule.first(config))
    return rule.at(config, level, step, key)


def observe(
    config: StartsConfig, state: StartLevel, task: Array, reward: Array, lost: Array | None = None
) -> StartLevel:
    """Return the levels after groups of rewards [B, G]; tasks in no table have none, and those of ``lost`` groups [B] stay."""
    row, outside = task - state.first, state.level.size
    known = (row >= 0) & (row < outside) & (True if lost is None else ~lost)
    target = jnp.where(known, row, outside)
    level = state.level.at[target].add(LEVELS[config.level_by].moved(config, reward), mode="drop")
    return dataclasses.replace(state, level=jnp.clip(level, 0.0, config.level))
