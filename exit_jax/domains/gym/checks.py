"""What can be said of an answer without the gold one: which part of it breaks what the question asks for.

A check reads the question's own data and never the answer that comes with it, so that whoever has the question could say the
same. It names places and rules, not what should stand there. Sets without a check are told only whether an answer was found.
"""

import ast
import collections
import fractions
import itertools
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

UNREADABLE = "unreadable"
OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
PLAIN = re.compile(r"[\d\s()+*/-]+", re.ASCII)  # of other letters, parsing would warn
MAX_CHARS = 1000  # of an answer that is checked


def check(name: str, metadata: Mapping[str, Any], answer: str) -> str:
    """Return what is wrong with an answer to an entry of a set, "" where nothing is known to be."""
    if not answer.strip():
        return UNREADABLE
    return CHECKS[name](metadata, answer) if name in CHECKS and len(answer) <= MAX_CHARS else ""


def sudoku(metadata: Mapping[str, Any], answer: str) -> str:
    """Name rows, columns and boxes in which a digit comes twice, and rows in which a clue was changed."""
    puzzle = metadata["puzzle"]
    size = len(puzzle)
    box = round(size**0.5)
    rows = [[int(c) for c in line if c in "123456789"] for line in answer.splitlines() if line.strip()]
    if [len(row) for row in rows] != [size] * size or max(map(max, rows)) > size:
        return UNREADABLE
    boxes = [
        [rows[i][j] for i in range(top, top + box) for j in range(left, left + box)]
        for top in range(0, size, box)
        for left in range(0, size, box)
    ]
    changed = [any(clue not in (0, own) for clue, own in zip(*pair)) for pair in zip(puzzle, rows)]
    twice = lambda units: [len(set(unit)) < size for unit in units]
    found = {"rows": twice(rows), "columns": twice(zip(*rows)), "boxes": twice(boxes), "clues": changed}
    return " ".join(f"{kind} {_places(wrong)}" for kind, wrong in found.items() if any(wrong))


def spell_backward(metadata: Mapping[str, Any], answer: str) -> str:
    """Name the places at which a letter is not the word's."""
    word, given = metadata["word"].lower()[::-1], answer.strip().lower()
    if len(given) != len(word):
        return f"{len(given)} letters, not {len(word)}"
    wrong = [a != b for a, b in zip(given, word)]
    return f"letters {_places(wrong)}" if any(wrong) else ""


def number_sorting(metadata: Mapping[str, Any], answer: str) -> str:
    """Name the numbers that are missing, those that were not given, and where the order breaks."""
    try:
        numbers = [float(item) for item in json.loads(answer.replace("'", '"'))]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return UNREADABLE
    own, given = collections.Counter(numbers), collections.Counter(map(float, metadata["original_numbers"]))
    sign = 1 if metadata["direction"] == "ascending" else -1
    breaks = [sign * a > sign * b for a, b in itertools.pairwise(numbers)]
    found = [f"missing {_numbers(given - own)}"] * bool(given - own)
    found += [f"not given {_numbers(own - given)}"] * bool(own - given)
    found += [f"wrong order after number {_places(breaks)}"] * any(breaks)
    return "; ".join(found)


def countdown(metadata: Mapping[str, Any], answer: str) -> str:
    """Say what an expression comes to, if not to the target, and which numbers it has too often or too seldom."""
    try:
        if not PLAIN.fullmatch(answer):
            return UNREADABLE
        value, used = _evaluate(ast.parse(answer.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return UNREADABLE
    own, given = collections.Counter(used), collections.Counter(metadata["numbers"])
    found = [f"it comes to {value}"] * (value != metadata["target"])
    found += [f"does not use {_numbers(given - own)}"] * bool(given - own)
    found += [f"has no {_numbers(own - given)} to use"] * bool(own - given)
    return "; ".join(found)


CHECKS: Mapping[str, Callable[[Mapping[str, Any], str], str]] = {
    "countdown": countdown,
    "mini_sudoku": sudoku,
    "number_sorting": number_sorting,
    "spell_backward": spell_backward,
    "sudoku": sudoku,
}


def _evaluate(node: ast.AST) -> tuple[fractions.Fraction, list[int]]:
    """Return the value of an expression of whole numbers and + - * /, and its numbers.

    Raises:
      ValueError: it is something else.
    """
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return fractions.Fraction(node.value), [node.value]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        (a, first), (b, second) = _evaluate(node.left), _evaluate(node.right)
        return OPERATORS[type(node.op)](a, b), first + second
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value, used = _evaluate(node.operand)
        return -value, used
    raise ValueError("not an expression of + - * /")


def _places(wrong: Sequence[bool]) -> str:
    """Return the places, from 1, at which something is wrong."""
    return " ".join(str(place) for place, is_wrong in enumerate(wrong, 1) if is_wrong)


def _numbers(counted: collections.Counter) -> str:
    return " ".join(
        f"{number:g}" if isinstance(number, float) else str(number) for number in sorted(counted.elements())
    )
