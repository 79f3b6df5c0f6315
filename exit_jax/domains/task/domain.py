"""Tasks of your own: prompts from anywhere, rewards in Python, with ExIt around them (docs/your_own_task.md).

A history's context holds the conversation up to the last message of a row (system message, few-shot turns), its request the
text of that message, its solution the final answer of a response.
"""

import functools
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from exit_jax.algorithm.gold import Gold
from exit_jax.algorithm.prompts import Template
from exit_jax.domains.domain import Domain, DomainError, settings_id
from exit_jax.domains.task import left_out, rows
from exit_jax.domains.task.rewards import Rewards
from exit_jax.domains.task.rows import Row
from exit_jax.domains.task.settings import TaskConfig
from exit_jax.domains.task.sources import near
from exit_jax.domains.text import chat
from exit_jax.domains.text.pieces import Tokens
from exit_jax.domains.text.scored import Score, ScoredDomain
from exit_jax.errors import UserError
from exit_jax.types import BASE, History

log = logging.getLogger(__name__)

REQUEST = "{request}"
NOT_TAUGHT = ("data_dir", "difficulty_column", "answer_column")  # settings that demonstrations do not depend on
TRIAL = ("1", "yes", "a", "I do not know.")  # completions that rewards are tried on


class Task(ScoredDomain):
    """The rows of a config, their tokens and their rewards; each is made when first asked for."""

    config: TaskConfig

    @functools.cached_property
    def table(self) -> rows.Rows:
        """The rows of all splits, and what was left out of them."""
        table = rows.load(self.config)
        left_out.write_left_out(self.data_dir, table.left_out)
        if self.config.difficulty_column:
            for split in table.splits.values():
                difficulties(split, self.config.difficulty_column)  # raises before anything is compiled
        if table.left_out:
            log.warning("%s; listed in %s", table.account().splitlines()[-1], self.data_dir / left_out.FILE)
        return table

    @functools.cached_property
    def rewards(self) -> Rewards:
        """The reward functions, checked against the columns that every row has."""
        columns = set.intersection(*({*row.columns} for row in self._all_rows))
        return Rewards(self.config, self.data_dir / "ungraded.jsonl", columns)

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of what scores report."""
        return self.rewards.notes

    @property
    def data_dir(self) -> pathlib.Path:
        """The folder for the lists of what was left out and what could not be graded."""
        return pathlib.Path(self.config.data_dir).expanduser().absolute()

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        return tuple(self.table.splits)

    def rows(self, split: str) -> Sequence[Row]:
        """Return all rows of a split.

        Raises:
          DomainError: it has none; only rows tell whether a column says "validation".
        """
        if split not in self.splits:
            raise DomainError(f"no row says that it is of the split {split!r}; there are {', '.join(self.splits)}")
        return self.table.splits[split]

    def prompt(self, row: Row) -> str:
        """Return the text of a row's last message."""
        return row.prompt

    def tasks(self, split: str) -> History:
        """Return the base tasks of a split, in NumPy, once the rewards have been tried on the first of them."""
        self.try_rewards(split)
        return super().tasks(split)

    @functools.lru_cache  # noqa: B019
    def try_rewards(self, split: str) -> None:
        """Raise DomainError if a reward fails on all of a few completions to the first tasks of a split."""
        found = self.kept(split)[0][: len(TRIAL)]
        texts = TRIAL[: len(found)]
        self.rewards.try_out(found, texts, [self.encode(text) for text in texts])

    def left_out(self, found: Sequence[Row], too_long: np.ndarray) -> None:
        """List the rows that are not trained on since they are too long."""
        reason = f"longer than domain.max_request_tokens = {self.config.max_request_tokens}"
        beyond = [row for row, is_out in zip(found, too_long, strict=True) if is_out]
        left_out.append_left_out(self.data_dir, [left_out.entry(row.place, reason, row.prompt) for row in beyond])

    # Prompts

    @property
    def max_piece_tokens(self) -> dict[str, int]:
        """The tokens that each piece may have."""
        return {"context": self.max_context_tokens} | super().max_piece_tokens

    @functools.cached_property
    def max_context_tokens(self) -> int:
        """Tokens of the longest context: what the config says, or else what the rows take."""
        longest = (len(self.context(row)) for split in self.splits for row in self.rows(split))
        return self.config.max_context_tokens or max(longest)

    def context(self, row: Row) -> Tokens:
        """Return the tokens of a row's conversation up to the text of its last message."""
        return self._context(self._messages(row))

    def _messages(self, row: Row) -> tuple[tuple[str, str], ...]:
        """Return what precedes the last message, with ``domain.system`` where the row has no system message of its own."""
        has_system = any(role == "system" for role, _ in row.messages)
        system = () if has_system or not self.config.system else (("system", self.config.system),)
        return (*system, *row.messages)

    @functools.lru_cache(maxsize=1 << 16)  # noqa: B019 (a domain lives as long as its process)
    def _context(self, messages: tuple[tuple[str, str], ...]) -> Tokens:
        opening = self._opening(tuple(role for role, _ in messages))[0]
        contents = {f"message{i}": self.encode(content.strip()) for i, (_, content) in enumerate(messages)}
        return tuple(chat.splice(opening, contents))

    @functools.lru_cache  # noqa: B019
    def _opening(self, roles: tuple[str, ...]) -> tuple[Template, Template]:
        """Return what precedes and what follows the text of the last message, after messages of these roles."""
        names = [f"message{i}" for i in range(len(roles))]
        messages = [{"role": role, "content": f"{{{name}}}"} for role, name in zip(roles, names, strict=True)]
        try:
            template = chat.cut(
                self.tokenizer,
                [*messages, {"role": "user", "content": REQUEST}],
                self.inputs,
                pieces=(*names, "request"),
            )
        except UserError as error:
            raise DomainError(f"prompts of the roles {', '.join((*roles, 'user'))}: {error}") from error
        at = template.index("request")
        return template[:at], template[at + 1 :]

    @functools.cached_property
    def _cut(self) -> Mapping[str, Template]:
        """The prompts of all modes: the context, the words and pieces of the mode's message, and the turn of the response."""
        endings = {self._opening(tuple(role for role, _ in self._messages(row)))[1] for row in self._all_rows}
        if len(endings) > 1:
            raise DomainError(
                "the chat template closes the last message in different ways, depending on the roles before it; "
                "give all rows a system message, or none"
            )
        (ending,) = endings
        return {mode: ("context", *self._words(mode), *ending) for mode in self.modes}

    @property
    def _all_rows(self) -> list[Row]:
        return [row for split in self.splits for row in self.rows(split)]

    def _words(self, mode: str) -> Template:
        """Return the user's message in a mode as token pieces."""
        try:
            message = {"role": "user", "content": self.message(mode).strip()}
            parts = chat.parse(message, 0, tuple(self.max_piece_tokens))
        except UserError as error:
            raise DomainError(f"domain.{mode}: {error}") from error
        words = [item for text, name in parts for item in (self.encode(text), name)]
        return tuple(item for item in words if item)

    # Gold

    @property
    def has_solutions(self) -> bool:  # type: ignore[override]
        """Whether a column has responses to learn from."""
        return bool(self.config.gold_column)

    @property
    def has_answers(self) -> bool:  # type: ignore[override]
        """Whether a column has final answers."""
        return bool(self.config.answer_column)

    def solution_of(self, row: Row) -> str:
        """Return the response to learn from that a row has, "" for none."""
        return text_of(row, self.config.gold_column)

    def answer_of(self, row: Row) -> str:
        """Return the final answer that a row has, "" for none."""
        return text_of(row, self.config.answer_column)

    def gold_of(self, split: str) -> Gold:
        """Return the gold solutions and answers of a split's tasks, in NumPy.

        Raises:
          DomainError: if no row has a column that is named for them.
        """
        for name in ("gold_column", "answer_column"):
            if getattr(self.config, name):
                require_column(self.kept(split)[0], f"domain.{name}", getattr(self.config, name), split)
        return super().gold_of(split)

    # Scores

    def score(self, found: Sequence[Row], responses: Sequence[Tokens]) -> list[Score]:
        """Score responses, each to its row."""
        return self.rewards.score(found, [self.answer(response).strip() for response in responses], responses)

    def answers(self, history: History) -> list[str]:
        """Return the answer that histories [n] hold, as their rewards tell it."""
        found = [self.row_of(int(task)) for task in history.task]
        return [score.answer for score in self.rewards.score(found, self.texts_of(history, "solution"))]

    def about(self, split: str) -> list[dict[str, str]]:
        """Return all columns of each task as text."""
        return [
            {"request": row.prompt, "source": row.source} | {name: str(value) for name, value in row.columns.items()}
            for row in self.kept(split)[0]
        ]

    def category(self, split: str) -> dict[str, list[str]]:
        """Return the source of each task, where there are several."""
        sources = [row.source for row in self.kept(split)[0]]
        return {"source": sources} if len(set(sources)) > 1 else {}

    def difficulty(self, split: str) -> dict[str, np.ndarray]:
        """Return the numbers of the column that results are broken down by, if one is named."""
        column = self.config.difficulty_column
        return {column: difficulties(self.kept(split)[0], column)} if column else {}

    # Demonstrations

    @functools.cached_property
    def _taught(self) -> list[tuple[Row, Tokens]]:
        """The rows with a response to learn from that fits, and their requests."""
        column, room = self.config.gold_column, self.config.max_tokens
        pairs = [*zip(*self.kept("train"), strict=True)]
        require_column([row for row, _ in pairs], "domain.gold_column", column)
        taught = [pair for pair in pairs if self.solution_of(pair[0])]
        fit = [pair for pair in taught if len(self.demonstrate(self.solution_of(pair[0]))) <= room]
        if not fit:
            raise DomainError(
                f"no training row has a response in its column {column!r} that fits into domain.max_tokens = {room}; raise it, "
                "or set warm_start.num_steps to 0"
            )
        return fit

    def demonstration(self, number: int, group_size: int) -> tuple[list[Tokens], int, list[str]]:
        """Return the pieces, mode and responses of one demonstration."""
        row, request = self._taught[number % len(self._taught)]
        return [self.context(row), request, (), ()], BASE, [self.solution_of(row)] * group_size


