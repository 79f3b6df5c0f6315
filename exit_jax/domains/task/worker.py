"""What a reward process runs: a keeper that calls nothing itself, and a child of it that calls the reward functions.

Started by its path (see domains/workers.py); it imports no JAX. Jobs are JSON lines on stdin, each answered by one line:

    {"check": true} -> {"functions": [...], "num_threads": n}, or {"error"}
    {"function": index, "is_async", "in_order", "items": [item]} -> {"outcomes": [outcome of each], "num_deaths": n}

(calls.py has items and outcomes; a function is called on items in order unless it is batched or async).

The keeper imports the functions once and forks: a child that hangs or dies costs its item a limit, and the next child is
there within milliseconds, with all that was imported (TRL's own rewards take 4 s, torch 2 s). A module that starts threads
cannot be forked after it, which the check finds out; then each child imports for itself (``preload`` is false).

A child has four limits. The kernel ends it after its processor time, and refuses it memory; both hold in one long call into C.
The keeper ends it by the clock, and the child ends with its keeper; a timer of the clock in the child would not do, since
signal.alarm is what math-verify limits itself with. With the child end the processes that it started. An item of a job is to
blame if it was in hand; of a batch whose process died, each item without an outcome is tried alone.
"""

import ctypes
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from exit_jax.domains import worker_process

IMPORT_SECS = 120.0
LOOK_SECS = 1.0  # how often the keeper sees whether the trainer is there
EXHAUSTED = 77  # exit status of a child that is out of memory
PR_SET_PDEATHSIG = 1
SPARE_SECS = 60.0  # beyond a run's limit in the sandbox
# the program takes the place of the one that gives it its stdin, so that a traceback shows its own lines
STDIN = """\
import os, sys
with open(".stdin", "w+b", buffering=0) as file:
    os.remove(".stdin")
    file.write({given!r})
    file.seek(0)
    os.dup2(file.fileno(), 0)
with open("program.py", "wb") as file:  # solution.py, this one, belongs to another user
    file.write({code!r})
os.execv(sys.executable, [sys.executable, "program.py"])
"""


