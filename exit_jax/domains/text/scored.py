"""A domain of text from tasks and a score: prompts go out, final answers are scored on the host.

``text_domain`` makes a domain from two functions (docs/extend.md has an example); ``ScoredDomain`` is what a domain inherits
that does more, as competition math. A history's request is the prompt, its solution the final answer of a response: all of
it but for thoughts. Tasks of all splits have numbers of their own, so that a history tells its task: split · SPAN + row.
"""

import dataclasses
import functools
import logging
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from exit_jax.algorithm import gold
from exit_jax.algorithm.gold import Gold, Variant
from exit_jax.algorithm.prompts import piece_rows
from exit_jax.domains.contract import ContractError
from exit_jax.domains.domain import Domain, DomainError, settings_id
from exit_jax.domains.text import chat, tokenizer
from exit_jax.domains.text.pieces import SingleTurnDomain, Tokens
from exit_jax.domains.text.prompts import ANSWER, HINT, IMPROVE, IMPROVE_BY_FEEDBACK
from exit_jax.domains.text.settings import SPAN, TextConfig
from exit_jax.domains.text.surrogates import replace_surrogates
from exit_jax.domains.traits import Traits
from exit_jax.types import BASE, PIECES, Grades, History, Instances, Rollouts

log = logging.getLogger(__name__)

Task = Mapping[str, Any]  # "prompt", a text, and whatever else its score needs


@dataclasses.dataclass(frozen=True)
class Score:
    """What is said of one response."""

    quality: float  # score in [0, 1]
    feedback: str = ""  # text for the next prompt
    answer: str = ""  # what a vote counts, "" for none
    graded: bool = True  # False: it could not be scored, earns nothing and enters no buffer
    notes: Mapping[str, float] = dataclasses.field(default_factory=dict)  # values of the domain's ``notes``


