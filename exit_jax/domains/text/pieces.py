"""What the domains of text share: which tokens mean what, prompts cut into pieces, and histories of pieces."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exit_jax.algorithm.prompts import Template, piece_rows
from exit_jax.domains.domain import DomainError
from exit_jax.domains.text import chat, turns
from exit_jax.domains.text.thoughts import END, START
from exit_jax.errors import UserError
from exit_jax.policy.hf.config import read_eos, resolve
from exit_jax.types import ALL_MODES, BASE, MODES, PIECES, Array, Grades, History, make_history

Tokens = Any  # a sequence or a NumPy array of ids
DEMONSTRATIONS = 1 << 20  # numbers of demonstrations, before they repeat


def pack(
    rows: Sequence[Sequence[Tokens]], width: int, task: Any, turn: Any = 0, step: Any = -1, quality: Any = 0.0
) -> History:
    """Return histories [n] outside the buffer, of each row's pieces in the order of PIECES; fields [n], or one for all."""
    tokens: Any = np.zeros((len(rows), width), np.int32)
    lengths: Any = np.zeros((len(rows), len(PIECES)), np.int32)
    for i, pieces in enumerate(rows):
        joined = list(itertools.chain(*pieces))
        tokens[i, : len(joined)], lengths[i] = joined, [len(piece) for piece in pieces]
    return make_history(tokens, lengths, task, turn, step, quality)


