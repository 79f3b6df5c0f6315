"""What goes into the sandbox and what comes out of it."""

import dataclasses
import math
import pathlib

# how a run ended:
#   ok         exit status 0
#   crashed    any other exit status, or a signal that the sandbox did not send
#   timeout    the limit by the clock, or the one of processor time
#   memory     more memory than allowed (a MemoryError, for an absurd request, is "crashed")
#   disk       the writable folder was full when the program failed, or grew beyond its limit
#   processes  more processes and threads than allowed (where the kernel refuses them first, fork fails: "crashed")
#   output     more than OUTPUT_FACTOR times what is kept of stdout and stderr
#   fault      the sandbox itself failed, twice: nothing is known of the program, and nothing is cached
STATUSES = ("ok", "crashed", "timeout", "memory", "disk", "processes", "output", "fault")


class SandboxError(RuntimeError):
    """Code cannot be run as asked here; the message holds the remedy."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one run may use. All hold for its processes together but where it says "each"."""

    wall_secs: float = 300.0
    cpu_secs: float = 300.0  # a run that keeps to its threads reaches the wall first
    memory_bytes: int = 4 << 30  # resident; pages that processes share after a fork count for each
    disk_bytes: int = 1 << 30  # the writable folder, which is memory, too, on top of memory_bytes
    num_processes: int = 64  # threads count
    num_files: int = 256  # open ones, of each process
    output_bytes: int = 1 << 16  # kept of stdout, and as much of stderr: their ends
    file_bytes: int = 64 << 20  # limit for each collected file
    threads: int = 1  # threads of numerical libraries, and the cores that a run counts for in the pool

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"limits.{name}={value} must be positive and finite")


@dataclasses.dataclass(frozen=True)
class Job:
    """A program to run.

    Raises:
        ValueError: a name in ``collect`` is not that of a file directly in the writable folder.
    """

    code: str  # written as solution.py to the writable folder, where it runs
    public: pathlib.Path | None = None  # a folder of data, read-only inside; its path there is in DATA_DIR
    collect: tuple[str, ...] = ()  # names of the files to return

    def __post_init__(self):
        for name in self.collect:
            if not name or name in (".", "..") or "/" in name or "\0" in name:
                raise ValueError(f"collect={name!r} must be the name of a file in the writable folder, without a path")


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run."""

    status: str  # one of STATUSES
    reason: str  # why not "ok", in words; else ""
    exit_code: int | None = None  # negative: the signal that ended it; None: the sandbox ended it
    stdout: str = ""  # the end of it
    stderr: str = ""
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)  # the collected ones, whatever the status
    faults: dict[str, str] = dataclasses.field(default_factory=dict)  # why each of the others was refused
    secs: float = 0.0  # time by the clock, of the program alone
    hint: str = ""  # what the sandbox may have refused, and what works in its place; stderr ends with it
    cached: bool = False
