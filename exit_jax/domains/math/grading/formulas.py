"""Whether two numbers or formulas are equal.

Plain numbers are compared exactly, constants by 50 digits and relatively (1e-27 is neither 2e-27 nor 0), formulas by their
values at points, to 20 digits; what has no values there (matrices in formulas, integrals, limits) by math-verify's ``verify``.
"""

import random
from fractions import Fraction
from typing import Any

import math_verify
import sympy
from math_verify.grader import unwrap_fcs
from sympy.core.function import AppliedUndef

DIGITS = 50
MAX_DIGITS = 4000  # digits of integers that are compared digit by digit
PLACES = 6  # decimals from which a rounded number passes for the exact one
MAX_NAMES = 40  # variables of a formula
# values of variables; no simple relation holds between them
POINTS = ("1.37", "2.71", "0.618", "3.19", "1.73", "0.43", "2.23", "4.67", "0.91", "5.3")
# what is meant for whole numbers
WHOLE = (sympy.floor, sympy.ceiling, sympy.factorial, sympy.binomial, sympy.Mod, sympy.Sum, sympy.Product)


def sympify(value: Any) -> Any:
    """Return a value as sympy's."""
    return sympy.Rational(value.numerator, value.denominator) if isinstance(value, Fraction) else value


def is_constant(value: Any) -> bool:
    """Return whether a value is a number: without variables, unknown functions and matrices."""
    if isinstance(value, Fraction):
        return True
    return isinstance(value, sympy.Expr) and not value.free_symbols and not value.has(AppliedUndef)


def same_constant(left: Any, right: Any, tolerance: float = 0.0) -> bool:
    """Return whether two constants are equal, relatively; without a tolerance as far as 50 digits and exact sums can say."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return abs(left - right) <= Fraction(tolerance) * abs(left)
    left, right = sympify(left), sympify(right)
    ours, theirs = sympy.N(left, DIGITS), sympy.N(right, DIGITS)
    if not (ours.is_number and theirs.is_number and ours.is_finite and theirs.is_finite):
        return bool(ours == theirs)
    scale = max(abs(ours), abs(theirs))
    if scale > 1e-90 and abs(ours - theirs) > (tolerance or 1e-40) * scale:
        return False
    if scale < 10**DIGITS or tolerance:
        return True
    rest = (left - right).doit() if scale < 10**MAX_DIGITS else left - right
    return rest == 0 or rest.is_rational is False  # 2^{1009} and 2^{1009}+1 agree in 303 digits


def is_rounded(shown: Fraction, places: int, value: Any) -> bool:
    """Return whether a decimal number with so many places is a constant, rounded or cut off."""
    if not is_constant(value):
        return False
    found = sympy.N(sympify(value), 30)
    return bool(found.is_Float) and abs(shown - Fraction(str(found))) < Fraction(1, 10**places)


def same_expression(left: Any, right: Any, tolerance: float = 0.0) -> bool:
    """Return whether two constants or formulas are equal."""
    if is_constant(left) and is_constant(right):
        return same_constant(left, right, tolerance)
    return not isinstance(left, Fraction) and not isinstance(right, Fraction) and same_formula(left, right)


def same_formula(left: Any, right: Any) -> bool:
    """Return whether two formulas have the same values at points that are alike for both."""
    left, right = sympify(left), sympify(right)
    if left == right:
        return True
    parts = (sympy.MatrixBase, sympy.MatrixExpr, sympy.Integral, sympy.Limit)
    if left.has(*parts) or right.has(*parts):
        return verified(left, right)
    left, right = without_functions(left), without_functions(right)
    names = sorted(left.free_symbols | right.free_symbols, key=str)
    if not names or len(names) > MAX_NAMES:
        return not names and same_constant(left, right)
    whole, positive = (any(map(needs, (left, right))) for needs in (needs_whole_numbers, needs_positive_numbers))
    num_met, is_zero = 0, False
    for trial in range(8 if whole else 4):
        point = point_of(names, trial, whole, positive)
        ours, theirs = evaluate(left, point), evaluate(right, point)
        if (ours is None) != (theirs is None):
            return False
        if not ours and not theirs:  # both zero, or without a value: 1/(k-d)! where k < d
            is_zero |= ours is not None
            continue
        if abs(ours - theirs) > 1e-20 * max(abs(ours), abs(theirs)):
            return False
        num_met += 1
    return num_met >= 2 or (is_zero and not num_met)


def verified(left: Any, right: Any) -> bool:
    """Return math-verify's verdict."""
    try:
        return math_verify.verify(left, right, timeout_seconds=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]
    except MemoryError:
        raise
    except Exception:  # whatever sympy may raise
        return False


def without_functions(value: Any) -> Any:
    """Return a formula with a variable in the place of each unknown function and derivative."""
    derivatives = {part: sympy.Symbol(str(part)) for part in value.atoms(sympy.Derivative)}
    return unwrap_fcs(value.xreplace(derivatives))


def needs_whole_numbers(value: Any) -> bool:
    """Return whether a formula is meant for whole numbers: with floors, factorials or powers of a negative number."""
    powers = value.atoms(sympy.Pow)
    return value.has(*WHOLE) or any(p.base.is_number and p.base.is_negative and p.exp.free_symbols for p in powers)


def needs_positive_numbers(value: Any) -> bool:
    """Return whether a formula has roots or logarithms of its variables."""
    powers = value.atoms(sympy.Pow)
    return value.has(sympy.log) or any(p.base.free_symbols and not p.exp.is_Integer for p in powers)


def point_of(names: list[Any], trial: int, whole: bool, positive: bool) -> dict[Any, Any]:
    """Return values for variables, others in each trial: whole numbers, positive numbers, or numbers of either sign."""
    if whole:
        values = random.Random(trial).sample(range(1, 13 + len(names)), len(names))
        return dict(zip(names, map(sympy.Integer, values)))
    point = {}
    for index, name in enumerate(names):
        size = sympy.Rational(POINTS[(index + 3 * trial) % len(POINTS)]) + sympy.Rational(index + trial, 97)
        point[name] = size if positive or (trial + index) % 2 else -size
    return point


def evaluate(value: Any, point: dict[Any, Any]) -> Any:
    """Return what a formula comes to at a point, to 30 digits, None if that is no number. What is below 1e-25 is zero."""
    try:
        found = sympy.N(value.subs(point), 30)
    except MemoryError:
        raise
    except Exception:  # whatever sympy may raise
        return None
    if not (found.is_number and found.is_finite):
        return None
    return found if abs(found) > 1e-25 else sympy.S.Zero
