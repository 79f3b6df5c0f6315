"""Many runs at once: as many as there are cores for, fair between owners, each result cached the moment it is there."""

import collections
import concurrent.futures
import dataclasses
import logging
import os
import pathlib
import threading
import weakref
from collections.abc import Sequence
from typing import BinaryIO

from exit_jax.sandbox import launch
from exit_jax.sandbox.bwrap import Jail
from exit_jax.sandbox.cache import Cache, Folders, key_of, versions_of
from exit_jax.sandbox.job import Job, Limits, Result
from exit_jax.sandbox.levels import find_jail

log = logging.getLogger(__name__)
DEFAULT_LIMITS = Limits()
PACKAGES = ("numpy", "pandas", "scikit-learn", "scipy")


@dataclasses.dataclass(eq=False)
class Task:
    """A run that is due."""

    job: Job
    key: str  # names its result in a cache
    future: concurrent.futures.Future = dataclasses.field(default_factory=concurrent.futures.Future)


class Turns:
    """Tasks by owner; each owner in turn gives one. Workers wait here."""

    def __init__(self):
        self._queues: collections.OrderedDict[int, collections.deque[Task]] = collections.OrderedDict()
        self._condition = threading.Condition()
        self._lifelines: weakref.WeakSet[BinaryIO] = weakref.WeakSet()  # one for each run under way
        self.is_closed = False

    def put(self, tasks: Sequence[tuple[int, Task]]):
        """Add tasks, each at the end of its owner's.

        Raises:
            RuntimeError: the sandbox was closed.
        """
        with self._condition:
            if self.is_closed:
                raise RuntimeError("the sandbox was closed")
            for owner, task in tasks:
                self._queues.setdefault(owner, collections.deque()).append(task)
            self._condition.notify_all()

    def take(self) -> Task | None:
        """Wait for a task and return it, None if there will be no more."""
        with self._condition:
            self._condition.wait_for(lambda: self._queues or self.is_closed)
            if self.is_closed:
                return None
            owner, queue = self._queues.popitem(last=False)
            task = queue.popleft()
            if queue:
                self._queues[owner] = queue  # at the end of the line
            return task

    def drop(self, tasks: Sequence[Task]):
        """Forget those of the tasks that have not begun."""
        if all(task.future.done() for task in tasks):
            return
        with self._condition:
            for owner, queue in list(self._queues.items()):
                if rest := collections.deque(task for task in queue if task not in tasks):
                    self._queues[owner] = rest
                else:
                    del self._queues[owner]
        for task in tasks:
            task.future.cancel()

    def hold(self, lifeline: BinaryIO):
        """Keep the file that ends a run when it is closed."""
        with self._condition:
            self._lifelines.add(lifeline)
            if self.is_closed:
                lifeline.close()

    def close(self):
        """End the runs under way, give up the rest, and let the workers go."""
        with self._condition:
            self.is_closed = True
            rest = [task for queue in self._queues.values() for task in queue]
            self._queues.clear()
            for lifeline in self._lifelines:
                lifeline.close()
            self._condition.notify_all()
        for task in rest:
            task.future.cancel()


