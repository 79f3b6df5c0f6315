"""Rollouts of several turns: a response is sampled, an environment answers on the host, and the same cache reads on.

A transcript is tokens from end to end, in the order in which they were sampled or observed: the policy's as they were sampled,
observations appended once. Its mask is True for the policy's alone, so that one pass of the learner over prompt and transcript
gives the log-probs that it was sampled with.

The prompts of a batch are split into lanes that take turns: while the environments of one lane are stepped, the device
samples for the others. Within a lane, a row waits for the slowest response and the slowest environment of one turn.
"""

import dataclasses
import itertools
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from exit_jax.algorithm.types import Array, Instances, Params, Rollouts
from exit_jax.domains.domain import Environment
from exit_jax.parallel import hosts
from exit_jax.policy.sampler import Reading

ENDS = ("valid", "invalid", "overlong_response", "overlong_transcript", "out_of_turns")  # why an episode was over
VALID, INVALID, OVERLONG_RESPONSE, OVERLONG_TRANSCRIPT, OUT_OF_TURNS = range(5)


@dataclasses.dataclass(frozen=True)
class TurnPrograms:
    """The parts of a turn, jitted; the last two may be given a reading to reuse."""

    start: Callable[[Params, Array, Array], Reading]  # (copy, prompt [b, P], its length [b])
    # (copy, reading, key, active [b, G], first logical row) -> rows with responses of up to M tokens
    generate: Callable[[Params, Reading, Array, Any, Any], tuple[Reading, Rollouts]]
    extend: Callable[[Params, Reading, Any, Any], Reading]  # (copy, reading, tokens [b, G, S], count [b, G])


@dataclasses.dataclass(frozen=True)
class Played:
    """A batch of episodes, in NumPy, the same on every host but for the episodes."""

    rollouts: Rollouts  # tokens [B, G, T]; finished where the episode came to a valid end
    end: np.ndarray  # int32 [B, G], of ENDS
    num_turns: np.ndarray  # int32 [B, G]: responses sampled
    episodes: list[Any]  # of the rows that this process owns, row by row
    rows: np.ndarray  # numbers of the prompts that this process owns


@dataclasses.dataclass
class Transcripts:
    """What the rows of a lane hold so far."""

    arrays: dict[str, np.ndarray]  # tokens, mask, logp, sampled_logp [b, G, T]; hidden [b, G, D], a sum
    length: np.ndarray  # int32 [b, G]
    num_turns: np.ndarray
    end: np.ndarray  # of ENDS, -1 while the episode goes on

    @classmethod
    def empty(cls, batch: int, group: int, width: int, hidden: int) -> "Transcripts":
        """Return transcripts without a token."""
        blank = lambda kind, *shape: np.zeros((batch, group, *shape), kind)
        kinds = {"tokens": np.int32, "mask": bool, "logp": np.float32, "sampled_logp": np.float32}
        arrays = {name: blank(kind, width) for name, kind in kinds.items()} | {"hidden": blank(np.float32, hidden)}
        return cls(arrays, blank(np.int32), blank(np.int32), blank(np.int32) - 1)

    def add_responses(self, sampled: Rollouts) -> None:
        """Append what rows have sampled; ``hidden`` of ``sampled`` is a mean, here it is a sum."""
        count = sampled.mask.sum(-1)
        for b, g in zip(*np.nonzero(count)):
            start, stop = self.length[b, g], self.length[b, g] + count[b, g]
            for name in ("tokens", "logp", "sampled_logp"):
                self.arrays[name][b, g, start:stop] = getattr(sampled, name)[b, g, : count[b, g]]
            self.arrays["mask"][b, g, start:stop] = True
        self.arrays["hidden"] += sampled.hidden * count[..., None]
        self.length += count
        self.num_turns += count > 0

    def add_observations(self, tokens: np.ndarray, count: np.ndarray) -> None:
        """Append the first ``count`` [b, G] of tokens [b, G, S], which are not the policy's."""
        for b, g in zip(*np.nonzero(count)):
            start = self.length[b, g]
            self.arrays["tokens"][b, g, start : start + count[b, g]] = tokens[b, g, : count[b, g]]
        self.length += count

    def finish(self) -> tuple[Rollouts, np.ndarray, np.ndarray]:
        """Return the rollouts, how their episodes ended, and their numbers of turns."""
        num_sampled = np.maximum(self.arrays["mask"].sum(-1, keepdims=True), 1)
        fields: dict[str, Any] = self.arrays | {
            "hidden": self.arrays["hidden"] / num_sampled,
            "finished": self.end == VALID,
        }
        return Rollouts(**fields), self.end, self.num_turns