class TextDomain:
    """The tokens of a domain; the class that inherits this gives it a config and a tokenizer.

    A response is read by ``answer`` and ``shown`` alone, which leave its thoughts out; ``decode`` is for pieces.
    """

    # settings with ``tokenizer``, a folder or hub id, or "" for one of the domain's own, and ``template_inputs``
    config: Any
    tokenizer: Any  # one of transformers
    kept_control: tuple[str, ...] = ()  # control tokens that pieces may hold all the same

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """What the chat template reads besides messages."""
        return chat.parse_inputs(self.config.template_inputs)

    @functools.cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end a response; the first one is the token with which the chat template closes it.

        Raises:
          DomainError: if the template closes it with none.
        """
        name = self.config.tokenizer
        try:
            return turns.stop_tokens(self.tokenizer, read_eos(resolve(name)) if name else (), self.inputs)
        except UserError as error:
            raise DomainError(f"domain.tokenizer = {name!r}: {error}") from error

    @property
    def token_fields(self) -> dict[str, Any]:
        """The fields of Domain that say which tokens there are."""
        return {
            "vocab_size": 1 + max(self.tokenizer.get_vocab().values()),
            "unused_ids": chat.unused_ids(self.tokenizer),
            "stop_tokens": self.stop_tokens,
            "tokenizer": self.tokenizer,
            "template_inputs": self.inputs,
        }

    @functools.cached_property
    def control(self) -> frozenset[int]:
        """The ids that no piece may hold."""
        return frozenset(chat.control_tokens(self.tokenizer, keep=self.kept_control))

    @functools.cached_property
    def thinking(self) -> bool:
        """Whether the prompt for a response begins its thought already."""
        return chat.opens_thought(self.tokenizer, self.inputs)

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a piece."""
        return chat.encode_piece(self.tokenizer, text)

    def decode(self, ids: Tokens) -> str:
        """Return the text of a piece's tokens, control tokens left out."""
        kept = [int(token) for token in ids if int(token) not in self.control]
        return self.tokenizer.decode(kept, clean_up_tokenization_spaces=False)

    def answer(self, response: Tokens) -> str:
        """Return the final answer of a response as text, "" where its thoughts have no end: what is graded, run or parsed."""
        return chat.answer(self.tokenizer, response, self.control, self.thinking)

    def shown(self, response: Tokens, room: int, truncate: str) -> tuple[list[int], bool]:
        """Return what a later prompt shows of a response in up to ``room`` tokens, and whether some of it had to be cut out."""
        return chat.shown(self.tokenizer, response, self.control, room, truncate, self.thinking)

    def texts(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
        """Return the final answers of responses tokens [..., T] as text; those of the turns of a transcript are joined."""
        texts = []
        for row, kept in zip(tokens.reshape(-1, tokens.shape[-1]), mask.reshape(-1, mask.shape[-1]), strict=True):
            own = np.flatnonzero(kept)
            responses = np.split(row[own], np.flatnonzero(np.diff(own) > 1) + 1)
            texts.append("".join(map(self.answer, responses)))
        return texts

    def demonstrate(self, response: str) -> list[int]:
        """Return the tokens of a response to learn from, with the one that ends it.

        Its thoughts are marked by the tokens that the tokenizer has for that. Where the prompt begins the thought, a response
        without one ends it at once, for it would have no answer.
        """
        if self.thinking:
            response = response.removeprefix(START) if END in response else f"\n{END}\n\n{response}"
        marks = START in response or END in response
        ids = chat.encode_piece(self.tokenizer, response, (START, END)) if marks else self.encode(response)
        return [*ids, self.stop_tokens[0]]


class SingleTurnDomain(TextDomain):
    """A domain whose responses are graded one by one."""

    max_piece_tokens: Any  # piece -> tokens that it may have, of those pieces that there are
    demonstration: Any  # (number, group_size) -> (pieces, mode, responses), tokens and texts

    def message(self, mode: str) -> str:
        """Return the user's message in a mode, with the names of pieces as fields."""
        return getattr(self.config, mode)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that the config has messages for."""
        return ALL_MODES if getattr(self.config, "critique", "") else MODES

    @functools.cached_property
    def _cut(self) -> Mapping[str, Template]:
        """The prompts of all modes, the config's texts after its ``system``, cut into token pieces."""
        c, found = self.config, {}
        for mode in self.modes:
            messages = [{"role": "system", "content": c.system}] if c.system else []
            messages.append({"role": "user", "content": self.message(mode)})
            try:
                found[mode] = chat.cut(self.tokenizer, messages, self.inputs, pieces=tuple(self.max_piece_tokens))
            except UserError as error:
                raise DomainError(f"domain.{mode}: {error}") from error
        return found

    @functools.cached_property
    def _widths(self) -> Mapping[str, int]:
        """The tokens that the prompt of each mode takes with the longest pieces."""
        width = lambda item: self.max_piece_tokens[item] if isinstance(item, str) else len(item)
        return {mode: sum(map(width, template)) for mode, template in self._cut.items()}

    @functools.cached_property
    def prompt_width(self) -> int:
        """Tokens of the longest prompt: what the config says, or else what the prompts take."""
        return self.config.prompt_width or max(self._widths.values())

    @property
    def templates(self) -> Mapping[str, Template]:
        """The prompts by mode.

        Raises:
          DomainError: if they cannot be cut, or do not fit into ``prompt_width`` with the longest pieces.
        """
        faults = [
            f"{mode} takes up to {width} tokens" for mode, width in self._widths.items() if width > self.prompt_width
        ]
        if faults:
            raise DomainError(
                f"domain.prompt_width = {self.prompt_width} is too narrow: {', '.join(faults)}, with pieces of up to "
                f"{self.max_piece_tokens} tokens; raise it or lower those"
            )
        return self._cut

    def pack(
        self, rows: Sequence[Sequence[Tokens]], task: Any, turn: Any = 0, step: Any = -1, quality: Any = 0.0
    ) -> History:
        """Return histories [n] as ``pack`` does, of the domain's width."""
        return pack(rows, sum(self.max_piece_tokens.values()), task, turn, step, quality)

    def make_grades(
        self, history: History, rows: Sequence[Sequence[Tokens]], quality: Any, valid: Any, notes: dict[str, Any]
    ) -> Grades:
        """Return the grades of responses to ``history`` [B]: a child each, which may enter the buffer if it holds a solution.

        Args:
          rows: pieces of the B · G children.
          quality: float32 [B, G], in NumPy.
          valid: bool [B, G], False for what could not be graded.
          notes: float32 [B, G] by name.
        """
        each = lambda leaf: np.repeat(leaf, quality.shape[1])
        packed = self.pack(rows, each(history.task), each(history.turn), each(history.step) + 1, quality.reshape(-1))
        children = jax.tree.map(lambda leaf: leaf.reshape(*quality.shape, 1, *leaf.shape[1:]), packed)
        return Grades(
            quality=quality,
            valid=valid,
            embedding=quality[..., None] * 0.0,
            children=children,
            insertable=valid[..., None] & (children.lengths[..., PIECES.index("solution")] > 0),
            notes=notes,
        )

    def texts_of(self, history: History, piece: str) -> list[str]:
        """Return a piece of histories [n] as text."""
        return [self.decode(tokens) for tokens in piece_rows(history, piece)]

    @functools.cached_property
    def demonstration_rows(self):
        """The mapping from a number to itself, to be shuffled."""
        import grain

        return grain.MapDataset.range(DEMONSTRATIONS)

    def demonstrations(self, key: Array, step: Array, count: int, group_size: int) -> tuple[History, Any, Any, Any]:
        """Return a batch of demonstrations, as ``Domain`` wants them; their numbers are shuffled by ``key``.

        No number comes twice among the first DEMONSTRATIONS; what a domain makes of two of them may be alike.
        """
        seed = int(jax.device_get(jax.random.key_data(key))[-1])
        numbers: Any = self.demonstration_rows.shuffle(seed=seed).repeat()
        made = [self.demonstration(numbers[int(step) * count + i], group_size) for i in range(count)]
        width = self.config.max_tokens
        tokens = np.zeros((count, group_size, width), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for i, (*_, responses) in enumerate(made):
            for g, response in enumerate(responses):
                ids = self.demonstrate(response)[:width]  # what is cut off has no end to teach
                tokens[i, g, : len(ids)], mask[i, g, : len(ids)] = ids, True
        mode = np.array([mode for _, mode, _ in made], np.int32)
        history = self.pack([pieces for pieces, *_ in made], task=0, step=np.where(mode == BASE, -1, 0))
        return history, mode, tokens, mask
