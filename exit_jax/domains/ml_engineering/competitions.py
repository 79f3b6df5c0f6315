"""Competitions on disk: one folder layout, checked as a whole when it is loaded.

    <name>/competition.json     name, split, metric, direction, worst, best, id_column, target_columns, labels
           description.md       the task in words, for the prompt
           public/              all that a script may read: train.csv, test.csv, ..., and sample_submission.csv
           private/answers.csv  columns and ids of the sample submission; never mounted where a model's code runs

A competition may be graded by someone else's code (``grader``, see mlebench_adapter.py); its truth is then not read here.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from exit_jax.domains.domain import DomainError
from exit_jax.domains.ml_engineering import metrics, tables

SPLITS = ("train", "test")
DIRECTIONS = ("higher", "lower")
SAMPLE = "sample_submission.csv"
MAX_CELL = 64  # characters of a predicted number
ROOM_PER_CELL = 32  # bytes, on average; Python writes a float in 24 characters at most
MAX_ROWS = 1 << 20  # rows of a sample submission; the largest of the paper's has 153,164
MAX_COLUMNS = 1024
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "split": str,
    "metric": str,
    "direction": str,
    "worst": (int, float),
    "best": (int, float),
    "id_column": str,
    "target_columns": list,
    "labels": list,
}


@dataclasses.dataclass(frozen=True)
class Competition:
    """A competition that is ready to be entered."""

    name: str
    split: str  # one of SPLITS
    description: str
    metric: str  # one of METRICS; in words where there is a grader
    worst: float  # the score that counts 0 when normalised; on which side it lies tells which way is better
    best: float  # the score that counts 1
    id_column: str
    target_columns: tuple[str, ...]
    labels: tuple[str, ...]  # labels that a prediction may be, where the metric wants labels
    public: pathlib.Path
    private: pathlib.Path
    sample: str = SAMPLE  # file in ``public``
    # score of a submission in the rows and columns of the sample, as CSV; raises ValueError for a bad one
    grader: Callable[[bytes], float] | None = None

    @property
    def higher_is_better(self) -> bool:
        """Which way is better."""
        return self.best > self.worst

    def normalise(self, score: float | None) -> float:
        """Return the score in [0, 1], 0 for none."""
        return metrics.normalise(score, self.worst, self.best)

    @property
    def scoring(self) -> metrics.Metric:
        """What predicted cells must be, and how they are scored where there is no grader."""
        return metrics.METRICS[self.metric] if self.grader is None else metrics.ANY_NUMBER

    @functools.cached_property
    def sample_table(self) -> tables.Table:
        """The sample submission, whose ids and columns are those due."""
        return _read(self.public / self.sample)

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """The ids due."""
        return tuple(self.sample_table.column(self.id_column))

    def fill_sample(self, prediction: Any) -> bytes:
        """Return the sample submission with predictions, float64 [n, c], in the place of its own; other cells are kept."""
        places = [self.sample_table.columns.index(name) for name in self.target_columns]
        header, *rows = self._quoted_sample
        lines = [",".join(header)]
        for row, values in zip(rows, prediction.tolist(), strict=True):
            cells = list(row)
            for place, value in zip(places, values, strict=True):
                cells[place] = repr(value)
            lines.append(",".join(cells))
        return "\n".join([*lines, ""]).encode()

    @functools.cached_property
    def _quoted_sample(self) -> list[list[str]]:
        """The sample submission's header and rows as they stand, blanks and all, each cell in quotes."""
        data = (self.public / self.sample).read_bytes()
        table = tables.parse(data, MAX_ROWS, MAX_COLUMNS, strip=False)
        quote = lambda cell: '"' + cell.replace('"', '""') + '"'
        return [[quote(cell) for cell in row] for row in (table.columns, *table.rows)]

    @functools.cached_property
    def max_submission_bytes(self) -> int:
        """A limit that no reasonable submission comes near: twice the sample's bytes, and room for numbers in full."""
        cell = max(ROOM_PER_CELL, *(len(label.encode()) + 4 for label in ("", *self.labels)))
        num_cells = len(self.ids) * len(self.target_columns)
        return 4096 + 2 * (self.public / self.sample).stat().st_size + num_cells * cell

    @functools.cached_property
    def truth(self) -> Any:
        """The answers in the order of ``ids``: float64 [n, c], or str [n] for labels."""
        answers = _read(self.private / "answers.csv")
        row_of = {name: row for row, name in enumerate(answers.column(self.id_column))}
        order = [row_of[name] for name in self.ids]
        columns = [np.array(answers.column(name))[order] for name in self.target_columns]
        if self.scoring.predicts == "label":
            return columns[0]
        return np.stack(columns, axis=1).astype(np.float64)


