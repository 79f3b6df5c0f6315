"""What a program's processes use together: memory, processor time, threads. Part of the supervisor, and starts anew with it.

No kernel interface gives these sums to a process without privileges (a control group would, and is writable hardly anywhere),
so they are added up from /proc whenever ``Meter.look`` is called.

Processor time has a hole there: a child's time is added to that of whoever waits for it, and nobody waits for the children of a
process that ignores SIGCHLD. So the time is estimated by sampling, too: a process grows from look to look, and one that is
seen for the first time stands for all that came and went unseen since the last look.
"""

from __future__ import annotations

import os
import resource
import time

TICKS = os.sysconf("SC_CLK_TCK")
# the sample counts where it is clearly above the sum: chance cannot end a program that keeps to its limit
SAMPLED_SHARE, SAMPLED_SLACK_SECS = 0.9, 1.0
OBJECT_BYTES = 256  # kernel memory for a mapping or a watch of epoll; 200 to 250 were measured
DESCRIPTOR_BYTES = 8 << 10  # two pages of a pipe, which is what each may have beyond the 64 MiB of a user's pipes
UNIX_SOCKETS, FILE_LOCKS = "/proc/net/unix", "/proc/locks"
MAX_LOCKS = 4096  # a file's locks are kernel memory that no other limit holds
FIRST_OBJECTS = 4096  # counted in a process at first; if there are more it is taken to have 16 times as many
MORE = 16
UNSEEN_OBJECTS = 1 << 20  # taken for a process that cannot be looked into, which is one that wants it so
COUNT_SECS = 0.05  # time of a process in the kernel, in which it makes 50,000 mappings; then they are counted again
BUDGET_SECS = 0.002  # seconds of counting at a look; who is left is first at the next
WATCHERS = ("anon_inode:[eventpoll]", "anon_inode:inotify")


class Process:
    """What is known of a process."""

    def __init__(self, start: str, objects: int):
        self.start = start  # the time, which with the number makes it unique
        self.secs = 0.0  # processor time
        self.objects = objects  # mappings and watches
        self.count_at = 0.0  # seconds of its time in the kernel at which they are counted again
        self.waits_since = 0.0  # a time by the clock, 0 while it is not due
        self.max_objects = FIRST_OBJECTS  # objects to count


class Meter:
    """Adds up what the processes of a program use, and keeps them first in line for the machine's memory killer.

    Args:
        bare: the processes are the descendants of this one; else all that there are in this namespace but this one.
        socket_bytes: kernel memory that a unix socket may hold.
        sees_all: whether this process may look into those of the program that do not hide.
    """

    def __init__(self, bare: bool, socket_bytes: int, sees_all: bool):
        self._bare, self._socket_bytes = bare, socket_bytes
        self._hidden_objects = UNSEEN_OBJECTS if sees_all else 0
        self._processes: dict[int, Process] = {}
        self._sampled_secs = 0.0
        self._looked = time.monotonic()

    def look(self) -> tuple[int, float, int, int]:
        """Return bytes of memory, seconds of processor time, the number of threads, and that of locked parts of files."""
        now = time.monotonic()
        span, self._looked = now - self._looked, now
        memory, secs, threads, known = 0, cpu_secs_of_children(), 0, self._processes
        self._processes = {}
        for pid in members(self._bare):
            if not (fields := stat_of(f"/proc/{pid}")):
                continue
            secs += sum(map(int, fields[11:15])) / TICKS  # own and those of children it waited for
            threads += int(fields[17])
            memory += memory_of(pid, fields)
            set_killed_first(pid)
            process = self._processes[pid] = self._follow(pid, fields, known, span)
            if not process.waits_since and kernel_secs(fields) >= process.count_at:
                process.waits_since = now
        self._count_objects()
        memory += OBJECT_BYTES * sum(process.objects for process in self._processes.values())
        if not self._bare:
            memory += self._socket_bytes * max(count_lines(UNIX_SOCKETS, 1 << 20) - 1, 0)
        locks = 0 if self._bare else count_lines(FILE_LOCKS, MAX_LOCKS)
        return memory, max(secs, SAMPLED_SHARE * self._sampled_secs - SAMPLED_SLACK_SECS), threads, locks

    def _follow(self, pid: int, fields: list[str], known: dict[int, Process], span: float) -> Process:
        """Return a process, with its processor time as it is now, and add the growth to the sample."""
        process = known.get(pid)
        secs = own_secs(pid)
        if process is None or process.start != fields[19]:
            parent = known.get(int(fields[1]))
            process = Process(fields[19], parent.objects if parent else 0)  # a fork has what its parent had
            self._sampled_secs += max(secs, span * share_of_processors(pid))
        else:
            self._sampled_secs += max(secs - process.secs, 0.0)
        process.secs = secs
        return process

    def _count_objects(self):
        """Count mappings and watches of the processes that are due, those first that have waited longest."""
        due = sorted((process.waits_since, pid) for pid, process in self._processes.items() if process.waits_since)
        begun = time.monotonic()
        for _, pid in due:
            process, started = self._processes[pid], time.monotonic()
            if started - begun > BUDGET_SECS:
                return
            count, process.waits_since = objects_of(pid, process.max_objects), 0.0
            if count is None:  # looked into again at the next look
                process.objects = self._hidden_objects
                continue
            if count > process.max_objects:
                count = process.max_objects = MORE * process.max_objects
            process.objects = count
            process.count_at = kernel_secs(stat_of(f"/proc/{pid}")) + max(COUNT_SECS, 5 * (time.monotonic() - started))


