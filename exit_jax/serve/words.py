"""Between texts and tokens: prompts of chats in the words that ``exit_jax.run.improve`` uses, and responses as text."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from exit_jax.domains.domain import DomainError
from exit_jax.domains.task import rows
from exit_jax.domains.task.prompts import Prompts
from exit_jax.domains.task.settings import TaskConfig
from exit_jax.domains.text import chat
from exit_jax.types import BASE, IMPROVE, MODES


class Chat:
    """A conversation as pieces of tokens, whose answer is asked for and improved."""

    def __init__(self, words: "Words", messages: Sequence[Mapping[str, str]]):
        """Encode messages, whose roles and contents are text.

        Raises:
          UserError: saying what is wrong with them.
        """
        row = rows.clean("messages", {"prompt": list(messages)}, TaskConfig(), "")
        if isinstance(row, str):
            raise DomainError(row.removeprefix("prompt: "))
        before = words.with_system(row)
        opening, self._ending = words.opening(tuple(role for role, _ in before))
        contents = {f"message{i}": words.encode(content.strip()) for i, (_, content) in enumerate(before)}
        self._words = words
        self._pieces = {
            "context": chat.splice(opening, contents),
            "request": words.encode(row.prompt.strip()),
            "feedback": (),
        }

    def prompt(self, solution: Sequence[int] | None = None) -> list[int]:
        """Return the ids that ask for a first response, or for a better one than a solution."""
        mode = MODES[BASE if solution is None else IMPROVE]
        template = ("context", *self._words.messages[mode], *self._ending)
        return chat.splice(template, self._pieces | {"solution": solution or ()})

    def solution_room(self, max_tokens: int) -> int:
        """Return the tokens that a prompt for a better response may show of a response of up to ``max_tokens``."""
        return min(self._words.config.max_solution_tokens or max_tokens, max_tokens)


class Words(Prompts):
    """A policy's tokenizer, chat template and messages; lives as long as the server and keeps nothing of a request."""

    def with_system(self, row: rows.Row) -> tuple[tuple[str, str], ...]:
        """Return what precedes the last message, with the policy's own system message where there is none."""
        return self._messages(row)

    def opening(self, roles: tuple[str, ...]) -> Any:
        """Return what precedes and what follows the text of the last message, after messages of these roles."""
        return self._opening(roles)

    @functools.cached_property
    def messages(self) -> Mapping[str, Any]:
        """The user's message by mode, as token pieces."""
        return {mode: self._words(mode) for mode in MODES}

    def raw(self, text: str) -> list[int]:
        """Return the ids of a text that is no chat, with the BOS that the tokenizer puts before it."""
        return self.tokenizer.encode(text)

    def said(self, ids: Sequence[int]) -> str:
        """Return the text of a response, thoughts included, without control tokens."""
        return chat.with_thoughts(self.tokenizer, ids, self.control)

    def token_text(self, token: int) -> str:
        """Return the text of one token."""
        return self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
