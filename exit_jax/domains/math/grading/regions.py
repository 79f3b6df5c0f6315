r"""Sets of numbers: intervals, unions, and conditions on a variable such as 3 < x \le 5, as sympy's sets."""

from typing import Any

import sympy

from formulas import is_constant, same_constant, sympify
from readings import Group, Region, Value, first

POSITIVE = sympy.Interval.open(0, sympy.oo)
SETS = {rf"\mathbb{{R}}{sign}": POSITIVE for sign in ("^+", "^{+}", "_+", "_{+}", "_{>0}")}
SETS |= {r"\emptyset": sympy.S.EmptySet, r"\mathbb{R}": sympy.S.Reals, r"\mathbb{Z}": sympy.S.Integers}
SETS |= {r"\mathbb{N}": sympy.S.Naturals, r"\mathbb{Z}^{+}": sympy.S.Naturals, r"\mathbb{Z}^+": sympy.S.Naturals}
RELATIONS = {r"\le": sympy.Le, r"\ge": sympy.Ge, "<": sympy.Lt, ">": sympy.Gt, r"\ne": sympy.Ne}
FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}


def region_of(reading: Any) -> Region | None:
    """Return a reading as a set of numbers, None if it is none."""
    if isinstance(reading, Region):
        return reading
    if isinstance(reading, Group) and reading.kind == "set":
        values = [first(item, Value) for item in reading.items]
        if all(values):
            return Region(sympy.FiniteSet(*(sympify(value.value) for value in values)))
    return None


def interval(left: str, low: Any, high: Any, right: str) -> Region | None:
    """Return the interval between two brackets, None if it would be empty."""
    try:
        numbers = sympy.Interval(sympify(low), sympify(high), left == "(", right == ")")
    except (TypeError, ValueError, NotImplementedError):
        return None
    return None if numbers is sympy.S.EmptySet else Region(numbers)


def operate(sets: list[Any], operations: list[str]) -> Any:
    r"""Return the union, intersection or difference of sets, from left to right."""
    kinds = {r"\cup": sympy.Union, r"\cap": sympy.Intersection, r"\setminus": sympy.Complement}
    result = sets[0]
    for operation, numbers in zip(operations, sets[1:]):
        result = kinds[operation](result, numbers)
    return result


def combine(regions: list[Region], separators: set[str]) -> Region | None:
    """Return what conditions on one variable come to: "or" joins them, "and" and commas meet, unless that leaves nothing."""
    variables = {region.variable for region in regions if region.variable}
    if len(variables) > 1 or (r"\lor" in separators and len(separators) > 1):
        return None
    sets = [region.numbers for region in regions]
    numbers = sympy.Union(*sets) if r"\lor" in separators else sympy.Intersection(*sets)
    if numbers is sympy.S.EmptySet and separators == {","}:  # x < 2, x > 3
        numbers = sympy.Union(*sets)
    return Region(numbers, next(iter(variables), ""))


def where(sides: list[Any], symbols: list[str]) -> Region | None:
    """Return the numbers for which a chain of inequalities in one variable holds, None if that takes more than a look.

    Args:
        sides: sympy values.
        symbols: the keys of ``RELATIONS`` between them.
    """
    names = [index for index, side in enumerate(sides) if side.is_Symbol]
    if len(names) == 1 and not any(side.has(sides[names[0]]) for i, side in enumerate(sides) if i != names[0]):
        return _bounded(sides, symbols, names[0])
    free = set().union(*(side.free_symbols for side in sides))
    if len(sides) != 2 or len(free) != 1:
        return None
    variable, real = free.pop(), sympy.Symbol("x", real=True)
    if not all(side.is_polynomial(variable) or side.has(sympy.Abs) for side in sides):
        return None
    try:
        relation = RELATIONS[symbols[0]](*(side.doit().subs(variable, real) for side in sides))
        return Region(relation.as_set(), str(variable))
    except MemoryError:
        raise
    except Exception:  # sympy cannot solve it
        return None


def _bounded(sides: list[Any], symbols: list[str], place: int) -> Region | None:
    """Return the numbers between bounds on the variable at a place of a chain."""
    numbers = sympy.S.Reals
    for index, symbol in enumerate(symbols):
        is_left = index < place  # the bound is to the left of the variable
        bound, relation = (sides[index], FLIPPED[symbol]) if is_left else (sides[index + 1], symbol)
        if relation == r"\ne":
            numbers = sympy.Complement(numbers, sympy.FiniteSet(bound))
            continue
        is_open = relation in "<>"
        try:
            if relation in ("<", r"\le"):
                numbers = sympy.Intersection(numbers, sympy.Interval(-sympy.oo, bound, True, is_open))
            else:
                numbers = sympy.Intersection(numbers, sympy.Interval(bound, sympy.oo, is_open, True))
        except (TypeError, ValueError, NotImplementedError):
            return None
    return Region(numbers, str(sides[place]))


def same_region(gold: Region, response: Region) -> bool:
    """Return whether two sets of numbers are equal, and conditions on one variable."""
    if gold.variable and response.variable and gold.variable.lower() != response.variable.lower():
        return False
    if gold.numbers == response.numbers:
        return True
    left, right = _pieces(gold.numbers), _pieces(response.numbers)
    return left is not None and right is not None and len(left) == len(right) and all(map(_same_piece, left, right))


def _same_piece(left: tuple, right: tuple) -> bool:
    """Return whether two intervals are the same."""
    ends = zip(left[:2], right[:2])
    return left[2:] == right[2:] and all(
        a == b or (is_constant(a) and is_constant(b) and same_constant(a, b)) for a, b in ends
    )


def _pieces(numbers: Any) -> list[tuple] | None:
    """Return (start, end, is open to the left, is open to the right) of the intervals of a set, None if it has other parts."""
    if isinstance(numbers, (sympy.Complement, sympy.Intersection)):
        numbers = numbers.doit()
    found = []
    for part in numbers.args if isinstance(numbers, sympy.Union) else (numbers,):
        if part is sympy.S.Reals:
            found.append((-sympy.oo, sympy.oo, True, True))
        elif isinstance(part, sympy.Interval):
            found.append((part.start, part.end, bool(part.left_open), bool(part.right_open)))
        elif isinstance(part, sympy.FiniteSet):
            found += [(item, item, False, False) for item in part.args]
        else:
            return None
    try:
        return sorted(found, key=lambda piece: (float(piece[0]), float(piece[1])))
    except TypeError:  # ends with variables
        return found
