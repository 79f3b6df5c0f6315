"""Run one program within its limits, then report on it and on the files it left.

Inside bubblewrap it is process 1: no signal from within can end it, and with it everything ends. It starts the program as
another user where it can, and lets nobody read or trace it, so that a program that shares its user cannot either. Every
20 ms it adds up the memory, processes and processor time of all processes but itself (meter.py). Without bubblewrap ("bare") it
does the same to its descendants, which it adopts should their parents die.

The report goes to stdout: a line of the parts' sizes, then the parts (``report`` names them). Stdin is open for one thing: when
its other end closes, the trainer is gone, and so is all of this. launch.py starts it, without this and other packages; of the
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

from exit_jax.sandbox.meter import MAX_LOCKS, Meter, members

POLL_SECS = 0.02  # a program touches 1-2 GB of fresh memory a second and core: 20-40 MB too late
# too much memory must be seen twice: between vfork and exec a child shows its parent's memory as its own
AGAIN_SECS = 0.01
MAX_NAMES = 1 << 16  # files and folders in the writable folder
NAME_BYTES = 1 << 10  # kernel memory of each
MAX_SIGNALS = 1024  # timers and signals under way, of a user: some 400 bytes of kernel memory each
OUTPUT_FACTOR = 1024
SPARE_ADDRESSES = 16 << 30  # address space that numerical libraries reserve and never touch
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36


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
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # nothing is known of the dead if the trainer ignores it
    os.umask(0o022)  # the trainer's may be one that hides the program from the program
    close_others()
    folder = prepare(request, code)
    try:
        serve(request, folder)
    finally:
        if request["bare"]:
            os.chdir("/")
            remove(request["box"])


def close_others():
    """Close what bubblewrap or the trainer left open; it would be the program's, too."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:  # that which lists them
                pass


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
    error = os.read(error_fd, 1 << 12)  # exec closes it; until then the child is a copy of this process, which hides
    status, reason, exit_code = watch(request, child, outputs, started)
    secs = time.monotonic() - started
    end_all(request["bare"])
    for output in outputs:
        while output.read():
            pass
    if error:
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
        resource.RLIMIT_SIGPENDING: (MAX_SIGNALS,) * 2,
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_NICE: (0, 0),
        resource.RLIMIT_RTPRIO: (0, 0),
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
    meter = Meter(request["bare"], request["socket_bytes"], request["sees_all"])
    next_look, is_doubtful = started + POLL_SECS, False
    while True:
        for fd, event in poll.poll(max(1e3 * (next_look - time.monotonic()), 0.0)):
            if fd == 0:
                end_all(request["bare"])
                sys.exit("the trainer is gone")
            for output in outputs:
                if fd == output.fd and event and not output.read() and not output.is_open:
                    poll.unregister(fd)
        if (ended := reap(child)) is not None:
            return how_it_ended(ended)
        if (now := time.monotonic()) >= next_look:
            found = exceeded(request, meter.look(), now - started, sum(output.total for output in outputs))
            if found and (found[0] != "memory" or is_doubtful):
                return *found, None
            is_doubtful = found is not None
            next_look = time.monotonic() + (AGAIN_SECS if is_doubtful else POLL_SECS)


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


def exceeded(request: dict, used: tuple[int, float, int, int], secs: float, output: int) -> tuple[str, str] | None:
    """Return the status and the reason if a limit is exceeded."""
    limits, (memory, cpu_secs, threads, locks) = request["limits"], used
    space = None if request["bare"] else os.statvfs(request["box"])  # bare, others use the file system, too
    names = space.f_files - space.f_ffree if space else 0
    if secs > limits["wall_secs"]:
        return "timeout", f"more than {limits['wall_secs']:g} s by the clock"
    if cpu_secs > limits["cpu_secs"]:
        return "timeout", f"more than {limits['cpu_secs']:g} s of processor time"
    if threads > limits["num_processes"]:  # before memory, of which each fork counts what it shares
        return "processes", f"{threads} processes and threads, the limit is {limits['num_processes']}"
    if memory + NAME_BYTES * names > limits["memory_bytes"]:
        return "memory", f"more than {limits['memory_bytes'] >> 20} MiB of memory"
    if locks > MAX_LOCKS:
        return "memory", f"more than {MAX_LOCKS} locked parts of files"
    if output > OUTPUT_FACTOR * limits["output_bytes"]:
        return "output", f"more than {OUTPUT_FACTOR * limits['output_bytes'] >> 20} MiB of output"
    if space and (size := (space.f_blocks - space.f_bfree) * space.f_frsize) > limits["disk_bytes"]:
        return "disk", f"{size >> 20} MiB in the writable folder, the limit is {limits['disk_bytes'] >> 20}"
    if names > MAX_NAMES:
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


def remove(box: str):
    """Remove a folder with all that is in it, however deep: a program's folders may nest beyond any path and any recursion.

    Each folder is moved to the top before what it holds is removed.
    """
    pending, emptied = [box], []
    try:
        while pending:
            here = pending.pop()
            emptied.append(here)
            os.chmod(here, 0o700)
            for entry in list(os.scandir(here)):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)  # it must be writable to be moved
                    pending.append(entry.path if here == box else f"{box}/{time.monotonic_ns()}")
                    os.rename(entry.path, pending[-1])
                else:
                    os.unlink(entry.path)
        for folder in reversed(emptied):
            os.rmdir(folder)
    except OSError:  # another user's, or removed meanwhile
        pass
