"""Grade answers with math-verify in worker processes: hard limits of time and memory a pair, verdicts cached.

math-verify evaluates what a model wrote with sympy, which may take for ever or all memory (9^9^9^9), so it never runs
in the trainer's own process, and the limit is a kill. It is one of processor time, with one by the clock that is far longer:
on a starved machine a limit by the clock alone hits plain answers, too, and others in the next run. A pair whose worker
hangs, dies or runs out of memory is *ungraded*: it earns nothing, is counted, and is logged, so that a resumed run repeats
the verdict instead of the accident.

This module imports no JAX, and never forks the trainer: workers are fresh interpreters on grading/ (see domains/workers.py),
which also works from notebooks and from scripts without a ``__main__`` guard.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import re
import threading
from collections.abc import Iterator, Sequence

from exit_jax.domains.text.thoughts import final_answer
from exit_jax.domains.ungraded import UngradedLog
from exit_jax.domains.worker_process import WALL_FACTOR
from exit_jax.domains.workers import Job, Pool

WORKER = pathlib.Path(__file__).with_name("grading")  # a folder that Python runs, and puts on the path of what it runs
# length of an answer or a gold answer; also keeps a request (12 bytes a character at most) within a pipe's 64 KiB
MAX_CHARS = 2000
SCAN_CHARS = 100_000  # the end of a response, where boxes are looked for: 40 ms at worst
EDGE_CHARS = 200  # length of each end of an ungraded response, for its log
CACHE_SIZE = 1 << 16
MEMORY_BYTES = 2 << 30  # a worker's address space

BOX = r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*(?:\[[^\[\]]*\]\s*)*"
BRACES = re.compile(rf"{BOX}\{{|{BOX}(?P<bare>\\[A-Za-z]+|-?[\w.]+)|\\.|[{{}}]", re.DOTALL)
AND = re.compile(r"(?:\s|\$|\\[()\[\]])*(?:,|;|,?\s*(?:and|or|\\text\{\s*(?:and|or)\s*\}))(?:\s|\$|\\[()\[\]])*")
MAX_AND_CHARS = 40
# answers where nothing is boxed
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
SAID = re.compile(
    r"(?:\banswers?\b(?:[^.\n$:=]{0,60}?(?:\b(?:is|are|equals)\b|[:=])|[*_]*\s*\n)|####)[\s:*_]*(?:therefore|thus|then|simply)?[\s*_]*",
    re.IGNORECASE,
)
CONCLUDED = re.compile(
    r"(?:therefore|thus|hence|so|finally|consequently|in conclusion|we (?:get|have|find|obtain))\b", re.IGNORECASE
)
VERB = re.compile(r"\b(?:is|are|equals|get|gives|have|find|obtain)\s+(?=[^.]*\d|\$|\\)", re.IGNORECASE)
FORMULA = re.compile(r"\$\$?(.+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
FORMULAS = re.compile(rf"(?:{FORMULA.pattern})(?:\s*(?:,|;|,?\s*(?:and|or)\b)\s*(?:{FORMULA.pattern}))*", re.DOTALL)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
MAX_WHOLE_CHARS, MAX_WHOLE_WORDS = 60, 2  # limits of a response that is nothing but its answer
WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the grader says of one response."""

    correct: bool
    graded: bool  # False: the worker hung, died or ran out of memory
    answer: str  # what the response gives, "" for nothing; equal answers have equal texts as far as that is cheap


WRONG = Verdict(correct=False, graded=True, answer="")
UNGRADED = Verdict(correct=False, graded=False, answer="")


@dataclasses.dataclass
class Stats:
    """Counts since the grader was made."""

    num_pairs: int = 0
    num_cache_hits: int = 0  # pairs that took no worker: known, twice in one call, or without an answer
    num_ungraded: int = 0  # pairs, those replayed from the log included


def extract_answer(response: str) -> str:
    r"""Return the answer that a response gives, of 2,000 characters at most; "" if it gives none.

    It is the content of the last box (\\boxed, \\fbox, \\framebox) whose braces match, together with those joined to it by
    nothing but a comma, "and" or "or" (two roots in two boxes), looked for in the last 100,000 characters after the
    response's thoughts. Without a box see ``unboxed_answer``.

        "so \\boxed{1}. No, \\boxed{\\frac{1}{2}}"   ->  "\\frac{1}{2}"
        "x is \\boxed{1} or $\\boxed{2}$"            ->  "1, 2"
        "<think>Is it \\boxed{3}?</think> It is \\boxed{4}."  ->  "4"
    """
    text = final_answer(response)[-SCAN_CHARS:]
    stack, boxes = [], []  # items: (start, start of the content) or None; and (start, start and end of the content)
    for token in BRACES.finditer(text):
        if token["bare"]:
            boxes.append((token.start(), *token.span("bare")))
        elif token[0] == "{":
            stack.append(None)
        elif token[0].endswith("{") and len(token[0]) > 2:
            stack.append(token.span())
        elif token[0] == "}" and stack:
            opened = stack.pop()
            if opened:
                boxes.append((*opened, token.start()))
    if not boxes:
        return unboxed_answer(text)[:MAX_CHARS]
    first, *content = boxes.pop()
    contents = [text[slice(*content)]]
    for start, *content in reversed(boxes):
        gap = text[content[1] : first].removeprefix("}")  # empty for a box within the box
        if len(gap) > MAX_AND_CHARS or not AND.fullmatch(gap):
            break
        contents.insert(0, text[slice(*content)])
        first = start
    answer = ", ".join(dict.fromkeys(contents))
    return answer if len(answer) <= MAX_CHARS else ""