def text_of(row: Row, column: str) -> str:
    """Return what a row has in a column as text, "" for nothing."""
    value = row.columns.get(column)
    return "" if value is None else str(value).strip()


def require_column(found: Sequence[Row], setting: str, column: str, split: str = "training") -> None:
    """Raise DomainError unless a row has the column that a setting names."""
    columns = {name for row in found for name in row.columns}
    if column not in columns:
        raise DomainError(
            f"no {split} row has the column {setting} = {column!r}; there are "
            f"{', '.join(sorted(columns)) or 'none'}{near(column, columns)}"
        )


def difficulties(found: Sequence[Row], column: str) -> np.ndarray:
    """Return the number that each row has in a column: int32 [M] where all are whole, else float64.

    Raises:
      DomainError: naming the first row that has none.
    """
    for row in found:
        value = row.columns.get(column)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            has = f"is {value!r:.60}" if column in row.columns else f"is missing{near(column, row.columns)}"
            raise DomainError(
                f"domain.difficulty_column = {column!r} {has} in {row.place}; each row, of all splits, needs a finite number "
                'there, or set domain.difficulty_column to ""'
            )
    values = np.array([row.columns[column] for row in found], np.float64)
    is_whole = (values == np.round(values)).all() and np.abs(values).max(initial=0.0) < 1 << 31
    return values.astype(np.int32) if is_whole else values


def make_domain(config: TaskConfig) -> Domain:
    """Build the domain of a user's own rows and rewards.

    Raises:
      UserError: if rows or rewards cannot be had, the tokenizer cannot, or the prompts do not fit.
    """
    task = Task(config)
    return Domain(
        **task.fields(),
        name="task",
        about=task.about,
        category=task.category,
        difficulty=task.difficulty,
        answers=task.answers if config.votes else None,
        feedback=(lambda history: task.texts_of(history, "feedback")) if config.max_feedback_tokens else None,
        demonstrations=task.demonstrations if config.gold_column else None,
        demonstrations_id=settings_id(config, NOT_TAUGHT) if config.gold_column else "",
        files=lambda: {**task.table.files, **task.rewards.files},
    )
