"""Exercises in words and LaTeX that need several steps, with a teacher that slips: mathematics for a policy made on a CPU.

An exercise has plans: each is a sequence of operations on numbers and on results of earlier ones, written one a line,

    4 \\times 6 = 24
    7 + 24 = 31
    \\boxed{31}

and plans differ in the order in which they reach the answer.
"""

import dataclasses
import functools
import itertools
import zlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
    """Operations (sign, left, right); an operand below 0 is the result of the operation ~operand (-1: the first)."""

    operations: tuple[tuple[str, int, int], ...]
    is_fraction: bool  # the answer is the last result but one over the last, else it is the last


@dataclasses.dataclass(frozen=True)
class Exercise:
    """A problem with its answer and the plans that lead to it, the plainest first."""

    problem: str
    answer: str
    plans: tuple[Plan, ...]
    computation: str  # operands and operations, whatever their order and wording: "3 + 2" has that of "2 + 3"


COMPUTE = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "\\times": lambda a, b: a * b}
NAMES = ("Ann", "Ben", "Eva", "Tom", "Mia", "Leo")
THINGS = ("apples", "books", "coins", "shells", "stamps")
PACKS = ("bags", "boxes", "sets")
MAX_OPERATIONS = 4


def execute(plan: Plan, slip=lambda operation, result: result) -> tuple[int, ...]:
    """Return the results of a plan's operations, each as ``slip`` has it."""
    results: list[int] = []
    for sign, left, right in plan.operations:
        left, right = (results[~x] if x < 0 else x for x in (left, right))
        results.append(slip((sign, left, right), COMPUTE[sign](left, right)))
    return tuple(results)


def write(plan: Plan, results: tuple[int, ...]) -> str:
    """Write a solution: a line for each operation, and the answer in a box."""
    operand = lambda x: str(results[~x] if x < 0 else x)
    lines = [f"{operand(a)} {sign} {operand(b)} = {result}" for (sign, a, b), result in zip(plan.operations, results)]
    return "\n".join([*lines, f"\\boxed{{{answer(plan, results)}}}"])


def answer(plan: Plan, results: tuple[int, ...]) -> str:
    """Return the answer that results amount to."""
    return f"\\frac{{{results[-2]}}}{{{results[-1]}}}" if plan.is_fraction else str(results[-1])


