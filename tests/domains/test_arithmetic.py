"""Arithmetic exercises: answers against Python's own arithmetic, plans that all lead there, a teacher that slips as told."""

import re
import zlib
from fractions import Fraction

import numpy as np
import pytest

from exit_jax.domains.math import arithmetic
from exit_jax.domains.math.arithmetic import execute, exercises, proofread, solve, write
from exit_jax.domains.math.settings import SPLIT_BY


def value_of(problem: str) -> Fraction:
    """Work out a problem from its text alone."""
    if "has" in problem:
        text = re.sub(r"(\d+) (?:bags|boxes|sets) of (\d+)", r"\1*\2", problem)
        start = int(re.search(r"has (\d+)", text)[1])
        moves = re.findall(r"(buys|sells) ([\d*]+)", text)
        return Fraction(start + sum((1 if verb == "buys" else -1) * eval(amount) for verb, amount in moves))
    formula = re.search(r"\$(.*)\$", problem)[1].replace("\\times", "*")
    return eval(re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"Fraction(\1, \2)", formula)) + Fraction(0)


def read_answer(text: str) -> Fraction:
    fraction = re.fullmatch(r"\\frac\{(\d+)\}\{(\d+)\}", text)
    return Fraction(int(fraction[1]), int(fraction[2])) if fraction else Fraction(int(text))


MADE = exercises("train", 300, 0)
TEXT_SPLIT = 4149648243  # of the 256 test exercises as they were drawn before there was another way


def test_answers_are_those_of_the_text():
    assert all(value_of(e.problem) == read_answer(e.answer) for e in MADE)
    kinds = [sum(word in e.problem for e in MADE) for word in ("has", "Evaluate", "frac")]
    assert min(kinds) > 30
    assert {len(e.plans[0].operations) for e in MADE} == {1, 2, 3, 4}


def test_all_plans_lead_to_the_answer_by_right_lines_without_going_below_zero():
    for exercise in MADE:
        for plan in exercise.plans:
            results = execute(plan)
            lines = write(plan, results).splitlines()
            assert lines[-1] == f"\\boxed{{{exercise.answer}}}"
            assert all(eval(line.replace("\\times", "*").replace("=", "==")) for line in lines[:-1])
            assert min(results) >= 0
    assert np.mean([len(e.plans) for e in MADE]) > 2


def test_splits_share_no_problem_and_do_not_depend_on_their_size(monkeypatch):
    problems = {split: {e.problem for e in exercises(split, 200, 0)} for split in ("train", "validation", "test")}
    assert not problems["train"] & problems["test"]
    assert not problems["train"] & problems["validation"]
    assert not problems["validation"] & problems["test"]
    assert exercises("test", 50, 0) == exercises("test", 200, 0)[:50]
    assert exercises("test", 50, 1) != exercises("test", 50, 0)
    monkeypatch.setattr(arithmetic, "_draw", lambda rng: MADE[rng.integers(9)])
    with pytest.raises(ValueError, match="fewer than 11"):
        exercises("train", 11, 7)


def computation_of(problem: str) -> tuple:
    """Work out from its text alone what a problem computes: the terms, or the fractions, without their order."""
    if "frac" in problem:
        first, sign, second = re.fullmatch(
            r".*?(\\frac\{\d+\}\{\d+\}) ([+-]) (\\frac\{\d+\}\{\d+\}).*", problem
        ).groups()
        return sign, (tuple(sorted((first, second))) if sign == "+" else (first, second))
    text = problem.replace("\\times", "*")
    if "has" in problem:
        text = re.sub(r"(\d+) (?:bags|boxes|sets) of (\d+)", r"\1 * \2", problem)
        text = text.replace("buys ", "+ ").replace("sells ", "- ")
    terms = re.findall(r"([+-]?) ?(\d+(?: \* \d+)?)", text)
    return tuple(sorted((sign or "+", *sorted(map(int, product.split(" * ")))) for sign, product in terms))


def test_no_computation_is_tested_that_is_trained_on_in_other_words():
    """By text, a third is; the tasks of runs that were made so stay what they were."""
    splits = {by: {s: exercises(s, n, 0, by) for s, n in (("train", 1024), ("test", 256))} for by in SPLIT_BY}
    shared = {}
    for by, made in splits.items():
        trained = {computation_of(e.problem) for e in made["train"]}
        shared[by] = sum(computation_of(e.problem) in trained for e in made["test"])
    assert shared["computation"] == 0
    assert shared["text"] > 40
    apart = splits["computation"]["test"]
    assert len({computation_of(e.problem) for e in apart}) == len(apart)
    every = [*splits["text"]["train"], *apart]
    assert len({e.computation for e in every}) == len({computation_of(e.problem) for e in every}), "told apart alike"
    assert {len(e.plans[0].operations) for e in apart} == {1, 2, 3, 4}
    assert zlib.crc32("".join(e.problem for e in exercises("test", 256, 0)).encode()) == TEXT_SPLIT


def test_the_teacher_slips_as_often_as_told():
    rng = np.random.default_rng(0)
    plans = [exercise.plans[0] for exercise in MADE]
    assert all(solve(plan, 0.0, rng) == execute(plan) for plan in plans)
    first = [solve(plan, 0.3, rng)[0] != execute(plan)[0] for plan in plans for _ in range(10)]
    assert np.mean(first) == pytest.approx(0.3, abs=0.03)


def test_proofreading_keeps_right_lines_and_mends_wrong_ones():
    rng = np.random.default_rng(0)
    for exercise in MADE:
        plan = exercise.plans[0]
        right = execute(plan)
        assert proofread(plan, right, 1.0, rng) == right, "a right line is never touched"
        held = solve(plan, 0.5, rng)
        assert proofread(plan, held, 0.0, rng) == right
    wrong = [(e.plans[0], solve(e.plans[0], 1.0, rng)) for e in MADE]
    kept = [proofread(plan, held, 0.4, rng)[0] == held[0] for plan, held in wrong for _ in range(10)]
    assert np.mean(kept) == pytest.approx(0.4, abs=0.03)
