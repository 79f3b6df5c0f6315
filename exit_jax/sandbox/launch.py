"""One run: the request, the process, the report."""

import contextlib
import dataclasses
import functools
import itertools
import marshal
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from typing import BinaryIO

from exit_jax.sandbox import bwrap, supervisor
from exit_jax.sandbox.bwrap import Jail
from exit_jax.sandbox.job import STATUSES, Job, Limits, Result

# the supervisor comes compiled and in memory: 10 ms less, and the user that it may run as need not be able to read this package
PARTS = ("meter", "supervisor")
START = """
import marshal, sys
codes, *given = marshal.load(open(int(sys.argv[1]), "rb"))
for name, code in codes.items():
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main(*given)
"""
SPARE_SECS = 60.0  # beyond a run's limit, to start, end and report on a starved machine; then it is given up
END_SECS = 5.0
ERROR_CHARS = 2000
REFUSED = "servers, shared memory without a file (mmap.mmap(-1, n), memfd_create, System V), watches of files"
INSTEAD = "Processes of a run may use pipes, unix sockets, multiprocessing.shared_memory and files in /dev/shm"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
    "TBB_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
    "PYTHON_CPU_COUNT",
)


def run(jail: Jail, job: Job, limits: Limits, hold: Callable[[BinaryIO], None] = lambda lifeline: None) -> Result:
    """Run a job once. Whatever befalls the sandbox itself is a result of status ``fault``; nothing is raised for it.

    ``hold`` is given a file; closing that one ends the run at once, and makes it a fault.
    """
    try:
        return run_unguarded(jail, job, limits, hold)
    except subprocess.TimeoutExpired:
        return fault(f"no report {SPARE_SECS:g} s after the limit of {limits.wall_secs:g} s")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return fault(f"{type(error).__name__}: {error}")


def fault(reason: str) -> Result:
    """Return the result of a run of which nothing is known."""
    return Result("fault", f"the sandbox failed: {reason}")


def run_unguarded(jail: Jail, job: Job, limits: Limits, hold: Callable[[BinaryIO], None]) -> Result:
    """Run a job once. The supervisor lives as long as this thread and the pipe of its stdin.

    Raises:
        OSError, ValueError, SubprocessError: the sandbox failed.
    """
    uid = bwrap.foreign_uid() if jail.way and os.geteuid() == 0 else None
    outside = uid if jail.way == "user" else None
    with contextlib.ExitStack() as stack:
        box = bwrap.BOX
        if jail.level == "none":
            box = tempfile.mkdtemp(prefix="exit_jax-")
            stack.callback(supervisor.remove, box)
        alive, trainer_end = os.pipe()
        fds = [memory_file(request(jail, job, limits, box, uid)), memory_file(jail.filter)]
        lifeline = stack.enter_context(open(trainer_end, "wb", buffering=0))
        for fd in (*fds, alive):
            stack.callback(os.close, fd)
        line = [] if jail.level == "none" else bwrap.command(jail, fds[1], job.public, limits.disk_bytes)
        process = subprocess.Popen(
            [*line, sys.executable, "-I", "-S", "-c", START, str(fds[0])],
            stdin=alive,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=fds,
            env={"PATH": "/usr/bin:/bin"},
            start_new_session=True,  # a Ctrl-C reaches the trainer first
            user=outside,
            group=outside,
            extra_groups=None if outside is None else (),
        )
        hold(lifeline)
        with process:
            try:
                report, errors = process.communicate(timeout=limits.wall_secs + SPARE_SECS)
            finally:
                end(process, lifeline)
        if process.returncode != 0 or not report:
            text = errors.decode(errors="replace").strip()[-ERROR_CHARS:]
            return fault(f"its supervisor ended with status {process.returncode}: {text}")
        return explained(read_report(report, job), jail, limits)


def end(process: subprocess.Popen, lifeline: BinaryIO):
    """End a supervisor, which ends its program first if it still can."""
    lifeline.close()
    try:
        process.wait(END_SECS)
    except subprocess.TimeoutExpired:
        process.kill()