class Sandbox:
    """Runs programs, isolated from everything here. Threads start at the first call that needs them.

    Args:
        isolation: ``auto`` (the strongest that works here), a level that must work, or ``none``. See levels.py.
        limits: of each run.
        num_workers: runs at once; 0 for one a core. Never more than cores // limits.threads, whatever is asked for.
        cache_dir: where results are kept (cache.py); None keeps none.
        packages: those whose versions a result may depend on.
        hidden: folders, such as a package's bundled data, that appear empty to programs. Without isolation they do not.

    Raises:
        SandboxError: the isolation cannot be had here, with the remedy.
    """

    def __init__(
        self,
        isolation: str,
        limits: Limits = DEFAULT_LIMITS,
        num_workers: int = 0,
        cache_dir: pathlib.Path | None = None,
        packages: Sequence[str] = PACKAGES,
        hidden: Sequence[pathlib.Path] = (),
    ):
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be positive, or 0 for one a core")
        num_cores = len(os.sched_getaffinity(0))
        self.num_workers = max(min(num_workers or num_cores, num_cores // limits.threads), 1)
        self.limits = limits
        found = find_jail(isolation)
        self.level = found.level
        self._jail = dataclasses.replace(found, hidden=tuple(sorted(str(path.resolve()) for path in hidden)))
        if hidden and self.level == "none":
            log.warning("sandbox: without isolation nothing hides %s", ", ".join(self._jail.hidden))
        self._cache = None if cache_dir is None else Cache(cache_dir)
        self._versions = [*versions_of(packages), *self._jail.hidden]
        self._folders = Folders(needs_all=self.level != "none" and os.geteuid() == 0)
        self._turns = Turns()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        weakref.finalize(self, self._turns.close)

    def run(self, jobs: Sequence[Job], owners: Sequence[int] | None = None) -> list[Result]:
        """Run jobs and return their results in order.

        Owners of jobs take turns, over all calls that are under way; without ``owners`` each job is its own. Jobs that are
        equal run once if results are cached. No exception comes of what a program does, or of a fault of the sandbox: that
        is a result of status ``fault``, after a second try.

        Raises:
            ValueError: a job's public data is no folder of plain files that programs can read.
            RuntimeError: the sandbox was closed.
        """
        if owners is not None and len(owners) != len(jobs):
            raise ValueError(f"{len(owners)} owners of {len(jobs)} jobs: there must be one for each")
        folders = {job.public for job in jobs}
        digests = {folder: "" if folder is None else self._folders.digest(folder) for folder in folders}
        keys = [key_of(job, digests[job.public], self.limits, self.level, self._versions) for job in jobs]
        results: dict[int, Result] = {}
        tasks: dict[int, Task] = {}  # tasks by the index of the job
        same: dict[str, int] = {}  # the first index of a key
        if self._cache is not None:
            for index, key in enumerate(keys):
                if same.setdefault(key, index) == index and (found := self._cache.get(key)) is not None:
                    results[index] = found
        for index, (job, key) in enumerate(zip(jobs, keys)):
            if index not in results and same.get(key, index) == index:
                tasks[index] = Task(job, key)
        try:
            self._turns.put([(index if owners is None else owners[index], task) for index, task in tasks.items()])
            self._start_threads(len(tasks))
            results |= {index: task.future.result() for index, task in tasks.items()}
        except concurrent.futures.CancelledError:
            raise RuntimeError("the sandbox was closed") from None
        finally:
            self._turns.drop(list(tasks.values()))
        if tasks and self._turns.is_closed:
            raise RuntimeError("the sandbox was closed")
        for index, key in enumerate(keys):
            if index not in results:
                results[index] = dataclasses.replace(results[same[key]], cached=True)
        return [results[index] for index in range(len(jobs))]

    def close(self):
        """End the runs under way and the threads. A call of ``run`` in another thread fails."""
        self._turns.close()
        for thread in self._threads:
            thread.join()

    def _start_threads(self, num_tasks: int):
        """Start the threads that so many more tasks may need."""
        with self._lock:
            for _ in range(min(num_tasks, self.num_workers - len(self._threads))):
                arguments = (self._turns, self._jail, self.limits, self._cache)
                self._threads.append(threading.Thread(target=work, args=arguments, daemon=True, name="sandbox"))
                self._threads[-1].start()


def work(turns: Turns, jail: Jail, limits: Limits, cache: Cache | None):
    """Run tasks until there will be no more. It knows no Sandbox, which can thus be collected while this waits.

    The thread starts the processes itself, and waits for them: the kernel ends those whose starting thread is gone.
    """
    while (task := turns.take()) is not None:
        if not task.future.set_running_or_notify_cancel():
            continue
        try:
            task.future.set_result(run_task(task, turns, jail, limits, cache))
        except Exception as error:  # a fault of the host, a full memory for one: a value for the training run
            log.exception("sandbox: a run failed")
            task.future.set_result(launch.fault(f"{type(error).__name__}: {error}"))


def run_task(task: Task, turns: Turns, jail: Jail, limits: Limits, cache: Cache | None) -> Result:
    """Return a task's result, from the cache if another call has put it there meanwhile."""
    if cache is not None and (found := cache.get(task.key)) is not None:
        return found
    result = launch.run(jail, task.job, limits, turns.hold)
    if result.status == "fault" and not turns.is_closed:
        log.warning("sandbox: %s; once more", result.reason)
        result = launch.run(jail, task.job, limits, turns.hold)
    waited_for_us = result.status == "timeout" and result.hint  # a wait for what was refused
    if cache is not None and result.status != "fault" and not waited_for_us:
        cache.put(task.key, result)
    return result
