"""Do jobs on worker processes that may hang or die: hard limits, jobs dealt one by one, each worker's states remembered.

It knows nothing of what the jobs are. A worker is a fresh interpreter on a script (this process is never forked) that answers
each line of JSON by one, keeps its own limits, and is killed here should it fail to. A job names the state that it starts from,
and its reply the one that the worker then holds, as ``key``: a job goes to the worker that holds its state if that one is
free, and to any other rather than wait, so that a slow job delays only its own worker; unless the other would take longer
to bring the state about ``again``. A worker that replies ``retire`` is replaced.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
import selectors
import signal
import site
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import IO, Any

START_SECS = 120.0
ROOT = str(pathlib.Path(__file__).parents[2])  # folder of this package
MAX_FAILED_STARTS = 3
MAX_OWNED = 1 << 16  # states whose worker is remembered
RETIRE_BYTES = 512 << 20  # a worker that has grown beyond this is replaced


@dataclasses.dataclass(frozen=True)
class Job:
    """A request to a worker."""

    message: Any  # goes out as JSON
    limit_secs: float  # limit by the clock; the worker has its own, shorter ones
    state: str = ""  # state that it starts from; "" for none
    again: int = 0  # jobs' worth of work that bringing its state about again takes


@dataclasses.dataclass(eq=False)
class Worker:
    """A worker process and what it is doing."""

    process: subprocess.Popen
    stdin: IO[bytes]
    stdout: IO[bytes]
    deadline: float  # end of the time for the job in hand, or for its start
    is_ready: bool = False
    index: int | None = None  # place of the job in hand
    received: bytearray = dataclasses.field(default_factory=bytearray)


class Pool:
    """Worker processes on a script, which start at the first call that needs them."""

    def __init__(self, script: pathlib.Path, arguments: Sequence[str], num_workers: int, needs: str):
        """Name the script, its arguments, how many processes run it at a time, and the package that it cannot do without."""
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers} must be positive")
        self.num_replaced = 0  # workers killed at the limit, found dead, or retired for their memory
        self._command = [sys.executable, "-P", str(script), *arguments]
        self._num_workers, self._needs = num_workers, needs
        self._workers: list[Worker] = []
        self._owners: collections.OrderedDict[str, Worker] = collections.OrderedDict()
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        weakref.finalize(self, end, self._closed, self._workers)  # also at the interpreter's exit

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, reply) of each job as it is done. The reply to a job that killed its worker is ``{"error": why}``.

        One thread at a time, the others wait. Jobs that are not asked for to the end are given up with their workers.

        Raises:
            RuntimeError: workers cannot be started, or the pool was closed.
        """
        with self._lock:
            self._check_open()
            queues: dict[Worker | None, collections.deque[int]] = {None: collections.deque()}
            for index, job in enumerate(jobs):
                owner = self._owners.get(job.state)
                queues.setdefault(owner if owner in self._workers else None, collections.deque()).append(index)
            num_failed = 0
            try:
                while any(queues.values()) or any(worker.index is not None for worker in self._workers):
                    self._hand_out(queues, jobs)
                    for worker, reply in self._replies():
                        self._check_open()  # or a worker's end would be put down to its job
                        index, worker.index, worker.deadline = worker.index, None, math.inf
                        error, was_ready, worker.is_ready = reply.get("error"), worker.is_ready, True
                        if error is not None or reply.get("rss", 0) > RETIRE_BYTES or reply.get("retire"):
                            self._drop(worker)
                        elif key := reply.get("key"):
                            self._owners[key] = worker
                            self._owners.move_to_end(key)
                            if len(self._owners) > MAX_OWNED:
                                self._owners.popitem(last=False)
                        num_failed = num_failed + 1 if error is not None and not was_ready else 0
                        if num_failed >= MAX_FAILED_STARTS:
                            raise RuntimeError(f"no worker starts: {error}; is {self._needs} installed?")
                        if index is not None:
                            yield index, reply
            finally:  # after an error, or if nobody asks for the rest
                for worker in [worker for worker in self._workers if worker.index is not None]:
                    self._drop(worker)

    def close(self):
        """End the workers. A call of ``run`` in another thread fails."""
        end(self._closed, self._workers)
        with self._lock:
            for worker in list(self._workers):
                self._drop(worker)
            self._selector.close()

    def _check_open(self):
        """Raise if the workers were ended."""
        if self._closed.is_set():
            raise RuntimeError("the worker pool was closed")

    def _hand_out(self, queues: dict[Worker | None, collections.deque[int]], jobs: Sequence[Job]):
        """Start the workers that are missing and give each free one a job: one of its own, one of nobody's, or another's."""
        num_open = sum(map(len, queues.values())) + sum(worker.index is not None for worker in self._workers)
        while len(self._workers) < min(self._num_workers, num_open):
            self._workers.append(worker := start(self._command))
            self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        for worker in list(self._workers):
            if not worker.is_ready or worker.index is not None:
                continue
            queue = self._queue_for(worker, queues, jobs)
            if not queue:
                continue
            index = queue.popleft()
            line = (json.dumps(jobs[index].message) + "\n").encode()
            try:
                while line:
                    line = line[os.write(worker.stdin.fileno(), line) :]
                worker.index, worker.deadline = index, time.monotonic() + jobs[index].limit_secs
            except OSError:  # it died while it had nothing to do: the job is not to blame
                queue.appendleft(index)
                self._drop(worker)

    def _queue_for(
        self, worker: Worker, queues: dict[Worker | None, collections.deque[int]], jobs: Sequence[Job]
    ) -> collections.deque[int] | None:
        """Return where a free worker takes a job from: another's only if that is gone, or has more to do than it would take."""
        if own := queues.get(worker) or queues[None]:
            return own
        others = [
            queue
            for owner, queue in queues.items()
            if queue and (owner not in self._workers or len(queue) > jobs[queue[0]].again)
        ]
        return max(others, key=len, default=None)

    def _replies(self) -> list[tuple[Worker, dict[str, Any]]]:
        """Wait until a worker speaks, dies or exceeds its time; return what each such worker says, or its error."""
        found = []
        # a worker without a job has no deadline, and one that has a job has one: this wait ends
        patience = min((worker.deadline for worker in self._workers), default=0.0) - time.monotonic()
        spoken = [event.data for event, _ in self._selector.select(max(patience, 0.0))]
        for worker in spoken:
            worker.received += (chunk := os.read(worker.stdout.fileno(), 1 << 20))
            if not chunk:
                found.append((worker, {"error": how_it_ended(worker.process)}))
            elif chunk.endswith(b"\n"):
                found.append((worker, json.loads(worker.received)))
                worker.received.clear()
        late = time.monotonic()
        return found + [
            (worker, {"error": "wall-clock limit"})
            for worker in self._workers
            if worker.deadline <= late and worker not in spoken
        ]

    def _drop(self, worker: Worker):
        """End a worker; the next job starts another."""
        self._workers.remove(worker)
        self._selector.unregister(worker.stdout)
        worker.process.kill()
        worker.process.wait()
        worker.stdin.close()
        worker.stdout.close()
        self.num_replaced += not self._closed.is_set()