def load(folder: pathlib.Path) -> Competition:
    """Load a competition and check all of it.

    Raises:
      DomainError: naming every fault, with the rule and the remedy.
    """
    fields, faults = _read_fields(folder)
    if faults:
        raise _faulty(folder, faults)
    description = _read_text(folder / "description.md", faults)
    competition = Competition(
        name=fields["name"],
        split=fields["split"],
        description=description,
        metric=fields["metric"],
        worst=float(fields["worst"]),
        best=float(fields["best"]),
        id_column=fields["id_column"],
        target_columns=tuple(fields["target_columns"]),
        labels=tuple(fields["labels"]),
        public=(folder / "public").absolute(),
        private=(folder / "private").absolute(),
    )
    faults += _faults_of_range(competition, fields["direction"]) + faults_of_public(competition)
    if not faults:
        faults += _faults_of_answers(competition)
    if faults:
        raise _faulty(folder, faults)
    return competition


def tree_hash(folder: pathlib.Path) -> str:
    """Return the sha256 over relative names and contents of all files below a folder.

    Raises:
      DomainError: for a link, which could lead to files outside.
    """
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
        if path.is_symlink():
            raise DomainError(
                f"{path} is a link; put the file itself there, so that nothing outside is shown to a script"
            )
        if path.is_file():
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def faults_of_public(competition: Competition) -> list[str]:
    """Return what is wrong with the sample submission and the public folder."""
    public, sample = competition.public, competition.public / competition.sample
    if not sample.is_file():
        return [f"{sample} is missing: the ids that a submission must have are read from it; add it"]
    faults = [f"{path} is a link; put the file itself there" for path in sorted(public.rglob("*")) if path.is_symlink()]
    try:
        table = competition.sample_table
    except tables.TableError as error:
        return [*faults, f"{sample}: {error}"]
    wanted = (competition.id_column, *competition.target_columns)
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        return [
            *faults,
            f"{sample} has the columns {list(table.columns)}, without {missing}; add them or mend the declaration",
        ]
    if not table.rows:
        faults.append(f"{sample} has no rows; it must have one for each id that is due")
    return faults


