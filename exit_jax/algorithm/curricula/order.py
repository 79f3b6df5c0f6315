"""Units one after the other, from the easiest to the hardest or back, each for the same share of the iterations."""

import jax.numpy as jnp

from exit_jax.algorithm.curricula.core import Told, Units
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array

READS = ("over", "reverse")


def create(config: CurriculumConfig, units: Units) -> None:
    """Return nothing: an order learns nothing."""


def observe(config: CurriculumConfig, units: Units, state: None, told: Told) -> None:
    """Learn nothing."""


def weights(config: CurriculumConfig, units: Units, state: None, step: Array) -> Array:
    """Return 1 for the unit whose turn it is; after ``over`` iterations the last one stays."""
    turn = jnp.minimum(step * units.count // config.over, units.count - 1)
    place = units.count - 1 - turn if config.reverse else turn
    return (jnp.arange(units.count) == jnp.asarray(units.order)[place]).astype(jnp.float32)