def members(bare: bool) -> list[int]:
    """Return the processes that count: all but this one inside, its descendants if bare."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if not bare:
        return [pid for pid in pids if pid != os.getpid()]
    parents = {pid: int(fields[1]) for pid in pids if (fields := stat_of(f"/proc/{pid}"))}
    found, frontier = [], [os.getpid()]
    while frontier:
        frontier = [pid for pid, parent in parents.items() if parent in frontier]
        found += frontier
    return found


def stat_of(folder: str) -> list[str]:
    """Return the fields of a process's or thread's stat from the state on, [] if it is gone."""
    try:
        with open(f"{folder}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def kernel_secs(fields: list[str]) -> float:
    """Return the seconds of a process's time in the kernel; 0 if it is gone."""
    return int(fields[12]) / TICKS if fields else 0.0


def memory_of(pid: int, fields: list[str]) -> int:
    """Return the bytes that a process holds: resident but for files' pages, page tables, swap, descriptors."""
    memory = memory_in(f"/proc/{pid}")
    if fields[0] == "Z" and int(fields[17]) > 1:  # the first thread ended and took its view of the memory with it
        tasks = f"/proc/{pid}/task"
        memory += max((memory_in(f"{tasks}/{task}") for task in list_folder(tasks)), default=0)
    return memory


def memory_in(folder: str) -> int:
    """Return the bytes that a process's or thread's status tells of."""
    try:
        with open(f"{folder}/status", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    wanted = (b"RssAnon:", b"RssShmem:", b"VmPTE:", b"VmSwap:", b"HugetlbPages:")
    kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith(wanted))
    descriptors = sum(int(line.split()[1]) for line in lines if line.startswith(b"FDSize:"))
    return (kilobytes << 10) + DESCRIPTOR_BYTES * descriptors


def objects_of(pid: int, limit: int) -> int | None:
    """Return the number of a process's mappings and watches, or any number above the limit if they are more.

    None stands for a process that cannot be looked into.
    """
    try:
        count = count_lines(f"/proc/{pid}/maps", limit)
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if count <= limit and read_link(f"/proc/{pid}/fd/{fd}") in WATCHERS:
                count += count_lines(f"/proc/{pid}/fdinfo/{fd}", limit)
    except PermissionError:
        return None
    except OSError:  # it is gone
        return 0
    return count


def count_lines(path: str, limit: int) -> int:
    """Return the number of a file's lines, or any number above the limit if they are more; 0 if there is no such file."""
    count = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while count <= limit and (chunk := file.read(1 << 16)):
                count += chunk.count(b"\n")
    except (FileNotFoundError, ProcessLookupError):
        pass
    return count


def read_link(path: str) -> str:
    """Return where a link leads, "" if it is gone."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def list_folder(path: str) -> list[str]:
    """Return the names in a folder, none if it is gone."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def cpu_secs_of_children() -> float:
    """Return the processor time of the descendants that are dead and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def own_secs(pid: int) -> float:
    """Return the processor time of a process's threads, the dead ones too, to the nanosecond; 0 if it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) has it
    except OSError:
        return 0.0


def share_of_processors(pid: int) -> float:
    """Return how many processors a process has: of each thread that wants one now, the part of its life in which it had it."""
    share = 0.0
    for task in list_folder(f"/proc/{pid}/task"):
        if stat_of(folder := f"/proc/{pid}/task/{task}")[:1] == ["R"]:
            try:
                with open(f"{folder}/schedstat", "rb") as file:
                    had, waited = map(int, file.read().split()[:2])
            except (OSError, ValueError):  # gone, or a kernel that does not count
                continue
            share += had / max(had + waited, 1)
    return share


def set_killed_first(pid: int):
    """Put a process where the machine's memory killer begins; it may have left that place.

    Where the trainer is root and has CAP_SYS_RESOURCE, the kernel forbids that by itself.
    """
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:  # gone, or hidden
        pass
