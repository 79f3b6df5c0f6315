"""Environments of several turns, your own or others', with ExIt around them (docs/your_own_task.md).

A history's context holds the conversation up to a turn, its request the last message of the opening, its solution the final
answer of the response to that turn. What an environment is: protocol.py; how conversations become histories:
text/transcripts.py.
"""

import functools
from collections.abc import Sequence
from typing import Any

from exit_jax.algorithm.prompts import Template
from exit_jax.domains.domain import INVALID, VALID, Answer, Domain, DomainError
from exit_jax.domains.multi_turn import openings
from exit_jax.domains.multi_turn.episode import Episode, Task
from exit_jax.domains.multi_turn.openings import Opened
from exit_jax.domains.multi_turn.settings import MultiTurnConfig
from exit_jax.domains.text import chat, tokenizer
from exit_jax.domains.text.pieces import Tokens
from exit_jax.domains.text.transcripts import TranscriptDomain
from exit_jax.errors import UserError

FIGURES = ("return", "turns", "done", "crashed", "out_of_range", "truncated")
ROUNDING = 1e-6  # share of the range by which a sum of rewards may miss its ends


class MultiTurn(TranscriptDomain):
    """The tasks of a config, their tokens and their environment; each is made when first asked for."""

    config: MultiTurnConfig
    names = FIGURES

    def __init__(self, config: MultiTurnConfig):
        super().__init__(config)
        self.opening = functools.cache(self._opening)
        self.head = functools.lru_cache(1 << 16)(self._head)

    @functools.cached_property
    def opened(self) -> Opened:
        """The tasks with their openings, and the processes that play them."""
        return openings.load(self.config)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return tokenizer.load(self.config.tokenizer) if self.config.tokenizer else tokenizer.of_bytes()

    # Tasks

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        return tuple(self.opened.splits)

    def _candidates(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split, those that are too long included.

        Raises:
          DomainError: it has none.
        """
        if split not in self.splits:
            raise DomainError(f"no row says that it is of the split {split!r}; there are {', '.join(self.splits)}")
        return self.opened.splits[split]

    def start(self, task: Task) -> Episode:
        """Return a new episode."""
        return Episode(task)

    def longest_request(self, task: Task) -> int:
        """Return 0: a request is only quoted, and loses its middle where it is too long."""
        return 0

    def request(self, episode: Episode) -> Tokens:
        """Return the tokens of the last message of the opening."""
        tokens = self.encode(episode.task.opening[-1][1])
        return chat.shorten(self.tokenizer, tokens, self.config.max_request_tokens, "middle")[0]

    def about(self, split: str) -> list[dict[str, str]]:
        """Return the last message and all columns of each task as text."""
        return [
            {"request": task.opening[-1][1], "source": task.source}
            | {name: str(value) for name, value in task.row.items()}
            for task in self.tasks_of(split)
        ]

    def category(self, split: str) -> dict[str, list[str]]:
        """Return the source of each task, where there are several."""
        sources = [task.source for task in self.tasks_of(split)]
        return {"source": sources} if len(set(sources)) > 1 else {}

    # Tokens

    def max_turns(self, test: bool) -> int:
        """Return the turns of an episode."""
        return (self.config.test_max_turns if test else 0) or self.config.max_turns

    def max_transcript(self, test: bool) -> int:
        """Return the tokens of an episode."""
        return (self.config.test_max_transcript_tokens if test else 0) or self.config.max_transcript_tokens

    @functools.cached_property
    def max_piece_tokens(self) -> dict[str, int]:  # type: ignore[override]
        """The tokens that each piece may have."""
        c = self.config
        tasks = [task for split in self.splits for task in self.candidates(split)]
        longest = max(len(self.head_of(task)) for task in tasks) + len(self.generation_prompt)
        return {
            "context": c.max_context_tokens or longest + c.max_transcript_tokens,
            "request": c.max_request_tokens,
            "solution": c.max_solution_tokens or c.max_tokens,
        }

    @property
    def prompt_width(self) -> int:
        """Tokens of the longest prompt: what the config says, or else what the prompts take."""
        return self.config.prompt_width or max(self.widths.values())

    def head_of(self, task: Task) -> tuple[int, ...]:
        """Return the tokens of a conversation up to its first response, with ``domain.system`` if it has no such message."""
        has_system = task.opening[0][0] == "system" or not self.config.system
        return self.head(task.opening if has_system else (("system", self.config.system), *task.opening))

    def _head(self, messages: tuple[tuple[str, str], ...]) -> tuple[int, ...]:
        opening = self.opening(tuple(role for role, _ in messages))
        contents = {f"message{i}": self.encode(content) for i, (_, content) in enumerate(messages)}
        return tuple(chat.splice(opening, contents))

    def _opening(self, roles: tuple[str, ...]) -> Template:
        """Return a conversation of these roles as token pieces, up to where a response is asked for."""
        names = [f"message{i}" for i in range(len(roles))]
        messages = [{"role": role, "content": f"{{{name}}}"} for role, name in zip(roles, names, strict=True)]
        try:
            cut = functools.partial(chat.cut, self.tokenizer, messages, self.inputs, pieces=names)
            closed, asked = cut(add_generation_prompt=False), cut()
        except UserError as error:
            raise DomainError(f"openings of the roles {', '.join(roles)}: {error}") from error
        if chat.splice(asked, dict.fromkeys(names, ())) != [
            *chat.splice(closed, dict.fromkeys(names, ())),
            *self.generation_prompt,
        ]:
            raise DomainError(
                f"openings of the roles {', '.join(roles)}: the chat template asks for a response in another way than after a "
                "user's message alone; let reset return other messages"
            )
        return closed

    # Episodes

    def step(self, pairs: Sequence[tuple[Episode, Tokens]], max_turns: int) -> list[tuple[Episode, Answer]]:
        """Play a turn of each episode with a response's tokens."""
        texts = [(episode, self.answer(response).strip()) for episode, response in pairs]
        return [(episode, self._answer(episode)) for episode in self.opened.world.step_many(texts, max_turns)]

    def _answer(self, episode: Episode) -> Answer:
        """Return what is said to the last response of an episode; the limit of turns is the caller's."""
        if episode.how in ("crashed", "mismatch"):
            return Answer((), INVALID)
        if episode.how == "done":
            return Answer((), VALID)
        return Answer(self.observed(episode.turns[-1].observation, self.config.observation_role)[0])

    def share(self, episode: Episode) -> float:
        """Return where the return lies between the worst, 0, and the best, 1; it may be outside."""
        worst, best = self.config.reward_range
        return (episode.total - worst) / (best - worst)

    def is_in_range(self, episode: Episode) -> bool:
        """Return whether the return lies between the worst and the best."""
        return -ROUNDING <= self.share(episode) <= 1.0 + ROUNDING

    def is_valid(self, episode: Episode | None) -> bool:
        """Return whether an episode tells something of the policy."""
        return episode is not None and episode.how not in ("crashed", "mismatch") and self.is_in_range(episode)

    def figures(self, episode: Episode | None) -> dict[str, float]:
        """Return what an episode came to; all 0 of None, which could not be begun."""
        if episode is None:
            return {"quality": 0.0} | dict.fromkeys(FIGURES, 0.0)
        shown = [turn.observation for turn in episode.turns if not turn.done]
        values = {
            "return": episode.total,
            "turns": len(episode.turns),
            "done": episode.how == "done",
            "crashed": episode.how in ("crashed", "mismatch"),
            "out_of_range": not self.is_in_range(episode),
            "truncated": any(self.observed(text, self.config.observation_role)[1] for text in shown),
        }
        quality = min(max(self.share(episode), 0.0), 1.0) if self.is_valid(episode) else 0.0
        return {"quality": quality} | {name: float(value) for name, value in values.items()}

    def show(self, episode: Episode | None) -> str:
        """Return an episode as text for people."""
        return "" if episode is None else episode.describe()

    def require_room(self) -> None:
        """Raise DomainError unless some of an observation fits."""
        frame, room = len(self.observed("", self.config.observation_role)[0]), self.config.max_observation_tokens
        if frame >= room:
            raise DomainError(
                f"domain.max_observation_tokens = {room} leaves no room beside the {frame} tokens that the chat template puts "
                "around an observation; raise it"
            )


def make_domain(config: MultiTurnConfig) -> Domain:
    """Build the domain of an environment of several turns.

    Raises:
      UserError: the environment, its tasks or the tokenizer cannot be had, or the prompts do not fit.
    """
    turns = MultiTurn(config)
    turns.require_room()
    return Domain(
        **turns.fields(),
        name="multi_turn",
        about=turns.about,
        category=turns.category,
        files=lambda: turns.opened.files,
    )