def memory_file(content: bytes) -> int:
    """Return a descriptor of a file in memory, at its beginning."""
    fd = os.memfd_create("sandbox")
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def request(jail: Jail, job: Job, limits: Limits, box: str, uid: int | None) -> bytes:
    """Return what the supervisor is started from: its code, and what it is told."""
    public = None if job.public is None else str(job.public.resolve()) if jail.level == "none" else bwrap.DATA
    header = {
        "bare": jail.level == "none",
        "box": box,
        "uid": uid if jail.way == "root" else None,
        "max_tasks": max_tasks(jail.way, limits.num_processes),
        "socket_bytes": socket_bytes(),
        "sees_all": jail.way != "root" or "CAP_SYS_PTRACE" in bwrap.capabilities(),
        "command": [sys.executable, "solution.py"],
        "environment": environment(box, public, limits.threads),
        "limits": dataclasses.asdict(limits),
        "collect": job.collect,
    }
    return marshal.dumps((supervisor_code(), header, job.code.encode("utf-8", "surrogatepass")))


@functools.cache
def supervisor_code() -> dict[str, types.CodeType]:
    """Return the code of the supervisor's modules."""
    paths = {f"{__package__}.{name}": pathlib.Path(__file__).with_name(f"{name}.py") for name in PARTS}
    return {name: compile(path.read_text(), path.name, "exec") for name, path in paths.items()}


@functools.cache
def socket_bytes() -> int:
    """Return the kernel memory that a unix socket may hold: what it may send, and half of that in a last piece."""
    try:
        return int(pathlib.Path("/proc/sys/net/core/wmem_default").read_text()) * 3 // 2
    except OSError:
        return 320 << 10


def max_tasks(way: str, num_processes: int) -> int | None:
    """Return a limit on the program's user's processes, None where that user has others.

    In a user namespace they are counted apart from Linux 5.14 on, the supervisor among them. Without this limit the
    supervisor's count is the only one: a fork bomb ends within 20 ms or so.
    """
    if way == "root":
        return num_processes
    release = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdigit())
    return num_processes + 1 if way == "user" and release >= (5, 14) else None


def environment(box: str, public: str | None, threads: int) -> dict[str, str]:
    """Return a program's environment variables: nothing of the trainer's own."""
    fixed = {
        "PATH": "/usr/bin:/bin",
        "HOME": f"{box}/home",
        "TMPDIR": box,
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",  # the same program prints the same
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",  # what was printed before the end is not lost with it
        "PYTHONFAULTHANDLER": "1",  # a trace of a crash in C, too
        "MPLBACKEND": "agg",
    }
    if path := bwrap.python_path():
        fixed["PYTHONPATH"] = path
    if public is not None:
        fixed["DATA_DIR"] = public
    return fixed | dict.fromkeys(THREAD_VARIABLES, str(threads))


def read_report(report: bytes, job: Job) -> Result:
    """Return what the supervisor reports.

    Raises:
        ValueError: the report is not one.
    """
    header, _, body = report.partition(b"\n")
    sizes = [int(word) for word in header.split()]
    if len(sizes) != 6 + len(job.collect) or min(sizes) < 0 or sum(sizes) != len(body):
        raise ValueError(f"a report of {len(body)} bytes with sizes {sizes}")
    ends = list(itertools.accumulate(sizes))
    parts = [body[end - size : end] for size, end in zip(sizes, ends)]
    status, reason, exit_code, secs, stdout, stderr = (part.decode(errors="replace") for part in parts[:6])
    if status not in STATUSES:
        raise ValueError(f"a report of status {status!r}")
    if status == "fault":
        return fault(reason)
    collected = dict(zip(job.collect, parts[6:]))
    return Result(
        status,
        reason,
        int(exit_code) if exit_code else None,
        stdout,
        stderr,
        files={name: part[1:] for name, part in collected.items() if part[:1] == b"+"},
        faults={name: part[1:].decode(errors="replace") for name, part in collected.items() if part[:1] != b"+"},
        secs=float(secs),
    )


def explained(result: Result, jail: Jail, limits: Limits) -> Result:
    """Return a result with a hint at what the sandbox refused, if its errors are those of a refusal."""
    tasks = f"a run has {limits.num_processes} processes and threads at most."
    hints = {
        "Operation not permitted": f"a system call was refused, as are those of {REFUSED}. {INSTEAD}.",
        "Address family not supported": f"there is no network. {INSTEAD}.",
        "Socket type not supported": f"there is no network. {INSTEAD}.",
        "Temporary failure in name resolution": "there is no network.",
        "Resource temporarily unavailable": tasks,
        "can't start new thread": tasks,
        "Too many open files": f"a process has {limits.num_files} open files at most.",
    }
    found = dict.fromkeys(hint for error, hint in hints.items() if error in result.stderr)
    if jail.level == "none" or result.status not in ("crashed", "timeout") or not found:
        return result
    hint = f"sandbox: {' '.join(found)}"
    return dataclasses.replace(result, hint=hint, stderr=f"{result.stderr.rstrip()}\n{hint}\n")
