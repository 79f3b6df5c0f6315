"""Shuffled epochs of all base tasks, as ExIt has them (§4.1)."""

from typing import Any

from exit_jax.algorithm.curricula import core
from exit_jax.algorithm.curricula.core import Told, Units
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.types import Array

READS = ()


def create(config: CurriculumConfig, units: Units) -> None:
    """Return nothing: there is nothing to learn."""


def observe(config: CurriculumConfig, units: Units, state: None, told: Told) -> None:
    """Learn nothing."""


def weights(config: CurriculumConfig, units: Units, state: None, step: Any) -> Array:
    """Return the number of tasks of each unit."""
    return core.uniform(units)
