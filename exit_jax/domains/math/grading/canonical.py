"""One text for equal answers, as far as that is cheap, for votes."""

import hashlib
from fractions import Fraction
from typing import Any

import sympy

from readings import Choice, Equation, Group, Literal, Numeral, Region, Value, Words
from syntax import is_name

MAX_ANSWER_CHARS = 200  # a longer text ends in a hash
MAX_EXPONENT = 1000  # powers beyond it stay as they are written
MAX_NODES = 100
CHEAP = (sympy.Add, sympy.Mul, sympy.Pow, sympy.Number, sympy.NumberSymbol, sympy.Symbol, sympy.UnevaluatedExpr)


def is_cheap(value: Any) -> bool:
    """Return whether a sympy value can be evaluated at once: sums, products and small powers."""
    for count, node in enumerate(sympy.preorder_traversal(value)):
        if count > MAX_NODES or not isinstance(node, CHEAP):
            return False
        if isinstance(node, sympy.Pow) and not (
            node.exp.is_Symbol or (node.exp.is_Number and abs(node.exp) < MAX_EXPONENT)
        ):
            return False
    return True


def describe(reading: Any) -> str:
    """Return the text of a reading, "" if another reading says it better."""
    match reading:
        case Value(value=value):
            return str(value.doit() if not isinstance(value, Fraction) and is_cheap(value) else value)
        case Group(kind="list" | "set"):
            return f"{{{', '.join(sorted(map(text_of, reading.items)))}}}"
        case Group():
            return f"({', '.join(map(text_of, reading.items))})"
        case Equation():  # one in unknowns, as 2x+y=4, is an answer of its own
            return text_of(reading.values) if is_name(reading.name) and "+" not in reading.name else ""
        case Region():
            return str(reading.numbers)
        case Choice():
            return reading.letter.lower()
        case Numeral():
            return f"{reading.digits}_{reading.base}"
        case Words() | Literal():
            return reading.text
    return ""


def text_of(readings: tuple[Any, ...]) -> str:
    """Return the text of the likeliest reading that has one."""
    return next(filter(None, map(describe, readings)), "")


def canonical(readings: tuple[Any, ...]) -> str:
    """Return one text for equal answers, as far as that is cheap: 0.5, 1/2, \\frac{2}{4} and x=1/2 agree.

    (x+1)^2 and x^2+2x+1 do not. "" if there is no answer.
    """
    try:
        text = text_of(readings)
    except MemoryError:
        raise
    except Exception:  # sympy's printers and int's limit of digits
        text = text_of(readings[-1:])
    if len(text) <= MAX_ANSWER_CHARS:
        return text
    return text[:MAX_ANSWER_CHARS] + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