class Keeper:
    """Holds the child that is at work, and starts another when it is gone."""

    def __init__(self, spec: dict[str, Any], *trainer: int):
        self.spec, self.trainer, self.parent = spec, trainer, os.getppid()
        self.functions = load(spec) if spec["preload"] else []
        if spec["sandbox"] and spec["checked"]:
            find_sandbox(spec)  # here, so that no child looks for it again
        self.pid = 0  # 0 for no child
        self.to_child = self.from_child = -1

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a job."""
        if "check" in job:
            said: list[dict] = []
            why = self.start(said.append)
            if why:
                return {"error": f"the process that imports them: {why}"}
            if self.spec["sandbox"]:
                try:
                    find_sandbox(self.spec)
                except RuntimeError as error:
                    return {"error": str(error)}
            return said[0]
        items = job["items"]
        outcomes: dict[int, dict] = {}
        groups, num_deaths = [list(range(len(items)))], 0
        while groups:
            group = groups.pop(0)
            request = job | {"items": [items[place] for place in group]}
            why = self.start(lambda line: None) if not self.pid else ""
            if why:
                outcomes |= {place: {"fault": why, "kind": "raised"} for place in group}
                continue
            found: list[dict] = []
            why = self.ask(request, found.append)
            outcomes |= {group[line["at"]]: line["outcome"] for line in found}
            if not why:
                continue
            num_deaths += 1
            rest = [place for place in group if place not in outcomes]
            if rest and (job["in_order"] or len(group) == 1):
                outcomes[rest.pop(0)] = {"fault": why, "kind": "died"}
                groups[:0] = [rest] if rest else []
            else:
                groups[:0] = [[place] for place in rest]
        return {"outcomes": [outcomes[place] for place in range(len(items))], "num_deaths": num_deaths}

    def start(self, take: Callable[[dict], None]) -> str:
        """Start a child and wait until its imports are done; ``take`` is given what it says of them. Returns why it failed."""
        requests, replies = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.setpgid(0, 0)
                for end in (requests[1], replies[0], *self.trainer):
                    os.close(end)
                Child(self.spec, self.functions, requests[0], replies[1], os.getppid()).serve()
            finally:
                os._exit(0)
        try:
            os.setpgid(self.pid, self.pid)  # whoever comes first
        except OSError:
            pass
        os.close(requests[0])
        os.close(replies[1])
        self.to_child, self.from_child = requests[1], replies[0]
        return self.listen(take, IMPORT_SECS)

    def ask(self, request: dict, take: Callable[[dict], None]) -> str:
        """Have the child do something; returns why it died, "" if it lives."""
        if self.is_dead():  # while it had nothing to do: the request is not to blame
            self.end("")
            if why := self.start(lambda line: None):
                return why
        try:
            worker_process.write_line(self.to_child, request)
        except OSError:
            return self.end("")
        return self.listen(take, self.spec["wall_secs"], request["is_async"])

    def listen(self, take: Callable[[dict], None], secs: float, is_async: bool = False) -> str:
        """Hand on what the child says until it is done; returns why it died, "" if it lives.

        Whatever it says gives it ``secs`` from then on, and more where it says so; of several tries the last to end counts.
        """
        received, deadline = bytearray(), time.monotonic() + secs
        while True:
            patience = min(max(deadline - time.monotonic(), 0.0), LOOK_SECS)
            readable, _, _ = select.select([self.from_child], [], [], patience)
            if os.getppid() != self.parent:
                self.end("")
                os._exit(1)
            if readable:
                chunk = os.read(self.from_child, 1 << 20)
                if not chunk:
                    return self.end("")
                received += chunk
                *lines, rest = received.split(b"\n")
                received = bytearray(rest)
                for line in map(json.loads, lines):
                    if "done" in line:
                        if line["done"] == "full":  # a leak: the next child begins with little
                            self.end("")
                        return ""
                    due = time.monotonic() + secs + line.get("begin", 0.0)
                    deadline = max(deadline, due) if is_async else due
                    if "begin" not in line:
                        take(line)
            elif time.monotonic() >= deadline:
                return self.end("wall-clock limit")
            elif self.is_dead():  # a process that it started holds the pipe
                return self.end("")

    def is_dead(self) -> bool:
        """Return whether the child is gone; it stays a zombie."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self, why: str) -> str:
        """End the child and all that it started; returns ``why``, or else how it ended."""
        try:
            os.killpg(self.pid, signal.SIGKILL)  # before it is reaped, so that the number is still its own
        except OSError:
            pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.to_child)
        os.close(self.from_child)
        self.pid = 0
        if why or code == -signal.SIGPROF:
            return why or "time limit"
        if code == EXHAUSTED:
            return "out of memory"
        return f"process killed by {signal.Signals(-code).name}" if code < 0 else f"process ended with status {code}"


class Child:
    """Calls reward functions, one request after another, until its keeper ends it."""

    def __init__(self, spec: dict[str, Any], functions: list, requests: int, replies: int, keeper: int):
        self.spec, self.functions, self.replies = spec, functions, replies
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:  # it was gone before
            os._exit(1)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1):  # the keeper's
            os.dup2(nothing, stream)
        for number in (signal.SIGINT, signal.SIGTERM):  # a handler, unlike SIG_IGN, is not inherited by programs
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        self.requests = os.fdopen(requests, "rb")
        self.pid = os.getpid()
        random.seed()  # or all children would go on alike

    def serve(self) -> None:
        """Import if that is still to be done, and answer requests."""
        if not self.functions:
            self.functions = load(self.spec)
        functions, caller = self.functions, make_caller(self)
        self.say(described(functions))
        self.say({"done": ""})
        kept = worker_process.resident_bytes()
        worker_process.limit_growth(self.spec["memory_bytes"])
        for line in self.requests:
            request = json.loads(line)
            function = functions[request["function"]]
            if isinstance(function, str):
                for at in range(len(request["items"])):
                    self.say({"at": at, "outcome": {"fault": function, "kind": "raised"}})
            else:
                caller.call(function, request["items"], lambda at, outcome: self.say({"at": at, "outcome": outcome}))
            signal.setitimer(signal.ITIMER_PROF, 0)
            is_full = worker_process.resident_bytes() - kept > self.spec["memory_bytes"] // 2
            self.say({"done": "full" if is_full else ""})

    def say(self, line: dict) -> None:
        """Write a line to the keeper, unless this is a copy of the process that a function has forked."""
        if os.getpid() != self.pid:
            os._exit(1)
        worker_process.write_line(self.replies, line)

    def begin(self, spare_secs: float = 0.0) -> None:
        """Give the next try its time."""
        signal.setitimer(signal.ITIMER_PROF, self.spec["cpu_secs"])
        self.say({"begin": spare_secs})


