"""The loop around a jitted step: checkpoints, signals, metrics."""

import contextlib
import faulthandler
import logging
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError, GradingError, Interrupted
from exit_jax.parallel import hosts
from exit_jax.step.finite import NonFiniteError
from exit_jax.types import Metrics
from exit_jax.workdir import remote
from exit_jax.workdir.checkpoint import Checkpoints
from exit_jax.workdir.identity import to_dict
from exit_jax.workdir.metrics import MetricsWriter, Pace, Progress, Watch

log = logging.getLogger(__name__)
MAX_FAULTS = 3  # iterations in a row in which grading failed


def run_loop(
    title: str,
    call: Callable[[Any], tuple[Any, Metrics]],
    config: Config,
    *,
    like: Any,
    make: Callable[[], Any],
    total: int,
    checkpoint_dir: pathlib.Path,
    metrics_dir: pathlib.Path,
    describe: Callable[[Mapping[str, Any]], str],
    look: Callable[[int, Any, Any], dict[str, float]] = lambda step, state, shown: {},
) -> Any:
    """Call a program until ``state.step`` reaches ``total``: restore, write metrics, save, stop at a signal.

    Args:
      call: state -> (state, metrics [steps]); its argument is donated.
      like: shapes and shardings of the state; it is restored into them, or made by ``make`` where nothing is saved.
      checkpoint_dir: a run that is restored from there continues exactly.
      metrics_dir: where ``<title>.jsonl`` and what trackers keep below a folder go.
      describe: the last row of metrics -> a short note for the progress line.
      look: (step, state, rollouts to show or None) -> what else the row of the step says; called after each program call.

    Returns:
      The state at ``total``, on the devices.

    Raises:
      Interrupted: after SIGINT or SIGTERM in the loop, once the state is saved. Until it begins there is nothing to save, and
        signals act as usual.
      NonFiniteError: if logits are not finite before anything was learnt.
      ConfigError: if training diverges, what is saved is beyond ``total``, or calls of ``run.steps_per_call`` do not end there.
      GradingError: if grading failed as a whole MAX_FAULTS times in a row.
    """
    with contextlib.closing(Checkpoints(checkpoint_dir, config.run.keep_checkpoints)) as checkpoints:
        state = checkpoints.restore_latest(like)
        state = make() if state is None else state
        step, stop = int(state.step), 0
        if step == total:
            return state
        _require_end(title, step, total, config.run.steps_per_call, checkpoint_dir)
        with (
            _catch_signals() as caught,
            contextlib.closing(checkpoints),  # here, so that no signal cuts the last of them off
            contextlib.closing(MetricsWriter(metrics_dir, title, step, config.run.trackers, to_dict(config))) as writer,
            _ended_by_stall(config.run.stall_secs) as alive,
            hosts.no_waiting_for_lost(),  # innermost: the others may wait, as a save does that a lost process takes part in
        ):
            progress, watch, pace = (
                Progress(title, step, total),
                Watch(title, config.algorithm.rounds.iterations),
                Pace(title),
            )
            first_call, faults = step, 0
            while step < total and not stop:
                alive()
                profiled = config.run.profile and step == first_call + config.run.steps_per_call
                started = time.monotonic()
                with jax.profiler.trace(str(metrics_dir / "profile")) if profiled else contextlib.nullcontext():
                    state, metrics = call(state)
                    metrics = jax.device_get(metrics)
                shown = metrics.pop("rollouts", None)
                secs = time.monotonic() - started
                done = len(next(iter(metrics.values())))
                _require_finite(
                    title, step, metrics, untrained=title == "warm_start" or not config.warm_start.num_steps
                )
                watch.look(step + 1, metrics)
                rates = _rates(config, metrics, done / secs)
                row = writer.write(step + 1, metrics, rates, look(step + done, state, shown))
                step += done
                if hosts.is_lead():
                    pace.look(step, rates)
                faults = faults + 1 if row.get("grading_faults") else 0
                if faults == MAX_FAULTS:
                    raise GradingError(
                        f"{title} stopped at step {step}: in {faults} iterations in a row responses could not be graded (the "
                        "log above says why); mend that, and the same command goes on from the newest checkpoint"
                    )
                stop = hosts.agree(caught[0] if caught else 0)  # a signal to any host stops all of them here
                if step % config.run.checkpoint_every == 0 or step >= total or stop:
                    remote.store(metrics_dir)  # first, or a run that went on from there would lack rows
                    checkpoints.save(step, state)
                progress.update(step, describe(row))
        stop = stop or hosts.agree(caught[0] if caught else 0)  # one that came during the last save
    if stop:
        raise Interrupted(stop, title, step)
    return state


