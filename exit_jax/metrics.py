"""Figures of a run, for tools: metrics.jsonl and TensorBoard events; and a progress line, for people."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
from tensorboardX import SummaryWriter

from exit_jax.parallel import hosts


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """Return the rows of a JSONL file; a last line that a crash cut short is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class MetricsWriter:
    """Appends one row an iteration; rows behind ``step``, from a run that was cut off, are removed first.

    On several hosts only the lead writes.
    """

    def __init__(self, workdir: pathlib.Path, name: str, step: int):
        self._file = self._board = None
        if not hosts.is_lead():
            return
        path = workdir / f"{name}.jsonl"
        kept = [row for row in read_jsonl(path) if row["step"] <= step]
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, path)
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard" / name), purge_step=step + 1, write_to_disk=True)

    def write(self, first_step: int, metrics: Mapping[str, np.ndarray], extra: Mapping[str, float]) -> dict:
        """Write the rows of several iterations, metrics [n] each, and return the last; NaN, "nothing to average", is null."""
        row: dict = {}
        count = len(next(iter(metrics.values())))
        for i in range(count):
            row = {"step": first_step + i}
            for key, value in (*((k, v[i]) for k, v in metrics.items()), *extra.items()):
                number = float(value)
                row[key] = number if math.isfinite(number) else None
                if row[key] is not None and self._board:
                    self._board.add_scalar(key, number, first_step + i)
            if self._file:
                self._file.write(json.dumps(row) + "\n")
        if self._file:
            self._file.flush()
        return row

    def close(self) -> None:
        if self._file and self._board:
            self._file.close()
            self._board.close()


class Progress:
    """One line on stderr with a rate and the time left; without a terminal, a line every ``quiet_secs``."""

    def __init__(self, title: str, done: int, total: int, quiet_secs: float = 30.0):
        self.title, self.total = title, total
        self._start_done, self._start = done, time.monotonic()
        self._shown, self._quiet = -math.inf, quiet_secs
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
        elif now - self._shown >= self._quiet or done >= self.total:
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
