"""Figures of a run, for tools: train.jsonl, warm_start.jsonl and what its trackers take; and a progress line, for people."""

import collections
import contextlib
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from exit_jax.parallel import hosts
from exit_jax.workdir import remote
from exit_jax.workdir.trackers import Trackers

log = logging.getLogger(__name__)


def read_jsonl(path: pathlib.Path, number: str = "") -> list[dict]:
    """Return the rows of a JSONL file; a line that is no row costs itself alone, with a warning.

    A last line without its end, which a crash cut short, is dropped without one.

    Args:
      number: field that is a whole number in every row; "" for none.
    """
    rows = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for place, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and (not number or type(row.get(number)) is int):
            rows.append(row)
        elif line.strip() and line.endswith(b"\n"):
            log.warning("%s, line %d is damaged and is left out", path, place)
    return rows


def trained_iterations(workdir: pathlib.Path) -> int:
    """Return how far a workdir's policy is trained: its newest checkpoint or, if they were removed, its last row of metrics."""
    if steps := [int(name) for name in remote.children(workdir / "checkpoints") if name.isdigit()]:
        return max(steps)
    return max((row["step"] for row in read_jsonl(workdir / "train.jsonl", "step")), default=0)


class MetricsWriter:
    """Appends one row an iteration; rows after ``step``, from a run that was cut off, are removed first.

    On several hosts only the lead writes.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        name: str,
        step: int,
        trackers: Collection[str] = ("tensorboard",),
        about: Mapping[str, Any] = MappingProxyType({}),
    ):
        """Open ``<name>.jsonl`` and the trackers, which are told ``about``, the config."""
        self._workdir, self._file, self._trackers, self._distinct = workdir, None, None, None
        if not hosts.is_lead():
            return
        path = workdir / f"{name}.jsonl"
        found = read_jsonl(path, "step")
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(row) + "\n" for row in found if row["step"] <= step))
        os.replace(partial, path)
        self._file = path.open("a")
        reached = max((row["step"] for row in found), default=step)
        self._trackers = Trackers(trackers, about, workdir, name, step, reached)

    def write(
        self,
        first_step: int,
        metrics: Mapping[str, np.ndarray],
        extra: Mapping[str, float],
        last: Mapping[str, float] = MappingProxyType({}),
    ) -> dict:
        """Write the rows of several iterations, metrics [n] each, and return the last; NaN, "nothing to average", is null.

        ``extra`` is of each row, ``last`` of the last alone. Of "instances", fingerprints uint32 [n, B, 2], it is written how
        many different ones there have been.
        """
        row: dict[str, float | None] = {}
        metrics = dict(metrics)
        marks = metrics.pop("instances", None)
        with name_folder(self._workdir):
            if marks is not None and self._file:
                self._distinct = self._distinct or DistinctInstances(self._workdir / "instances.jsonl", first_step - 1)
                metrics["distinct_instances"] = self._distinct.add(first_step, marks)
            count = len(next(iter(metrics.values())))
            for i in range(count):
                row = {"step": first_step + i}
                more = {**extra, **last} if i == count - 1 else extra
                for key, value in (*((k, v[i]) for k, v in metrics.items()), *more.items()):
                    number = float(value)
                    row[key] = number if math.isfinite(number) else None
                if self._file and self._trackers:
                    self._file.write(json.dumps(row) + "\n")
                    known = {key: value for key, value in row.items() if value is not None and key != "step"}
                    self._trackers.write(first_step + i, known)
            if self._file:
                self._file.flush()
        return row

    def close(self) -> None:
        """Close the files."""
        with name_folder(self._workdir):
            for file in filter(None, (self._file, self._trackers, self._distinct)):
                file.close()


@contextlib.contextmanager
def name_folder(folder: pathlib.Path) -> Iterator[None]:
    """Name the folder in an error of writing there: that of a full disk names no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


class DistinctInstances:
    """Counts the different instances that a run trained on, by what they hold; an instance that comes back is no new one.

    The fingerprints that each iteration was the first to bring are kept in a file, so that a run that is resumed counts on.
    Where iterations are missing there, as of a run that began before there was such a file, there is no count.
    """

    def __init__(self, path: pathlib.Path, step: int):
        kept = [row for row in read_jsonl(path, "step") if row["step"] <= step and "new" in row]
        self._seen = {mark for row in kept for mark in row["new"]}
        self._complete = [row["step"] for row in kept] == list(range(1, step + 1))
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, path)
        self._file = path.open("a")

    def add(self, first_step: int, marks: np.ndarray) -> np.ndarray:
        """Take fingerprints uint32 [n, B, 2] of n iterations; returns the counts after each, float [n], NaN if unknown."""
        counts = []
        for step, of_step in enumerate(marks.tolist(), first_step):
            names = dict.fromkeys(f"{high:08x}{low:08x}" for high, low in of_step)
            new = [name for name in names if name not in self._seen]
            self._seen.update(new)
            self._file.write(json.dumps({"step": step, "new": new}) + "\n")
            counts.append(len(self._seen) if self._complete else math.nan)
        self._file.flush()
        return np.array(counts, float)

    def close(self) -> None:
        self._file.close()


