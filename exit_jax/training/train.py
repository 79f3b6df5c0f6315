"""Training of a workdir, from its newest checkpoint on."""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from exit_jax import domains
from exit_jax.algorithm.in_flight import Carry, state_of
from exit_jax.config import learning
from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder
from exit_jax.step.device import Constants
from exit_jax.step.finite import explain
from exit_jax.step.program import make_program
from exit_jax.step.starts import gold_of
from exit_jax.training.best import keep_if_best
from exit_jax.training.loop import run_loop
from exit_jax.training.rollouts import RolloutWriter
from exit_jax.training.start import frozen_params, untrained, warm_start
from exit_jax.types import History, Params, State
from exit_jax.workdir.checkpoint import Checkpoints

log = logging.getLogger(__name__)


def base_tasks(config: Config, split: str) -> History:
    """Return the device table of a split's base tasks, replicated on the run's mesh."""
    tasks = domains.make(config.domain_name, config.domain).tasks(split)
    return jax.device_put(tasks, meshes.replicated(make_program(config).mesh))


def restore_params(config: Config, workdir: pathlib.Path) -> Params | None:
    """Return all parameters of the newest policy that training left in the workdir, or None."""
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep=None)) as checkpoints:
        carry = checkpoints.restore_latest(make_program(config).carry)
    return None if carry is None else decoder.join(state_of(carry).params, frozen_params(config))


def train(
    config: Config, workdir: pathlib.Path, evaluate: Callable[[Params], dict[str, float]] | None = None
) -> tuple[State, Params]:
    """Train, or go on training, in ``workdir``; returns the final state and all parameters of its policy.

    Args:
      evaluate: all parameters -> figures for the row of every ``run.eval_every``-th iteration.
    """
    program = make_program(config)
    require_learnable(config)
    frozen = frozen_params(config)
    domain = domains.make(config.domain_name, config.domain)
    gold = jax.device_put(gold_of(config.algorithm.starts, domain), meshes.replicated(program.mesh))
    constants = Constants(base_tasks(config, "train"), frozen, gold)
    writer = RolloutWriter(config, domain, workdir)

    def look(step: int, carry: Carry, shown: dict[str, Any] | None) -> dict[str, float]:
        if shown and hosts.is_lead():
            writer.write(step, shown)
        if not evaluate or not config.run.eval_every or step % config.run.eval_every:
            return {}
        if program.early:
            program.early.wait()  # a domain grades for one at a time
        figures = evaluate(decoder.join(state_of(carry).params, frozen))
        keep_if_best(config, workdir, step, carry, figures)
        return figures

    with explain(config, lambda: untrained(config), None), contextlib.ExitStack() as stack:
        if program.early:
            program.early.clear()
            stack.callback(program.early.clear)
        carry = run_loop(
            "train",
            functools.partial(program.train, constants),
            config,
            like=program.carry,
            make=lambda: program.begin(constants, program.init(warm_start(config, workdir, frozen), config.seed)),
            total=config.run.num_iterations,
            checkpoint_dir=workdir / "checkpoints",
            metrics_dir=workdir,
            describe=describe,
            look=look,
        )
    state = state_of(carry)
    return state, decoder.join(state.params, frozen)


def describe(row: Mapping[str, float]) -> str:
    """Return what the progress line says of a row of metrics."""
    return f"{row['time/tokens_per_sec']:.0f} tokens/s  quality {row['quality']:.3f}  depth {row['start_depth']:.1f}"


def require_learnable(config: Config) -> None:
    """Refuse a domain of which nothing could be learnt under this config, and warn of a buffer that this run never draws from.

    Raises:
      ConfigError: before anything is compiled.
    """
    if not config.run.num_iterations:
        return
    domain, a = domains.make(config.domain_name, config.domain), config.algorithm
    faults = learning.response_faults(config, (domain.environment or domain).max_tokens)
    num_tasks = domain.tasks("train").task.shape[0]
    has_children = a.self_iteration or domain.environment is not None
    unready, never = learning.buffer_fault(
        a, config.run.num_iterations, num_tasks, domain.num_children if has_children else 0
    )
    if faults or never:
        raise ConfigError("; ".join([*faults, *([unready] if never else [])]))
    if unready and hosts.is_lead():
        log.warning("%s", unready)
