"""Which isolation this machine allows: each way is tried with a program, the strongest first."""

import functools
import logging
import os
import signal
from collections.abc import Iterator

from exit_jax.sandbox import bwrap, launch, seccomp
from exit_jax.sandbox.bwrap import LEVELS, Jail
from exit_jax.sandbox.job import Job, Limits, SandboxError

log = logging.getLogger(__name__)
ISOLATIONS = ("auto", *LEVELS)
PROBE = Job("print('ready')")
WAYS = {"root": "root, another user for each run", "user": "a user namespace"}
REMEDY = """\
Install bubblewrap (apt-get install bubblewrap) and let it make namespaces:
- as a user, on a machine or TPU VM: sudo sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000, and where
  there is such a setting (Ubuntu 23.10 and newer) sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0
- in Docker: run the container with --privileged, or as a user with --security-opt seccomp=unconfined
  --security-opt apparmor=unconfined --security-opt systempaths=unconfined
- in Colab: apt-get install bubblewrap is enough where the runtime is privileged
The packages and the interpreter must be readable to every user. docs/sandbox.md says more. Only for code that you trust:
isolation="none"."""


def find_jail(isolation: str) -> Jail:
    """Return the jail for an isolation of ISOLATIONS; say once a process which it is.

    Raises:
        ValueError: there is no such isolation.
        SandboxError: this machine does not allow it, with the remedy.
    """
    if isolation not in ISOLATIONS:
        raise ValueError(f"isolation={isolation!r} must be one of {', '.join(ISOLATIONS)}")
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # as some launchers leave it: no child's end is told
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return detect(isolation)


@functools.cache
def detect(isolation: str) -> Jail:
    """Return the jail for a known isolation."""
    if isolation == "none":
        log.warning("!!! sandbox: isolation is NONE: code that a model wrote can read, change and send all you can !!!")
        return Jail("none")
    failures = []
    for jail in candidates(isolation):
        result = launch.run(jail, PROBE, Limits(wall_secs=60.0))
        if result.stdout == "ready\n":
            print(f"sandbox: {jail.level} ({WAYS[jail.way]})", flush=True)
            return jail
        failures.append(f"{jail.level} with {WAYS[jail.way]}: {result.reason} {result.stderr[-500:]}".strip())
    why = "\n".join(failures) or "bubblewrap is not installed, or has no filter for this kind of processor"
    raise SandboxError(f"isolation={isolation!r} cannot be had here:\n{why}\n{REMEDY}")


def candidates(isolation: str) -> Iterator[Jail]:
    """Yield the jails to try, the strongest first."""
    path, has_size = bwrap.find()
    ways = [way for way in ("root", "user") if os.geteuid() or bwrap.foreign_uid() is not None]
    filters = {"bubblewrap+seccomp": seccomp.program(), "bubblewrap": b""}
    for level, program in filters.items():
        for way in ways if path else ():
            if isolation in ("auto", level) and program is not None and (way == "user" or not os.geteuid()):
                yield Jail(level, way, path or "", program, has_size)
