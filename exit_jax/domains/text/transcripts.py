"""Conversations of several turns as tokens: what stands between turns, episodes brought to where histories start, histories.

A history holds the conversation up to a turn as *context*, from the first message to what was last said to the policy, in the
tokens that were sampled and observed; the *request*, as text that prompts may quote; and a response to that turn as *solution*.
The self-iteration prompt is a further message after the context. It stays in the transcript of the rollout that it begins, and
out of the histories that this yields (ExIt App. A).

A context can be taken apart again, since a response ends at its first stop token, or where ``stop_text`` ends: that is how an
environment is brought to where a history starts, by playing the recorded responses again and comparing what is observed.
"""

import functools
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exit_jax.algorithm.prompts import Template, piece_rows
from exit_jax.domains.domain import DomainError, Environment
from exit_jax.domains.text import chat, turns
from exit_jax.domains.text.pieces import TextDomain, Tokens, pack
from exit_jax.domains.text.settings import SPAN
from exit_jax.policy.stops import StopText
from exit_jax.types import MODES, PIECES, Grades, History, Instances, Rollouts

log = logging.getLogger(__name__)


class TranscriptDomain(TextDomain):
    """Tasks of several turns and their tokens; the class that inherits this has the tasks and plays the episodes.

    An episode is pure data: ``how`` says how it ended, "" while it goes on, and ``before`` (turn) what it was earlier.
    """

    trained_on = "train"  # split whose tasks are trained on
    names: tuple[str, ...] = ()  # names of what is reported of an episode, besides its quality
    stop_text: StopText | None = None  # what ends a response beside stop tokens

    start: Any  # (task) -> a new episode
    head_of: Any  # (task) -> tokens of its conversation up to the first response
    longest_request: Any  # (task) -> tokens of its longest request; 0 where one that is too long may lose its middle
    request: Any  # (episode) -> tokens of the request in hand
    step: Any  # ((episode, tokens of a response) of many, **limits) -> (the episode after it, Answer) of each
    figures: Any  # (episode, None for one that could not be begun; **asked) -> "quality" and what ``names`` says
    show: Any  # (episode or None) -> text for people

    def __init__(self, config: Any):
        self.config = config
        self.candidates = functools.cache(self._candidates)
        self.tasks_of = functools.cache(self._read)
        self.too_long = functools.cache(self._too_long)
        self.frame = functools.cache(self._frame)
        self.encode = functools.lru_cache(1 << 16)(self._encode)  # a world says the same things again and again

    # What a domain has of its own

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        return self.config.splits

    def _candidates(self, split: str) -> Sequence[Any]:
        """Return the tasks of a split, those that are too long included."""
        raise NotImplementedError

    def limits(self, test: bool) -> dict[str, Any]:
        """Return the keyword arguments of ``step`` in training or in evaluation."""
        return {"max_turns": self.max_turns(test)}

    def asked(self, test: bool) -> dict[str, Any]:
        """Return the keyword arguments of ``figures``."""
        del test
        return {}

    def is_valid(self, episode: Any) -> bool:
        """Return whether an episode tells something of the policy."""
        return episode is not None

    def start_at(self, task: Any, mark: int) -> Any:
        """Return a new episode for a base task whose history has ``mark`` tokens as solution; mostly 0."""
        del mark
        return self.start(task)

    def quality_of_children(self, episode: Any, quality: float) -> float:
        """Return the quality of the histories that an episode yields."""
        del episode
        return quality

    # Widths

    def max_turns(self, test: bool) -> int:
        """Return the turns of an episode."""
        return self.config.test_max_turns if test else self.config.max_turns

    def max_transcript(self, test: bool) -> int:
        """Return the tokens of an episode."""
        return self.config.test_max_transcript_tokens if test else self.config.max_transcript_tokens

    @property
    def max_piece_tokens(self) -> dict[str, int]:
        """The tokens that each piece may have."""
        c = self.config
        return {
            "context": c.max_context_tokens,
            "request": c.max_request_tokens,
            "solution": c.max_solution_tokens,
        }

    @property
    def prompt_width(self) -> int:
        """Tokens of the longest prompt."""
        return self.config.prompt_width

    @property
    def width(self) -> int:
        """Tokens of a packed history."""
        return sum(self.max_piece_tokens.values())

    # Tasks

    def _read(self, split: str) -> tuple[Any, ...]:
        """Return the tasks of a split; to train on, those that fit."""
        found = self.candidates(self.trained_on if split == "train" else split)
        if split != "train":
            return tuple(found)
        return tuple(task for task, left_out in zip(found, self._beyond(split, found)) if not left_out)

    def _too_long(self, split: str) -> np.ndarray:
        """Return which tasks of a split do not fit, bool [M]; they count as failed, and none of those to train on is such."""
        found = self.tasks_of(split)
        return np.zeros(len(found), bool) if split == "train" else self._beyond(split, found)

    def _beyond(self, split: str, found: Sequence[Any]) -> np.ndarray:
        """Return which tasks begin, or ask, in more tokens than there is room for; says so in the log.

        Raises:
          DomainError: if all of them do.
        """
        room = self.max_piece_tokens
        requests = [self.longest_request(task) for task in found]
        heads = [len(self.head_of(task)) for task in found]
        beyond: Any = (np.array(heads) > room["context"]) | (np.array(requests) > room["request"])
        if beyond.all():
            raise DomainError(
                f"no task of the split {split} fits into domain.max_context_tokens = {room['context']} and "
                f"domain.max_request_tokens = {room['request']}: the shortest begins with {min(heads)} tokens, and has "
                f"requests of {min(requests)}; raise them"
            )
        if beyond.any():
            log.warning(
                "%d of %d tasks of %s %s: they begin with more than domain.max_context_tokens = %d tokens, or a request takes "
                "more than domain.max_request_tokens = %d",
                *(beyond.sum(), beyond.size, split, "are left out" if split == "train" else "count as failed"),
                *(room["context"], room["request"]),
            )
        return beyond

    def task_of(self, number: int) -> Any:
        """Return the task of a number, which those of all splits have: split · 2^20 + row."""
        return self.tasks_of(self.splits[int(number) // SPAN])[int(number) % SPAN]

    def is_too_long(self, number: int) -> bool:
        """Return whether the task of a number does not fit."""
        return bool(self.too_long(self.splits[int(number) // SPAN])[int(number) % SPAN])

    def tasks(self, split: str) -> History:
        """Return the base tasks of a split, in NumPy."""
        room, found = self.max_piece_tokens, self.tasks_of(split)
        context = [self.head_of(task)[: room["context"]] for task in found]
        request = [self.request(self.start(task))[: room["request"]] for task in found]
        rows = [(*held, (), ()) for held in zip(context, request, strict=True)]
        return pack(rows, self.width, task=SPAN * self.splits.index(split) + np.arange(len(rows)))

    # Tokens

    def _encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text inside a prompt."""
        return chat.encode_piece(self.tokenizer, text.strip())

    @functools.cached_property
    def generation_prompt(self) -> tuple[int, ...]:
        """The tokens that ask for a response."""
        return tuple(chat.splice(turns.more(self.tokenizer, [], self.inputs), {}))

    @functools.cached_property
    def again(self) -> Mapping[str, Template]:
        """What asks for a better response, or another one, after a context: by mode."""
        texts = {"improve": self.config.improve, "diverge": self.config.diverge}
        ask = lambda text: turns.more(self.tokenizer, [{"role": "user", "content": text}], self.inputs)
        return {mode: ask(text) for mode, text in texts.items()}

    @functools.cached_property
    def _cut(self) -> Mapping[str, Template]:
        """The prompts of all modes as token pieces."""
        try:
            return {"base": ("context", self.generation_prompt)} | {
                m: ("context", *ask) for m, ask in self.again.items()
            }
        except ValueError as error:
            raise DomainError(f"domain.improve or domain.diverge: {error}") from error

    @functools.cached_property
    def widths(self) -> dict[str, int]:
        """The tokens that the prompt of each mode takes with the longest pieces."""
        room = self.max_piece_tokens
        return {m: sum(room[i] if isinstance(i, str) else len(i) for i in self._cut[m]) for m in MODES}

    @functools.cached_property
    def templates(self) -> Mapping[str, Template]:
        """The prompts as token pieces.

        Raises:
          DomainError: if they cannot be cut, or do not fit into ``prompt_width`` with the longest pieces.
        """
        if max(self.widths.values()) > self.prompt_width:
            raise DomainError(
                f"domain.prompt_width = {self.prompt_width} is too narrow: prompts take up to {self.widths}, with pieces of up "
                f"to {self.max_piece_tokens} tokens; raise it or lower those"
            )
        return self._cut

    def _frame(self, role: str, stopped: bool) -> Template:
        """Return what stands around an observation in a role, whether or not the response has its stop token."""
        messages, stops = [{"role": role, "content": "{feedback}"}], self.stop_tokens
        given = {"add_generation_prompt": False, "with_stop": not stopped}
        try:
            return turns.between(self.tokenizer, messages, stops, self.inputs, **given)
        except ValueError as error:
            raise DomainError(f"domain.observation_role = {self.config.observation_role!r}: {error}") from error

    def observed(self, text: str, role: str, stopped: bool = True) -> tuple[list[int], bool]:
        """Return the tokens of what is said to a response, and whether the text was too long and has lost its middle.

        They begin with the stop token that the response lacks, unless it is ``stopped``.
        """
        frame = self.frame(role, stopped)
        room = self.config.max_observation_tokens - len(chat.splice(frame, {"feedback": ()}))
        shown, is_cut = chat.shorten(self.tokenizer, self.encode(text), max(room, 0), "middle")
        return chat.splice(frame, {"feedback": shown}), is_cut

    def solution(self, response: Tokens) -> list[int]:
        """Return what a later prompt shows of a response."""
        return self.shown(response, self.max_piece_tokens["solution"], "middle")[0]

    def end_of(self, tokens: Tokens) -> int | None:
        """Return the index of the token that ends a response which begins as ``tokens`` do; None where it is not among them."""
        stop = next((index for index, token in enumerate(tokens) if token in self.stop_tokens), None)
        text = self.stop_text.find(tokens[:stop]) if self.stop_text else None
        return stop if text is None else text

    # Episodes

    def environment(self, test: bool) -> Environment:
        """Return the environment of training or evaluation."""
        c, room, limits = self.config, self.max_piece_tokens, self.limits(test)
        ask = self.again["improve"]
        static = len(chat.splice(ask, {"request": (), "solution": ()}))
        return Environment(
            max_turns=self.max_turns(test),
            max_tokens=c.max_tokens,
            max_observation=c.max_observation_tokens,
            max_ask=static + room["request"] + room["solution"],
            max_transcript=self.max_transcript(test),
            generation_prompt=self.generation_prompt,
            begin=functools.partial(self.begin, **limits),
            step=functools.partial(self.step, **limits),
            ask_again=lambda episode, response: chat.splice(
                ask, {"request": self.request(episode), "solution": self.solution(response)}
            ),
            figures=functools.partial(self.figures, **self.asked(test)),
            show=self.show,
            by_response=c.overlong_unit == "response",
        )

    def begin(self, history: History, group_size: int, **limits: Any) -> list[Any]:
        """Return the episodes that histories [b] start from, each ``group_size`` times; None where one goes another way.

        The recorded responses are played again, those of all histories side by side. A task that is too long has no episode.
        """
        tasks, unseen = [self.task_of(number) for number in history.task], [*map(self.is_too_long, history.task)]
        marks = np.where(history.step < 0, history.lengths[:, PIECES.index("solution")], 0).tolist()
        starts = zip(tasks, marks, unseen, strict=True)
        found: list[Any] = [None if cut else self.start_at(task, mark) for task, mark, cut in starts]
        context = [tokens.tolist() for tokens in piece_rows(history, "context")]
        place = [len(self.head_of(task)) for task in tasks]
        for turn in range(int(history.turn.max(initial=0))):
            going = [b for b, episode in enumerate(found) if episode and turn < history.turn[b]]
            responses = [self._next_response(context[b], place[b]) for b in going]
            pairs = [(found[b], response) for b, response in zip(going, responses)]
            for b, response, (episode, answer) in zip(going, responses, self.step(pairs, **limits)):
                start = place[b] + len(self.generation_prompt) + len(response)
                place[b] = start + len(answer.observation)
                same = context[b][start : place[b]] == list(answer.observation)
                found[b] = episode if same and not episode.how else None
        for b, episode in enumerate(found):
            if episode and place[b] != len(context[b]):
                found[b] = None
        num_lost = found.count(None) - sum(unseen)
        if num_lost:
            log.warning("%d of %d histories went another way when they were played again", num_lost, len(found))
        return [episode for episode in found for _ in range(group_size)]

    def _next_response(self, context: list[int], place: int) -> list[int]:
        """Return the recorded response after ``place``: all up to what ended it."""
        rest = context[place + len(self.generation_prompt) :]
        end = self.end_of(rest)
        return rest if end is None else rest[: end + 1]

    # Histories

    def grade(self, instances: Instances, rollouts: Rollouts, episodes: list[Any]) -> Grades:
        """Grade episodes, and cut them into histories, one for each of their turns. All in NumPy."""
        shape, room = rollouts.finished.shape, self.max_piece_tokens["context"]
        figures = [self.figures(episode, **self.asked(test=False)) for episode in episodes]

        def per_rollout(name: str) -> Any:
            return np.array([row[name] for row in figures], np.float32).reshape(shape)

        quality = per_rollout("quality")
        lost: Any = np.array([episode is None for episode in episodes]).reshape(shape)
        valid: Any = np.array([*map(self.is_valid, episodes)]).reshape(shape)
        insertable: Any = np.zeros((*shape, self.max_turns(test=False)), bool)
        rows: list[tuple[Tokens, ...]] = [((), (), (), ())] * insertable.size
        contexts = [tokens.tolist() for tokens in piece_rows(instances.history, "context")]
        fields: Any = {name: np.zeros(insertable.shape, np.int32) for name in ("task", "turn", "step")}
        fields["quality"] = np.zeros(insertable.shape, np.float32)
        too_long: Any = np.zeros(shape, np.float32)
        for (b, g), episode in zip(np.ndindex(shape), episodes, strict=True):
            usable = rollouts.finished[b, g] if rollouts.ended is None else rollouts.ended[b, g].any()
            if not (valid[b, g] and usable):
                continue
            held_quality = self.quality_of_children(episode, quality[b, g])
            for u, (context, response, ended) in enumerate(self._turns(contexts[b], rollouts, b, g)):
                turn = int(instances.history.turn[b]) + u
                step = int(instances.history.step[b]) + 1 if u == 0 else 0
                solution = self.solution(response)
                if len(context) > room:
                    too_long[b, g] = 1.0
                    break
                insertable[b, g, u] = ended and bool(solution)
                place = np.ravel_multi_index((b, g, u), insertable.shape)
                rows[place] = (context, self.request(episode.before(turn)), solution, ())
                held = {"task": instances.history.task[b], "turn": turn, "step": step, "quality": held_quality}
                for name, value in held.items():
                    fields[name][b, g, u] = value
        notes = {name: per_rollout(name) for name in self.names} | {"context_too_long": too_long}
        packed = pack(rows, self.width, **{name: array.reshape(-1) for name, array in fields.items()})
        return Grades(
            quality=quality,
            valid=valid,
            embedding=quality[..., None] * 0.0,
            children=jax.tree.map(lambda leaf: leaf.reshape(*insertable.shape, *leaf.shape[1:]), packed),
            insertable=insertable,
            notes=notes,
            lost=lost[:, 0],
        )

    def _turns(self, context: list[int], rollouts: Rollouts, b: int, g: int):
        """Yield each turn of a transcript after ``context``: the context before it, the response, whether that is whole."""
        tokens, mask = rollouts.tokens[b, g].tolist(), rollouts.mask[b, g]
        ended = mask if rollouts.ended is None else rollouts.ended[b, g]
        length = int(np.flatnonzero(mask)[-1]) + 1
        changes = np.flatnonzero(mask[1:length] != mask[: length - 1]) + 1
        edges = [0, *changes.tolist(), length]
        runs = [tokens[start:stop] for start, stop in itertools.pairwise(edges)]
        for start, response, rest in itertools.zip_longest(edges[:-1:2], runs[::2], runs[1::2], fillvalue=()):
            yield context, response, bool(ended[start])
            observation = rest[: len(rest) - len(self.generation_prompt)]
            context = [*context, *self.generation_prompt, *response, *observation]

    def describe(self, history: History) -> list[str]:
        """Return what histories [n] hold, as text."""
        return [self.decode(tokens) for tokens in piece_rows(history, "solution")]

    def fields(self) -> dict[str, Any]:
        """Return the fields of Domain that follow from the above."""
        return self.token_fields | {
            "splits": self.splits,
            "history_width": self.width,
            "prompt_width": self.prompt_width,
            "max_tokens": self.max_transcript(test=False),
            "num_children": self.max_turns(test=False),
            "templates": self.templates,
            "tasks": self.tasks,
            "too_long": self.too_long,
            "grade": self.grade,
            "notes": (*self.names, "context_too_long"),
            "describe": self.describe,
            "texts": self.texts,
            "decode": self.decode,
            "environment": self.environment(test=False),
            "test_environment": self.environment(test=True),
            "stop_text": self.stop_text,
        }