def make_caller(child: Child) -> Any:
    """Return what calls functions under a child's limits."""
    from exit_jax.domains.task.calls import Caller

    class Limited(Caller):
        def begin(self, spare_secs: float = 0.0) -> None:
            child.begin(spare_secs)

        def exhausted(self) -> NoReturn:
            os._exit(EXHAUSTED)

    spec = child.spec
    run = make_run(spec, lambda secs: child.say({"begin": secs})) if spec["sandbox"] else None
    return Limited(spec["retries"], spec["wall_secs"], spec["max_in_flight"], run)


def make_run(spec: dict[str, Any], extend: Callable[[float], None]) -> Callable:
    """Return the function by which rewards run a completion's code; ``extend`` puts off the end of a try by the clock."""
    from exit_jax.sandbox import Job, Limits, Sandbox

    secs, size = spec["sandbox"]["secs"], spec["sandbox"]["memory_bytes"]
    limits = Limits(wall_secs=secs, cpu_secs=secs, memory_bytes=size)
    made: list[Sandbox] = []

    def run(code: str, stdin: str = "") -> Any:
        """Run a program in the sandbox, with ``stdin``; see exit_jax/sandbox/job.py for the result."""
        extend(secs + SPARE_SECS)
        if not made:
            made.append(Sandbox(spec["sandbox"]["isolation"], limits, num_workers=1))
        program = STDIN.format(given=stdin.encode(), code=code.encode("utf-8", "surrogatepass")) if stdin else code
        (result,) = made[0].run([Job(program)])
        extend(0.0)
        if result.status == "fault":
            raise RuntimeError(result.reason)
        return result

    return run


def find_sandbox(spec: dict[str, Any]) -> None:
    """Try out the isolation.

    Raises:
        SandboxError: it cannot be had here.
    """
    from exit_jax.sandbox.levels import find_jail

    find_jail(spec["sandbox"]["isolation"])


def load(spec: dict[str, Any]) -> list[Any]:
    """Return the functions of a config; in the place of one that cannot be had a text, why."""
    from exit_jax.domains.task import calls
    from exit_jax.errors import UserError

    found = []
    for name in spec["names"]:
        try:
            found.append(calls.load(name, spec["columns"], bool(spec["sandbox"])))
        except UserError as error:
            found.append(str(error))
    return found


def described(functions: list[Any]) -> dict[str, Any]:
    """Return what the trainer has to know of functions, as JSON."""
    words = [
        {"fault": function}
        if isinstance(function, str)
        else {name: getattr(function, name) for name in ("is_batched", "is_async", "file")}
        | {"takes_ids": function.is_batched and function.takes("completion_ids")}
        for function in functions
    ]
    try:
        num_threads = len(os.listdir("/proc/self/task"))
    except OSError:
        num_threads = 2  # who knows
    return {"functions": words, "num_threads": num_threads}


def main(spec: dict[str, Any]) -> None:
    """Answer jobs until stdin ends."""
    sys.path[:] = spec["path"]  # the trainer's
    worker_process.use_one_thread()
    requests, replies = os.fdopen(os.dup(0), "rb"), worker_process.begin()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a module that reads stdin must not take a job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as SIGTERM
    keeper = Keeper(spec, requests.fileno(), replies)
    worker_process.write_line(replies, {"ready": True})
    try:
        for line in requests:
            worker_process.write_line(replies, keeper.do(json.loads(line)))
    finally:
        if keeper.pid:
            keeper.end("")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