def _read_fields(folder: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """Return the contents of competition.json, and what is wrong with names and types."""
    path = folder / "competition.json"
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return {}, [
            f"{path.name} cannot be read ({error}); it must be a JSON object with the keys {', '.join(_FIELDS)}"
        ]
    if not isinstance(fields, dict):
        return {}, [f"{path.name} holds {type(fields).__name__}; it must be a JSON object"]
    faults = [f"the key {name!r} is missing; add it" for name in _FIELDS if name not in fields]
    faults += [f"the key {name!r} is none of {', '.join(_FIELDS)}; remove it" for name in fields if name not in _FIELDS]
    for name, kind in _FIELDS.items():
        if name in fields and (not isinstance(fields[name], kind) or isinstance(fields[name], bool)):
            wanted = "a number" if isinstance(kind, tuple) else {"str": "text", "list": "a list of text"}[kind.__name__]
            faults.append(f"{name} = {fields[name]!r} is not {wanted}")
        elif isinstance(fields.get(name), list) and not all(isinstance(item, str) for item in fields[name]):
            faults.append(f"{name} = {fields[name]!r} is not a list of text; put its items in quotes")
    choices = {"split": SPLITS, "direction": DIRECTIONS, "metric": tuple(metrics.METRICS)}
    for name, allowed in choices.items():
        if isinstance(fields.get(name), str) and fields[name] not in allowed:
            faults.append(f"{name} = {fields[name]!r} is not one of {allowed}")
    return fields, faults


def _faults_of_range(competition: Competition, direction: str) -> list[str]:
    """Return what is wrong with scores, columns and labels as declared."""
    worst, best, targets = competition.worst, competition.best, competition.target_columns
    metric, faults = metrics.METRICS[competition.metric], []
    if not math.isfinite(worst) or not math.isfinite(best) or worst == best:
        faults.append(f"worst = {worst} and best = {best} must be two different finite numbers, to normalise by")
    elif len({direction == "higher", metric.higher_is_better, competition.higher_is_better}) > 1:
        right = DIRECTIONS[not metric.higher_is_better]
        faults.append(
            f"direction = {direction!r} with worst = {worst} and best = {best}: {competition.metric} is better when {right}; "
            f"say so, and let best be the {right} of the two"
        )
    wanted = (competition.id_column, *targets)
    if not targets or len(set(wanted)) < len(wanted) or not all(wanted):
        faults.append(f"id_column and target_columns = {list(wanted)}: there must be a target, and all names differ")
    if metric.predicts == "label" and (len(targets) != 1 or len(competition.labels) < 2):
        faults.append(
            f"target_columns = {list(targets)} and labels = {list(competition.labels)}: {competition.metric} is of labels; "
            "declare one target column and all labels, at least two"
        )
    return faults


def _faults_of_answers(competition: Competition) -> list[str]:
    """Return what is wrong with the private answers, given that all else is right."""
    path, scoring = competition.private / "answers.csv", competition.scoring
    try:
        answers = _read(path)
    except (OSError, tables.TableError) as error:
        return [f"{path} cannot be read: {error}"]
    wanted = {competition.id_column, *competition.target_columns}
    if set(answers.columns) != wanted:
        return [f"{path} has the columns {list(answers.columns)}; it must have {sorted(wanted)}"]
    if set(competition.sample_table.columns) != wanted:
        return [
            f"{competition.sample} has the columns {list(competition.sample_table.columns)}; must be {sorted(wanted)}"
        ]
    ids = answers.column(competition.id_column)
    if len(set(ids)) < len(ids) or sorted(ids) != sorted(competition.ids):
        return [f"the ids of {path} and of {competition.sample} differ or repeat; both must have each id once"]
    try:
        truth = competition.truth
        score = scoring.score(truth, truth)
    except ValueError as error:
        return [f"{path} cannot be scored by {competition.metric} ({error}); mend its values"]
    if scoring.predicts == "label":
        unknown = sorted(set(truth.tolist()) - set(competition.labels))
        return [f"{path} holds the labels {unknown}, which are not in labels = {competition.labels}"] if unknown else []
    one_hot = ((truth == 0) | (truth == 1)).all() and (truth.sum(1) == 1).all()
    if scoring.predicts == "probability" and truth.shape[1] > 1 and not one_hot:
        return [f"{path} must hold a single 1 in each row, and 0 in the other target columns; mend its values"]
    if not math.isfinite(score):
        return [f"{path} scores {score} against itself by {competition.metric}; mend its values"]
    return []


def _read(path: pathlib.Path) -> tables.Table:
    return tables.parse(path.read_bytes(), MAX_ROWS, MAX_COLUMNS)


def _read_text(path: pathlib.Path, faults: list[str]) -> str:
    """Return the text of a file; adds a fault if there is none."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        text = ""
        faults.append(f"{path.name} cannot be read ({error}); write the task's description there")
    else:
        if not text:
            faults.append(f"{path.name} is empty; write the task's description there")
    return text


def _faulty(folder: pathlib.Path, faults: list[str]) -> DomainError:
    return DomainError(f"the competition in {folder} is faulty: " + "; ".join(faults))
