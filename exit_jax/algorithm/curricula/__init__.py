"""Curricula: which base tasks the next iteration draws, a module each (docs/methods.md).

To add one, write its module of three functions and its row here: the choices of ``algorithm.curriculum.method``, their check
and docs/settings.md follow.
"""

import dataclasses

import jax
import jax.numpy as jnp

from exit_jax.algorithm.curricula import (
    alp,
    cycle,
    dump,
    order,
    plr,
    plr_maxmc,
    proportional,
    replay,
    sec,
    sfl,
    sitp,
    stages,
    thompson,
    tscl,
    uniform,
)
from exit_jax.algorithm.curricula.core import CurriculumState, Method, Told, Units, next_tasks, normal, units_of
from exit_jax.algorithm.draws import draw_by_weight
from exit_jax.algorithm.learnability import Group
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.algorithm.streams import stream
from exit_jax.types import Array, Instances, Metrics

CURRICULA: dict[str, Method] = {
    "uniform": uniform,
    "sec": sec,
    "dump": dump,
    "sitp": sitp,
    "tscl": tscl,
    "alp": alp,
    "proportional": proportional,
    "sfl": sfl,
    "plr": plr,
    "plr_maxmc": plr_maxmc,
    "thompson": thompson,
    "order": order,
    "stages": stages,
    "cycle": cycle,
    "replay": replay,
}


def create(config: CurriculumConfig, units: Units) -> CurriculumState:
    """Return the state of a run's curriculum before its first iteration."""
    return CurriculumState(jnp.zeros(units.count, jnp.int32), CURRICULA[config.method].create(config, units))


def draw(
    config: CurriculumConfig, units: Units, state: CurriculumState, root: Array, step: Array, count: int
) -> tuple[Array, Array]:
    """Draw base tasks int32 [count], and say which were never drawn before, bool [count]."""
    method, key = CURRICULA[config.method], stream(root, "curriculum", step)
    if choose := getattr(method, "choose", None):
        unit = choose(config, units, state.method, key, count)
    else:
        unit = draw_by_weight(method.weights(config, units, state.method, step), key, count)
    return next_tasks(units, state.drawn, root, unit)


def count_draws(units: Units, state: CurriculumState, instances: Instances) -> CurriculumState:
    """Return the state after base tasks were drawn."""
    return dataclasses.replace(state, drawn=state.drawn.at[units_of(units, instances)].add(1, mode="drop"))


def observe(
    config: CurriculumConfig,
    units: Units,
    state: CurriculumState,
    instances: Instances,
    group: Group,
    lost: Array | None,
    root: Array,
    step: Array,
) -> tuple[CurriculumState, Metrics]:
    """Return the state after a batch, and as metrics the share of the draws that each unit had before it.

    What base tasks from the buffer come to is not told: they were drawn for their score.

    Args:
      lost: bool [B], groups that say nothing; None for no one.
      step: iterations done before this one.
    """
    method, unit = CURRICULA[config.method], units_of(units, instances)
    told_of = unit if lost is None else jnp.where(lost, units.count, unit)
    told = Told(told_of, group, step, jax.random.fold_in(stream(root, "curriculum", step), 1))
    share = normal(method.weights(config, units, state.method, step))
    metrics = {f"curriculum/{name}": share[place] for place, name in enumerate(units.names)}
    learnt = method.observe(config, units, state.method, told)
    return CurriculumState(count_draws(units, state, instances).drawn, learnt), metrics
