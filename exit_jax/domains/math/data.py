"""Problems on disk: gathered from their sources, cleaned, kept apart from the tests, written once, read by split.

All on the host, in plain Python; tensorflow-datasets holds the result (array_record, which needs no TensorFlow). It,
pyarrow and the hub's client are imported where they are used, since together they take a second that other domains
need not wait for.

A prepared ``data_dir`` holds ``report.json``, written last, and the folder that it names, with the splits and
``skipped.jsonl``. Whatever else lies there is an unfinished preparation, which ``load`` never looks at.
"""

import collections
import contextlib
import dataclasses
import hashlib
import heapq
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TextIO

from exit_jax.domains.domain import DomainError
from exit_jax.domains.math.sources import SOURCES, SPLITS, TRAIN, VALIDATION, Source

# Of the rules below: a data_dir that was prepared under others is prepared anew.
RULES = 2
# A problem that shares so many words in a row with a test problem is taken for the same one; the length is GPT-3's
# (arXiv:2005.14165, appendix C). Formulas count with all their letters and numbers, which errs towards removing.
NGRAM = 13
# So is one that holds all the words of a shorter test problem in a row, behind "Problem 7." or before "Give an integer."
# Still shorter ones, as "Find x.", stand in many problems that have nothing to do with them: there only a copy counts.
MIN_WORDS = 5
SUFFIXES = (".jsonl", ".json", ".parquet")
_DATASET = "math_problems"  # TFDS makes it of the builder's name
_REPORT, _SKIPPED, _SPLITS, _PARTIAL = "report.json", "skipped.jsonl", "splits-", "partial-"
_START_CHARS = 200  # of a skipped row's text, enough to recognise it
_BATCH_ROWS = 1024  # of a parquet file in memory at once
_WORD = re.compile(r"[^\W\d_]+|\d+")
_SENTENCE_END = re.compile(r"\n|(?<=[.?!])\s")
_LAYOUT = re.compile(r"\\(?:begin|end)\s*\{[^}]*\}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem with its gold answer."""

    problem: str
    answer: str
    solution: str  # "" where the source has none
    num_steps: int  # of the gold solution, see ``count_steps``
    source: str  # of SOURCES


class Found(NamedTuple):
    """The files that a source is read from."""

    source: Source
    files: tuple[pathlib.Path, ...]
    sums: tuple[str, ...]  # sha256 of each
    origin: str


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
        self._listing.write(_skipped_line(source, index, reason, text) + "\n")


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
    return sum(_WORD.search(piece) is not None for piece in pieces)


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


def read_rows(path: pathlib.Path, fields: set[str]) -> Iterator[Any]:
    """Yield the rows of a file: mappings, or whatever else stands where one should be. Blank lines do not count.

    JSONL and parquet are streamed; a .json file, one list of objects, is read whole.

    Raises:
      DomainError: if the file is damaged.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as file:
                columns = [name for name in file.schema_arrow.names if name in fields]
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                    # without columns, a batch forgets its rows
                    yield from batch.to_pylist() if columns else [{}] * batch.num_rows
        elif path.suffix == ".json":
            rows = json.loads(path.read_bytes()) if path.stat().st_size else []
            if not isinstance(rows, list):
                raise ValueError("it is no list of objects")
            yield from rows
        else:
            with path.open("rb") as file:
                for line in file:
                    if line.strip():
                        yield _parse(line)
    except (OSError, ValueError, RuntimeError, LookupError) as error:  # pyarrow's errors are among these
        cause = (str(error).strip().splitlines() or [repr(error)])[0]
        raise DomainError(f"{path} is damaged ({cause}); get it again, as JSONL, a JSON list or parquet") from error


def _parse(line: bytes) -> Any:
    """Return the value of a line of JSON, or the line as text."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode(errors="replace")


def sha256(path: pathlib.Path) -> str:
    """Return the sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(source.repo, file, repo_type="dataset", revision=source.revision)
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        cause = (str(error).strip().splitlines() or [repr(error)])[0]
        raise LookupError(
            f"{source.name} (for {source.split}): cannot get {file} of {source.repo} from the Hugging Face hub or its "
            f"cache ({type(error).__name__}: {cause})\n"
            f"    - give {source.name}.jsonl, .json or .parquet, with problem, answer and solution, in the files folder\n"
            f"    - or run `hf download --repo-type dataset {source.repo} {' '.join(source.files)} "
            f"--revision {source.revision}` where there is a network, copy the cache, and set HF_HOME to it"
        ) from error
    return pathlib.Path(path)


def find_sources(files_dir: pathlib.Path | None, recorded: Mapping[str, str]) -> tuple[list[Found], dict[str, str]]:
    """Return the sources that can be had, and for the others why not, by name."""
    found, missing = [], {}
    for source in SOURCES:
        try:
            found.append(locate(source, files_dir, recorded))
        except LookupError as error:
            missing[source.name] = str(error)
    return found, missing


# Overlap


def words(text: str) -> list[str]:
    r"""Return the runs of letters and of digits, in one spelling.

    >>> words(r"Solve $2x^2=x_{1}$")
    ['solve', '2', 'x', '2', 'x', '1']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


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


# Splits


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
        for index, row in enumerate(rows):
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


def write_splits(folder: pathlib.Path, splits: Mapping[str, list[Problem]]) -> None:
    """Write the splits as one TFDS dataset, in array_record files."""
    import numpy as np
    import tensorflow_datasets as tfds

    class MathProblems(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Competition mathematics with gold answers."""

        VERSION = tfds.core.Version(f"{RULES}.0.0")
        url_infos = None  # of downloads; TFDS 4.9.10 would look for them with a package that it does not declare

        def _info(self):
            features: dict[str, Any] = {field.name: tfds.features.Text() for field in dataclasses.fields(Problem)}
            features["num_steps"] = tfds.features.Scalar(np.int32)
            features_dict = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features_dict, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(problems) for split, problems in splits.items()}

        def _generate_examples(self, problems):
            yield from enumerate(map(dataclasses.asdict, problems))

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):  # it announces a download
        MathProblems(data_dir=folder, file_format="array_record").download_and_prepare()
    shutil.rmtree(folder / "downloads")  # empty


def _dataset(folder: pathlib.Path) -> pathlib.Path:
    return folder / _DATASET / f"{RULES}.0.0"


def load(data_dir: str | pathlib.Path, split: str) -> tuple[Problem, ...]:
    """Return the prepared problems of a split.

    Raises:
      DomainError: if nothing was prepared there, or not this split.
    """
    data_dir = pathlib.Path(data_dir).expanduser()
    remedy = "prepare it with --mode data"
    report = read_report(data_dir)
    if not report:
        raise DomainError(f"{data_dir} holds no prepared mathematics problems; {remedy}")
    if split not in report["splits"]:
        why = report["left_out"].get(split, f"it is not one of {SPLITS}")
        raise DomainError(f"{data_dir} has no split {split!r} ({why}); it has {tuple(report['splits'])}; {remedy}")
    import tensorflow_datasets as tfds

    folder = _dataset(data_dir / report["folder"])
    try:
        builder: Any = tfds.builder_from_directory(os.fspath(folder))
        decode: Any = lambda value: value.decode() if isinstance(value, bytes) else int(value)
        problems = tuple(
            Problem(**{name: decode(value) for name, value in row.items()}) for row in builder.as_data_source(split)
        )
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise DomainError(f"{folder} is damaged ({error}); delete {data_dir / _REPORT} and {remedy}") from error
    if len(problems) != report["splits"][split]:
        raise DomainError(
            f"{folder} holds {len(problems)} problems of {split}, not {report['splits'][split]} as its report says; "
            f"delete {data_dir / _REPORT} and {remedy}"
        )
    return problems


# The whole


def read_report(data_dir: pathlib.Path) -> dict[str, Any]:
    """Return what the last whole preparation recorded, {} if there is none under today's rules."""
    try:
        report = json.loads((data_dir / _REPORT).read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(report, dict) and report.get("rules") == RULES
    return report if whole and _dataset(data_dir / report.get("folder", "")).is_dir() else {}


def append_skipped(data_dir: str | pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Add rows (source, index, reason, start) to the list of what was skipped; returns how many were new.

    For reasons that show later than the preparation, such as a problem that is too long for the prompt; ``index`` is then
    the place in its split. A folder that cannot be written to stays as it is.
    """
    data_dir = pathlib.Path(data_dir).expanduser()
    report = read_report(data_dir)
    if not report:
        return 0
    path = data_dir / report["folder"] / _SKIPPED
    try:
        known = set(path.read_text().splitlines())
        lines = [_skipped_line(row["source"], row["index"], row["reason"], row["start"]) for row in rows]
        new = [line for line in dict.fromkeys(lines) if line not in known]
        with path.open("a") as file:
            file.writelines(f"{line}\n" for line in new)
    except OSError:
        return 0
    return len(new)


def _skipped_line(source: str, index: int, reason: str, text: str) -> str:
    return json.dumps({"source": source, "index": index, "reason": reason, "start": text[:_START_CHARS]})


def prepare(
    data_dir: str | pathlib.Path, files_dir: str = "", seed: int = 0, num_train: int = 1280, num_validation: int = 100
) -> str:
    """Gather, clean and write all splits below ``data_dir``, unless they are there from the same files and settings.

    It is done whole or not at all: what was there before stays until the new splits are complete. One at a time a folder.

    Args:
      data_dir: where the splits go.
      files_dir: folder with files of the user's, ``<source>.jsonl``, ``.json`` or ``.parquet``; "" for none.
      seed: of what is drawn for train and validation.
      num_train: problems of train.
      num_validation: problems of validation.

    Returns:
      An account for people: what came from where, licences, counts, what was skipped and why.

    Raises:
      DomainError: if train can be had from no source, too few problems are left, or a file is not what it should be.
    """
    data_dir = pathlib.Path(data_dir).expanduser().absolute()
    files = pathlib.Path(files_dir).expanduser() if files_dir else None
    if files and not files.is_dir():
        raise DomainError(f"{files} is no folder; name the one that holds your files, or none")
    stray = sorted(path.name for path in files.iterdir() if path.suffix in SUFFIXES) if files else []
    stray = [name for name in stray if pathlib.Path(name).stem not in {source.name for source in SOURCES}]
    before = read_report(data_dir)
    found, missing = find_sources(files, before.get("hub_sums", {}))
    notes = [f"{name} in {files} bears no source's name, so it was not read" for name in stray]
    if not any(item.source.split == TRAIN for item in found):
        raise DomainError("no source of train can be had:\n" + "\n".join([*missing.values(), *notes]))

    settings = {"rules": RULES, "seed": seed, "num_train": num_train, "num_validation": num_validation}
    inputs = {item.source.name: [item.sums, item.origin] for item in found}
    fingerprint = hashlib.sha256(json.dumps([settings, inputs, repr(SOURCES)]).encode()).hexdigest()
    if before.get("fingerprint") == fingerprint:
        return "\n".join([before["account"], *missing.values(), *notes, "prepared before from the same: nothing to do"])
    sums = before.get("hub_sums", {}) | _hub_sums(found)
    folder = f"{_SPLITS}{fingerprint[:16]}"
    report = _build(data_dir, found, settings | {"fingerprint": fingerprint, "folder": folder, "hub_sums": sums})
    return "\n".join([report["account"], *missing.values(), *notes])


def _build(data_dir: pathlib.Path, found: list[Found], report: dict[str, Any]) -> dict[str, Any]:
    """Write splits, list and report in a folder of their own, then put them in place; returns the report, completed."""
    data_dir.mkdir(parents=True, exist_ok=True)
    for rest in data_dir.glob(f"{_PARTIAL}*"):  # of preparations that were killed
        shutil.rmtree(rest, ignore_errors=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=data_dir))
    try:
        with (partial / _SKIPPED).open("w") as listing:
            ledger = Ledger(listing)
            limits = {TRAIN: report["num_train"], VALIDATION: report["num_validation"]}
            splits = make_splits(found, report["seed"], limits, ledger)
        write_splits(partial, splits)
        had = {item.source.split for item in found}
        empty, lacking = "its source holds no usable problem", "its source could not be had"
        report["splits"] = {split: len(problems) for split, problems in splits.items()}
        report["left_out"] = {split: empty if split in had else lacking for split in SPLITS if split not in splits}
        report["sources"] = {
            item.source.name: {
                "origin": item.origin,
                "license": item.source.license,
                "sha256": item.sums,
                "rows": ledger.rows[item.source.name],
                "filtered": ledger.filtered[item.source.name],
                "skipped": ledger.skipped[item.source.name],
            }
            for item in found
        }
        report["account"] = describe(report, data_dir)
        target = data_dir / report["folder"]
        shutil.rmtree(target, ignore_errors=True)  # one that no report names
        partial.chmod(0o755)  # mkdtemp's is for its owner alone
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    draft = data_dir / f"{_REPORT}.tmp"
    draft.write_text(json.dumps(report, indent=2) + "\n")
    draft.replace(data_dir / _REPORT)
    for old in data_dir.glob(f"{_SPLITS}*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return report


def _hub_sums(found: Iterable[Found]) -> dict[str, str]:
    """Return the sums of the hub's files among those found."""
    return {
        hub_id(item.source, file): total
        for item in found
        if item.origin.startswith("hub ")
        for file, total in zip(item.source.files, item.sums, strict=True)
    }


def describe(report: Mapping[str, Any], data_dir: pathlib.Path) -> str:
    """Return a report as text for people."""
    lines = [f"mathematics problems in {data_dir}, drawn with seed {report['seed']}"]
    declared = {source.name: source for source in SOURCES}
    for name, entry in report["sources"].items():
        passed, expected = entry["rows"] - entry["filtered"], declared[name].count
        line = f"  {name} <- {entry['origin']} (licence: {entry['license']}): {entry['rows']} rows"
        line += f", {entry['filtered']} left out by its filter" if entry["filtered"] else ""
        line += f", {passed} where {expected} are expected" if expected not in (0, passed) else ""
        lines.append(line + "".join(f"; {count} {reason}" for reason, count in entry["skipped"].items()))
    lines.append("splits: " + ", ".join(f"{split} {count}" for split, count in report["splits"].items()))
    overlaps = collections.Counter()
    for entry in report["sources"].values():
        for reason, count in entry["skipped"].items():
            if reason.startswith("overlap"):
                overlaps[next(split for split in SPLITS if reason.endswith(f" {split}"))] += count
    by_split = ", ".join(f"{count} with {split}" for split, count in overlaps.items())
    lines.append(f"overlap: {overlaps.total()} problems removed from train and validation ({by_split or 'none'})")
    total = sum(sum(entry["skipped"].values()) for entry in report["sources"].values())
    lines.append(f"{total} rows skipped, listed in {data_dir / report['folder'] / _SKIPPED}")
    for split, why in report["left_out"].items():
        line = f"left out: {split}, since {why}"
        lines.append(line if split in (TRAIN, VALIDATION) else f"{line}; train was not compared with it")
    return "\n".join(lines)
