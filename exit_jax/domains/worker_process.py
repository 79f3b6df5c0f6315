"""What the worker processes of workers.py do to themselves: replies, limits of time and memory, signals. It imports no JAX."""

import json
import os
import resource
import signal
from collections.abc import Mapping
from typing import Any

WALL_FACTOR = 4.0  # seconds by the clock for each of processor time


def begin() -> int:
    """Make this process a worker: return the descriptor for ``write_line`` to the trainer, and send stdout to stderr.

    What a library prints must not be taken for a reply. The timers' signals end the process, whatever it is in the middle of.
    SIGTERM, which a cluster that ends a job sends, does not: the trainer decides, and has jobs in hand.
    """
    replies = os.dup(1)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return replies


def use_one_thread() -> None:
    """Keep what is imported from here on to one thread, for there is one process a core; a device is the trainer's."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ.update({**single, "TOKENIZERS_PARALLELISM": "false"} | os.environ | {"JAX_PLATFORMS": "cpu"})


def write_line(descriptor: int, fields: Mapping[str, Any]) -> None:
    """Write a line of JSON to a pipe.

    Raises:
      OSError: nobody reads it.
    """
    line = json.dumps(fields).encode() + b"\n"
    while line:
        line = line[os.write(descriptor, line) :]


def start_timers(secs: float, wall_secs: float = 0.0) -> None:
    """Allow so much processor time from here, and ``wall_secs`` by the clock, by default WALL_FACTOR times as much."""
    signal.setitimer(signal.ITIMER_PROF, secs)
    signal.setitimer(signal.ITIMER_REAL, wall_secs or WALL_FACTOR * secs)


def stop_timers() -> None:
    """End the allowance."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def limit_address_space(num_bytes: int) -> None:
    """Refuse this process more address space than this."""
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


def limit_growth(num_bytes: int) -> None:
    """Refuse this process more than this beyond the data that it holds; address space that is only reserved is not in it."""
    limit, hard = memory_bytes("VmData:") + num_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def memory_bytes(field: str) -> int:
    """Return a line of this process's status in bytes, 0 where /proc is missing."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))
    except OSError:
        return 0


def resident_bytes() -> int:
    """Return this process's memory, 0 where /proc is missing."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