@contextlib.contextmanager
def _ended_by_stall(secs: float) -> Iterator[Callable[[], None]]:
    """Give what is called as a sign of life: without one for so long, the process ends and says where its threads are."""

    def alive() -> None:
        if secs:  # from a thread of its own that needs no lock of Python's
            faulthandler.dump_traceback_later(secs, exit=True, file=sys.__stderr__ or sys.stderr)

    try:
        yield alive
    finally:
        if secs:
            faulthandler.cancel_dump_traceback_later()


def _require_end(title: str, step: int, total: int, steps_per_call: int, checkpoint_dir: pathlib.Path) -> None:
    """Raise ConfigError unless calls of ``steps_per_call`` steps lead from ``step`` to ``total``."""
    if step > total:
        raise ConfigError(
            f"{checkpoint_dir} holds step {step}, beyond the {total} that are asked for; set run.num_iterations to {step} "
            "or more, or choose another --workdir"
        )
    if (total - step) % steps_per_call:
        raise ConfigError(
            f"{title} resumes at step {step}, from where calls of run.steps_per_call = {steps_per_call} do not end at {total}; "
            f"go on with a divisor of {total - step}"
        )


def _require_finite(title: str, step: int, metrics: Mapping[str, np.ndarray], untrained: bool) -> None:
    """Raise ConfigError if metrics of the steps after ``step`` say that the parameters are no longer finite.

    Raises:
      NonFiniteError: if they say so of the very first step of an ``untrained`` policy, which no update can have spoilt.
    """
    fine = {name: np.isfinite(metrics[name]) for name in ("warm_start/loss", "grad_norm") if name in metrics}
    if "finite_logits" in metrics:
        fine["finite_logits"] = metrics["finite_logits"] == 1.0
    if untrained and step == 0 and not all(fine[name][0] for name in fine if name != "grad_norm"):
        raise NonFiniteError
    for name, holds in fine.items():
        if not holds.all():
            raise ConfigError(
                f"{title} diverged by step {step + len(holds)}: {name} is not finite; a lower learning rate may help, in "
                "another --workdir"
            )


def _rates(config: Config, metrics: Mapping[str, np.ndarray], per_sec: float) -> dict[str, float]:
    rates = {"time/steps_per_sec": per_sec, "time/secs_per_step": 1.0 / per_sec}
    if "response_length" in metrics:
        rates["time/tokens_per_sec"] = per_sec * config.algorithm.responses * float(metrics["response_length"].mean())
    if "time/device_wait_secs" in metrics:
        rates["time/device_wait_share"] = per_sec * float(metrics["time/device_wait_secs"].mean())
    return rates


@contextlib.contextmanager
def _catch_signals():
    """Collect SIGINT and SIGTERM in a list instead of dying; a second one acts as usual."""
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.getsignal(number) for number in signals}

        def handler(number, _):
            caught.append(number)
            for each in signals:
                signal.signal(each, before[each])

        for number in signals:
            signal.signal(number, handler)
    except ValueError:  # not the main thread, as in some notebooks: signals stay as they are
        yield caught
        return
    try:
        yield caught
    finally:
        for number in signals:
            signal.signal(number, before[number])