class Watch:
    """Warns, once of each kind, of iterations in a row from which nothing can have been learnt."""

    PATIENCE = 5  # iterations; of the first ones, some may be idle by chance

    def __init__(self, title: str, every: int = 1):
        """Watch updates that come every so many iterations."""
        self._title, self._every = title, max(every, 1)
        # metric -> its value in an idle iteration, and what that means
        self._signs = {
            "unfinished": (
                1.0,
                "no response ended within its room: none can be improved on, and algorithm.mask_overlong takes the gradient of "
                "all; raise domain.max_tokens, or see whether the policy knows the stop tokens",
            ),
            "end/overlong_response": (
                1.0,
                "every episode ended with a response that was cut off at its limit, and those are not played; raise "
                "domain.max_tokens, or see whether the policy knows the stop tokens (a random one needs a warm start)",
            ),
            "zero_variance_groups": (
                1.0,
                "the responses of each group were all paid alike, so no advantage differs from 0; the tasks are too hard or "
                "too easy for the policy, or it samples too alike (algorithm.temperature)",
            ),
            "params_moved": (0.0, "no update changed a parameter; see learning_rate and grad_norm in the metrics"),
        }
        self._in_a_row = dict.fromkeys(self._signs, 0)

    def look(self, first_step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Look at the metrics [n] of several iterations."""
        for name, (idle, meaning) in list(self._signs.items()):
            for i, value in enumerate(metrics.get(name, metrics.get(f"{self._title}/{name}", ()))):
                self._in_a_row[name] = self._in_a_row[name] + 1 if value == idle else 0
                patience = self.PATIENCE * (self._every if name == "params_moved" else 1)
                if self._in_a_row[name] == patience and self._signs.pop(name, None) and hosts.is_lead():
                    step = first_step + i
                    log.warning("%s, steps %d to %d: %s", self._title, step - patience + 1, step, meaning)


class Pace:
    """Warns, once, of iterations that take twice as long as the first did."""

    WINDOW, FACTOR = 20, 2.0  # calls whose median counts, as one of many may wait for a compilation

    def __init__(self, title: str):
        self._title, self._count = title, 0
        self._first: list[tuple[float, float]] = []  # (seconds a step, tokens a second) of calls
        self._last: collections.deque[tuple[float, float]] = collections.deque(maxlen=self.WINDOW)

    def look(self, step: int, rates: Mapping[str, float]) -> None:
        """Look at the rates of the call that ended at a step; that of the process's first, which compiles, is passed over."""
        self._count += 1
        call = rates["time/secs_per_step"], rates.get("time/tokens_per_sec", math.nan)
        if 1 < self._count <= self.WINDOW + 1:
            self._first.append(call)
        self._last.append(call)
        if self._count < 2 * self.WINDOW + 1:
            return
        (before, tokens_before), (now, tokens_now) = np.median(self._first, 0), np.median(self._last, 0)
        if now > self.FACTOR * before:
            self._count = -sys.maxsize  # once
            tokens = (
                f"; tokens a second: {tokens_now:.0f}, then {tokens_before:.0f}" if math.isfinite(tokens_now) else ""
            )
            log.warning(
                "%s has become slower: the last %d calls up to step %d took %.3g s a step, the first %d %.3g s%s. Where tokens "
                "a second have not changed, responses or episodes have become longer",
                *(self._title, self.WINDOW, step, now, self.WINDOW, before, tokens),
            )


class Progress:
    """One line on stderr with a rate and the time left; without a terminal, a line every QUIET_SECS."""

    QUIET_SECS = 30.0

    def __init__(self, title: str, done: int, total: int):
        self.title, self.total = title, total
        self._start_done, self._start = done, time.monotonic()
        self._shown = -math.inf
        self._terminal = sys.stderr.isatty()
        self._silent = not hosts.is_lead()

    def update(self, done: int, note: str = "") -> None:
        """Show that ``done`` of the total steps are done; the rate is of all time since the start, compilation too."""
        if self._silent:
            return
        now = time.monotonic()
        elapsed = now - self._start
        rate = (done - self._start_done) / elapsed if elapsed > 0 else 0.0
        left = (self.total - done) / rate if rate else math.inf
        line = f"{self.title} {done}/{self.total}  {rate:.2f}/s  {_clock(left)} left  {note}"
        if self._terminal:
            print(f"\r\033[K{line}", end="\n" if done >= self.total else "", file=sys.stderr, flush=True)
        elif now - self._shown >= self.QUIET_SECS or done >= self.total:
            print(line, file=sys.stderr, flush=True)
            self._shown = now


def _clock(secs: float) -> str:
    if not math.isfinite(secs):
        return "?"
    minutes, secs = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Timing:
    """Seconds of each phase of a process, and what XLA compiled in it."""

    _COMPILED = "/jax/core/compile/backend_compile_duration"

    def __init__(self):
        self._phases: dict[str, dict] = {}
        self._compile_secs: list[float] = []

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == self._COMPILED:
            self._compile_secs.append(duration_secs)

    @contextlib.contextmanager
    def phase(self, name: str):
        """Time what runs inside."""
        started, compiled = time.monotonic(), len(self._compile_secs)
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(self._listen)
        fresh = self._compile_secs[compiled:]
        self._phases[name] = {
            "secs": time.monotonic() - started,
            "compile_secs": sum(fresh),
            "num_compilations": len(fresh),
        }

    def summary(self) -> dict:
        """Return phase -> secs, compile_secs, num_compilations; compilation is part of the phase's seconds."""
        return self._phases