def play(
    programs: TurnPrograms,
    environment: Environment,
    group_size: int,
    copy: Params,
    instances: Instances,
    key: Array,
    num_lanes: int = 2,
) -> Played:
    """Play G episodes from each of B instances, to their end or to a limit.

    An episode ends where its environment says so; where a response runs out of its own tokens, or a full response and its
    observation might no longer fit into the transcript; and after ``max_turns``. Only the first is ``finished``.
    """
    num_prompts = instances.prompt.shape[0]
    edges = np.linspace(0, num_prompts, min(num_lanes, num_prompts) + 1).astype(int)
    parts = [jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], instances) for a, b in itertools.pairwise(edges)]
    lanes = [
        _play_lane(programs, environment, group_size, copy, part, key, int(first)) for part, first in zip(parts, edges)
    ]
    played: list[Played | None] = [None] * len(lanes)
    while any(lane is None for lane in played):
        for index, lane in enumerate(lanes):
            if played[index] is None:
                try:
                    next(lane)
                except StopIteration as done:
                    played[index] = done.value
    whole = [lane for lane in played if lane is not None]
    join = lambda *leaves: np.concatenate(leaves)
    return Played(
        rollouts=jax.tree.map(join, *(lane.rollouts for lane in whole)),
        end=join(*(lane.end for lane in whole)),
        num_turns=join(*(lane.num_turns for lane in whole)),
        episodes=[episode for lane in whole for episode in lane.episodes],
        rows=np.concatenate([first + lane.rows for lane, first in zip(whole, edges)]),
    )


def _play_lane(
    programs: TurnPrograms,
    environment: Environment,
    group_size: int,
    copy: Params,
    instances: Instances,
    key: Array,
    first_prompt: int,
) -> Generator[None, None, Played]:
    """Play one lane; it yields whenever its next responses are being sampled, for other lanes to use the host."""
    own, numbers = hosts.local_rows(instances)
    episodes = environment.begin(own, group_size) if numbers.size else []
    reading = programs.start(copy, instances.prompt, instances.prompt_length)
    batch, transcripts = instances.prompt.shape[0], None
    active = np.ones((batch, group_size), bool)
    for turn in range(environment.max_turns):
        turn_key = jax.random.fold_in(key, turn)
        reading, sampled = programs.generate(copy, reading, turn_key, active, first_prompt * group_size)
        yield
        sampled = hosts.all_rows(sampled)
        if transcripts is None:
            shape = (batch, group_size, environment.max_transcript, sampled.hidden.shape[-1])
            transcripts = Transcripts.empty(*shape)
        transcripts.add_responses(sampled)
        transcripts.end[active & ~sampled.finished] = OVERLONG_RESPONSE
        spoke = active & sampled.finished
        observed, count, end = hosts.exchange_rows(
            _answer(environment, episodes, sampled.tokens[numbers], sampled.mask[numbers], spoke[numbers]),
            numbers,
            batch,
        )
        transcripts.end[spoke] = end[spoke]
        active = spoke & (end < 0)
        room = environment.max_transcript - transcripts.length - count
        cramped = active & (room < sampled.tokens.shape[-1])
        transcripts.end[cramped] = OVERLONG_TRANSCRIPT
        active &= ~cramped
        if turn + 1 == environment.max_turns:
            transcripts.end[active] = OUT_OF_TURNS
            break
        if not active.any():
            break
        count = np.where(active, count, 0)
        transcripts.add_observations(observed, count)
        width = min(1 << int(max(count.max() - 1, 15)).bit_length(), observed.shape[-1])  # few widths, few programs
        reading = programs.extend(copy, reading, observed[..., :width], count)
    assert transcripts is not None, "max_turns is at least 1"
    rollouts, end, num_turns = transcripts.finish()
    return Played(rollouts, end, num_turns, episodes, numbers)


def _answer(
    environment: Environment, episodes: list[Any], tokens, mask, spoke
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step the episodes, in place, whose rows [b, G] spoke: observations [b, G, S], their lengths, and ends (-1: none)."""
    shape = spoke.shape
    observed = np.zeros((*shape, environment.max_observation), np.int32)
    count, end = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    rows = np.flatnonzero(spoke)
    flat = tokens.reshape(-1, tokens.shape[-1]), mask.reshape(-1, mask.shape[-1])
    stepped = environment.step([(episodes[row], flat[0][row][flat[1][row]]) for row in rows]) if rows.size else []
    for row, (episode, answer) in zip(rows, stepped, strict=True):
        episodes[row] = episode
        at = np.unravel_index(row, shape)
        if answer.ended:
            end[at] = VALID if answer.valid else INVALID
        else:
            seen = list(answer.observation)[: environment.max_observation]
            observed[at][: len(seen)], count[at] = seen, len(seen)
    return observed, count, end
