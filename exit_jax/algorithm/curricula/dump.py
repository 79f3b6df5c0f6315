"""DUMP: upper confidence bounds on the mean |A| of each data source (arXiv 2504.09710; code: ZhentingWang/DUMP).

L = mean of |A| over the last k rollouts of the source, n its rollouts so far; P = softmax((L + √(2 ln(Σn + 1) / (n + 1))) / τ).
The authors' code also feeds validation rewards into the same windows, which would leak, and is left out.
"""

from typing import Any

import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, softmax
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array, pytree

READS = ("window", "temperature")


@pytree
class Windows:
    """The newest |A| of each unit."""

    recent: Array  # float32 [X, k]: a ring
    count: Array  # int32 [X]: rollouts so far; the next one is written at this number modulo k


def create(config: CurriculumConfig, units: Units) -> Windows:
    """Return empty windows."""
    return Windows(jnp.zeros((units.count, config.window), jnp.float32), jnp.zeros(units.count, jnp.int32))


def observe(config: CurriculumConfig, units: Units, state: Windows, told: Told) -> Windows:
    """Push the |A| of every rollout, in the order of the batch."""
    size = jnp.abs(told.group.advantage)
    unit = jnp.repeat(told.unit, size.shape[1])
    same = unit[:, None] == unit[None]
    nth, of_batch = jnp.tril(same, -1).sum(1), same.sum(1)
    kept = nth >= of_batch - config.window  # what later rollouts of this batch push out is not written
    place = (jnp.append(state.count, 0)[unit] + nth) % config.window
    recent = state.recent.at[jnp.where(kept, unit, units.count), place].set(size.reshape(-1), mode="drop")
    return Windows(recent, state.count.at[unit].add(1, mode="drop"))


def weights(config: CurriculumConfig, units: Units, state: Windows, step: Any) -> Array:
    """Return softmax of the upper confidence bounds over τ."""
    mean = state.recent.sum(1) / jnp.clip(state.count, 1, config.window)
    bonus = jnp.sqrt(2.0 * jnp.log(state.count.sum() + 1.0) / (state.count + 1.0))
    return softmax(mean + bonus, config.temperature)
