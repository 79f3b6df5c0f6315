"""Multi-turn tool use (ExIt §5): episodes as tokens, played in BFCL's world or in a tiny one, graded on the host.

A history holds the conversation up to a turn as *context*, from the system's message to what was last said to the policy, in
the tokens that were sampled and observed; the *request* in hand, as text; and a response to that turn as *solution*. The
self-iteration prompt is a further message behind the context. It stays in the transcript of the rollout that it begins, and
out of the histories that this yields (ExIt App. A).

A context can be taken apart again, since a response ends at its first stop token, or with ``stop_at_call`` where its first call
ends: that is how an environment is brought to where a history starts, by making the recorded calls again and comparing what is
observed.
"""

import dataclasses
import functools
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exit_jax.algorithm.prompts import Template
from exit_jax.domains.domain import INVALID, VALID, Answer, Domain, DomainError, Environment, settings_id
from exit_jax.domains.text import chat, thoughts, tokenizer, turns
from exit_jax.domains.text.pieces import SPAN, TextDomain, Tokens
from exit_jax.domains.tool_use import bfcl
from exit_jax.domains.tool_use.episode import Episode, Task, system_prompt
from exit_jax.domains.tool_use.parser import MARKERS, has_ending
from exit_jax.domains.tool_use.settings import NOT_TAUGHT, ToolsConfig
from exit_jax.domains.tool_use.tiny import expert, world
from exit_jax.domains.tool_use.tiny import tasks as tiny_tasks
from exit_jax.policy.stops import StopText
from exit_jax.types import BASE, DIVERGE, IMPROVE, MODES, NO_ID, Array, Grades, History, Instances, Rollouts

log = logging.getLogger(__name__)

TAGS = ("<tool_call>", "</tool_call>")  # control tokens of Qwen's, which a shown response keeps
FIGURES = ("first_request", "requests_fulfilled", "share_fulfilled", "invalid_calls", "crashed", "turns")
OFFICIAL = "official"  # BFCL's own verdict, which the tiny world has not