def start(command: list[str]) -> Worker:
    """Start a worker process, without forking this one's threads and locks.

    It is in a session of its own: a Ctrl-C, or a signal to the trainer's process group, would otherwise end it first, and its
    job would be put down as failed. Should this process be killed, an idle worker ends with its stdin, a busy one at its
    limit. PR_SET_PDEATHSIG would be wrong: it fires when the *thread* that started the worker ends. Hashes and the time zone
    are fixed: sympy's order of terms, and back-ends that list a set or show a time, are alike on any machine and day. This
    package is on the worker's path, wherever the trainer has it from.
    """
    process = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"PYTHONHASHSEED": "0", "TZ": "UTC", "PYTHONPATH": python_path()},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return Worker(process, process.stdin, process.stdout, time.monotonic() + START_SECS)


def python_path() -> str:
    """Return PYTHONPATH for a worker: this package's folder, and what there is.

    site-packages stays where it is: PYTHONPATH comes before the standard library, whose names some packages there have, too.
    """
    own = [] if ROOT in (*site.getsitepackages(), site.getusersitepackages()) else [ROOT]
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])


def end(closed: threading.Event, workers: list[Worker]):
    """End a pool's workers, which wakes a thread that waits for one."""
    closed.set()
    for worker in list(workers):
        worker.process.kill()
        worker.process.wait()


def how_it_ended(process: subprocess.Popen) -> str:
    """Return why a worker that closed its stdout is gone."""
    code = process.wait()
    if code in (-signal.SIGPROF, -signal.SIGALRM):
        return "time limit" if code == -signal.SIGPROF else "wall-clock limit"
    return f"worker killed by {signal.Signals(-code).name}" if code < 0 else f"worker ended with status {code}"
