"""Submissions: bytes that a model's script left behind, checked cell by cell before they are scored.

Nothing in them can make this module raise, run away or answer at length: sizes are bounded first, then cells are read as text
(tables.py). What is wrong comes back as words for the model. Rows and columns may come in any order: what is scored are the
predictions that were checked, in the order of the sample submission, also where someone else's code scores them.
"""

import collections
import dataclasses
import math
import re
from typing import Any

import numpy as np

from exit_jax.domains.ml_engineering import tables
from exit_jax.domains.ml_engineering.competitions import MAX_CELL, MAX_COLUMNS, Competition
from exit_jax.domains.ml_engineering.tables import Table, TableError, shown

FILE = "submission.csv"
MAX_FEEDBACK = 400  # characters
SUM_TOLERANCE = 1e-3  # error of a row of probabilities
_WHOLE = re.compile(r"(-?\d+)(?:\.0)?", re.ASCII)  # a label
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a submission."""

    score: float | None  # score by the competition's metric; None where the submission is not valid
    normalised: float  # score in [0, 1], 0 where it is not valid
    valid: bool
    feedback: str  # text for the model, at most MAX_FEEDBACK characters


def grade(competition: Competition, submission: bytes | None) -> Verdict:
    """Check and score a submission; None stands for a script that wrote none. Never raises for what a submission holds."""
    try:
        prediction = check(competition, submission)
    except TableError as error:
        return _invalid(str(error))
    if competition.grader is None:
        score = competition.scoring.score(competition.truth, prediction)
    else:
        try:
            score = competition.grader(competition.fill_sample(prediction))
        except ValueError as error:
            return _invalid(str(error))
    if not math.isfinite(score):
        return _invalid(f"its {competition.metric} is {score}")
    normalised = competition.normalise(score)
    way = "higher" if competition.higher_is_better else "lower"
    text = f"{FILE} is valid: {competition.metric} = {score:.5f} ({way} is better), normalised {normalised:.3f} of 1."
    return Verdict(score, normalised, True, text)


def check(competition: Competition, submission: bytes | None) -> Any:
    """Return the predictions in the order of the competition's ids: float64 [n, c], or str [n] for labels.

    Raises:
      TableError: naming what is wrong, in words for whoever wrote the script.
    """
    if submission is None:
        raise TableError(f"the script wrote no {FILE} in its working directory")
    limit = competition.max_submission_bytes
    if len(submission) > limit:
        raise TableError(
            f"it has {len(submission)} bytes, more than the {limit} that {len(competition.ids)} rows can need"
        )
    table = tables.parse(submission, len(competition.ids), MAX_COLUMNS)
    _check_columns(competition, table)
    order = _order(competition, table)
    columns = [[cells[row] for row in order] for cells in map(table.column, competition.target_columns)]
    if competition.scoring.predicts == "label":
        return np.array(_labels(competition, columns[0]))
    columns_by_name = zip(competition.target_columns, columns)
    values: Any = np.stack([_numbers(competition, name, cells) for name, cells in columns_by_name], 1)
    if competition.scoring.predicts == "probability" and values.shape[1] > 1:
        totals = values.sum(1)
        wrong = np.abs(totals - 1.0) > SUM_TOLERANCE
        if wrong.any():
            row = int(wrong.argmax())
            name, total = shown(competition.ids[row]), f"{totals[row]:.4g}"
            raise TableError(f"the probabilities of id {name} sum to {total}; each row must sum to 1")
    return values


def _check_columns(competition: Competition, table: Table) -> None:
    """Raise unless there are the columns due, in any order, and none but the sample submission's."""
    known = competition.sample_table.columns
    missing = [name for name in (competition.id_column, *competition.target_columns) if name not in table.columns]
    unknown = [name for name in table.columns if name not in known]
    if missing or unknown:
        parts = [f"lacks {shown(name)}" for name in missing[:1]] + [
            f"must not have {shown(name)}" for name in unknown[:1]
        ]
        index = " (pandas writes its index unless index=False)" if "" in unknown or "Unnamed: 0" in unknown else ""
        expected = ",".join(known)[:200]
        raise TableError(
            f"its header {' and '.join(parts)}{index}; the columns must be those of the sample: {expected}"
        )


def _order(competition: Competition, table: Table) -> list[int]:
    """Return the row of each id due; raise unless each is there as often as it is due."""
    found = table.column(competition.id_column)
    if len(found) < len(competition.ids):
        raise TableError(
            f"it has {len(found)} rows; it must have {len(competition.ids)}, one for each id of the test set"
        )
    due, given = collections.Counter(competition.ids), collections.Counter(found)
    if due != given:
        missing, surplus = next(iter(due - given)), next(iter(given - due))
        kind = "occurs too often" if surplus in due else "is none of the test set's"
        raise TableError(f"the id {shown(surplus)} {kind}, and {shown(missing)} is missing")
    rows = collections.defaultdict(list)
    for row in range(len(found) - 1, -1, -1):
        rows[found[row]].append(row)
    return [rows[name].pop() for name in competition.ids]


def _numbers(competition: Competition, column: str, cells: list[str]) -> Any:
    """Return the numbers of a column; raise for a cell that is none, or out of bounds."""
    low, high = competition.scoring.low, competition.scoring.high
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        if len(cell) > MAX_CELL or not _NUMBER.fullmatch(cell):
            raise TableError(
                f"the column {shown(column)} holds {shown(cell)}, which is not a finite number; no NaN, no inf"
            )
        values[row] = float(cell)
        if not low <= values[row] <= high:
            raise TableError(
                f"the column {shown(column)} holds {shown(cell)}; it must lie between {low:g} and {high:g}"
            )
    return values


def _labels(competition: Competition, cells: list[str]) -> list[str]:
    """Return the labels of a column; raise for one that is unknown.

    Where "3" is a label, "3.0" counts as it, since pandas writes it so, and the other way round; unless both are labels.
    """
    known: dict[str, str] = {}
    for label in competition.labels:
        if whole := _WHOLE.fullmatch(label):
            known |= {whole[1]: label, f"{whole[1]}.0": label}
    known |= {label: label for label in competition.labels}
    unknown = next((cell for cell in cells if cell not in known), None)
    if unknown is not None:
        listed = ", ".join(competition.labels[:10]) + ", ..." * (len(competition.labels) > 10)
        raise TableError(f"{shown(unknown)} is not a label; the labels are {listed[:200]}")
    return [known[cell] for cell in cells]


def _invalid(reason: str) -> Verdict:
    text = f"{FILE} is not valid: {reason}."
    return Verdict(None, 0.0, False, text if len(text) <= MAX_FEEDBACK else text[: MAX_FEEDBACK - 3] + "...")
