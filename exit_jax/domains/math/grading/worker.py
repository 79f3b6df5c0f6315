"""What a grading process runs: math-verify on one pair after another. Started by __main__.py of this folder (see grader.py).

It imports no JAX: half a second and 60 MB a process. Requests are JSON lines on stdin, ``[text, gold]``; each is answered by
one line, ``{"correct", "answer", "rss"}`` or ``{"error"}``, after a first line that says that the imports are done. It ends
with its stdin. Its limits hold even if the trainer is gone and the interpreter is stuck in one long C call, because the kernel
enforces them: address space, and two timers, of processor time and of the clock, whose signals end the process.
"""

import functools
import json
import logging
import re
import sys

import answers
import canonical
import equality
import notation
from exit_jax.domains import worker_process


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


def main(pair_secs: float, wall_secs: float, memory_bytes: int):
    """Answer requests until stdin ends. A pair has ``pair_secs`` of processor time and ``wall_secs`` by the clock."""
    replies = worker_process.begin()
    worker_process.limit_address_space(memory_bytes)
    logging.disable(logging.WARNING)  # math-verify warns that it keeps no time itself
    worker_process.write_line(replies, {"ready": True})
    for line in sys.stdin.buffer:
        worker_process.start_timers(pair_secs, wall_secs)
        try:
            correct, answer = grade(*json.loads(line.decode("utf-8", "surrogatepass")))
            fields = {"correct": bool(correct), "answer": answer, "rss": worker_process.resident_bytes()}
        except MemoryError:
            fields = {"error": "out of memory"}
        except Exception as error:
            fields = {"error": repr(error)[:200]}
        worker_process.stop_timers()
        worker_process.write_line(replies, fields)
