"""What a grading process runs: math-verify on one pair after another. Started by path and never imported (see grader.py).

It imports neither exit_jax nor JAX: half a second and 60 MB a process. Requests are JSON lines on stdin, ``[text, gold]``;
each is answered by one line, ``{"correct", "answer", "rss"}`` or ``{"error"}``, after a first line that says that
the imports are done. It ends with its stdin. Its limits hold even if the trainer is gone and the interpreter is stuck in
one long C call, because the kernel enforces them: address space, and two timers, of processor time and of the clock, whose
signals end the process.
"""

import functools
import hashlib
import itertools
import json
import logging
import os
import re
import resource
import signal
import sys

MAX_ANSWER_CHARS = 200  # of the canonical text; a longer one ends in a hash
MAX_EXPONENT = 1000  # powers beyond it stay as they are written in the canonical text
WORDS = re.compile(r"[a-z][a-z ,'-]+")
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
# "12\,345", which math-verify takes for a product
THOUSANDS = re.compile(r"(?<=\d)\\[,!](?=\d{3}(?!\d))")
# "\textbf{(B)}\ 12" names a choice and its value
CHOICE = re.compile(
    r"\\boxed\{\s*\\(?:text|textbf|textrm|mathrm|mathbf)\s*\{\s*\(?([A-J])[).:]\s*\}(?:\\[ ,;:!]|\\q?quad\b|[\s~:])*(.+)\}",
    re.DOTALL,
)
LETTER = re.compile(r"(?<![A-Za-z\\])[A-Ja-j](?![A-Za-z])")  # a word of one letter; math-verify takes b for B


def parse(text: str) -> list:
    """Return math-verify's readings of a text, [] if there are none.

    Raises:
        MemoryError: it did not fit the process's limit.
    """
    import math_verify

    try:
        return math_verify.parse(text, parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]
    except MemoryError:
        raise
    except Exception:
        return []


def readings(text: str) -> list:
    """Return what a text may be read as: its values, or a choice's letter and its value.

    A value that passes for a letter, as in "\\textbf{(A)}\\ B", would be a second guess at the choice, so it does not count.
    """
    text = THOUSANDS.sub("", text)
    choice = CHOICE.fullmatch(text)
    if choice is None:
        return parse(text)
    letter, value = (parse(rf"\boxed{{{part}}}") for part in choice.groups())
    guesses = any(holds(parse(rf"\boxed{{{other.upper()}}}"), value) for other in LETTER.findall(choice[2]))
    return letter if guesses else letter + value


@functools.lru_cache(maxsize=256)
def readings_of_gold(gold: str) -> list:
    """Return what a gold answer may be read as. It is plain text or LaTeX, in a box or not."""
    return readings(gold if r"\boxed" in gold else rf"\boxed{{{gold}}}")


def holds(gold: list, target: list) -> bool:
    """Return whether some reading of the response equals some reading of the gold answer.

    math_verify.verify on whole lists would hide a MemoryError; but what it catches deep inside is still lost, and only makes
    that one attempt at a comparison fail.
    """
    import math_verify

    for pair in itertools.product(gold, target):
        try:
            if math_verify.verify(*pair, timeout_seconds=None, raise_on_error=True):
                return True
        except MemoryError:
            raise
        except Exception:
            continue
    return False


def is_cheap(value) -> bool:
    """Return whether a sympy value can be evaluated at once: sums, products and small powers."""
    import sympy

    kinds = (sympy.Add, sympy.Mul, sympy.Pow, sympy.Number, sympy.NumberSymbol, sympy.Symbol, sympy.UnevaluatedExpr)
    frames = (sympy.FiniteSet, sympy.Interval, sympy.Tuple, sympy.core.relational.Relational)
    for count, node in enumerate(sympy.preorder_traversal(value)):
        if count > 100 or not isinstance(node, kinds + frames):
            return False
        if isinstance(node, sympy.Pow) and not (
            node.exp.is_Symbol or (node.exp.is_Number and abs(node.exp) < MAX_EXPONENT)
        ):
            return False
    return True


def result(value):
    """Return what an assignment or a calculation comes to, as math-verify reads it: 6 of x=6, of 2+4=6 and of x=2+4=6.

    An equation in unknowns, as 2x+y=4, is an answer of its own and stays.
    """
    from math_verify import grader

    if grader.is_assignment_relation(value) or (grader.is_equation(value) and not value.free_symbols):
        return grader.take_last_relation(value).rhs
    return value


def canonical(values: list) -> str:
    """Return one text for equal answers, as far as that is cheap, for votes: 0.5, 1/2, \\frac{2}{4} and x=1/2 agree.

    (x+1)^2 and x^2+2x+1 do not. "" if there is no answer.
    """
    import sympy

    if not values:
        return ""
    written = TEXT.sub(r" \1 ", values[-1]) if isinstance(values[-1], str) else ""
    written = " ".join(written.split())
    if WORDS.fullmatch(written.lower()):
        text = written.lower()
    else:
        try:
            value = result(values[0])
            if isinstance(value, sympy.Basic) and is_cheap(value):
                exact = value.doit()
                exact = exact.xreplace({number: sympy.Rational(str(number)) for number in exact.atoms(sympy.Float)})
                if not exact.has(sympy.true, sympy.false):  # "3 < 4" and "x+1 = x+1" say more than that they hold
                    value = exact
            text = str(value)
        except MemoryError:
            raise
        except Exception:  # sympy's printers and int's limit of digits
            text = written
    if len(text) <= MAX_ANSWER_CHARS:
        return text
    return text[:MAX_ANSWER_CHARS] + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def grade(text: str, gold: str) -> tuple[bool, str]:
    """Return whether a response's text gives the gold answer, and which answer it gives.

    Raises:
        MemoryError: it did not fit the process's limit.
    """
    from sympy.core import random

    random.seed(0)  # some of its tests for zero draw points: the same pair, the same verdict
    values = readings(text)
    return holds(readings_of_gold(gold), values), canonical(values)


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
        signal.signal(number, signal.SIG_DFL)  # to end the process, whatever it is in the middle of
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # of a cluster that ends a job: the trainer decides, and has pairs in hand
    logging.disable(logging.WARNING)  # math-verify warns that it keeps no time itself
    try:
        import math_verify  # noqa: F401
    except Exception as error:
        return reply(error=repr(error))
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
            fields = {"error": repr(error)[:MAX_ANSWER_CHARS]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply(**fields)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
