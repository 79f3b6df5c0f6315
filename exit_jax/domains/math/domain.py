"""Competition math (ExIt §5): problems in text, responses of a chat model, math-verify for a grader, on the host.

A history's request is the problem, its solution the final answer of a response: all of it but for thoughts. Tasks of all
splits have numbers of their own, so that a history tells its gold answer: split · 2^20 + row.
"""

import functools
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from exit_jax.domains.domain import Domain, DomainError, settings_id
from exit_jax.domains.math import arithmetic, data
from exit_jax.domains.math.data import Problem
from exit_jax.domains.math.grader import Grader
from exit_jax.domains.math.settings import NOT_TAUGHT, MathConfig
from exit_jax.domains.math.sources import TEST_SPLITS
from exit_jax.domains.text import chat, tokenizer
from exit_jax.domains.text.pieces import SPAN, SingleTurnDomain, Tokens
from exit_jax.types import BASE, DIVERGE, IMPROVE, Grades, History, Instances, Rollouts

log = logging.getLogger(__name__)


class Math(SingleTurnDomain):
    """The problems of a config, their tokens and their grader; each is made when first asked for."""

    def __init__(self, config: MathConfig):
        self.config = config
        self.found = functools.cache(self._find)
        self.problems = functools.cache(self._read)

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

    @property
    def rooms(self) -> dict[str, int]:
        """The tokens that each piece may have."""
        return {"request": self.config.max_request_tokens, "solution": self.config.max_solution_tokens}

    def _find(self, split: str) -> tuple[Sequence[Problem], Sequence[Tokens], np.ndarray]:
        """Return all problems of a split, their tokens, and which of them are too long, bool [M]; says so in the log.

        Raises:
          DomainError: if all of them are.
        """
        c = self.config
        if c.data == "arithmetic":
            count = {"train": c.num_train, "validation": c.num_validation, "test": c.num_test}[split]
            made = arithmetic.exercises(split, count, c.data_seed, c.split_by)
            solutions = [arithmetic.write(e.plans[0], arithmetic.execute(e.plans[0])) for e in made]
            found: Sequence[Problem] = [
                Problem(e.problem, e.answer, text, len(e.plans[0].operations), c.data)
                for e, text in zip(made, solutions, strict=True)
            ]
        else:
            found = data.load(self.data_dir, split)
        tokens = [chat.encode_piece(self.tokenizer, problem.problem.strip()) for problem in found]
        too_long: Any = np.array([len(ids) > c.max_request_tokens for ids in tokens])
        if too_long.all():
            raise DomainError(
                f"no problem of the split {split} fits into domain.max_request_tokens = {c.max_request_tokens}; raise it"
            )
        if too_long.any():
            log.warning(
                "%d of %d problems of %s are longer than domain.max_request_tokens = %d and %s",
                *(too_long.sum(), too_long.size, split, c.max_request_tokens),
                "are left out" if split == "train" else "count as wrong",
            )
        return found, tokens, too_long

    def _read(self, split: str) -> tuple[tuple[Problem, ...], tuple[Tokens, ...]]:
        """Return the problems of a split and their tokens.

        Those to train on that are too long are left out and listed; those to evaluate on lose their middle, and count as wrong.
        """
        found, tokens, too_long = self.found(split)
        room = self.config.max_request_tokens
        if split != "train":
            return tuple(found), tuple(chat.shorten(self.tokenizer, ids, room, "middle")[0] for ids in tokens)
        reason = f"longer than {room} tokens"
        data.append_skipped(
            self.data_dir,
            [
                {"source": problem.source, "index": i, "reason": reason, "start": problem.problem}
                for i, (problem, left_out) in enumerate(zip(found, too_long))
                if left_out
            ],
        )
        keep = lambda items: tuple(item for item, left_out in zip(items, too_long) if not left_out)
        return keep(found), keep(tokens)

    def too_long(self, split: str) -> np.ndarray:
        """Return which problems of a split are too long, bool [M]; of those to train on none is left."""
        found = self.found(split)[2]
        return found[~found] if split == "train" else found

    def problem_of(self, task: int) -> Problem:
        """Return the problem of a task's number."""
        return self.problems(self.config.splits[task // SPAN])[0][task % SPAN]

    def tasks(self, split: str) -> History:
        """Return the base tasks of a split, in NumPy."""
        requests = self.problems(split)[1]
        first = SPAN * self.config.splits.index(split)
        return self.pack([((), request, (), ()) for request in requests], task=first + np.arange(len(requests)))

    def grade(self, instances: Instances, rollouts: Rollouts) -> Grades:
        """Grade responses by math-verify: quality is 1 or 0, whatever the mode (ExIt App. A). All in NumPy."""
        history, (batch, group) = instances.history, rollouts.finished.shape
        responses = [rollouts.tokens[b, g][rollouts.mask[b, g]] for b in range(batch) for g in range(group)]
        gold = [self.problem_of(int(number)).answer for number in np.repeat(history.task, group)]
        verdicts = self.grader.grade(list(zip(map(self.answer, responses), gold, strict=True)))
        room, truncate = self.config.max_solution_tokens, self.config.truncate
        shown = [self.shown(response, room, truncate) for response in responses]
        start, length = history.lengths[:, 0], history.lengths[:, 1]
        requests = [history.tokens[b, start[b] : start[b] + length[b]] for b in range(batch) for _ in range(group)]

        def per_rollout(values, kind: Any = np.float32) -> Any:
            return np.array(list(values), kind).reshape(batch, group)

        unseen = [
            self.too_long(self.config.splits[n // SPAN])[n % SPAN] for n in np.repeat(history.task, group).tolist()
        ]
        quality = per_rollout(verdict.correct and not cut for verdict, cut in zip(verdicts, unseen, strict=True))
        graded = per_rollout((verdict.graded for verdict in verdicts), bool)
        pieces = [((), request, solution, ()) for request, (solution, _) in zip(requests, shown, strict=True)]
        children = self.children(history, pieces, quality)
        insertable = graded & (children.lengths[:, :, 0, 2] > 0)
        notes = {
            "ungraded": 1.0 - graded,
            "no_answer": per_rollout(not verdict.answer for verdict in verdicts),
            "truncated": per_rollout(cut for _, cut in shown),
        }
        return Grades(
            quality=quality,
            valid=graded,
            embedding=quality[..., None] * 0.0,
            children=children,
            insertable=insertable[..., None],
            notes={name: value.astype(np.float32) for name, value in notes.items()},
        )

    def solutions(self, history: History) -> list[str]:
        """Return what histories [n] hold, as text."""
        start = history.lengths[:, :2].sum(-1)
        ends = start + history.lengths[:, 2]
        return [self.decode(row[a:b]) for row, a, b in zip(np.asarray(history.tokens), start, ends)]

    def answers(self, history: History) -> list[str]:
        """Return the answer of what histories [n] hold, in a form in which equal answers are mostly equal texts."""
        gold = [self.problem_of(int(task)).answer for task in history.task]
        return [verdict.answer for verdict in self.grader.grade(list(zip(self.solutions(history), gold, strict=True)))]

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
        c, fit = self.config, {problem.problem for problem in self.problems("train")[0]}
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
        written = [p for p in self.problems("train")[0] if p.solution.strip()]
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
      DomainError: if the tokenizer cannot be had, or the prompts do not fit.
    """
    math = Math(config)
    return Domain(
        name=config.data,
        splits=config.splits,
        test_splits=TEST_SPLITS if config.data == "competition" else ("test",),
        **math.token_fields,
        history_width=sum(math.rooms.values()),
        prompt_width=config.prompt_width,
        max_tokens=config.max_tokens,
        templates=math.templates,
        tasks=math.tasks,
        difficulty=lambda split: {"gold_steps": np.array([p.num_steps for p in math.problems(split)[0]])},
        about=lambda split: [{"request": p.problem, "gold": p.answer} for p in math.problems(split)[0]],
        grade=math.grade,
        notes=("ungraded", "no_answer", "truncated"),
        demonstrations=math.demonstrations,
        demonstrations_id=settings_id(config, NOT_TAUGHT),
        describe=math.solutions,
        answers=math.answers,
        texts=math.texts,
        decode=math.decode,
        too_long=math.too_long,
    )
