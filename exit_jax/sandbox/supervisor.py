"""Run one program within its limits, then report on it and on the files it left.

Inside bubblewrap it is process 1: no signal from within can end it, and with it everything ends. It starts the program as
another user where it can, and lets nobody read or trace it, so that a program that shares its user cannot either. Every
20 ms it adds up the memory, processes and processor time of all processes but itself. Without bubblewrap ("bare") it does the
same to its descendants, which it adopts should their parents die.

The report goes to stdout: a line of the parts' sizes, then the parts (``report`` names them). Stdin is open for one thing: when
its other end closes, the trainer is gone, and so is all of this. launch.py starts it, without the site's packages; of the
standard library it imports what costs little, for it starts anew with every run (json would add 8 ms).
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import stat
import sys
import time

POLL_SECS = 0.02  # a program touches 1-2 GB of fresh memory a second and core: 20-40 MB too late
MAX_NAMES = 1 << 16  # files and folders in the writable folder: at about 1 KB of kernel memory each
OUTPUT_FACTOR = 1024
SPARE_ADDRESSES = 16 << 30  # address space that numerical libraries reserve and never touch
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
TICKS = os.sysconf("SC_CLK_TCK")


class Output:
    """The end of what comes out of a pipe."""

    def __init__(self, fd: int, limit: int):
        os.set_blocking(fd, False)
        self.fd, self.total, self.is_open = fd, 0, True
        self._limit, self._kept = limit, bytearray()

    def read(self) -> bool:
        """Take what is there, 64 KiB at most; return whether there may be more."""
        try:
            chunk = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return False
        self.total += len(chunk)
        self._kept += chunk
        self.is_open = bool(chunk)
        if len(self._kept) > 2 * self._limit + (1 << 16):
            del self._kept[: -self._limit]
        return self.is_open

    def tail(self) -> bytes:
        return bytes(self._kept[-self._limit :])


def main(request: dict, code: bytes):
    """Do what launch.py asks for: run a program, given as its text, and report."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 is spared signals from within that it has no handler for
    os.umask(0o022)  # the trainer's may be one that hides the program from the program
    os.closerange(3, 64)  # what bubblewrap or the trainer left open would be the program's, too
    folder = prepare(request, code)
    try:
        serve(request, folder)
    finally:
        if request["bare"]:
            import shutil  # 10 ms, not for every run

            os.chdir("/")
            shutil.rmtree(request["box"], ignore_errors=True)


def prepare(request: dict, code: bytes) -> int:
    """Make the folders, write the program, shut this process off; return the writable folder's descriptor."""
    for name in ("work", "shm", "home"):
        os.mkdir(f"{request['box']}/{name}")
    for name in ("", "work", "shm", "home"):
        os.chmod(f"{request['box']}/{name}", 0o1777)  # the program is another user
    os.chdir(f"{request['box']}/work")
    with open("solution.py", "wb") as file:
        file.write(code)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # should the machine run out of memory, this goes first
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_DUMPABLE, 0), (PR_SET_CHILD_SUBREAPER, 1)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY)


def serve(request: dict, folder: int):
    """Run the program, end all its processes, report."""
    started = time.monotonic()
    child, outputs, error_fd = start(request)
    status, reason, exit_code = watch(request, child, outputs, started)
    secs = time.monotonic() - started
    end_all(request["bare"])
    for output in outputs:
        while output.read():
            pass
    if error := os.read(error_fd, 1 << 12):  # closed by a successful exec
        status, reason, exit_code = "fault", f"the program did not start: {error.decode()}", None
    if status == "crashed" and not request["bare"] and is_full(request["box"]):
        status, reason = "disk", f"the writable folder is full ({reason})"
    report(request, status, reason, exit_code, secs, outputs, folder)


