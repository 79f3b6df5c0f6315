"""The kinds of things that an answer may be read as. A text may have several readings, in a tuple, the likeliest first."""

import dataclasses
from fractions import Fraction
from typing import Any

import units


@dataclasses.dataclass(frozen=True)
class Value:
    """A number or a formula, exact: a Fraction or a sympy value; with its unit if it names one."""

    value: Any
    places: int | None = None  # decimals of a number that is written as a decimal
    unit: units.Unit | None = None
    percent: bool = False
    weak: bool = False  # a second guess (2 m in metres, 3 for 3 mod 11): it does not meet another one


@dataclasses.dataclass(frozen=True)
class Numeral:
    """Digits in a base, as written."""

    digits: str
    base: int


@dataclasses.dataclass(frozen=True)
class Residue:
    """A residue class."""

    value: Fraction
    modulus: int


@dataclasses.dataclass(frozen=True)
class Words:
    """A name, a word or a short phrase, without case, articles and punctuation."""

    text: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """A letter of a multiple choice."""

    letter: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Several answers, each with its readings: a "list" (1 and 2), "set" {1, 2}, "tuple" (1, 2), "row" or "column"."""

    kind: str
    items: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Rows of cells, each with its readings."""

    rows: tuple[tuple[tuple[Any, ...], ...], ...]


@dataclasses.dataclass(frozen=True)
class Region:
    """A set of numbers as sympy's, and the variable if it was given as a condition on one."""

    numbers: Any
    variable: str = ""


@dataclasses.dataclass(frozen=True)
class Equation:
    """A chain of equal sides (None for one that is no formula), and the readings of the last side if it can stand alone."""

    name: str  # the left side, without spaces
    sides: tuple[Any, ...]
    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Inequality:
    """A relation that is no condition on one variable alone."""

    left: Any
    symbol: str
    right: Any


@dataclasses.dataclass(frozen=True)
class Literal:
    """The text itself, without spaces."""

    text: str


def first(readings: tuple[Any, ...], kind: type) -> Any:
    """Return the first reading of a kind, None if there is none."""
    return next((reading for reading in readings if isinstance(reading, kind)), None)


def formula_of(readings: tuple[Any, ...]) -> Any:
    """Return the number or formula of the first reading that is one and has no unit, None if there is none."""
    return next((r.value for r in readings if isinstance(r, Value) and not r.unit and not r.percent), None)


def spread(item: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    r"""Return the items that one stands for: two of 1 \pm 2."""
    if item and isinstance(item[0], Group) and item[0].kind == "list":
        return list(item[0].items)
    return [item]


def matrix_readings(table: tuple[tuple[tuple[Any, ...], ...], ...]) -> tuple[Any, ...]:
    """Return the readings of a matrix: itself, and a row or a column."""
    if not table or not all(map(all, table)):
        return ()
    if all(len(row) == 1 for row in table):
        return Matrix(table), Group("column", tuple(row[0] for row in table))
    return (Matrix(table), Group("row", table[0])) if len(table) == 1 else (Matrix(table),)


def matrix_of(value: Any) -> tuple[Any, ...]:
    """Return the readings of a formula that comes to a matrix."""
    try:
        table = value.doit().as_explicit().tolist()
    except (AttributeError, TypeError, ValueError):
        return ()
    return matrix_readings(tuple(tuple((Value(cell),) for cell in row) for row in table))
