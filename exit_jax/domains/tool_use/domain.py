"""Multi-turn tool use (ExIt §5): episodes as tokens, played in BFCL's world or in a tiny one, graded on the host.

How a conversation becomes histories, and an environment is brought to where one starts: text/transcripts.py. With
``stop_at_call`` a response ends where its first call does, else at its stop token.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from exit_jax.domains.domain import INVALID, VALID, Answer, Domain, settings_id
from exit_jax.domains.text.pieces import Tokens
from exit_jax.domains.tool_use.conversations import Conversations
from exit_jax.domains.tool_use.demonstrations import Demonstrations
from exit_jax.domains.tool_use.episode import Episode, Task, num_made
from exit_jax.domains.tool_use.parser import MARKERS, has_ending
from exit_jax.domains.tool_use.settings import NOT_TAUGHT, ToolsConfig
from exit_jax.domains.tool_use.starts import Starts

FIGURES = ("first_request", "requests_fulfilled", "share_fulfilled", "invalid_calls", "crashed", "turns")
OFFICIAL = "official"  # BFCL's own verdict, which the tiny world has not


class Tools(Conversations):
    """Episodes of the tasks: how they are played, and what they come to."""

    def asked(self, test: bool) -> dict[str, Any]:
        """Return how many requests are made."""
        c = self.config
        return {"num_requests": (c.test_num_requests if test else c.num_requests) or None}

    def limits(self, test: bool) -> dict[str, Any]:
        """Return the limits of an episode."""
        return super().limits(test) | self.asked(test)

    def step(self, pairs: Sequence[tuple[Episode, Tokens]], max_turns: int, num_requests: int | None):
        """Play a turn of each episode with a response's tokens."""
        texts = [(episode, self._text(response)) for episode, response in pairs]
        results = self.world.step_many(texts, max_turns, num_requests)
        return [
            (result.episode, self._answer(result.episode, response, has_ending(text)))
            for result, (_, response), (_, text) in zip(results, pairs, texts, strict=True)
        ]

    def _text(self, response: Tokens) -> str:
        """Return what a response says; the token in which its call ends may hold a bit more, which does not count."""
        text = self.answer(response)
        start, tag, _ = text.partition(MARKERS.call_end)
        return start + tag if self.config.stop_at_call else text

    def _answer(self, episode: Episode, response: Tokens, ended: bool) -> Answer:
        """Return what is said to the last response of an episode; the limit of turns is the caller's."""
        if episode.how in ("finished", "error"):
            return Answer((), VALID, ended)
        if episode.how in ("crashed", "mismatch"):
            return Answer((), INVALID, ended)
        turn = episode.turns[-1]
        stopped = not self.config.stop_at_call or (len(response) > 0 and int(response[-1]) in self.stop_tokens)
        return Answer(self.observation(turn.kind, turn.observation, stopped), None, ended)

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of what is reported of an episode."""
        return FIGURES if self.config.world == "tiny" else (*FIGURES, OFFICIAL)

    def figures(self, episode: Episode | None, num_requests: int | None) -> dict[str, float]:
        """Return what an episode came to; all 0 of None, which could not be begun."""
        if episode is None:
            return {"quality": 0.0} | dict.fromkeys(self.names, 0.0)
        task = self.world.tasks[episode.task_id]
        asked = num_made(episode, task, num_requests)
        first = float(bool(episode.verdicts) and episode.verdicts[0].success)
        share = episode.num_fulfilled / asked
        quality = first if self.config.quality == "first_request" else share
        values = {
            "first_request": first,
            "requests_fulfilled": episode.num_fulfilled,
            "share_fulfilled": share,
            OFFICIAL: sum(bool(verdict.official) for verdict in episode.verdicts) / asked,
            "invalid_calls": episode.num_invalid,
            "crashed": episode.how in ("crashed", "mismatch"),
            "turns": len(episode.turns),
        }
        return {"quality": quality} | {name: float(values[name]) for name in self.names}

    def start_at(self, task: Task, mark: int) -> Episode:
        """Return a new episode whose last requests are not made, as many as its start marks (starts.py)."""
        return dataclasses.replace(self.start(task), left_out=mark)

    def quality_of_children(self, episode: Episode | None, quality: float) -> float:
        """Return what an episode would have come to if all requests had been made."""
        if episode is None or not episode.left_out:
            return quality
        return self.figures(dataclasses.replace(episode, left_out=0), **self.asked(test=False))["quality"]

    def show(self, episode: Episode | None) -> str:
        """Return an episode as text for people."""
        return "" if episode is None else self.world.describe(episode)

    def difficulty(self, split: str) -> dict[str, np.ndarray]:
        """Return what results are broken down by: the number of requests, and for each API whether the task has it."""
        found = self.tasks_of(split)
        apis = sorted({api for name in self.config.splits for task in self.tasks_of(name) for api in task.apis})
        levels = {"requests": np.array([len(task.requests) for task in found])}
        return levels | {api: np.array([int(api in task.apis) for task in found]) for api in apis}

    def about(self, split: str) -> list[dict[str, str]]:
        """Return the requests of each task, and the calls that fulfil them."""
        gold = lambda calls: " ".join(f"{call.name}({json.dumps(dict(call.arguments))})" for call in calls)
        return [
            {"request": "\n".join(task.requests), "gold": "\n".join(map(gold, task.truth))}
            for task in self.tasks_of(split)
        ]


def make_domain(config: ToolsConfig) -> Domain:
    """Build the tool-use domain.

    Raises:
      DomainError: if BFCL or the tokenizer cannot be had, or the prompts do not fit.
    """
    tools = Tools(config)
    return Domain(
        **tools.fields(),
        **(Starts(tools).fields() if config.world == "tiny" else {}),
        name=config.world,
        difficulty=tools.difficulty,
        about=tools.about,
        demonstrations=Demonstrations(tools) if config.has_demonstrations else None,
        demonstrations_id=settings_id(config, NOT_TAUGHT),
    )