def report(
    request: dict, status: str, reason: str, exit_code: int | None, secs: float, outputs: list[Output], folder: int
):
    """Write what came of the run: status, reason, exit code ("" for none), seconds, stdout, stderr, and for each of the files
    asked for its content behind a "+" or behind a "-" why it was refused.
    """
    words = (status, reason, "" if exit_code is None else str(exit_code), repr(secs))
    parts = [*(word.encode() for word in words), *(output.tail() for output in outputs)]
    for name in request["collect"]:
        try:
            parts.append(b"+" + read_plain(folder, name, request["limits"]["file_bytes"]))
        except (OSError, ValueError) as error:
            parts.append(b"-" + (getattr(error, "strerror", None) or str(error)).encode())
    with open(1, "wb") as stdout:
        stdout.write(" ".join(str(len(part)) for part in parts).encode() + b"\n")
        stdout.writelines(parts)


def start(request: dict) -> tuple[int, list[Output], int]:
    """Start the program; return its process, its stdout and stderr, and where the error comes if it cannot be started."""
    pipes = [os.pipe() for _ in range(3)]
    child = os.fork()
    if child == 0:
        try:
            become(request, [write for _, write in pipes])
        except BaseException as error:
            os.write(pipes[2][1], repr(error).encode())
        finally:
            os._exit(127)
    for _, write in pipes:
        os.close(write)
    limit = request["limits"]["output_bytes"]
    return child, [Output(read, limit) for read, _ in pipes[:2]], pipes[2][0]


def become(request: dict, pipes: list[int]):
    """Turn this process, a fresh fork, into the program. Other descriptors close by themselves."""
    limits = request["limits"]
    os.setsid()
    for target, fd in enumerate((os.open(os.devnull, os.O_RDONLY), pipes[0], pipes[1])):
        os.dup2(fd, target)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and they would be inherited
    cpu_secs = int(limits["cpu_secs"]) + 2
    bounds = {
        resource.RLIMIT_CPU: (cpu_secs, cpu_secs + 1),
        resource.RLIMIT_AS: (limits["memory_bytes"] + SPARE_ADDRESSES,) * 2,
        resource.RLIMIT_FSIZE: (limits["disk_bytes"],) * 2,
        resource.RLIMIT_NOFILE: (limits["num_files"],) * 2,
        resource.RLIMIT_CORE: (1, 1),  # not 0: at 1 the kernel does not start a crash handler outside either
        resource.RLIMIT_MEMLOCK: (1 << 16,) * 2,
    }
    if request["max_tasks"] is not None:
        bounds[resource.RLIMIT_NPROC] = (request["max_tasks"],) * 2
    for kind, pair in bounds.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, pair if hard == resource.RLIM_INFINITY else (min(pair[0], hard), min(pair[1], hard)))
    if request["uid"] is not None:
        os.setgroups([])
        os.setresgid(request["uid"], request["uid"], request["uid"])
        os.setresuid(request["uid"], request["uid"], request["uid"])
    os.execve(request["command"][0], request["command"], request["environment"])


def watch(request: dict, child: int, outputs: list[Output], started: float) -> tuple[str, str, int | None]:
    """Wait until the program ends or exceeds a limit; return status, reason and exit code."""
    poll = select.poll()
    poll.register(0, 0)  # the trainer's end
    for output in outputs:
        poll.register(output.fd, select.POLLIN)
    try:
        ending = os.pidfd_open(child)  # its output may end before it does, and go on after
        poll.register(ending, select.POLLIN)
    except OSError:  # Linux before 5.3: seen at the next look
        pass
    checked = started
    while True:
        for fd, event in poll.poll(1e3 * POLL_SECS):
            if fd == 0:
                end_all(request["bare"])
                sys.exit("the trainer is gone")
            for output in outputs:
                if fd == output.fd and event and not output.read() and not output.is_open:
                    poll.unregister(fd)
        if (ended := reap(child)) is not None:
            return how_it_ended(ended)
        if (now := time.monotonic()) - checked >= POLL_SECS:
            checked = now
            used = usage(members(request["bare"]))
            if found := exceeded(request, used, now - started, sum(output.total for output in outputs)):
                return *found, None


def reap(child: int) -> int | None:
    """Bury the dead; return the program's wait status if it is among them."""
    ended = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == child:
            ended = status
        elif pid == 0:
            return ended


