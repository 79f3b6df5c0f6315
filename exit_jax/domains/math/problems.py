"""Problems as their sources have them: which files there are, and the problem of a row."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from exit_jax.domains.files import SUFFIXES, download, sha256
from exit_jax.domains.math.sources import SOURCES, Source
from exit_jax.errors import DomainError

WORD = re.compile(r"[^\W\d_]+|\d+")
_SENTENCE_END = re.compile(r"\n|(?<=[.?!])\s")
_LAYOUT = re.compile(r"\\(?:begin|end)\s*\{[^}]*\}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem with its gold answer."""

    problem: str
    answer: str
    solution: str  # "" where the source has none
    num_steps: int  # steps of the gold solution, see ``count_steps``
    source: str  # name of one of SOURCES


class Found(NamedTuple):
    """The files that a source is read from."""

    source: Source
    files: tuple[pathlib.Path, ...]
    sums: tuple[str, ...]  # sha256 of each
    origin: str


# One row


def scalar_text(value: Any) -> str | None:
    """Return text or a number as stripped text without NULs, whole numbers without a point; None for all else."""
    if isinstance(value, float) and math.isfinite(value):
        value = int(value) if value.is_integer() else repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return None
    try:
        value.encode()  # a lone surrogate cannot be written
    except UnicodeEncodeError:
        return None
    return value.replace("\0", "").strip()


def field_text(value: Any, separator: str) -> str | None:
    """Return a field, which may be a list, as one text; None where it is something else."""
    if not isinstance(value, list):
        return scalar_text(value)
    parts = [scalar_text(part) for part in value]
    return None if None in parts else separator.join(part for part in parts if part)


def boxed(solution: str) -> str:
    r"""Return what the last ``\boxed{}`` holds, with its braces balanced, or what follows a ``\boxed`` without; else "".

    >>> boxed(r"so \boxed{1} or \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    _, found, rest = solution.rpartition("\\boxed")
    rest = rest.lstrip()
    if not found or not rest.startswith("{"):
        return rest.partition("$")[0].strip() if found else ""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", rest, re.DOTALL):  # an escaped brace does not count
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return rest[1 : brace.start()].strip()
    return ""


def count_steps(solution: str) -> int:
    r"""Count the lines and sentences of a gold solution that hold a letter or a digit; ``\begin`` and ``\end`` do not.

    >>> count_steps("We add. Then\n\\begin{align*}\nx &= 1 \\\\\n  &= 2\n\\end{align*}")
    4
    """
    pieces = _SENTENCE_END.split(_LAYOUT.sub("", solution))
    return sum(WORD.search(piece) is not None for piece in pieces)


def clean(row: Any, source: Source) -> Problem | str | None:
    """Return the problem of a row, why it is skipped, or None for a row that the source's ``keep`` leaves out."""
    if not isinstance(row, Mapping):
        return "malformed: not a JSON object"
    for field, pattern in source.keep:
        if row.get(field) is not None and not re.search(pattern, str(row[field])):
            return None

    def get(field: str, plain: str, separator: str = "\n\n") -> str | None:
        value = row.get(field)
        return field_text(row.get(plain) if value is None else value, separator)

    problem = get(source.problem, "problem")
    if problem is None:
        return "malformed: the problem is missing or not text"
    if not problem:
        return "empty problem"
    has_solution = any(row.get(field) is not None for field in (source.solution, "solution"))
    solution = get(source.solution, "solution") if has_solution else ""
    if solution is None:
        return "malformed: the solution is not text"
    answer = get(source.answer, "answer", ", ")
    if answer is None and not source.answer and row.get("answer") is None:
        answer = boxed(solution)
    if answer is None:
        return "malformed: the answer is missing or not text"
    if not answer:
        return "empty answer"
    context = field_text(row.get(source.context), "\n\n") if source.context else ""
    problem = f"{context}\n\n{problem}" if context else problem
    return Problem(problem, answer, solution, count_steps(solution), source.name)


# Files


def locate(source: Source, files_dir: pathlib.Path | None, recorded: Mapping[str, str]) -> Found:
    """Return the files of a source: the user's, else the hub's, downloaded or from its cache.

    Args:
      source: as declared.
      files_dir: where files of the user lie, if anywhere.
      recorded: sha256 of hub files that were used before, by ``hub_id``.

    Raises:
      LookupError: if there is none; the message names the remedies.
      DomainError: if a file is not the one declared or recorded.
    """
    given = [files_dir / (source.name + suffix) for suffix in SUFFIXES] if files_dir else []
    given = [path for path in given if path.is_file()]
    if len(given) > 1:
        names = " and ".join(path.name for path in given)
        raise DomainError(f"{files_dir} holds {names}, which are the same source; keep one of them")
    if given:
        return Found(source, (given[0],), (sha256(given[0]),), str(given[0]))
    files = tuple(_fetch(source, file) for file in source.files)
    sums = tuple(sha256(path) for path in files)
    for file, path, found, declared in zip(source.files, files, sums, source.sha256, strict=True):
        expected = declared or recorded.get(hub_id(source, file), found)
        if found != expected:
            raise DomainError(
                f"{path} is not the {hub_id(source, file)} that {'is declared' if declared else 'was used before'}: "
                f"sha256 {found}, not {expected}; delete it, so that it is downloaded again"
            )
    return Found(source, files, sums, f"hub {source.repo}@{source.revision[:8]}")


def hub_id(source: Source, file: str) -> str:
    """Return the name of one version of a file on the hub."""
    return f"{source.repo}@{source.revision}/{file}"


def _fetch(source: Source, file: str) -> pathlib.Path:
    """Return a file of the hub's in the cache, downloaded if need be."""
    try:
        return download(source.repo, file, source.revision)
    except LookupError as error:
        raise LookupError(
            f"{source.name} (for {source.split}): cannot get {file} of {source.repo} from the Hugging Face hub or its "
            f"cache ({error})\n"
            f"    - give {source.name}.jsonl, .json or .parquet, with problem, answer and solution, in the files folder\n"
            f"    - or run `hf download --repo-type dataset {source.repo} {' '.join(source.files)} "
            f"--revision {source.revision}` where there is a network, copy the cache, and set HF_HOME to it"
        ) from error


def find_sources(files_dir: pathlib.Path | None, recorded: Mapping[str, str]) -> tuple[list[Found], dict[str, str]]:
    """Return the sources that can be had, and for the others why not, by name."""
    found, missing = [], {}
    for source in SOURCES:
        try:
            found.append(locate(source, files_dir, recorded))
        except LookupError as error:
            missing[source.name] = str(error)
    return found, missing