class Tools(TextDomain):
    """The tasks of a config, their tokens and their world; each is made when first asked for."""

    kept_control = TAGS

    def __init__(self, config: ToolsConfig):
        self.config = config
        self.candidates = functools.cache(self._candidates)
        self.tasks_of = functools.cache(self._read)
        self.too_long = functools.cache(self._too_long)
        self.head = functools.cache(self._head)
        self.encode = functools.lru_cache(1 << 16)(self._encode)  # a world says the same things again and again

    @property
    def data_dir(self) -> pathlib.Path:
        """The folder for all that is kept from run to run."""
        return pathlib.Path(self.config.data_dir).expanduser().absolute()

    @functools.cached_property
    def world(self) -> Any:
        """Where episodes are played; workers start when there is something to play."""
        c = self.config
        tasks = {task.id: task for split in c.splits for task in self.candidates(split)}
        if c.world == "tiny":
            return world.TinyWorld(tasks)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        workers = c.num_workers or os.cpu_count() or 1
        return bfcl.BfclEnvironment(tasks, workers, c.call_secs, self.data_dir / "crashed.jsonl")

    def _candidates(self, split: str) -> Sequence[Any]:
        """Return the tasks of a split, those that are too long included.

        Raises:
          DomainError: if bfcl-eval is not installed.
        """
        c = self.config
        if c.world == "tiny":
            count = {"train": c.num_train, "validation": c.num_validation, "test": c.num_test}[split]
            return tiny_tasks.tasks(split, count, c.data_seed)
        try:
            tasks = bfcl.load_tasks()
        except ImportError as error:
            raise DomainError(str(error)) from error
        return [tasks[name] for name in bfcl.split_tasks(tasks)[split]]

    def _read(self, split: str) -> tuple[Task, ...]:
        """Return the tasks of a split; to train on, those that fit."""
        found = self.candidates(self.config.train_split if split == "train" else split)
        if split != "train":
            return tuple(found)
        return tuple(task for task, left_out in zip(found, self._beyond(split, found)) if not left_out)

    def _too_long(self, split: str) -> np.ndarray:
        """Return which tasks of a split do not fit, bool [M]; they count as failed, and none of those to train on is such."""
        found = self.tasks_of(split)
        return np.zeros(len(found), bool) if split == "train" else self._beyond(split, found)

    def _beyond(self, split: str, found: Sequence[Task]) -> np.ndarray:
        """Return which tasks begin, or ask, in more tokens than there is room for; says so in the log.

        Raises:
          DomainError: if all of them do.
        """
        c = self.config
        requests = [max(len(chat.encode_piece(self.tokenizer, text)) for text in task.requests) for task in found]
        heads = [len(self.head(task.id)) for task in found]
        beyond: Any = (np.array(heads) > c.max_context_tokens) | (np.array(requests) > c.max_request_tokens)
        if beyond.all():
            raise DomainError(
                f"no task of the split {split} fits into domain.max_context_tokens = {c.max_context_tokens} and "
                f"domain.max_request_tokens = {c.max_request_tokens}: the shortest begins with {min(heads)} tokens, and has "
                f"requests of {min(requests)}; raise them"
            )
        if beyond.any():
            log.warning(
                "%d of %d tasks of %s %s: they begin with more than domain.max_context_tokens = %d tokens, or a request takes "
                "more than domain.max_request_tokens = %d",
                *(beyond.sum(), beyond.size, split, "are left out" if split == "train" else "count as failed"),
                *(c.max_context_tokens, c.max_request_tokens),
            )
        return beyond

    def task_of(self, number: int) -> Task:
        """Return the task of a number, which those of all splits have: split · 2^20 + row."""
        return self.tasks_of(self.config.splits[int(number) // SPAN])[int(number) % SPAN]

    def _is_too_long(self, number: int) -> bool:
        """Return whether the task of a number does not fit."""
        return bool(self.too_long(self.config.splits[int(number) // SPAN])[int(number) % SPAN])

    # Tokens

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        c = self.config
        if c.tokenizer:
            return tokenizer.load(c.tokenizer)
        texts = expert.texts(self.candidates("train"), c.demo_noise, c.data_seed)
        return tokenizer.train([*texts, c.improve, c.diverge], c.vocab_size, self.data_dir)

    @functools.cached_property
    def lead(self) -> tuple[int, ...]:
        """The tokens that ask for a response."""
        return tuple(chat.splice(turns.more(self.tokenizer, [], self.inputs), {}))

    @functools.cached_property
    def again(self) -> Mapping[str, Template]:
        """What asks for a better response, or another one, behind a context: by mode."""
        named = {"improve": self.config.improve, "diverge": self.config.diverge}
        ask = lambda text: turns.more(self.tokenizer, [{"role": "user", "content": text}], self.inputs)
        return {mode: ask(text) for mode, text in named.items()}

    @functools.cached_property
    def templates(self) -> Mapping[str, Template]:
        """The prompts as token pieces.

        Raises:
          DomainError: if they cannot be cut, or do not fit into ``prompt_width`` with the longest pieces.
        """
        try:
            templates = {"base": ("context", self.lead)} | {m: ("context", *ask) for m, ask in self.again.items()}
        except ValueError as error:
            raise DomainError(f"domain.improve or domain.diverge: {error}") from error
        c = self.config
        room = {
            "context": c.max_context_tokens,
            "request": c.max_request_tokens,
            "solution": c.max_solution_tokens,
        }
        widths = {m: sum(room[i] if isinstance(i, str) else len(i) for i in templates[m]) for m in MODES}
        if max(widths.values()) > c.prompt_width:
            raise DomainError(
                f"domain.prompt_width = {c.prompt_width} is too narrow: prompts take up to {widths}, with pieces of up to "
                f"{room} tokens; raise it or lower those"
            )
        return templates

    @functools.cached_property
    def stop_text(self) -> StopText | None:
        """What ends a response beside stop tokens."""
        if not self.config.stop_at_call:
            return None
        if thoughts.END in str(self.tokenizer.chat_template) and self.inputs.get("enable_thinking") is not False:
            log.warning(
                "domain.stop_at_call = True, but the chat template knows thoughts: a call that one quotes ends the response, "
                "which is invalid then; set it to False, or turn thinking off in domain.template_inputs"
            )
        return StopText.of(MARKERS.call_end, self.tokenizer.convert_ids_to_tokens(list(range(self.vocab_size))))

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self.tokenizer.get_vocab().values())

    @functools.cached_property
    def frames(self) -> Mapping[tuple[str, bool], Template]:
        """What stands around an observation: by kind, "request" or "call", and by whether the response has its stop token."""
        roles = {"request": "user", "call": self.config.observation_role}

        def frame(role: str, stopped: bool) -> Template:
            said = [{"role": role, "content": "{feedback}"}]
            stops, inputs = self.stop_tokens, self.inputs
            return turns.between(
                self.tokenizer, said, stops, inputs, add_generation_prompt=False, with_stop=not stopped
            )

        try:
            return {(kind, stopped): frame(role, stopped) for kind, role in roles.items() for stopped in (True, False)}
        except ValueError as error:
            raise DomainError(f"domain.observation_role = {self.config.observation_role!r}: {error}") from error

    def _head(self, task_id: str) -> tuple[int, ...]:
        """Return the tokens of a conversation up to its first request."""
        task = self.world.tasks[task_id]
        system = (world.system_prompt if self.config.world == "tiny" else system_prompt)(task)
        pieces = {"context": self.encode(system), "request": self.encode(task.requests[0])}
        return tuple(chat.splice(self._opening, pieces))

    @functools.cached_property
    def _opening(self) -> Template:
        messages = [{"role": "system", "content": "{context}"}, {"role": "user", "content": "{request}"}]
        return chat.cut(self.tokenizer, messages, self.inputs, add_generation_prompt=False)

    def _encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text inside a prompt."""
        return chat.encode_piece(self.tokenizer, text.strip())

    def solution(self, response: Tokens) -> list[int]:
        """Return what a later prompt shows of a response."""
        return self.shown(response, self.config.max_solution_tokens, "middle")[0]

    def observation(self, kind: str, text: str, stopped: bool = True) -> list[int]:
        """Return the tokens of what is said to a response of a kind; a text that is too long loses its middle.

        They begin with the stop token that the response lacks, unless it is ``stopped``.
        """
        frame = self.frames["request" if kind == "finished" else "call", stopped]
        room = self.config.max_observation_tokens - len(chat.splice(frame, {"feedback": ()}))
        said, _ = chat.shorten(self.tokenizer, self.encode(text), max(room, 0), "middle")
        return chat.splice(frame, {"feedback": said})

    def request(self, episode: Episode) -> tuple[int, ...]:
        """Return the tokens of the request in hand."""
        requests = self.world.tasks[episode.task_id].requests
        return self.encode(requests[min(episode.request, len(requests) - 1)])

    # Episodes

    def environment(self, test: bool) -> Environment:
        """Return the environment of training or evaluation."""
        c = self.config
        max_turns = c.test_max_turns if test else c.max_turns
        num_requests = (c.test_num_requests if test else c.num_requests) or None
        ask = self.again["improve"]
        static = len(chat.splice(ask, {"request": (), "solution": ()}))
        return Environment(
            max_turns=max_turns,
            max_tokens=c.max_tokens,
            max_observation=c.max_observation_tokens,
            max_ask=static + c.max_request_tokens + c.max_solution_tokens,
            max_transcript=c.test_max_transcript_tokens if test else c.max_transcript_tokens,
            lead=self.lead,
            begin=functools.partial(self.begin, max_turns=max_turns, num_requests=num_requests),
            step=functools.partial(self.step, max_turns=max_turns, num_requests=num_requests),
            ask_again=lambda episode, response: chat.splice(
                ask, {"request": self.request(episode), "solution": self.solution(response)}
            ),
            figures=functools.partial(self.figures, num_requests=num_requests),
            show=self.show,
            by_response=c.overlong_unit == "response",
        )

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

    def demonstrate(self, response: str) -> list[int]:
        """Return the tokens of a response to learn from, with what ends it, as they would have been sampled."""
        tokens = super().demonstrate(response)
        end = self._end(tokens)
        return tokens if end is None else tokens[: end + 1]

    def _end(self, tokens: Tokens) -> int | None:
        """Return the index of the token that ends a response which begins as ``tokens`` do; None where it is not among them."""
        stop = next((index for index, token in enumerate(tokens) if token in self.stop_tokens), None)
        call = self.stop_text.find(tokens[:stop]) if self.stop_text else None
        return stop if call is None else call

    def begin(self, history: History, group_size: int, max_turns: int, num_requests: int | None) -> list[Any]:
        """Return the episodes that histories [b] start from, each ``group_size`` times; None where one goes another way.

        The recorded responses are played again, those of all histories side by side. A task that is too long has no episode.
        """
        tasks, unseen = [self.task_of(number) for number in history.task], [*map(self._is_too_long, history.task)]
        found: list[Episode | None] = [None if cut else Episode(task.id) for task, cut in zip(tasks, unseen)]
        context = [list(row[:length]) for row, length in zip(history.tokens, history.lengths[:, 0])]
        place = [len(self.head(task.id)) for task in tasks]
        for turn in range(int(history.turn.max(initial=0))):
            going = [b for b, episode in enumerate(found) if episode and turn < history.turn[b]]
            responses = [self._next_response(context[b], place[b]) for b in going]
            pairs: Any = [(found[b], response) for b, response in zip(going, responses)]
            for b, response, (episode, answer) in zip(going, responses, self.step(pairs, max_turns, num_requests)):
                start = place[b] + len(self.lead) + len(response)
                place[b] = start + len(answer.observation)
                same = context[b][start : place[b]] == list(answer.observation)
                found[b] = episode if same and not episode.ended else None
        for b, episode in enumerate(found):
            if episode and place[b] != len(context[b]):
                found[b] = None
        num_lost = found.count(None) - sum(unseen)
        if num_lost:
            log.warning("%d of %d histories went another way when their calls were made again", num_lost, len(found))
        return [episode for episode in found for _ in range(group_size)]

    def _next_response(self, context: list[int], place: int) -> list[int]:
        """Return the recorded response behind ``place``: all up to what ended it."""
        rest = context[place + len(self.lead) :]
        end = self._end(rest)
        return rest if end is None else rest[: end + 1]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what is reported of an episode."""
        return FIGURES if self.config.world == "tiny" else (*FIGURES, OFFICIAL)

    def figures(self, episode: Episode | None, num_requests: int | None) -> dict[str, float]:
        """Return what an episode came to; all 0 of None, which could not be begun."""
        if episode is None:
            return {"quality": 0.0} | dict.fromkeys(self.names, 0.0)
        task = self.world.tasks[episode.task_id]
        asked = len(task.requests) if num_requests is None else min(num_requests, len(task.requests))
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

    def show(self, episode: Episode | None) -> str:
        """Return an episode as text for people."""
        return "" if episode is None else self.world.describe(episode)

    # Histories

    @property
    def width(self) -> int:
        """Tokens of a packed history."""
        return self.config.max_context_tokens + self.config.max_request_tokens + self.config.max_solution_tokens

    def tasks(self, split: str) -> History:
        """Return the base tasks of a split, in NumPy."""
        found, start = self.tasks_of(split), SPAN * self.config.splits.index(split)
        packed = Packed.empty((len(found),), self.width)
        for row, task in enumerate(found):
            context, request = self.head(task.id), self.encode(task.requests[0])
            kept = context[: self.config.max_context_tokens], request[: self.config.max_request_tokens]
            packed.put(row, *kept, (), start + row, 0, -1, 0.0)
        return packed.history()

    def grade(self, instances: Instances, rollouts: Rollouts, episodes: list[Any]) -> Grades:
        """Grade episodes, and cut them into histories, one for each of their turns. All in NumPy."""
        shape = rollouts.finished.shape
        figures = [self.figures(episode, self.config.num_requests or None) for episode in episodes]

        def per_rollout(name: str) -> Any:
            return np.array([row[name] for row in figures], np.float32).reshape(shape)

        quality = per_rollout("quality")
        lost: Any = np.array([episode is None for episode in episodes]).reshape(shape)
        packed = Packed.empty((*shape, self.config.max_turns), self.width)
        insertable: Any = np.zeros((*shape, self.config.max_turns), bool)
        too_long: Any = np.zeros(shape, np.float32)
        for (b, g), episode in zip(np.ndindex(shape), episodes, strict=True):
            usable = rollouts.finished[b, g] if rollouts.ended is None else rollouts.ended[b, g].any()
            if episode is None or not usable:
                continue
            for u, (context, response, ended) in enumerate(self._turns(instances.history, rollouts, b, g)):
                turn = int(instances.history.turn[b]) + u
                step = int(instances.history.step[b]) + 1 if u == 0 else 0
                solution = self.solution(response)
                if len(context) > self.config.max_context_tokens:
                    too_long[b, g] = 1.0
                    break
                insertable[b, g, u] = ended and bool(solution)
                request = self.request(episode.before(turn))
                task = int(instances.history.task[b])
                packed.put((b, g, u), context, request, solution, task, turn, step, quality[b, g])
        notes = {name: per_rollout(name) for name in self.names} | {"context_too_long": too_long}
        return Grades(
            quality=quality,
            valid=~lost,
            embedding=quality[..., None] * 0.0,
            children=packed.history(),
            insertable=insertable,
            notes=notes,
            lost=lost[:, 0],
        )

    def _turns(self, history: History, rollouts: Rollouts, b: int, g: int):
        """Yield each turn of a transcript: the clean context before it, the response, and whether that is whole."""
        tokens, mask = rollouts.tokens[b, g].tolist(), rollouts.mask[b, g]
        ended = mask if rollouts.ended is None else rollouts.ended[b, g]
        length = int(np.flatnonzero(mask)[-1]) + 1
        changes = np.flatnonzero(mask[1:length] != mask[: length - 1]) + 1
        edges = [0, *changes.tolist(), length]
        runs = [tokens[start:stop] for start, stop in itertools.pairwise(edges)]
        context = history.tokens[b, : history.lengths[b, 0]].tolist()
        for start, response, said in itertools.zip_longest(edges[:-1:2], runs[::2], runs[1::2], fillvalue=()):
            yield context, response, bool(ended[start])
            context = [*context, *self.lead, *response, *said[: len(said) - len(self.lead)]]  # the next one's lead goes

    def describe(self, history: History) -> list[str]:
        """Return what histories [n] hold, as text."""
        ends = np.cumsum(history.lengths, axis=-1)
        rows = zip(np.asarray(history.tokens), ends[:, 1], ends[:, 2])
        return [self.decode(row[start:end]) for row, start, end in rows]

    # Demonstrations

    def demonstrations(self, key: Array, step: Array, count: int, group_size: int) -> tuple[History, Any, Any, Any]:
        """Return a batch of demonstrations, as ``Domain`` wants them; no two are alike.

        Half are episodes from the start; the others improve on, or diverge from, a response in the midst of one, and play on.
        Only the tiny world has any.
        """
        c, found = self.config, self.tasks_of("train")
        seed = int(jax.device_get(jax.random.key_data(key))[-1])
        packed = Packed.empty((count,), self.width)
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
            step_held = -1 if mode[i] == BASE else 0
            packed.put(i, context, self.request(start[0]), self.encode(held), 0, len(start[1]), step_held, 0.0)
            for g in range(group_size):
                first = self._better(start[0], held, task, int(mode[i]), rng)
                responses = expert.demonstrate(task, c.demo_noise, rng, c.max_turns, start=start[0], first=first)
                transcript, own = self._transcript(start[0], responses)
                tokens[i, g, : len(transcript)], mask[i, g, : len(own)] = transcript, own
        return packed.history(), mode, tokens, mask

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
            episode = self.world.step(episode, response, c.max_turns, c.num_requests or None).episode
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
        episode, context = Episode(task.id), list(self.head(task.id))
        for response in responses:
            tokens = self.demonstrate(response)
            ((episode, answer),) = self.step(
                [(episode, tokens)], self.config.max_turns, self.config.num_requests or None
            )
            context += [*self.lead, *tokens, *answer.observation]
        return context

    def _transcript(self, episode: Episode, responses: Sequence[str]) -> tuple[list[int], list[bool]]:
        """Return the tokens of responses and of what is observed between them, as far as they fit, and which are responses."""
        tokens: list[int] = []
        own: list[bool] = []
        for response in responses:
            spoken = self.demonstrate(response)[: self.config.max_tokens]
            if len(tokens) + len(spoken) > self.config.max_transcript_tokens:
                break
            tokens, own = tokens + spoken, own + [True] * len(spoken)
            ((episode, answer),) = self.step(
                [(episode, spoken)], self.config.max_turns, self.config.num_requests or None
            )
            if answer.end is not None or episode.ended:
                break
            said = [*answer.observation, *self.lead]
            tokens, own = tokens + said, own + [False] * len(said)
        return tokens[: self.config.max_transcript_tokens], own[: self.config.max_transcript_tokens]

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


@dataclasses.dataclass(frozen=True)
class Packed:
    """Histories that are being put together row by row."""

    arrays: dict[str, Any]

    @classmethod
    def empty(cls, shape: tuple[int, ...], width: int) -> "Packed":
        """Return blank rows."""
        full = lambda value, *more: np.full((*shape, *more), value, np.int32)
        arrays = {"tokens": full(0, width), "lengths": full(0, 4), "id": full(NO_ID), "task": full(0), "turn": full(0)}
        arrays |= {"step": full(0), "quality": full(0).astype(np.float32), "born": full(0), "parent": full(NO_ID)}
        return cls(arrays)

    def put(self, row: Any, context: Tokens, request: Tokens, solution: Tokens, task, turn, step, quality) -> None:
        """Fill a row."""
        tokens = [*context, *request, *solution]
        self.arrays["tokens"][row][: len(tokens)] = tokens
        self.arrays["lengths"][row][:3] = len(context), len(request), len(solution)
        for name, value in (("task", task), ("turn", turn), ("step", step), ("quality", quality)):
            self.arrays[name][row] = value

    def history(self) -> History:
        """Return the rows."""
        return History(**self.arrays)


def make_domain(config: ToolsConfig) -> Domain:
    """Build the tool-use domain.

    Raises:
      DomainError: if BFCL or the tokenizer cannot be had, or the prompts do not fit.
    """
    tools = Tools(config)
    return Domain(
        name=config.world,
        splits=config.splits,
        **tools.token_fields,
        history_width=tools.width,
        prompt_width=config.prompt_width,
        max_tokens=config.max_transcript_tokens,
        num_children=config.max_turns,
        templates=tools.templates,
        tasks=tools.tasks,
        difficulty=tools.difficulty,
        about=tools.about,
        grade=tools.grade,
        notes=(*tools.names, "context_too_long"),
        demonstrations=tools.demonstrations if config.has_demonstrations else None,
        demonstrations_id=settings_id(config, NOT_TAUGHT),
        describe=tools.describe,
        texts=tools.texts,
        decode=tools.decode,
        environment=tools.environment(test=False),
        test_environment=tools.environment(test=True),
        stop_text=tools.stop_text,
        too_long=tools.too_long,
    )
