"""Grade answers with math-verify in worker processes: hard limits of time and memory a pair, verdicts cached.

math-verify evaluates what a model wrote with sympy, which may take for ever or all memory (9^9^9^9), so it never runs
in the trainer's own process, and the limit is a kill. It is one of processor time, with one by the clock far behind it:
on a starved machine a limit by the clock alone hits plain answers, too, and others in the next run. A pair whose worker
hangs, dies or runs out of memory is *ungraded*: it earns nothing, is counted, and is logged, so that a resumed run repeats
the verdict instead of the accident.

This module imports no JAX, and never forks the trainer: workers are fresh interpreters on worker.py, which also works from
notebooks and from scripts without a ``__main__`` guard.
"""

import collections
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import IO

log = logging.getLogger(__name__)
WORKER = pathlib.Path(__file__).with_name("worker.py")
MAX_CHARS = (
    2000  # of an answer or a gold answer; also keeps a request (6 bytes a character at most) within a pipe's 64 KiB
)
SCAN_CHARS = 100_000  # the end of a response, where boxes are looked for: 40 ms at worst
EDGE_CHARS = 200  # of each end of an ungraded response, for its log
CACHE_SIZE = 1 << 16
MEMORY_BYTES = 2 << 30  # a worker's address space
RETIRE_BYTES = 512 << 20  # a worker that has grown beyond this is replaced, so that no pair pays for those before it
START_SECS = 120.0
WALL_FACTOR = 4.0  # seconds by the clock for each of processor time
MAX_FAILED_STARTS = 3

BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
AND = re.compile(r"(?:\s|\$|\\[()\[\]])*(?:,|;|,?\s*(?:and|or|\\text\{\s*(?:and|or)\s*\}))(?:\s|\$|\\[()\[\]])*")
MAX_AND_CHARS = 40


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the grader says of one response."""

    correct: bool
    graded: bool  # False: the worker hung, died or ran out of memory
    answer: (
        str  # the answer that the response gives; "" if none. Equal answers have equal texts as far as that is cheap
    )


WRONG = Verdict(correct=False, graded=True, answer="")
UNGRADED = Verdict(correct=False, graded=False, answer="")


@dataclasses.dataclass
class Stats:
    """Counts since the grader was made."""

    num_pairs: int = 0
    num_cache_hits: int = 0  # pairs that took no worker: known, twice in one call, or without an answer
    num_ungraded: int = 0  # pairs, those replayed from the log included
    num_replaced: int = 0  # workers killed at the limit, found dead, or retired for their memory


@dataclasses.dataclass(eq=False)
class Worker:
    """A worker process and what it is doing."""

    process: subprocess.Popen
    stdin: IO[bytes]
    stdout: IO[bytes]
    deadline: float  # of the pair in hand, or of its start
    is_ready: bool = False
    key: bytes | None = None  # of the pair in hand
    received: bytes = b""


def extract_answer(response: str) -> str:
    """Return the part of a response that is graded, of 2,000 characters at most.

    It is the last ``\\boxed{...}`` whose braces match, together with those joined to it by nothing but a comma, "and" or "or"
    (two roots in two boxes), looked for in the last 100,000 characters; without one, the response's last 2,000 characters,
    in which math-verify looks for the answer. A box of more than 2,000 characters is no answer: "".

        "so \\boxed{1}. No, \\boxed{\\frac{1}{2}}"   ->  "\\boxed{\\frac{1}{2}}"
        "x is \\boxed{1} or $\\boxed{2}$"            ->  "\\boxed{1,2}"
        "the answer is 12"                           ->  "the answer is 12"
    """
    text = response[-SCAN_CHARS:]
    stack, boxes = [], []  # of (start, start of the content) or None; and of (start, start and end of the content)
    for token in BRACES.finditer(text):
        if token[0] == "{":
            stack.append(None)
        elif token[0].endswith("{") and len(token[0]) > 2:
            stack.append(token.span())
        elif token[0] == "}" and stack:
            opened = stack.pop()
            if opened:
                boxes.append((*opened, token.start()))
    if not boxes:
        return text[-MAX_CHARS:].strip()
    first, *content = boxes.pop()
    contents = [text[slice(*content)]]
    for start, *content in reversed(boxes):
        gap = text[content[1] + 1 : first]  # empty for a box within the box
        if len(gap) > MAX_AND_CHARS or not AND.fullmatch(gap):
            break
        contents.insert(0, text[slice(*content)])
        first = start
    answer = rf"\boxed{{{','.join(contents)}}}"
    return answer if len(answer) <= MAX_CHARS else ""


def hash_pair(text: str, gold: str) -> bytes:
    """Return the key of a verdict."""
    return hashlib.sha256(json.dumps([text, gold]).encode()).digest()[:16]


class Grader:
    """Grade (response, gold answer) pairs on worker processes, which start at the first call that needs them."""

    def __init__(self, num_workers: int, timeout_secs: float = 5.0, ungraded_log: pathlib.Path | None = None):
        """Read what an earlier run could not grade.

        Args:
            num_workers: processes at work at the same time.
            timeout_secs: processor time of one pair, and a quarter of its limit by the clock. A worker's start is not in it.
            ungraded_log: JSON lines, appended to; pairs that it names stay ungraded. Delete it to try them again.
        """
        if num_workers < 1 or not timeout_secs > 0:
            raise ValueError(f"num_workers={num_workers} and timeout_secs={timeout_secs} must be positive")
        self.stats = Stats()
        self._num_workers, self._timeout_secs = num_workers, timeout_secs
        self._workers: list[Worker] = []
        self._cache: collections.OrderedDict[bytes, Verdict] = collections.OrderedDict()
        self._ungraded_log = ungraded_log
        self._ungraded = set() if ungraded_log is None else read_ungraded(ungraded_log)
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        weakref.finalize(self, end, self._closed, self._workers)  # also at the interpreter's exit

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Grade (response, gold answer) pairs; the order is kept. One thread at a time, the others wait.

        A response is right if ``math_verify.verify(parse(gold), parse(extract_answer(response)))`` holds, with the gold answer
        in a box. Two readings are tried of a choice with its value: "\\textbf{(B)}\\ 12" is B and 12.

        Raises:
            RuntimeError: workers cannot be started, or the grader was closed.
        """
        with self._lock:
            self._check_open()
            texts = [extract_answer(response) for response, _ in pairs]
            keys = [hash_pair(text, gold) for text, (_, gold) in zip(texts, pairs)]
            verdicts: dict[bytes, Verdict] = {}
            todo: dict[bytes, int] = {}  # key -> index of its first pair
            for index, (key, text) in enumerate(zip(keys, texts)):
                if key not in verdicts and key not in todo:
                    verdict = self._known(key) if text else WRONG
                    if verdict is None:
                        todo[key] = index
                    else:
                        verdicts[key] = verdict
            requests = {key: (texts[index], pairs[index][1]) for key, index in todo.items()}
            for key, verdict, reason in self._grade_new(requests):
                verdicts[key] = verdict
                if verdict.graded:
                    self._cache[key] = verdict
                    if len(self._cache) > CACHE_SIZE:
                        self._cache.popitem(last=False)
                else:
                    self._ungraded.add(key)
                    response, gold = pairs[todo[key]]
                    self._log(key, response, gold, reason)
            graded = [verdicts[key] for key in keys]
            self.stats.num_pairs += len(pairs)
            self.stats.num_cache_hits += len(pairs) - len(todo)
            self.stats.num_ungraded += sum(not verdict.graded for verdict in graded)
            return graded

    def close(self):
        """End the workers. A call of ``grade`` in another thread fails, and logs nothing."""
        end(self._closed, self._workers)
        with self._lock:
            for worker in list(self._workers):
                self._drop(worker)
            self._selector.close()

    def _check_open(self):
        """Raise if the workers were ended."""
        if self._closed.is_set():
            raise RuntimeError("the grader was closed")

    def _known(self, key: bytes) -> Verdict | None:
        """Return the verdict of an earlier call, if it is still held."""
        if key in self._ungraded:
            return UNGRADED
        if key in self._cache:
            self._cache.move_to_end(key)
        return self._cache.get(key)

    def _log(self, key: bytes, response: str, gold: str, reason: str):
        """Append one ungraded pair to the log."""
        if self._ungraded_log is None:
            return
        row = {"hash": key.hex(), "reason": reason, "gold": gold[:MAX_CHARS]}
        row |= {"num_chars": len(response), "start": response[:EDGE_CHARS], "end": response[-EDGE_CHARS:]}
        try:
            with open(self._ungraded_log, "a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # a full disk costs the log a row, not the batch its grades
            log.warning("cannot write to %s: %s", self._ungraded_log, error)

    def _grade_new(self, requests: dict[bytes, tuple[str, str]]) -> Iterator[tuple[bytes, Verdict, str]]:
        """Yield (key, verdict, why it is ungraded) of pairs by key, as they come in.

        Pairs go to whichever worker is free, so that a slow one delays its own worker only.
        """
        queue = collections.deque()
        for key, (_, gold) in requests.items():
            if len(gold) > MAX_CHARS:
                yield key, UNGRADED, f"the gold answer has {len(gold)} characters, the limit is {MAX_CHARS}"
            else:
                queue.append(key)
        num_failed = 0
        try:
            while queue or any(worker.key for worker in self._workers):
                self._hand_out(queue, requests)
                for worker, reply in self._replies():
                    self._check_open()  # or a worker's end would be put down to its pair
                    key, worker.key, worker.deadline = worker.key, None, math.inf
                    error, was_ready, worker.is_ready = reply.get("error"), worker.is_ready, True
                    if error is not None or reply.get("rss", 0) > RETIRE_BYTES:
                        self._drop(worker)
                    num_failed = num_failed + 1 if error is not None and not was_ready else 0
                    if num_failed >= MAX_FAILED_STARTS:
                        raise RuntimeError(f"no grading worker starts: {error}; is math-verify installed?")
                    if key:
                        graded = error is None and Verdict(reply["correct"], True, reply["answer"])
                        yield key, graded or UNGRADED, str(error)
        finally:  # after an error, pairs in hand are this call's, and the next one knows nothing of them
            for worker in [worker for worker in self._workers if worker.key]:
                self._drop(worker)

    def _hand_out(self, queue: collections.deque, requests: dict[bytes, tuple[str, str]]):
        """Start the workers that are missing and give each free one a pair."""
        num_busy = sum(worker.key is not None for worker in self._workers)
        while len(self._workers) < min(self._num_workers, num_busy + len(queue)):
            self._workers.append(worker := start(self._timeout_secs))
            self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        for worker in list(self._workers):
            if queue and worker.is_ready and worker.key is None:
                key = queue.popleft()
                line = (json.dumps(requests[key], ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
                try:
                    while line:
                        line = line[os.write(worker.stdin.fileno(), line) :]
                    worker.key, worker.deadline = key, time.monotonic() + WALL_FACTOR * self._timeout_secs
                except OSError:  # it died while it had nothing to do: the pair is not to blame
                    queue.appendleft(key)
                    self._drop(worker)

    def _replies(self) -> list[tuple[Worker, dict]]:
        """Wait until a worker speaks, dies or exceeds its time; return what each such worker says, or its error."""
        found = []
        # a worker without a pair has no deadline, and one that has a pair has one: this wait ends
        patience = min((worker.deadline for worker in self._workers), default=0.0) - time.monotonic()
        spoken = [event.data for event, _ in self._selector.select(max(patience, 0.0))]
        for worker in spoken:
            worker.received += (chunk := os.read(worker.stdout.fileno(), 1 << 16))
            if not chunk:
                found.append((worker, {"error": how_it_ended(worker.process)}))
            elif worker.received.endswith(b"\n"):
                found.append((worker, json.loads(worker.received)))
                worker.received = b""
        late = time.monotonic()
        return found + [
            (worker, {"error": "wall-clock limit"})
            for worker in self._workers
            if worker.deadline <= late and worker not in spoken
        ]

    def _drop(self, worker: Worker):
        """End a worker; the next pair starts another."""
        self._workers.remove(worker)
        self._selector.unregister(worker.stdout)
        worker.process.kill()
        worker.process.wait()
        worker.stdin.close()
        worker.stdout.close()
        self.stats.num_replaced += not self._closed.is_set()


def start(timeout_secs: float) -> Worker:
    """Start a worker process, without forking this one's threads and locks.

    It is in a session of its own: a Ctrl-C, or a signal to the trainer's process group, would otherwise end it first and
    leave its pair ungraded. Should this process be killed, an idle worker ends with its stdin, a busy one at its
    limit. PR_SET_PDEATHSIG would be wrong: it fires when the *thread* that started the worker ends.
    """
    limits = (timeout_secs, WALL_FACTOR * timeout_secs + 1.0, MEMORY_BYTES)  # by the clock, this process acts first
    command = [sys.executable, "-P", str(WORKER), *map(str, limits)]
    process = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"PYTHONHASHSEED": "0"},  # sympy's order of terms: the same pair, the same verdict
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return Worker(process, process.stdin, process.stdout, time.monotonic() + START_SECS)


def end(closed: threading.Event, workers: list[Worker]):
    """End a grader's workers, which wakes a thread that waits for one."""
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


def read_ungraded(path: pathlib.Path) -> set[bytes]:
    """Return the keys in a log of ungraded pairs. A last line that was cut off is ended; unreadable lines are skipped."""
    keys = set()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return keys
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        with open(path, "ab") as file:
            file.write(b"\n")
    for line in lines:
        try:
            keys.add(bytes.fromhex(json.loads(line)["hash"]))
        except (ValueError, KeyError, TypeError):
            continue
    return keys
