"""What the domains of text share: what ends a response, what no piece may hold, and prompts cut into pieces."""

import functools
from collections.abc import Mapping
from typing import Any

from exit_jax.algorithm.prompts import Template
from exit_jax.algorithm.types import MODES
from exit_jax.domains.domain import DomainError
from exit_jax.policy.hf import chat
from exit_jax.policy.hf.config import resolve, token_ids


class TextDomain:
    """The tokens of a domain; the class that inherits this gives it a config and a tokenizer."""

    config: Any  # with ``tokenizer``, a folder or hub id, or "" for one of the domain's own
    tokenizer: Any  # of transformers
    kept_control: tuple[str, ...] = ()  # control tokens that pieces may hold all the same

    @functools.cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end a response."""
        named = token_ids(resolve(self.config.tokenizer))["eos"] if self.config.tokenizer else ()
        return chat.stop_tokens(self.tokenizer, named)

    @functools.cached_property
    def control(self) -> frozenset[int]:
        """The ids that no piece may hold."""
        return frozenset(chat.control_tokens(self.tokenizer, keep=self.kept_control))

    def decode(self, ids: Any) -> str:
        """Return the text of tokens, control tokens left out."""
        kept = [int(token) for token in ids if int(token) not in self.control]
        return self.tokenizer.decode(kept, clean_up_tokenization_spaces=False)

    def cut_prompts(self, rooms: Mapping[str, int]) -> Mapping[str, Template]:
        """Return the prompts of all modes, texts of the config behind its ``system``, cut into token pieces.

        Args:
          rooms: the tokens that each piece may have.

        Raises:
          DomainError: if they cannot be cut, or do not fit into ``prompt_width`` with the longest pieces.
        """
        c = self.config
        templates, faults = {}, []
        for mode in MODES:
            messages = [{"role": "system", "content": c.system}] if c.system else []
            messages.append({"role": "user", "content": getattr(c, mode)})
            try:
                cut = chat.cut(self.tokenizer, messages, chat.parse_inputs(c.template_inputs), pieces=tuple(rooms))
            except ValueError as error:
                raise DomainError(f"domain.{mode}: {error}") from error
            width = sum(rooms[item] if isinstance(item, str) else len(item) for item in cut)
            if width > c.prompt_width:
                faults.append(f"{mode} takes up to {width} tokens")
            templates[mode] = cut
        if faults:
            raise DomainError(
                f"domain.prompt_width = {c.prompt_width} is too narrow: {', '.join(faults)}, with pieces of up to "
                f"{dict(rooms)} tokens; raise it or lower those"
            )
        return templates
