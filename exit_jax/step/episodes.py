"""Rollouts of several turns: a response is sampled, an environment answers on the host, and the same cache reads on.

A transcript is tokens from end to end, in the order in which they were sampled or observed: the policy's as they were sampled,
observations appended once. Its mask is True for the policy's alone, so that one pass of the learner over prompt and transcript
gives the log-probs that it was sampled with.

The prompts of a batch are split into lanes that take turns: while the environments of one lane are stepped, the device
samples for the others. Within a lane, a row waits for the slowest response and the slowest environment of one turn.

Training plays a turn once (``play``). At inference the policy improves each turn's response K times before the last iterate
is executed (``play_steps``, ExIt §2.1).
"""

import concurrent.futures
import dataclasses
import itertools
import logging
import time
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from exit_jax.domains.domain import (
    INVALID,
    LOST,
    OUT_OF_TURNS,
    OVERLONG_RESPONSE,
    OVERLONG_TRANSCRIPT,
    VALID,
    Answer,
    Environment,
)
from exit_jax.errors import UserError
from exit_jax.parallel import hosts
from exit_jax.step.finite import require_finite
from exit_jax.step.turns import TurnPrograms
from exit_jax.types import Array, History, Instances, Params, Rollouts

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Played:
    """A batch of episodes, in NumPy, the same on every host but for the episodes."""

    rollouts: Rollouts  # tokens [B, G, T]; finished where the episode came to a valid end
    end: np.ndarray  # int32 [B, G]: index in ENDS
    num_turns: np.ndarray  # int32 [B, G]: responses sampled
    episodes: list[Any]  # episodes of the rows that this process owns, row by row; None for one that is lost
    rows: np.ndarray  # numbers of the prompts that this process owns
    failed: bool  # whether the environment failed as a whole on this host
    idle_secs: float = 0.0  # time without work for the devices, since all lanes waited for their environments


@dataclasses.dataclass
class Transcripts:
    """What the rows of a lane hold so far."""

    arrays: dict[str, np.ndarray]  # tokens, mask, ended, logp, sampled_logp [b, G, T]; hidden [b, G, D], a sum
    length: np.ndarray  # int32 [b, G]
    num_turns: np.ndarray
    end: np.ndarray  # one of ENDS, -1 while the episode goes on

    @classmethod
    def empty(cls, batch: int, group: int, width: int, hidden: int) -> "Transcripts":
        """Return transcripts without a token."""
        blank = lambda kind, *shape: np.zeros((batch, group, *shape), kind)
        kinds = {"tokens": np.int32, "mask": bool, "ended": bool, "logp": np.float32, "sampled_logp": np.float32}
        arrays = {name: blank(kind, width) for name, kind in kinds.items()} | {"hidden": blank(np.float32, hidden)}
        return cls(arrays, blank(np.int32), blank(np.int32), blank(np.int32) - 1)

    def add_responses(self, sampled: Rollouts, ended: np.ndarray) -> None:
        """Append what rows have sampled, which has a valid ending where ``ended`` [b, G] says so.

        ``hidden`` of ``sampled`` is a mean, here it is a sum.
        """
        count = sampled.mask.sum(-1)
        for b, g in zip(*np.nonzero(count)):
            start, stop = self.length[b, g], self.length[b, g] + count[b, g]
            for name in ("tokens", "logp", "sampled_logp"):
                self.arrays[name][b, g, start:stop] = getattr(sampled, name)[b, g, : count[b, g]]
            self.arrays["mask"][b, g, start:stop] = True
            self.arrays["ended"][b, g, start:stop] = ended[b, g]
        self.arrays["hidden"] += sampled.hidden * count[..., None]
        self.length += count
        self.num_turns += count > 0

    def add_observations(self, tokens: np.ndarray, count: np.ndarray) -> None:
        """Append the first ``count`` [b, G] of tokens [b, G, S], which are not the policy's."""
        for b, g in zip(*np.nonzero(count)):
            start = self.length[b, g]
            self.arrays["tokens"][b, g, start : start + count[b, g]] = tokens[b, g, : count[b, g]]
        self.length += count

    def finish(self, by_response: bool) -> tuple[Rollouts, np.ndarray, np.ndarray]:
        """Return the rollouts, how their episodes ended, and their numbers of turns.

        An environment that failed, or a call that it did not survive, tells nothing of any response of the episode.
        """
        usable = ~np.isin(self.end, (INVALID, LOST))[..., None]
        num_sampled = np.maximum(self.arrays["mask"].sum(-1, keepdims=True), 1)
        fields: dict[str, Any] = self.arrays | {
            "hidden": (self.arrays["hidden"] / num_sampled).astype(np.float32),
            "finished": self.end == VALID,
            "ended": self.arrays["ended"] & usable if by_response else None,
        }
        return Rollouts(**fields), self.end, self.num_turns


