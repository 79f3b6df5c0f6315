"""Demonstrations of tool use: the tiny world's expert, who errs, plays from where histories stand."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from exit_jax.domains.text.pieces import pack
from exit_jax.domains.tool_use.episode import Episode, Task
from exit_jax.domains.tool_use.tiny import expert
from exit_jax.types import BASE, DIVERGE, IMPROVE, Array, History

if TYPE_CHECKING:
    from exit_jax.domains.tool_use.domain import Tools


class Demonstrations:
    """Batches of demonstrations, as ``Domain`` wants them."""

    def __init__(self, tools: "Tools"):
        self.tools, self.config = tools, tools.config

    def __call__(self, key: Array, step: Array, count: int, group_size: int) -> tuple[History, Any, Any, Any]:
        """Return a batch of demonstrations, as ``Domain`` wants them; no two are alike.

        Half are episodes from the start; the others improve on, or diverge from, a response in the midst of one, and play on.
        """
        c, found = self.config, self.tools.tasks_of("train")
        seed = int(jax.device_get(jax.random.key_data(key))[-1])
        pieces, turn = [], []
        mode = np.zeros(count, np.int32)
        tokens: Any = np.zeros((count, group_size, c.max_transcript_tokens), np.int32)
        mask: Any = np.zeros(tokens.shape, bool)
        for i in range(count):
            number = int(step) * count + i
            rng = np.random.default_rng([c.data_seed, seed, number])
            task: Any = found[rng.integers(len(found))]
            start, held, mode[i] = self._held(task, rng)
            context = self._context(task, start[1])
            if len(context) > c.max_context_tokens:
                start, held, mode[i] = (Episode(task.id), []), "", BASE
                context = self._context(task, [])
            pieces.append((context, self.tools.request(start[0]), self.tools.encode(held), ()))
            turn.append(len(start[1]))
            for g in range(group_size):
                first = self._better(start[0], held, task, int(mode[i]), rng)
                responses = expert.demonstrate(task, c.demo_noise, rng, c.max_turns, start=start[0], first=first)
                transcript, own = self.transcript(start[0], responses)
                tokens[i, g, : len(transcript)], mask[i, g, : len(own)] = transcript, own
        history = pack(pieces, self.tools.width, task=0, turn=turn, step=np.where(mode == BASE, -1, 0))
        return history, mode, tokens, mask

    def _held(self, task: Any, rng: np.random.Generator) -> tuple[tuple[Episode, list[str]], str, int]:
        """Draw where a demonstration starts: an episode and its responses, the response that is held, and the mode."""
        mode = int(rng.choice((BASE, IMPROVE, DIVERGE), p=(0.5, 0.35, 0.15)))
        if mode == BASE:
            return (Episode(task.id), []), "", mode
        c = self.config
        played = expert.demonstrate(task, c.demo_noise, rng, c.max_turns)
        turn = int(rng.integers(len(played)))
        episode = Episode(task.id)
        for response in played[:turn]:
            episode = self.tools.world.step(episode, response, c.max_turns, c.num_requests or None).episode
        held = played[turn]
        if rng.random() < c.demo_noise:
            held = expert.spoil(held, task, rng)
        return (episode, played[:turn]), held, mode

    def _better(self, episode: Episode, held: str, task: Any, mode: int, rng: np.random.Generator) -> str:
        """Return the response that a demonstration of a mode begins with; "" leaves it open."""
        if mode == BASE:
            return ""
        answer = expert.improve if mode == IMPROVE else expert.diverge
        return answer(episode, held, task, self.config.demo_noise, rng)

    def _context(self, task: Task, responses: Sequence[str]) -> list[int]:
        """Return the tokens of a conversation with these responses."""
        episode, context = Episode(task.id), list(self.tools.head(task.id))
        for response in responses:
            tokens = self.tools.demonstrate(response)
            ((episode, answer),) = self.tools.step(
                [(episode, tokens)], self.config.max_turns, self.config.num_requests or None
            )
            context += [*self.tools.generation_prompt, *tokens, *answer.observation]
        return context

    def transcript(self, episode: Episode, responses: Sequence[str]) -> tuple[list[int], list[bool]]:
        """Return the tokens of responses and of what is observed between them, as far as they fit, and which are responses."""
        tokens: list[int] = []
        own: list[bool] = []
        for response in responses:
            spoken = self.tools.demonstrate(response)[: self.config.max_tokens]
            if len(tokens) + len(spoken) > self.config.max_transcript_tokens:
                break
            tokens, own = tokens + spoken, own + [True] * len(spoken)
            ((episode, answer),) = self.tools.step(
                [(episode, spoken)], self.config.max_turns, self.config.num_requests or None
            )
            if answer.end is not None or episode.ended:
                break
            observed = [*answer.observation, *self.tools.generation_prompt]
            tokens, own = tokens + observed, own + [False] * len(observed)
        return tokens[: self.config.max_transcript_tokens], own[: self.config.max_transcript_tokens]
