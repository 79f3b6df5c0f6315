"""AGAIN: the weights of a finished run, again, for another learner (arXiv 2004.03168; Meta-ACL, arXiv 2011.08463).

Iteration t draws by the weights that iteration t of the recorded run had, but for a share that is uniform; after its last one,
these stay. AGAIN replays Gaussians of ALP-GMM and mixes them with a curriculum of the learner's own; here units stand for them,
and the run that is replayed has cost its rollouts, which a comparison must count.
"""

from typing import Any

import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units, with_floor
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array

READS = ("replay", "floor")


def create(config: CurriculumConfig, units: Units) -> Array:
    """Return the recorded weights, float32 [T, X]: part of the state, so that a run goes on without the file."""
    return jnp.asarray(units.recorded, jnp.float32)


def observe(config: CurriculumConfig, units: Units, state: Array, told: Told) -> Array:
    """Learn nothing."""
    return state


def weights(config: CurriculumConfig, units: Units, state: Array, step: Any) -> Array:
    """Return the weights of the recorded iteration."""
    return with_floor(state[jnp.minimum(step, state.shape[0] - 1)], units, config.floor)
