"""The tasks of tool use and their tokens: what a conversation is made of."""

import functools
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from exit_jax.algorithm.prompts import Template
from exit_jax.domains.domain import DomainError
from exit_jax.domains.text import chat, thoughts, tokenizer
from exit_jax.domains.text.transcripts import TranscriptDomain
from exit_jax.domains.tool_use import bfcl
from exit_jax.domains.tool_use.episode import Episode, Task, system_prompt
from exit_jax.domains.tool_use.parser import MARKERS
from exit_jax.domains.tool_use.settings import ToolsConfig
from exit_jax.domains.tool_use.tiny import expert, world
from exit_jax.domains.tool_use.tiny import tasks as tiny_tasks
from exit_jax.policy.stops import StopText

log = logging.getLogger(__name__)

TAGS = ("<tool_call>", "</tool_call>")  # control tokens of Qwen's, which a shown response keeps


class Conversations(TranscriptDomain):
    """The tasks of a config, their tokens and their world; each is made when first asked for."""

    kept_control = TAGS

    def __init__(self, config: ToolsConfig):
        super().__init__(config)
        self.head = functools.cache(self._head)

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

    @property
    def trained_on(self) -> str:  # type: ignore[override]
        """The split whose tasks are trained on."""
        return self.config.train_split

    def _candidates(self, split: str) -> Sequence[Task]:
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

    def start(self, task: Task) -> Episode:
        """Return a new episode."""
        return Episode(task.id)

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
    def stop_text(self) -> StopText | None:  # type: ignore[override]
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

    def head_of(self, task: Task) -> tuple[int, ...]:
        """Return the tokens of a conversation up to its first request."""
        return self.head(task.id)

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

    def observation(self, kind: str, text: str, stopped: bool = True) -> list[int]:
        """Return the tokens of what is said to a response of a kind; a text that is too long loses its middle.

        They begin with the stop token that the response lacks, unless it is ``stopped``.
        """
        return self.observed(text, "user" if kind == "finished" else self.config.observation_role, stopped)[0]

    def longest_request(self, task: Task) -> int:
        """Return the tokens of a task's longest request."""
        return max(len(chat.encode_piece(self.tokenizer, text)) for text in task.requests)

    def request(self, episode: Episode) -> tuple[int, ...]:
        """Return the tokens of the request in hand."""
        requests = self.world.tasks[episode.task_id].requests
        return self.encode(requests[min(episode.request, len(requests) - 1)])

    def demonstrate(self, response: str) -> list[int]:
        """Return the tokens of a response to learn from, with what ends it, as they would have been sampled."""
        tokens = super().demonstrate(response)
        end = self.end_of(tokens)
        return tokens if end is None else tokens[: end + 1]