def solve(plan: Plan, noise: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Return results of which each is wrong with probability ``noise``; later ones build on it."""
    return execute(plan, lambda _, result: _slip(result, rng) if rng.random() < noise else result)


def proofread(plan: Plan, held: tuple[int, ...], noise: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Return results after a check of those that are held.

    A line whose operands stand is kept if it is right, and mended but for a share ``noise`` if it is wrong; where an operand
    has changed, the line is computed anew and is wrong with probability ``noise``.
    """
    fresh: list[int] = []
    for i, (sign, left, right) in enumerate(plan.operations):
        before, now = ([r[~x] if x < 0 else x for x in (left, right)] for r in (held, fresh))
        result = COMPUTE[sign](*now)
        missed = rng.random() < noise
        if missed:
            result = held[i] if before == now else _slip(result, rng)
        fresh.append(result)
    return tuple(fresh)


def _slip(result: int, rng: np.random.Generator) -> int:
    """Return a wrong result of the usual kinds: off by one, two or ten."""
    return result + int(rng.choice((-10, -2, -1, 1, 2, 10)))


@functools.lru_cache
def exercises(split: str, count: int, seed: int, by: str = "text") -> tuple[Exercise, ...]:
    """Return the exercises of a split, none twice; which split one belongs to is decided by a hash.

    Args:
      by: "text" or "computation": what is hashed, and does not come twice. By "text", a third of the test exercises are a
        training exercise in other words or another order; by "computation" none is.
    """
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    found: dict[str, Exercise] = {}
    for _ in range(100 * count):
        exercise = _draw(rng)
        if exercise:
            key = exercise.problem if by == "text" else exercise.computation
            if _split_of(key) == split:
                found.setdefault(key, exercise)
        if len(found) == count:
            return tuple(found.values())
    raise ValueError(f"there are fewer than {count} different exercises for the split {split!r}; ask for fewer")


def _split_of(key: str) -> str:
    return {0: "validation", 1: "test"}.get(zlib.crc32(key.encode()) % 10, "train")


def _draw(rng: np.random.Generator) -> Exercise | None:
    """Draw an exercise of one of three kinds; None where it came out unfit."""
    kind = rng.integers(4)
    if kind == 0:
        return _sum_of_fractions(rng)
    terms = _terms(rng)
    plans = _plans(terms)
    if not plans or len(plans[0].operations) > MAX_OPERATIONS:
        return None
    problem = _in_words(terms, rng) if kind == 1 else _in_latex(terms)
    return Exercise(problem, str(execute(plans[0])[-1]), plans, _computation(terms))


def _terms(rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    """Draw 2 to 4 signed terms: (sign, number), or (sign, number, number) for a product."""
    terms: list[tuple[int, ...]] = [(1, int(rng.integers(5, 21)))]
    for _ in range(rng.integers(1, 4)):
        sign = 1 if rng.random() < 0.6 else -1
        is_product = rng.random() < 0.4
        terms.append((sign, *(int(x) for x in (rng.integers(2, 6, 2) if is_product else rng.integers(2, 21, 1)))))
    return tuple(terms)


def _plans(terms: tuple[tuple[int, ...], ...]) -> tuple[Plan, ...]:
    """Return the orders of adding up the terms in which nothing falls below zero, the given order first."""
    plans = []
    for order in itertools.permutations(terms):
        if order[0][0] < 0:
            continue
        operations: list[tuple[str, int, int]] = []
        total = None
        for sign, *factors in order:
            value = factors[0]
            if len(factors) == 2:
                operations.append(("\\times", factors[0], factors[1]))
                value = -len(operations)
            if total is None:
                total = value
            else:
                operations.append(("+" if sign > 0 else "-", total, value))
                total = -len(operations)
        plan = Plan(tuple(operations), False)
        if min(execute(plan)) >= 0:
            plans.append((order != terms, plan))
    in_order = sorted(plans, key=lambda item: item[0])
    return tuple(dict.fromkeys(plan for _, plan in in_order)) if in_order and not in_order[0][0] else ()


def _computation(terms: tuple[tuple[int, ...], ...]) -> str:
    return repr(sorted((sign, *sorted(factors)) for sign, *factors in terms))


def _in_latex(terms: tuple[tuple[int, ...], ...]) -> str:
    text = ""
    for sign, *factors in terms:
        text += (" + " if sign > 0 else " - ") if text else ""
        text += " \\times ".join(map(str, factors))
    return f"Evaluate ${text}$."


def _in_words(terms: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> str:
    name, things, packs = (str(rng.choice(words)) for words in (NAMES, THINGS, PACKS))
    parts = [f"{name} has {terms[0][1]} {things}"]
    for sign, *factors in terms[1:]:
        amount = f"{factors[0]} {packs} of {factors[1]}" if len(factors) == 2 else str(factors[0])
        parts.append(f"{'buys' if sign > 0 else 'sells'} {amount}")
    return ", ".join(parts) + f". How many {things} are left?"


def _sum_of_fractions(rng: np.random.Generator) -> Exercise:
    a, b, c, d = (int(x) for x in rng.integers(1, 6, 4))
    b, d = b + 1, d + 1
    sign = "+" if a * d <= c * b or rng.random() < 0.5 else "-"
    cross = (("\\times", a, d), ("\\times", c, b))
    plans = (
        Plan((*cross, (sign, -1, -2), ("\\times", b, d)), True),
        Plan((cross[1], cross[0], (sign, -2, -1), ("\\times", b, d)), True),
    )
    problem = f"Compute $\\frac{{{a}}}{{{b}}} {sign} \\frac{{{c}}}{{{d}}}$."
    fractions = [(a, b), (c, d)]
    computation = repr((sign, sorted(fractions) if sign == "+" else fractions))
    return Exercise(problem, answer(plans[0], execute(plans[0])), plans, computation)