def how_it_ended(wait_status: int) -> tuple[str, str, int]:
    """Return status, reason and exit code of a program that ended by itself."""
    code = os.waitstatus_to_exitcode(wait_status)
    if code == -signal.SIGXCPU:
        return "timeout", "the limit of processor time", code
    if code < 0:
        return "crashed", f"killed by {signal.Signals(-code).name}", code
    return ("crashed", f"exit status {code}", code) if code else ("ok", "", 0)


def members(bare: bool) -> list[int]:
    """Return the processes that count: all but this one inside, its descendants if bare."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if not bare:
        return [pid for pid in pids if pid != os.getpid()]
    parents = {pid: int(fields[1]) for pid in pids if (fields := stat_of(pid))}
    found, frontier = [], [os.getpid()]
    while frontier:
        frontier = [pid for pid, parent in parents.items() if parent in frontier]
        found += frontier
    return found


def stat_of(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on, [] if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def usage(pids: list[int]) -> tuple[int, float, int]:
    """Return memory in bytes, seconds of processor time, and the number of threads of these processes and the dead ones."""
    memory, secs, threads = 0, cpu_secs_of_children(), 0
    for pid in pids:
        if not (fields := stat_of(pid)):
            continue
        secs += sum(map(int, fields[11:15])) / TICKS  # own and those of children it waited for
        threads += int(fields[17])
        memory += memory_of(f"/proc/{pid}")
        if fields[0] == "Z" and int(fields[17]) > 1:  # the first thread ended and took its view of the memory with it
            tasks = f"/proc/{pid}/task"
            memory += max((memory_of(f"{tasks}/{task}") for task in list_folder(tasks)), default=0)
    return memory, secs, threads


def memory_of(folder: str) -> int:
    """Return the bytes that a process holds: resident but for files' pages, page tables, swap."""
    try:
        with open(f"{folder}/status", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    wanted = (b"RssAnon:", b"RssShmem:", b"VmPTE:", b"VmSwap:")
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(wanted))


def list_folder(path: str) -> list[str]:
    """Return the names in a folder, none if it is gone."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def cpu_secs_of_children() -> float:
    """Return the processor time of the descendants that are dead and buried."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def exceeded(request: dict, used: tuple[int, float, int], secs: float, output: int) -> tuple[str, str] | None:
    """Return the status and the reason if a limit is exceeded."""
    limits, (memory, cpu_secs, threads) = request["limits"], used
    if secs > limits["wall_secs"]:
        return "timeout", f"more than {limits['wall_secs']:g} s by the clock"
    if cpu_secs > limits["cpu_secs"]:
        return "timeout", f"more than {limits['cpu_secs']:g} s of processor time"
    if threads > limits["num_processes"]:  # before memory, of which each fork counts what it shares
        return "processes", f"{threads} processes and threads, the limit is {limits['num_processes']}"
    if memory > limits["memory_bytes"]:
        return "memory", f"more than {limits['memory_bytes'] >> 20} MiB of memory"
    if output > OUTPUT_FACTOR * limits["output_bytes"]:
        return "output", f"more than {OUTPUT_FACTOR * limits['output_bytes'] >> 20} MiB of output"
    if request["bare"]:
        return None  # the folder lies in a file system that others use
    space = os.statvfs(request["box"])
    if (size := (space.f_blocks - space.f_bfree) * space.f_frsize) > limits["disk_bytes"]:
        return "disk", f"{size >> 20} MiB in the writable folder, the limit is {limits['disk_bytes'] >> 20}"
    if space.f_files - space.f_ffree > MAX_NAMES:
        return "disk", f"more than {MAX_NAMES} files in the writable folder"
    return None


def is_full(box: str) -> bool:
    """Return whether not a page is left in the writable folder."""
    return os.statvfs(box).f_bavail == 0


def end_all(bare: bool):
    """Kill every process that counts, and wait until it is gone."""
    if not bare:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            return
    while pids := members(bare):  # a process may fork while this loop runs, not for ever
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        reap(0)


def read_plain(folder: int, name: str, limit: int) -> bytes:
    """Return a file's content.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: it is a link, a folder, a pipe, a device, or too large.
    """
    mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a regular file")
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with open(fd, "rb") as file:
        if (size := os.fstat(fd).st_size) > limit:
            raise ValueError(f"it has {size} bytes, the limit is {limit}")
        return file.read(limit)