class ScoredDomain(SingleTurnDomain):
    """The tasks of a config, their tokens and their scores; each is made when first asked for."""

    noun = "task"
    notes: tuple[str, ...] = ()  # names of what scores report
    has_solutions = False  # whether tasks may have a gold solution
    has_answers = False  # whether they may have a final answer

    def __init__(self, config: Any):
        self.config = config
        self.found = functools.cache(self._find)
        self.kept = functools.cache(self._keep)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return tokenizer.load(self.config.tokenizer) if self.config.tokenizer else tokenizer.of_bytes()

    def message(self, mode: str) -> str:
        """Return the user's message in a mode.

        Raises:
          DomainError: if it is empty and the mode has no default.
        """
        default = IMPROVE_BY_FEEDBACK if getattr(self.config, "max_feedback_tokens", 0) else IMPROVE
        if text := getattr(self.config, mode) or (default if mode == "improve" else ""):
            return text
        raise DomainError(f'domain.{mode} is empty; say what the policy is asked for, as "{{request}}"')

    def rows(self, split: str) -> Sequence[Any]:
        """Return all tasks of a split, in whatever form."""
        raise NotImplementedError

    def prompt(self, row: Any) -> str:
        """Return the text of a task."""
        raise NotImplementedError

    def context(self, row: Any) -> Tokens:
        """Return the tokens of a conversation up to the text of a task, of a domain with "context" among its pieces."""
        return ()

    def score(self, rows: Sequence[Any], responses: Sequence[Tokens]) -> list[Score]:
        """Score responses, each to its row."""
        raise NotImplementedError

    def solution_of(self, row: Any) -> str:
        """Return the gold solution of a task as a response would give it, "" for none."""
        return ""

    def answer_of(self, row: Any) -> str:
        """Return the final answer of a task, "" for none."""
        return ""

    def left_out(self, rows: Sequence[Any], too_long: np.ndarray) -> None:
        """Note which tasks are not trained on since they are too long, bool [M]."""

    @property
    def max_piece_tokens(self) -> dict[str, int]:
        """The tokens that each piece may have."""
        c = self.config
        sizes = {"request": c.max_request_tokens, "solution": c.max_solution_tokens or c.max_tokens}
        feedback = getattr(c, "max_feedback_tokens", 0)
        return sizes | ({"feedback": feedback} if feedback else {})

    def _find(self, split: str) -> tuple[Sequence[Any], Sequence[Tokens], np.ndarray]:
        """Return all tasks of a split, their tokens, and which of them are too long, bool [M]; says so in the log.

        Raises:
          DomainError: if all of them are, or there is none.
        """
        found, room = self.rows(split), self.config.max_request_tokens
        if not len(found):
            raise DomainError(
                f"the split {split} has no {self.noun}; leave it out of the domain's splits, or give it some"
            )
        tokens = [self.encode(self.prompt(row).strip()) for row in found]
        context_room = self.max_piece_tokens.get("context", 0)
        too_long: Any = np.array(
            [len(ids) > room or len(self.context(row)) > context_room for row, ids in zip(found, tokens, strict=True)]
        )
        if too_long.all():
            raise DomainError(
                f"no {self.noun} of the split {split} fits into domain.max_request_tokens = {room}; raise it"
            )
        if too_long.any():
            log.warning(
                "%d of %d %ss of %s are longer than domain.max_request_tokens = %d and %s",
                *(too_long.sum(), too_long.size, self.noun, split, room),
                "are left out" if split == "train" else "count as wrong",
            )
        return found, tokens, too_long

    def _keep(self, split: str) -> tuple[tuple[Any, ...], tuple[Tokens, ...]]:
        """Return the tasks of a split and their tokens.

        Those to train on that are too long are left out; those to evaluate on lose their middle, and count as wrong.
        """
        found, tokens, too_long = self.found(split)
        if split != "train":
            room = self.config.max_request_tokens
            return tuple(found), tuple(chat.shorten(self.tokenizer, ids, room, "middle")[0] for ids in tokens)
        self.left_out(found, too_long)
        keep = lambda items: tuple(item for item, is_out in zip(items, too_long, strict=True) if not is_out)
        return keep(found), keep(tokens)

    def too_long(self, split: str) -> np.ndarray:
        """Return which tasks of a split are too long, bool [M]; of those to train on none is left."""
        found = self.found(split)[2]
        return found[~found] if split == "train" else found

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        return Traits.of(self.config).splits

    def row_of(self, task: int) -> Any:
        """Return the task of a number."""
        return self.kept(self.splits[task // SPAN])[0][task % SPAN]

    def tasks(self, split: str) -> History:
        """Return the base tasks of a split, in NumPy."""
        rows, requests = self.kept(split)
        first, room = SPAN * self.splits.index(split), self.max_piece_tokens.get("context", 0)
        contexts = [self.context(row)[:room] for row in rows]
        pieces = [(context, request, (), ()) for context, request in zip(contexts, requests, strict=True)]
        return self.pack(pieces, task=first + np.arange(len(requests)))

    def grade(self, instances: Instances, rollouts: Rollouts) -> Grades:
        """Score responses, whatever the mode (ExIt App. A), each with the prefix that it began with. All in NumPy."""
        history, (batch, group) = instances.history, rollouts.finished.shape
        begun = [tokens[:0] if k >= 0 else tokens for k, tokens in zip(history.step, piece_rows(history, "solution"))]
        own = [rollouts.tokens[b, g][rollouts.mask[b, g]] for b in range(batch) for g in range(group)]
        responses = [np.concatenate([begun[i // group], tokens]) for i, tokens in enumerate(own)]
        tasks = np.repeat(history.task, group).tolist()
        scores = self.score([self.row_of(task) for task in tasks], responses)
        sizes = self.max_piece_tokens
        shown = [self.shown(response, sizes["solution"], self.config.truncate) for response in responses]
        held = zip(piece_rows(history, "context"), piece_rows(history, "request"), strict=True)
        asked = [pieces for pieces in held for _ in range(group)]
        by_policy = "critique" in self.modes
        said = ["" if by_policy else replace_surrogates(score.feedback) for score in scores]
        feedback = [self.encode(text)[: sizes.get("feedback", 0)] for text in said]

        def per_rollout(values, kind: Any = np.float32) -> Any:
            return np.array(list(values), kind).reshape(batch, group)

        unseen = [self.too_long(self.splits[task // SPAN])[task % SPAN] for task in tasks]
        quality = per_rollout(0.0 if cut else score.quality for score, cut in zip(scores, unseen, strict=True))
        graded = per_rollout((score.graded for score in scores), bool)
        pieces = [(*both, solution, f) for both, (solution, _), f in zip(asked, shown, feedback, strict=True)]
        notes = {name: per_rollout(score.notes[name] for score in scores) for name in self.notes}
        notes["truncated"] = per_rollout(cut for _, cut in shown)
        return self.make_grades(history, pieces, quality, graded, notes)

    # Critiques

    def grade_critiques(self, instances: Instances, rollouts: Rollouts) -> Grades:
        """Return the grades of critiques [B, G]: a child is the history with the critique for feedback, of the same quality."""
        history, (batch, group) = instances.history, rollouts.finished.shape
        own = [rollouts.tokens[b, g][rollouts.mask[b, g]] for b in range(batch) for g in range(group)]
        said = [self.encode(self.answer(tokens).strip())[: self.max_piece_tokens["feedback"]] for tokens in own]
        held = zip(*(piece_rows(history, name) for name in PIECES[:-1]), strict=True)
        rows = [(*pieces, said[b * group + g]) for b, pieces in enumerate(held) for g in range(group)]
        quality = np.repeat(np.asarray(history.quality)[:, None], group, axis=1)
        notes = {name: np.zeros((batch, group), np.float32) for name in (*self.notes, "truncated")}
        grades = self.make_grades(history, rows, quality, np.ones((batch, group), bool), notes)
        children = dataclasses.replace(grades.children, step=grades.children.step - 1)  # it holds the same response
        spoken = children.lengths[..., PIECES.index("feedback")] > 0
        return dataclasses.replace(grades, children=children, insertable=grades.insertable & spoken)

    def critique_fields(self) -> dict[str, Any]:
        """Return the fields of Domain that say how critiques are read; {} where there are none.

        Raises:
          DomainError: if an improve prompt would not show them.
        """
        if "critique" not in self.modes:
            return {}
        if "feedback" not in self.templates["improve"]:
            raise DomainError(
                "domain.critique asks the policy for feedback that domain.improve does not show: have {feedback} in it, and "
                "domain.max_feedback_tokens above 0"
            )
        return {"critique": self.grade_critiques}

    # Starts

    def gold_of(self, split: str) -> Gold:
        """Return the gold solutions and answers of a split's tasks, in NumPy."""
        rows = self.kept(split)[0]
        encoded = lambda text: self.encode(text) if text else ()
        return gold.make_gold(
            SPAN * self.splits.index(split),
            [encoded(self.solution_of(row).strip()) for row in rows],
            [encoded(self.answer_of(row).strip()) for row in rows],
            room=min(self.prompt_width, sum(self.max_piece_tokens.values())),
            before_hint=self.encode(HINT),
            before_answer=self.encode(ANSWER),
        )

    def start_fields(self) -> dict[str, Any]:
        """Return the fields of Domain that say how tasks can be started; {} where there is no gold.

        A thought that the prompt has begun already would go on in the solution, so there is no prefix then.
        """
        names = ["answer"] * self.has_answers
        if self.has_solutions:
            names += ["hint"] if self.thinking else ["hint", "prefix"]
        if not names:
            return {}
        templates = {**self.templates, "base": gold.show_starts(self.templates["base"])}
        table: dict[str, Callable[..., Any]] = {"hint": gold.hint, "prefix": gold.prefix, "answer": gold.answer}
        bind = lambda name: functools.partial(table[name], templates["base"], self.prompt_width)
        variants: dict[str, Variant] = {name: bind(name) for name in names}
        return {"gold": functools.cache(self.gold_of), "variants": variants, "start_templates": templates}

    def fields(self) -> dict[str, Any]:
        """Return the fields of Domain that follow from the above."""
        return (
            self.token_fields
            | self.start_fields()
            | self.critique_fields()
            | {
                "splits": self.splits,
                "history_width": sum(self.max_piece_tokens.values()),
                "prompt_width": self.prompt_width,
                "max_tokens": self.config.max_tokens,
                "templates": self.templates,
                "messages": {mode: self.message(mode) for mode in self.modes},
                "tasks": self.tasks,
                "too_long": self.too_long,
                "grade": self.grade,
                "notes": (*self.notes, "truncated"),
                "describe": lambda history: self.texts_of(history, "solution"),
                "texts": self.texts,
                "decode": self.decode,
            }
        )


class TaskDomain(ScoredDomain):
    """The domain of two functions."""

    config: TextConfig

    def __init__(
        self,
        config: TextConfig,
        rows: Callable,
        score: Callable,
        gold: Callable[[Task], str] | None,
        answer: Callable[[Task], str] | None = None,
    ):
        super().__init__(config)
        self._rows, self._score, self._gold, self._answer = rows, score, gold, answer
        self.has_solutions, self.has_answers = gold is not None, answer is not None

    def rows(self, split: str) -> Sequence[Task]:
        """Return all tasks of a split."""
        found = list(self._rows(split))
        for place, row in enumerate(found):
            if not (isinstance(row, Mapping) and isinstance(row.get("prompt"), str)):
                raise DomainError(
                    f'task {place} of {split} is {row!r:.60}; it should be a mapping with a text as "prompt"'
                )
        return found

    def prompt(self, row: Task) -> str:
        """Return the text of a task."""
        return row["prompt"]

    def solution_of(self, row: Task) -> str:
        """Return the response to learn from."""
        return self._gold(row) if self._gold else ""

    def answer_of(self, row: Task) -> str:
        """Return the final answer."""
        return self._answer(row) if self._answer else ""

    def score(self, rows: Sequence[Task], responses: Sequence[Tokens]) -> list[Score]:
        """Score responses, each to its row, one by one."""
        return [
            self._score_one(row, self.answer(response).strip()) for row, response in zip(rows, responses, strict=True)
        ]

    def _score_one(self, row: Task, answer: str) -> Score:
        given = self._score(row, answer)
        quality, feedback = given if isinstance(given, tuple) and len(given) == 2 else (given, "")
        if isinstance(quality, numbers.Real) and 0.0 <= float(quality) <= 1.0 and isinstance(feedback, str):
            return Score(float(quality), feedback)
        raise ContractError(
            f"the score of the task {row['prompt']!r:.60} is {given!r:.60} for the answer {answer!r:.60}; it should be a "
            "number in [0, 1], or a tuple of it and a text, the feedback"
        )

    def about(self, split: str) -> list[dict[str, str]]:
        """Return all columns of each task as text."""
        columns = [{name: str(value) for name, value in row.items() if name != "prompt"} for row in self.kept(split)[0]]
        return [{"request": row["prompt"]} | more for row, more in zip(self.kept(split)[0], columns, strict=True)]

    def demonstration(self, number: int, group_size: int) -> tuple[list[Tokens], int, list[str]]:
        """Return the pieces, mode and responses of one demonstration."""
        rows, requests = self.kept("train")
        place = number % len(rows)
        return [(), requests[place], (), ()], BASE, [self._gold(rows[place])] * group_size  # type: ignore[misc]


def text_domain(
    config: TextConfig,
    tasks: Callable[[str], Sequence[Task]],
    score: Callable[[Task, str], float | tuple[float, str]],
    gold: Callable[[Task], str] | None = None,
    name: str = "text",
    answer: Callable[[Task], str] | None = None,
) -> Domain:
    """Return the domain of prompts and a score, graded on the host.

    Args:
      config: the domain's settings; a class attribute ``splits`` names others than "train" and "test".
      tasks: split -> its tasks, mappings with "prompt", a text, and whatever else ``score`` needs; always the same ones.
      score: (task, final answer) -> quality in [0, 1], or (quality, feedback); the same for the same answer.
      gold: task -> a response to learn from in a warm start, and to show the beginning of; without it there is neither.
      answer: task -> its final answer, to be shown alone; without it there is none.

    Raises:
      DomainError: if the tokenizer cannot be had, or the prompts do not fit.
    """
    domain = TaskDomain(config, tasks, score, gold, answer)
    return Domain(
        **domain.fields(),
        name=name,
        about=domain.about,
        feedback=(lambda history: domain.texts_of(history, "feedback")) if config.max_feedback_tokens else None,
        demonstrations=domain.demonstrations if gold else None,
        demonstrations_id=settings_id(config) if gold else "",
    )
