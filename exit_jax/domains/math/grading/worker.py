"""What a grading process runs: math-verify on one pair after another. Started by __main__.py of this folder (see grader.py).

It imports neither exit_jax nor JAX: half a second and 60 MB a process. Requests are JSON lines on stdin, ``[text, gold]``;
each is answered by one line, ``{"correct", "answer", "rss"}`` or ``{"error"}``, after a first line that says that
the imports are done. It ends with its stdin. Its limits hold even if the trainer is gone and the interpreter is stuck in
one long C call, because the kernel enforces them: address space, and two timers, of processor time and of the clock, whose
signals end the process.
"""

import functools
import json
import logging
import os
import re
import resource
import signal
import sys

import answers
import canonical
import equality
import notation


@functools.lru_cache(maxsize=256)
def readings(text: str, lowercase: bool, is_gold: bool) -> tuple:
    """Return what an answer may be read as."""
    return answers.Reader(lowercase, is_gold).read(notation.rewrite(text))


def grade(text: str, gold: str) -> tuple[bool, str]:
    """Return whether a response's text gives the gold answer, and which answer it gives.

    Raises:
        MemoryError: it did not fit the process's limit.
    """
    letters = set(re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", gold)))
    lowercase = not any(letter.swapcase() in letters for letter in letters)  # or else R and r are two variables
    found = readings(text, lowercase, False)
    return equality.equal(readings(gold, lowercase, True), found), canonical.canonical(found)


def resident_bytes() -> int:
    """Return this process's memory, 0 where /proc is missing."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def main(pair_secs: float, wall_secs: float, memory_bytes: int):
    """Answer requests until stdin ends. A pair has ``pair_secs`` of processor time and ``wall_secs`` by the clock."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints must not be taken for a reply

    def reply(**fields):
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    for limit, value in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # the default ends the process, whatever it is in the middle of
    # a cluster that ends a job sends it: the trainer decides, and has pairs in hand
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.disable(logging.WARNING)  # math-verify warns that it keeps no time itself
    reply(ready=True)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, pair_secs)
        signal.setitimer(signal.ITIMER_REAL, wall_secs)
        try:
            correct, answer = grade(*json.loads(line.decode("utf-8", "surrogatepass")))
            fields = {"correct": bool(correct), "answer": answer, "rss": resident_bytes()}
        except MemoryError:
            fields = {"error": "out of memory"}
        except Exception as error:
            fields = {"error": repr(error)[:200]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply(**fields)
