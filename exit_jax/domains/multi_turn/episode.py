"""Tasks and episodes of an environment as pure data: texts, observations and rewards, and how an episode ended."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from exit_jax.domains.multi_turn.protocol import digest, key_after


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A row and how its conversation begins."""

    row: Mapping[str, Any]  # what ``reset`` is given
    opening: tuple[tuple[str, str], ...]  # (role, content) up to the first response; the last is the user's
    source: str  # name of the source: what results are broken down by
    place: str  # "file.jsonl:17", for messages

    @functools.cached_property
    def key(self) -> str:
        """The key of the state before the first response."""
        return digest([self.row, self.opening])

    @property
    def opening_id(self) -> str:
        """What the opening is recognised by when the task is begun again."""
        return digest(self.opening)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One response and what came of it."""

    text: str  # final answer of the response
    observation: str
    reward: float
    done: bool

    @property
    def plain(self) -> list[Any]:
        """The same as a JSON value."""
        return [self.text, self.observation, self.reward, self.done]


@dataclasses.dataclass(frozen=True)
class Episode:
    """What was done on a task, turn by turn. Its state is a function of it."""

    task: Task
    turns: tuple[Turn, ...] = ()
    how: str = ""  # it ended: done | turns (used up) | crashed | mismatch; "" while it runs

    @property
    def total(self) -> float:
        """The return: the sum of the rewards."""
        return math.fsum(turn.reward for turn in self.turns)

    @property
    def key(self) -> str:
        """The key of the state that it has led to."""
        return functools.reduce(lambda key, turn: key_after(key, turn.plain), self.turns, self.task.key)

    def before(self, turn: int) -> "Episode":
        """Return the episode as it was before this turn: what a partial history starts from."""
        if not 0 <= turn <= len(self.turns):
            raise ValueError(f"turn={turn} must be between 0 and {len(self.turns)}, the turns of the episode")
        return Episode(self.task, self.turns[:turn])

    def describe(self) -> str:
        """Return the episode as text for people."""
        lines = [f"{role}: {content}" for role, content in self.task.opening]
        for turn in self.turns:
            lines += [f"assistant: {turn.text}"]
            if turn.observation or not turn.done:
                lines.append(f"observed: {turn.observation}")
            if turn.reward:
                lines.append(f"reward: {turn.reward:g}")
        return "\n".join([*lines, f"ended: {self.how}, return {self.total:g}"] if self.how else lines)