class IdleClock:
    """Measures for how long the devices have nothing to do between one thing that is given to them and the next."""

    def __init__(self):
        self.idle_secs, self._pool = 0.0, concurrent.futures.ThreadPoolExecutor(1)
        self._done: concurrent.futures.Future | None = None

    def given(self, arrays: Any) -> None:
        """Note that the devices begin to make ``arrays``."""
        if self._done is not None and self._done.done():
            self.idle_secs += time.monotonic() - self._done.result()
        self._done = self._pool.submit(lambda: (jax.block_until_ready(arrays), time.monotonic())[1])

    def close(self) -> None:
        self._pool.shutdown(wait=True)


def play(
    programs: TurnPrograms,
    environment: Environment,
    group_size: int,
    sampler_params: Params,
    instances: Instances,
    key: Array,
    num_lanes: int,
) -> Played:
    """Play G episodes from each of B instances, to their end or to a limit.

    An episode ends where its environment says so; where a response runs out of its own tokens, or a full response might no
    longer fit into the transcript; and after ``max_turns``, of which those before the instance's own count. Only the first
    is ``finished``. An instance whose environment cannot be brought about is lost: nothing is sampled for it.
    """
    num_prompts = instances.prompt.shape[0]
    edges = np.linspace(0, num_prompts, min(num_lanes, num_prompts) + 1).astype(int)
    clock = IdleClock()
    lanes = [
        _play_lane(programs, environment, group_size, sampler_params, programs.part(instances, a, b - a), key, a, clock)
        for a, b in itertools.pairwise(edges.tolist())
    ]
    played: list[Played | None] = [None] * len(lanes)
    while any(lane is None for lane in played):
        for index, lane in enumerate(lanes):
            if played[index] is None:
                try:
                    next(lane)
                except StopIteration as done:
                    played[index] = done.value
    clock.close()
    whole = [lane for lane in played if lane is not None]
    join = lambda *leaves: np.concatenate(leaves)
    return Played(
        rollouts=jax.tree.map(join, *(lane.rollouts for lane in whole)),
        end=join(*(lane.end for lane in whole)),
        num_turns=join(*(lane.num_turns for lane in whole)),
        episodes=[episode for lane in whole for episode in lane.episodes],
        rows=np.concatenate([first + lane.rows for lane, first in zip(whole, edges)]),
        failed=any(lane.failed for lane in whole),
        idle_secs=clock.idle_secs,
    )


def _play_lane(
    programs: TurnPrograms,
    environment: Environment,
    group_size: int,
    sampler_params: Params,
    instances: Instances,
    key: Array,
    first_prompt: int,
    clock: IdleClock,
) -> Generator[None, None, Played]:
    """Play one lane; it yields whenever its next responses are being sampled, for other lanes to use the host."""
    cursor = programs.start(sampler_params, instances.prompt, instances.prompt_length)
    own, numbers = hosts.local_rows(instances.history)
    batch = instances.prompt.shape[0]
    episodes, lost, failed = _begin(environment, own, group_size, numbers, batch)
    transcripts = Transcripts.empty(batch, group_size, environment.max_transcript, cursor.hidden.shape[-1])
    transcripts.end[lost] = LOST
    turns_left = environment.max_turns - hosts.all_rows(instances.history.turn)[:, None]
    active, turn = ~lost & (turns_left > 0), 0
    transcripts.end[~lost & ~active] = OUT_OF_TURNS
    while active.any():
        turn_key = jax.random.fold_in(key, turn)
        cursor, sampled = programs.generate(sampler_params, cursor, turn_key, active, first_prompt * group_size)
        clock.given(sampled)
        yield
        sampled = hosts.all_rows(sampled)
        transcripts.end[active & ~sampled.finished] = OVERLONG_RESPONSE
        spoke = active & sampled.finished
        answers, fault = _answer(environment, episodes, sampled.tokens[numbers], sampled.mask[numbers], spoke[numbers])
        observed, count, end, ended = hosts.exchange_rows(answers, numbers, batch)
        failed |= fault
        transcripts.add_responses(sampled, ended)
        transcripts.end[spoke] = end[spoke]
        active, turn = spoke & (end < 0), turn + 1
        spent = active & (turn >= turns_left)
        cramped = active & ~spent & (transcripts.length + count + environment.max_tokens > environment.max_transcript)
        transcripts.end[spent], transcripts.end[cramped] = OUT_OF_TURNS, OVERLONG_TRANSCRIPT
        active &= ~spent & ~cramped
        count = np.where(active, count, 0)
        transcripts.add_observations(observed, count)
        if active.any():
            cursor = programs.extend(sampler_params, cursor, narrow(observed, count), count, active)
    rollouts, end, num_turns = transcripts.finish(environment.by_response)
    return Played(rollouts, end, num_turns, episodes, numbers, failed)


