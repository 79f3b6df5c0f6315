"""The tasks of tool use and their tokens: what a conversation is made of, and what stands between its turns."""

import functools
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exit_jax.algorithm.prompts import Template
from exit_jax.domains.domain import DomainError
from exit_jax.domains.text import chat, thoughts, tokenizer, turns
from exit_jax.domains.text.pieces import TextDomain, Tokens
from exit_jax.domains.text.settings import SPAN
from exit_jax.domains.tool_use import bfcl
from exit_jax.domains.tool_use.episode import Episode, Task, system_prompt
from exit_jax.domains.tool_use.parser import MARKERS
from exit_jax.domains.tool_use.settings import ToolsConfig
from exit_jax.domains.tool_use.tiny import expert, world
from exit_jax.domains.tool_use.tiny import tasks as tiny_tasks
from exit_jax.policy.stops import StopText
from exit_jax.types import MODES

log = logging.getLogger(__name__)

TAGS = ("<tool_call>", "</tool_call>")  # control tokens of Qwen's, which a shown response keeps


class Conversations(TextDomain):
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

    def is_too_long(self, number: int) -> bool:
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
    def templates(self) -> Mapping[str, Template]:
        """The prompts as token pieces.

        Raises:
          DomainError: if they cannot be cut, or do not fit into ``prompt_width`` with the longest pieces.
        """
        try:
            templates = {"base": ("context", self.generation_prompt)} | {
                m: ("context", *ask) for m, ask in self.again.items()
            }
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
            messages = [{"role": role, "content": "{feedback}"}]
            stops, inputs = self.stop_tokens, self.inputs
            return turns.between(
                self.tokenizer, messages, stops, inputs, add_generation_prompt=False, with_stop=not stopped
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
        shown, _ = chat.shorten(self.tokenizer, self.encode(text), max(room, 0), "middle")
        return chat.splice(frame, {"feedback": shown})

    def request(self, episode: Episode) -> tuple[int, ...]:
        """Return the tokens of the request in hand."""
        requests = self.world.tasks[episode.task_id].requests
        return self.encode(requests[min(episode.request, len(requests) - 1)])

    def demonstrate(self, response: str) -> list[int]:
        """Return the tokens of a response to learn from, with what ends it, as they would have been sampled."""
        tokens = super().demonstrate(response)
        end = self.end_of(tokens)
        return tokens if end is None else tokens[: end + 1]

    def end_of(self, tokens: Tokens) -> int | None:
        """Return the index of the token that ends a response which begins as ``tokens`` do; None where it is not among them."""
        stop = next((index for index, token in enumerate(tokens) if token in self.stop_tokens), None)
        call = self.stop_text.find(tokens[:stop]) if self.stop_text else None
        return stop if call is None else call
