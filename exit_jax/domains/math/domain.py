"""Competition math (ExIt §5): problems in text, responses of a chat model, math-verify for a grader, on the host.

A history's request is the problem, its solution the final answer of a response: all of it but for thoughts.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from exit_jax.domains import extras
from exit_jax.domains.domain import Domain, DomainError, settings_id
from exit_jax.domains.math import arithmetic, data
from exit_jax.domains.math.grader import Grader
from exit_jax.domains.math.problems import Problem
from exit_jax.domains.math.settings import NOT_TAUGHT, MathConfig
from exit_jax.domains.math.sources import TEST_SPLITS
from exit_jax.domains.text import tokenizer
from exit_jax.domains.text.pieces import Tokens
from exit_jax.domains.text.scored import Score, ScoredDomain
from exit_jax.types import BASE, DIVERGE, IMPROVE, History


class Math(ScoredDomain):
    """The problems of a config, their tokens and their grader; each is made when first asked for."""

    config: MathConfig
    noun = "problem"
    notes = ("ungraded", "no_answer")
    has_solutions = has_answers = True

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        if self.config.tokenizer:
            return tokenizer.load(self.config.tokenizer)
        c, corpus = self.config, []
        for exercise in arithmetic.exercises("train", c.num_train, c.data_seed, c.split_by):
            plan = exercise.plans[0]
            corpus += [exercise.problem, arithmetic.write(plan, arithmetic.execute(plan))]
        return tokenizer.train([*corpus, c.system, c.base, c.improve, c.diverge], c.vocab_size, self.data_dir)

    @property
    def data_dir(self) -> pathlib.Path:
        """The folder for all that is kept from run to run."""
        return pathlib.Path(self.config.data_dir).expanduser().absolute()

    @functools.cached_property
    def grader(self) -> Grader:
        """The worker pool; it starts no process before there is something to grade."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        workers = self.config.num_workers or os.cpu_count() or 1
        return Grader(workers, self.config.timeout_secs, self.data_dir / "ungraded.jsonl")

    def rows(self, split: str) -> Sequence[Problem]:
        """Return all problems of a split."""
        c = self.config
        if c.data != "arithmetic":
            return data.load(self.data_dir, split)
        count = {"train": c.num_train, "validation": c.num_validation, "test": c.num_test}[split]
        made = arithmetic.exercises(split, count, c.data_seed, c.split_by)
        solutions = [arithmetic.write(e.plans[0], arithmetic.execute(e.plans[0])) for e in made]
        return [
            Problem(e.problem, e.answer, text, len(e.plans[0].operations), c.data)
            for e, text in zip(made, solutions, strict=True)
        ]

    def prompt(self, row: Problem) -> str:
        """Return the text of a problem."""
        return row.problem

    def solution_of(self, row: Problem) -> str:
        """Return the gold solution of a problem, "" where its source has none."""
        return row.solution

    def answer_of(self, row: Problem) -> str:
        """Return the answer of a problem."""
        return row.answer

    def left_out(self, rows: Sequence[Problem], too_long: np.ndarray) -> None:
        """List the problems that are not trained on."""
        reason = f"longer than {self.config.max_request_tokens} tokens"
        data.append_skipped(
            self.data_dir,
            [
                {"source": problem.source, "index": i, "reason": reason, "start": problem.problem}
                for i, (problem, is_out) in enumerate(zip(rows, too_long, strict=True))
                if is_out
            ],
        )

    def score(self, rows: Sequence[Problem], responses: Sequence[Tokens]) -> list[Score]:
        """Grade responses by math-verify: quality is 1 or 0."""
        pairs = [(self.answer(response), problem.answer) for problem, response in zip(rows, responses, strict=True)]
        return [
            Score(
                quality=float(verdict.correct),
                graded=verdict.graded,
                notes={"ungraded": float(not verdict.graded), "no_answer": float(not verdict.answer)},
            )
            for verdict in self.grader.grade(pairs)
        ]

    def answers(self, history: History) -> list[str]:
        """Return the answer of what histories [n] hold, in a form in which equal answers are mostly equal texts."""
        gold = [self.row_of(int(task)).answer for task in history.task]
        solutions = self.texts_of(history, "solution")
        return [verdict.answer for verdict in self.grader.grade(list(zip(solutions, gold, strict=True)))]

    def demonstration(self, number: int, group_size: int) -> tuple[list[Tokens], int, list[str]]:
        """Return the pieces, mode and responses of one demonstration.

        Of arithmetic, half are first solutions, the others improve on (or diverge from) a faulty one. Of competitions, they
        are the gold solutions that fit.
        """
        make = self._exercise if self.config.data == "arithmetic" else self._gold_solution
        request, held, mode, responses = make(number, group_size)
        solution = () if mode == BASE else self.encode(held)[: self.config.max_solution_tokens]
        return [(), self.encode(request), solution, ()], mode, responses

    @functools.cached_property
    def _taught(self) -> list[arithmetic.Exercise]:
        """The exercises that fit, as tasks do."""
        c, fit = self.config, {problem.problem for problem in self.kept("train")[0]}
        taught = arithmetic.exercises("train", c.num_train, c.data_seed, c.split_by)
        return [exercise for exercise in taught if exercise.problem in fit]

    def _exercise(self, number: int, group_size: int) -> tuple[str, str, int, list[str]]:
        c = self.config
        rng = np.random.default_rng([c.data_seed, number])
        exercise = self._taught[number % len(self._taught)]
        plan = exercise.plans[rng.integers(len(exercise.plans)) if rng.random() < 0.3 else 0]
        held = arithmetic.solve(plan, 2 * c.demo_noise, rng)
        mode = int(rng.choice((BASE, IMPROVE, DIVERGE), p=(0.5, 0.35, 0.15)))
        responses = []
        for _ in range(group_size):
            if mode == IMPROVE:
                results, order = arithmetic.proofread(plan, held, c.demo_noise, rng), plan
            else:
                others = [other for other in exercise.plans if other != plan] or [plan]
                order = others[rng.integers(len(others))] if mode == DIVERGE else plan
                results = arithmetic.solve(order, c.demo_noise, rng)
            responses.append(arithmetic.write(order, results))
        return exercise.problem, arithmetic.write(plan, held), mode, responses

    @functools.cached_property
    def _solved(self) -> list[Problem]:
        """The problems whose gold solution fits into a response, with its end; half of one would teach to leave out the box."""
        room = self.config.max_tokens
        written = [p for p in self.kept("train")[0] if p.solution.strip()]
        solved = [p for p in written if len(self.demonstrate(p.solution.strip())) <= room]
        if not solved:
            raise DomainError(
                f"no training problem has a gold solution to warm-start on that fits into domain.max_tokens = {room}; raise "
                "it if there are longer ones, or set warm_start.num_steps to 0"
            )
        return solved

    def _gold_solution(self, number: int, group_size: int) -> tuple[str, str, int, list[str]]:
        problem = self._solved[number % len(self._solved)]
        return problem.problem.strip(), "", BASE, [problem.solution.strip()] * group_size


def prepare(config: MathConfig) -> str:
    """Fetch and prepare the problems of all splits (``--mode data``); returns an account for people."""
    if config.data == "arithmetic":
        return "arithmetic needs no data: its exercises are made on the spot"
    return data.prepare(config.data_dir, config.files_dir, config.data_seed, config.num_train, config.num_validation)


def make_domain(config: MathConfig) -> Domain:
    """Build the math domain.

    Raises:
      DomainError: if math-verify is not installed, the tokenizer cannot be had, or the prompts do not fit.
    """
    extras.require("math", "math", "math_verify")
    math = Math(config)
    return Domain(
        **math.fields(),
        name=config.data,
        test_splits=TEST_SPLITS if config.data == "competition" else ("test",),
        difficulty=lambda split: {"gold_steps": np.array([p.num_steps for p in math.kept(split)[0]])},
        about=lambda split: [{"request": p.problem, "gold": p.answer} for p in math.kept(split)[0]],
        demonstrations=math.demonstrations,
        demonstrations_id=settings_id(config, NOT_TAUGHT),
        answers=math.answers,
    )