def narrow(tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return rows of tokens cut to the next power of two, at least 16, that holds the longest: few widths, few programs."""
    width = 1 << int(max(count.max() - 1, 15)).bit_length()
    return tokens[..., :width]


@dataclasses.dataclass(frozen=True)
class PlayedSteps:
    """Episodes of R rows in which every turn's response was improved K times, in NumPy; episodes are this process's."""

    end: np.ndarray  # int32 [R]: index in ENDS
    num_tokens: np.ndarray  # int32 [R]: sampled, iterates that were not executed included
    episodes: list[Any]
    rows: np.ndarray  # numbers of the rows that this process owns
    failed: bool  # whether the environment failed as a whole on this host


def play_steps(
    programs: TurnPrograms,
    environment: Environment,
    sampler_params: Params,
    context: tuple[Array, Array],
    history: History,
    key: Array,
    num_steps: int,
) -> PlayedSteps:
    """Play an episode a row, G = 1, with ``num_steps`` self-iterations on each turn before its last iterate is executed.

    An iterate sees the conversation so far with nothing but last iterates in it, and the newest response of its turn. What is
    read for one iterate is forgotten before the next: each reads on from the same cache of the clean conversation.

    Args:
      programs: none of them may reuse the readings that it is given.
      context: tokens [R, P] and lengths [R] of the conversations up to where a response is asked for.
      history: [R], the same as histories.
    """
    cursor = programs.start(sampler_params, *context)
    own, numbers = hosts.local_rows(history)
    batch = history.turn.shape[0]
    share = lambda tree: hosts.exchange_rows(tree, numbers, batch)
    lead = np.broadcast_to(
        np.asarray(environment.generation_prompt, np.int32), (batch, 1, len(environment.generation_prompt))
    )
    episodes, lost, failed = _begin(environment, own, 1, numbers, batch)
    end = np.where(lost, LOST, -1)
    length, num_tokens = np.zeros_like(end), np.zeros_like(end)
    active, turn = ~lost, 0
    while active.any():
        response: Any = None
        for k in range(num_steps + 1):
            asked, count = share(_ask(environment, episodes, response, active[numbers], numbers))
            asking = programs.extend(sampler_params, cursor, narrow(asked, count), count, active)
            step_key = jax.random.fold_in(jax.random.fold_in(key, turn), k)
            response = hosts.all_rows(programs.generate(sampler_params, asking, step_key, active, 0)[1])
            require_finite(response.logp, response.mask)
            num_tokens += response.mask.sum(-1)
        spoke = active & response.finished
        end[active & ~spoke] = OVERLONG_RESPONSE
        answers, fault = _answer(
            environment, episodes, response.tokens[numbers], response.mask[numbers], spoke[numbers], with_lead=False
        )
        observed, count, over, _ = share(answers)
        failed |= fault
        end[spoke] = over[spoke]
        active, turn = spoke & (over < 0), turn + 1
        if turn >= environment.max_turns:
            end[active] = OUT_OF_TURNS
            break
        spoken = lead.shape[-1] + response.mask.sum(-1)
        length += np.where(active, spoken + count, 0)
        cramped = active & (length + environment.max_tokens > environment.max_transcript)
        end[cramped] = OVERLONG_TRANSCRIPT
        active &= ~cramped
        if active.any():
            new = np.concatenate([lead, response.tokens], axis=-1)
            new, count = _join(new, np.where(active, spoken, 0), observed, np.where(active, count, 0))
            cursor = programs.extend(sampler_params, cursor, narrow(new, count), count, active)
    return PlayedSteps(end[:, 0], num_tokens[:, 0], episodes, numbers, failed)


def _ask(
    environment: Environment, episodes: list[Any], response: Any, active: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens [r, 1, S] that ask for a response, or for a better one, and their number, 0 for idle rows.

    Args:
      response: the rollouts [R, 1, M] of the iterate before, in NumPy; None for the first.
      active: bool [r, 1].
      numbers: numbers [r] of the rows that this process owns.
    """
    asked = np.zeros((len(episodes), 1, max(environment.max_ask, len(environment.generation_prompt))), np.int32)
    count = np.zeros((len(episodes), 1), np.int32)
    for row in np.flatnonzero(active[:, 0]):
        if response is None:
            tokens = environment.generation_prompt
        else:
            number = numbers[row]
            tokens = environment.ask_again(episodes[row], response.tokens[number, 0][response.mask[number, 0]])
        asked[row, 0, : len(tokens)], count[row, 0] = tokens, len(tokens)
    return asked, count


def _join(
    first: np.ndarray, first_count: np.ndarray, second: np.ndarray, second_count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows [b, G, S] of which each holds the start of one row and after it that of another, and their lengths."""
    joined = np.zeros((*first_count.shape, first.shape[-1] + second.shape[-1]), np.int32)
    for b, g in np.ndindex(first_count.shape):
        tokens = [*first[b, g, : first_count[b, g]], *second[b, g, : second_count[b, g]]]
        joined[b, g, : len(tokens)] = tokens
    return joined, first_count + second_count


def _begin(
    environment: Environment, own: History, group_size: int, numbers: np.ndarray, batch: int
) -> tuple[list[Any], np.ndarray, bool]:
    """Return the episodes of this process's rows, which of all rows [b, G] are lost, and whether all failed here."""
    failed = False
    try:
        episodes = environment.begin(own, group_size) if numbers.size else []
    except UserError:  # as a server that went away: no other batch would be free of it
        raise
    except Exception:  # whatever an environment may raise; the other processes wait for an answer
        log.exception("%d instances could not be begun, and are lost", numbers.size)
        episodes, failed = [None] * (numbers.size * group_size), True
    lost = np.array([episode is None for episode in episodes], bool).reshape(numbers.size, group_size)
    return episodes, hosts.exchange_rows(lost, numbers, batch), failed


def _answer(
    environment: Environment, episodes: list[Any], tokens: Any, mask: Any, spoke: np.ndarray, with_lead: bool = True
) -> tuple[tuple[np.ndarray, ...], bool]:
    """Step the episodes, in place, whose rows [b, G] spoke: ``tokens`` and ``mask`` [b, G, M], in NumPy.

    Returns:
      Observations [b, G, S + the lead], their lengths, ends or -1, whether the responses ended validly; and whether all
      failed.
    """
    shape, lead = spoke.shape, environment.generation_prompt if with_lead else ()
    observed = np.zeros((*shape, environment.max_observation + len(lead)), np.int32)
    count, end, ended = np.zeros(shape, np.int32), np.full(shape, -1, np.int32), np.zeros(shape, bool)
    rows = np.flatnonzero(spoke)
    flat = tokens.reshape(-1, tokens.shape[-1]), mask.reshape(-1, mask.shape[-1])
    pairs, failed = [(episodes[row], flat[0][row][flat[1][row]]) for row in rows], False
    try:
        stepped = environment.step(pairs) if pairs else []
    except UserError:
        raise
    except Exception:  # as in _begin
        log.exception("%d episodes could not be stepped, and end as invalid", rows.size)
        stepped, failed = [(episode, Answer((), INVALID)) for episode, _ in pairs], True
    for row, (episode, answer) in zip(rows, stepped, strict=True):
        episodes[row] = episode
        at = np.unravel_index(row, shape)
        ended[at] = answer.ended
        if answer.end is not None:
            end[at] = answer.end
        else:
            seen = [*answer.observation, *lead]
            observed[at][: len(seen)], count[at] = seen, len(seen)
    return (observed, count, end, ended), failed