def unboxed_answer(text: str) -> str:
    """Return the answer of a response without a box.

    It is what stands between answer tags, or follows the last "answer is", "answer:" or "####" to the end of its sentence, or
    what a last sentence that begins with "so", "thus" or "hence" comes to, or all of a short response. A number that merely
    stands in the text is no answer: "Step 3." is not 3.

        "<answer>7</answer>"           ->  "7"
        "So the answer is 12."         ->  "12"
        "Thus we have $x = 3$."        ->  "x = 3"
        "12"                           ->  "12"
        "We try 1. Then comes Step 3." ->  ""
    """
    text = text[-MAX_CHARS:].strip()
    if tagged := TAGGED.findall(text):
        return tagged[-1].strip()
    if said := list(SAID.finditer(text)):
        rest = text[said[-1].end() :].strip()
        if formulas := FORMULAS.match(rest):
            return formulas[0]
        return SENTENCE_END.split(rest, maxsplit=1)[0].strip("*_ ")
    last = next((s for s in reversed(SENTENCE_END.split(text)) if s and s.strip(" *_$")), "").strip()
    if concluded := CONCLUDED.match(last):
        formulas = [match[0] for match in FORMULA.finditer(last)]
        if formulas:
            return formulas[-1]
        verb = list(VERB.finditer(last))
        return last[(verb[-1] if verb else concluded).end() :].strip(" ,:")
    is_answer = len(text) <= MAX_WHOLE_CHARS and "\n" not in text and len(WORD.findall(text)) <= MAX_WHOLE_WORDS
    return text if is_answer else ""


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
        if not timeout_secs > 0:
            raise ValueError(f"timeout_secs={timeout_secs} must be positive")
        self.stats = Stats()
        # a second more by the clock, so that this process acts first
        limits = (timeout_secs, WALL_FACTOR * timeout_secs + 1.0, MEMORY_BYTES)
        self._pool = Pool(WORKER, [str(limit) for limit in limits], num_workers, needs="math-verify")
        self._timeout_secs, self._lock = timeout_secs, threading.Lock()
        self._cache: collections.OrderedDict[bytes, Verdict] = collections.OrderedDict()
        self._ungraded = UngradedLog(ungraded_log)

    @property
    def num_replaced(self) -> int:
        """Workers killed at the limit, found dead, or retired for their memory."""
        return self._pool.num_replaced

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Grade (response, gold answer) pairs; the order is kept. One thread at a time, the others wait.

        A response is right if a reading of ``extract_answer(response)`` equals one of the gold answer; what may be read, and
        what is equal, is in grading/: notation.py, answers.py, equality.py.

        Raises:
            RuntimeError: workers cannot be started, or the grader was closed.
        """
        with self._lock:
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
                    response, gold = pairs[todo[key]]
                    ends = {"start": response[:EDGE_CHARS], "end": response[-EDGE_CHARS:]}
                    self._ungraded.add(key, reason=reason, gold=gold[:MAX_CHARS], num_chars=len(response), **ends)
            graded = [verdicts[key] for key in keys]
            self.stats.num_pairs += len(pairs)
            self.stats.num_cache_hits += len(pairs) - len(todo)
            self.stats.num_ungraded += sum(not verdict.graded for verdict in graded)
            return graded

    def close(self):
        """End the workers. A call of ``grade`` in another thread fails, and logs nothing."""
        self._pool.close()

    def _known(self, key: bytes) -> Verdict | None:
        """Return the verdict of an earlier call, if it is still held."""
        if key in self._ungraded:
            return UNGRADED
        if key in self._cache:
            self._cache.move_to_end(key)
        return self._cache.get(key)

    def _grade_new(self, requests: dict[bytes, tuple[str, str]]) -> Iterator[tuple[bytes, Verdict, str]]:
        """Yield (key, verdict, why it is ungraded) of pairs by key, as they come in."""
        jobs = {}
        for key, (text, gold) in requests.items():
            if len(gold) > MAX_CHARS:
                yield key, UNGRADED, f"the gold answer has {len(gold)} characters, the limit is {MAX_CHARS}"
            else:
                jobs[key] = Job([text, gold], WALL_FACTOR * self._timeout_secs)
        keys = list(jobs)
        for index, reply in self._pool.run(list(jobs.values())):
            error = reply.get("error")
            graded = error is None and Verdict(reply["correct"], True, reply["answer"])
            yield keys[index], graded or UNGRADED, str(error)
