"""bubblewrap's command lines: what a program finds around it, and nothing else.

Mounted read-only are the interpreter, its packages, the system's libraries and the public data; one folder in memory, /tmp,
can be written: in it are the working folder, the home folder and shared memory. There are a process, a network, an IPC and a
host-name namespace of its own, no capability, and three devices: null, random and urandom. (Not zero: a shared mapping of it
is memory that nobody counts. And no full, tty or pts.)

Two ways lead there, and the program is not the trainer's user on either:

- "root": the trainer is root. bubblewrap needs no user namespace then, and the supervisor inside turns the program into a user
  that no other process has, a number drawn for each run.
- "user": an unprivileged user namespace, in which the program is nobody and outside of which it is the trainer's user
  without its files; if that is root, a drawn number as above.
"""

import dataclasses
import os
import pathlib
import secrets
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator

BOX, DATA = "/tmp", "/data"
NOBODY = 65534
# the supervisor's where it is root, with the kernel's numbers: to become another user, to end that one's processes, to read its
# files, to see its mappings, and to fix its place before the machine's memory killer
CAPABILITIES = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_RESOURCE": 24,
}


@dataclasses.dataclass(frozen=True)
class Jail:
    """A way to isolate a run."""

    level: str  # one of LEVELS
    way: str = ""  # "root", "user", or "" without bubblewrap
    bwrap: str = ""  # the program
    filter: bytes = b""  # seccomp filter
    has_size: bool = False  # bubblewrap can limit a folder in memory, else the supervisor has to notice
    hidden: tuple[str, ...] = ()  # folders that appear empty, without links on their ways


LEVELS = ("bubblewrap+seccomp", "bubblewrap", "none")  # strongest first


def command(jail: Jail, filter_fd: int, public: pathlib.Path | None, disk_bytes: int) -> list[str]:
    """Return bubblewrap's command line up to the program to run inside."""
    line = [jail.bwrap, "--die-with-parent", "--new-session", "--as-pid-1"]
    line += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    line += ["--hostname", "sandbox", "--cap-drop", "ALL"]
    if jail.way == "user":
        line += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    else:
        line += [word for name in capabilities() for word in ("--cap-add", name)]
    line += ["--size", str(disk_bytes)] if jail.has_size else []
    line += ["--tmpfs", BOX, *mounts()]  # order matters: an interpreter may live below /tmp
    line += [word for path in jail.hidden for word in ("--tmpfs", path, "--remount-ro", path)]
    # /proc/sys would be writable for a root that has lost all capabilities, which is the supervisor
    line += ["--proc", "/proc", "--tmpfs", "/proc/sys", "--remount-ro", "/proc/sys", "--dir", "/dev"]
    for name in ("null", "random", "urandom"):
        line += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        line += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    line += ["--symlink", f"{BOX}/shm", "/dev/shm"]
    if public is not None:
        line += ["--ro-bind", str(public.resolve()), DATA]
    line += ["--remount-ro", "/"]
    return line + (["--seccomp", str(filter_fd)] if jail.filter else [])


def capabilities() -> list[str]:
    """Return those of CAPABILITIES that this process has: asked for another one, bubblewrap would leave the supervisor all."""
    status = pathlib.Path("/proc/self/status").read_text()
    permitted, bounding = (int(status.partition(f"{name}:")[2].split()[0], 16) for name in ("CapPrm", "CapBnd"))
    held = permitted & bounding
    return [name for name, number in CAPABILITIES.items() if held >> number & 1]


def mounts() -> list[str]:
    """Return the options that mount the interpreter, its packages and the system's libraries."""
    prefixes = dict.fromkeys(map(pathlib.Path, (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)))
    wanted = [folder / name for folder in prefixes for name in ("lib", "lib64", "pyvenv.cfg")]
    wanted += map(pathlib.Path, ("/usr/lib", "/usr/lib64", "/lib", "/lib64"))
    wanted += map(pathlib.Path, ("/etc/ld.so.cache", "/etc/alternatives"))  # links of Debian's, to a BLAS for one
    wanted += [pathlib.Path(sys.executable), *package_folders()]
    links: dict[str, str] = {}
    binds: list[str] = []
    for path in wanted:
        if path.exists():
            real = real_path(path, links)
            if not any(real == bound or real.startswith(bound + "/") for bound in binds):
                binds = [bound for bound in binds if not bound.startswith(real + "/")] + [real]
    links = {link: to for link, to in links.items() if not any(link.startswith(bound + "/") for bound in binds)}
    parents = {str(parent) for path in (*binds, *links) for parent in pathlib.Path(path).parents} - {"/", BOX}
    # folders of bwrap's, since by their own modes they might be open to root alone
    line = [word for path in sorted(parents) for word in ("--dir", path)]
    line += [word for path in binds for word in ("--ro-bind", path, path)]
    return line + [word for link, target in links.items() for word in ("--symlink", target, link)]


def real_path(path: pathlib.Path, links: dict[str, str]) -> str:
    """Return a path without links, and add those on its way, each under its own real folder, to ``links``.

    /lib/x becomes /usr/lib/x, with links {"/lib": "usr/lib"}.
    """
    at, rest = pathlib.Path("/"), list(path.parts[1:])
    while rest:
        if (name := rest.pop(0)) == "..":
            at = at.parent
        elif (step := at / name).is_symlink():
            target = links[str(step)] = os.readlink(step)
            rest = [part for part in pathlib.Path(target).parts if part != "/"] + rest
            at = pathlib.Path("/") if target.startswith("/") else at
        else:
            at = step
    return str(at)


def package_folders() -> Iterator[pathlib.Path]:
    """Yield the folders of installed packages, a user's own included."""
    for path in sys.path:
        if pathlib.Path(path).name in ("site-packages", "dist-packages"):
            yield pathlib.Path(path)


def python_path() -> str:
    """Return the folders of packages that the interpreter finds by the home folder, which there is none of inside."""
    own = site.getusersitepackages()
    return own if own in sys.path else ""


def find() -> tuple[str | None, bool]:
    """Return the path of bubblewrap, None if it is not installed, and whether it can limit a folder's size (0.7 and newer)."""
    if (path := shutil.which("bwrap")) is None:
        return None, False
    done = subprocess.run([path, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return path, "--size " in done.stdout


def foreign_uid(uid_map: str | None = None) -> int | None:
    """Return a user that nobody is, from the upper half of what this user namespace has; None if it has too few for that."""
    text = pathlib.Path("/proc/self/uid_map").read_text() if uid_map is None else uid_map
    first, _, count = max((tuple(map(int, line.split())) for line in text.splitlines()), key=lambda row: row[2])
    count = min(count, 1 << 31)  # some tools take a user for a signed number
    return first + count // 2 + secrets.randbelow(count // 2 - 2) if count >= 1 << 15 else None  # 65534 is nobody
