"""Whether a reading of a response equals one of the gold answer. What is asymmetric is said where it is."""

import itertools
import re
from fractions import Fraction
from typing import Any

import sympy

from formulas import (
    MAX_NAMES,
    PLACES,
    evaluate,
    is_rounded,
    point_of,
    same_expression,
    same_formula,
    sympify,
    without_functions,
)
from readings import Choice, Equation, Group, Inequality, Literal, Matrix, Numeral, Region, Residue, Value, Words
from regions import FLIPPED, region_of, same_region

ANGLE = (("angle", 1),)
ORDERED = ("tuple", "row", "column")


def equal(gold: tuple[Any, ...], response: tuple[Any, ...]) -> bool:
    """Return whether some reading of the response equals some reading of the gold answer."""
    for pair in itertools.product(gold, response):
        try:
            if same(*pair):
                return True
        except MemoryError:
            raise
        except Exception:  # whatever sympy may raise costs this one attempt
            continue
    return False


def same(gold: Any, response: Any) -> bool:
    """Return whether a reading of a response equals one of the gold answer.

    A side that only names the other one may be missing: x = 5 is met by 5, and 5 by x = 5.
    """
    match gold, response:
        case Equation(), Equation():
            if gold.values and response.values and same_name(gold.name, response.name):
                return equal(gold.values, response.values)
            return same_equation(gold, response)
        case Equation(), _:
            return equal(gold.values, (response,))
        case _, Equation():
            return equal((gold,), response.values)
        case Value(), Value():
            return same_value(gold, response)
        case Numeral(), Value():  # the base is in the problem; 42 for 52_8 is another numeral
            return gold.digits.isdigit() and response.value == Fraction(gold.digits) and not response.unit
        case Value(), Numeral():
            return gold.value == number_of(response)
        case Group(), Group():
            return same_group(gold, response)
        case Matrix(), Matrix():
            return len(gold.rows) == len(response.rows) and all(map(in_order, gold.rows, response.rows))
        case (Region(), _) | (_, Region()):
            ours, theirs = region_of(gold), region_of(response)
            return ours is not None and theirs is not None and same_region(ours, theirs)
        case Inequality(), Inequality():
            return same_inequality(gold, response)
        case Group(kind="list" | "set", items=[item]), _:
            return equal(item, (response,))
        case _, Group(kind="list" | "set", items=[item]):
            return equal((gold,), item)
    return isinstance(gold, (Choice, Literal, Numeral, Residue, Words)) and gold == response


def same_name(gold: str, response: str) -> bool:
    r"""Return whether two left sides name the same: X_{d} and x_d, or f(x) and y."""
    gold, response = (re.sub(r"\\text|[{}]", "", name).lower() for name in (gold, response))
    is_function = [re.fullmatch(r"[a-z]\([xyzt]\)", name) for name in (gold, response)]
    return gold == response or ("y" in (gold, response) and any(is_function))


def number_of(numeral: Numeral) -> int | None:
    """Return the number that a numeral stands for, None if its base has no such digits."""
    try:
        return int(numeral.digits, numeral.base)
    except ValueError:
        return None


def in_order(gold: tuple[Any, ...], response: tuple[Any, ...]) -> bool:
    """Return whether items are equal one by one."""
    return len(gold) == len(response) and all(map(equal, gold, response))


def in_any_order(gold: tuple[Any, ...], response: tuple[Any, ...]) -> bool:
    """Return whether items are equal in some order."""
    left = list(response)
    for item in gold:
        found = next((index for index, other in enumerate(left) if equal(item, other)), None)
        if found is None:
            return False
        left.pop(found)
    return not left


def same_group(gold: Group, response: Group) -> bool:
    """Return whether two groups are equal.

    A tuple, row or column is met in its order, also by a list without brackets, but not by a set; a list or a set in any
    order; a list in its own order by a tuple, too.
    """
    if gold.kind in ORDERED:
        is_other_kind = response.kind == "set" or {gold.kind, response.kind} == {"row", "column"}
        return not is_other_kind and in_order(gold.items, response.items)
    if response.kind in ORDERED:
        return gold.kind == "list" and in_order(gold.items, response.items)
    return len(gold.items) == len(response.items) and in_any_order(gold.items, response.items)


def same_value(gold: Value, response: Value) -> bool:
    """Return whether two numbers or formulas are equal.

    Units are converted if both have one; a missing one is taken to be the other's, and 50% for 50 and for 1/2. An angle in
    degrees is met by its size with \\pi. A decimal of six places or more may be the other one rounded.
    """
    if gold.weak and response.weak:
        return False
    ours, theirs = gold.value, response.value
    if gold.unit and response.unit and gold.unit.factor != response.unit.factor:
        scale = response.unit.factor / gold.unit.factor
        scaled = theirs * (scale if isinstance(theirs, Fraction) else sympify(scale))
        return gold.unit.agrees(response.unit) and same_expression(ours, scaled, tolerance=1e-12)
    if gold.unit and response.unit and not gold.unit.agrees(response.unit):
        return False
    if response.percent and not gold.percent and isinstance(ours, Fraction) and 0 < ours <= 1:  # a share, as 0.5
        return same_expression(ours, theirs / 100)
    if same_expression(ours, theirs):
        return True
    if gold.percent != response.percent:
        return same_expression(*((ours / 100, theirs) if gold.percent else (ours, theirs / 100)))
    for exact, decimal in ((gold, response), (response, gold)):
        if exact.places is None and (decimal.places or 0) >= PLACES:
            return is_rounded(decimal.value, decimal.places or 0, exact.value)
    for angle, other in ((gold, response), (response, gold)):
        if angle.unit and angle.unit.exponents == ANGLE and not other.unit and not isinstance(other.value, Fraction):
            return other.value.has(sympy.pi) and same_expression(sympify(angle.value) * sympy.pi / 180, other.value)
    return False


def difference(equation: Equation) -> Any:
    """Return left minus right of an equation of two formulas, None if it is another."""
    if len(equation.sides) != 2 or None in equation.sides:
        return None
    left, right = map(sympify, equation.sides)
    try:
        return without_functions(left - right)
    except TypeError:  # raised by sets and matrices
        return None


def same_equation(gold: Equation, response: Equation) -> bool:
    """Return whether two equations are multiples of one another, or have the same solution for a variable of degree one."""
    left, right = difference(gold), difference(response)
    if left is None or right is None or left.free_symbols != right.free_symbols or not left.free_symbols:
        return False
    names = sorted(left.free_symbols, key=str)
    if len(names) > MAX_NAMES:
        return False
    points = [point_of(names, trial, whole=False, positive=True) for trial in range(4)]
    values = [(evaluate(left, point), evaluate(right, point)) for point in points]
    ratios = [ours / theirs for ours, theirs in values if ours and theirs]
    if len(ratios) > 1 and all(abs(ratio - ratios[0]) < 1e-20 * abs(ratios[0]) for ratio in ratios):
        return True
    for name in names:  # y = 1/x and xy = 1
        slopes = left.diff(name), right.diff(name)
        rests = left.subs(name, 0), right.subs(name, 0)
        if all(slope != 0 and name not in slope.free_symbols for slope in slopes) and 0 not in rests:
            return same_formula(*(-rest / slope for rest, slope in zip(rests, slopes)))
    return False


def same_inequality(gold: Inequality, response: Inequality) -> bool:
    """Return whether two relations are the same, from left to right or from right to left."""
    gap = gold.left - gold.right
    if gold.symbol == response.symbol and same_formula(gap, response.left - response.right):
        return True
    return FLIPPED[gold.symbol] == response.symbol and same_formula(gap, response.right - response.left)
