"""Which problems are trained on and tested on: each once, drawn by a seed, and none to train on that repeats a test problem."""

import collections
import hashlib
import heapq
import itertools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

from exit_jax.domains.domain import DomainError
from exit_jax.domains.files import read_rows
from exit_jax.domains.math.problems import WORD, Found, Problem, clean
from exit_jax.domains.math.sources import SPLITS, TRAIN, VALIDATION, Source

# A problem that shares so many words in a row with a test problem is taken for the same one; the length is GPT-3's
# (arXiv:2005.14165, appendix C). Formulas count with all their letters and numbers, which errs towards removing.
NGRAM = 13
# So is one that holds all the words of a shorter test problem in a row, after "Problem 7." or before "Give an integer."
# Still shorter ones, as "Find x.", stand in many problems that have nothing to do with them: there only a copy counts.
MIN_WORDS = 5
_START_CHARS = 200  # characters of a skipped row's text, enough to recognise it


def skipped_line(source: str, index: int, reason: str, text: str) -> str:
    """Return a line of the list of rows that are not used."""
    return json.dumps({"source": source, "index": index, "reason": reason, "start": text[:_START_CHARS]})


class Ledger:
    """What becomes of every row, counted by source; those skipped are listed as well."""

    def __init__(self, listing: TextIO):
        self.rows: collections.Counter[str] = collections.Counter()
        self.filtered: collections.Counter[str] = collections.Counter()  # left out by the source's ``keep``
        self.skipped: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self._listing = listing

    def skip(self, source: str, index: int, reason: str, text: str) -> None:
        """Enter a row that is not used, and why."""
        self.skipped[source][reason] += 1
        self._listing.write(skipped_line(source, index, reason, text) + "\n")


def words(text: str) -> list[str]:
    r"""Return the runs of letters and of digits, in one spelling.

    >>> words(r"Solve $2x^2=x_{1}$")
    ['solve', '2', 'x', '2', 'x', '1']
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(row: list[str], length: int) -> Iterable[tuple[str, ...]]:
    """Return all runs of ``length`` words; none of a shorter text."""
    return zip(*(row[start:] for start in range(length)))


class Overlap:
    """The problems that others must not repeat, by their words."""

    def __init__(self):
        self._runs: dict[tuple[str, ...], str] = {}  # words in a row -> what they are

    def add(self, problems: Iterable[Problem], split: str) -> None:
        """Take in the problems of a split."""
        whole, part = (f"{what} of a problem of {split}" for what in ("the words", f"{NGRAM} words in a row"))
        for row in filter(None, (words(problem.problem) for problem in problems)):
            self._runs.setdefault(tuple(row), whole)
            for ngram in ngrams(row, NGRAM):
                self._runs.setdefault(ngram, part)

    def find(self, problem: str) -> str:
        """Return which split a problem overlaps with, and how; "" if with none."""
        row = words(problem)
        # runs below NGRAM words are equal to whole problems only
        runs = itertools.chain.from_iterable(ngrams(row, length) for length in range(MIN_WORDS, NGRAM + 1))
        why = next(filter(None, map(self._runs.get, itertools.chain([tuple(row)], runs))), "")
        return f"overlap: {why}" if why else ""


def distinct(sources: Iterable[Found], salt: str, ledger: Ledger) -> Iterator[tuple[int, int, Problem]]:
    """Yield (rank, row, problem) of all usable problems, the first of each that differ in more than case and space.

    The rank is a hash of ``salt`` and of the problem's text, below 2⁶⁴: an order that depends on neither the order of the
    rows nor the type of the file. It stands for the text too, 900,000 of which share one with a chance of 2e-8.
    """
    seen: set[int] = set()
    for source, files, _, _ in sources:
        fields = {source.problem, source.answer, source.solution, source.context, "problem", "answer", "solution"}
        fields |= {field for field, _ in source.keep}
        rows = itertools.chain.from_iterable(read_rows(path, fields) for path in files)
        for index, (_, row) in enumerate(rows):
            ledger.rows[source.name] += 1
            problem = clean(row, source)
            if problem is None:
                ledger.filtered[source.name] += 1
                continue
            if isinstance(problem, str):
                ledger.skip(source.name, index, problem, _show(row, source))
                continue
            text = "".join(unicodedata.normalize("NFKC", problem.problem).casefold().split())
            rank = int.from_bytes(hashlib.blake2b(f"{salt}\n{text}".encode(), digest_size=8).digest())
            if rank in seen:
                ledger.skip(source.name, index, "duplicate", problem.problem)
                continue
            seen.add(rank)
            yield rank, index, problem


def _show(row: Any, source: Source) -> str:
    """Return something to recognise a malformed row by."""
    return str((row.get(source.problem) or row.get("problem") or "") if isinstance(row, Mapping) else row)


def draw(candidates: Iterable[tuple[int, int, Problem]], limit: int, overlap: Overlap, ledger: Ledger) -> list[Problem]:
    """Return the ``limit`` problems of lowest rank among those without overlap, in the order of their ranks.

    So each candidate is as likely as any other, and memory holds only the problems that are drawn.
    """
    drawn: list[tuple[int, Problem]] = []  # a heap with the highest rank on top
    for rank, index, problem in candidates:
        if why := overlap.find(problem.problem):
            ledger.skip(problem.source, index, why, problem.problem)
        elif len(drawn) < limit:
            heapq.heappush(drawn, (-rank, problem))
        elif drawn and -rank > drawn[0][0]:
            heapq.heapreplace(drawn, (-rank, problem))
    return [problem for _, problem in sorted(drawn, key=lambda item: -item[0])]


def make_splits(found: list[Found], seed: int, limits: Mapping[str, int], ledger: Ledger) -> dict[str, list[Problem]]:
    """Return the problems of all splits: whole tests, then validation without theirs, then train without either's.

    Raises:
      DomainError: if fewer problems are left of train or validation than ``limits`` asks for.
    """
    overlap, splits, short = Overlap(), {}, []
    for split in [*(split for split in SPLITS if split not in limits), VALIDATION, TRAIN]:
        sources = [item for item in found if item.source.split == split]
        candidates = distinct(sources, f"{split} {seed}", ledger)
        if split in limits:
            splits[split] = draw(candidates, limits[split], overlap, ledger)
            if sources and len(splits[split]) < limits[split]:
                remedy = f"give more, or lower num_{split}"
                short.append(f"{split}: {len(splits[split])} usable problems of {limits[split]} asked for; {remedy}")
        else:
            splits[split] = [problem for _, _, problem in candidates]
        overlap.add(splits[split], split)
    if short:
        raise DomainError("; ".join(short))
    return {split: splits[split] for split in SPLITS if splits[split]}
