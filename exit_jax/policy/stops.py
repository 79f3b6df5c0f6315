"""A text that ends a response, found in its tokens wherever these cut it."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.types import Array


@dataclasses.dataclass(frozen=True, eq=False)
class StopText:
    """The automaton of Knuth, Morris and Pratt for a text of n characters, by token instead of by character.

    Its state is the number of characters matched so far; n, once the text is found, is never left.
    """

    text: str
    table: np.ndarray  # int8 [n + 1, V]: state, token -> the state after it

    @classmethod
    def of(cls, text: str, tokens: Sequence[str | None]) -> "StopText":
        """Tabulate the automaton for a vocabulary's tokens by id; None, an id without a token, is no part of any match.

        Raises:
          ValueError: if the text has no character or more than 126, which an int8 does not count.
        """
        if not 0 < len(text) <= 126:
            raise ValueError(f"a text that ends responses has 1 to 126 characters, {text!r} has {len(text)}")
        steps = [
            {char: _longest_overlap(text, text[:state] + char) for char in set(text)} for state in range(len(text))
        ]
        table = np.zeros((len(text) + 1, len(tokens)), np.int8)
        table[-1] = len(text)
        for number, token in enumerate(tokens):
            if token and not steps[0].keys().isdisjoint(token):
                for state in range(len(text)):
                    table[state, number] = _walk(steps, state, token)
        return cls(text, table)

    def state(self, tokens: Array, position: Array) -> Array:
        """Return the state int32 [B, G] after tokens [B, G, T] up to and with ``position`` [B, G], which may be -1.

        A match of n characters lies within the last n tokens, so only these are looked at.
        """
        table, num_chars = jnp.asarray(self.table), len(self.text)

        def step(state, back):
            at = position - back
            token = jnp.take_along_axis(tokens, jnp.maximum(at, 0)[..., None], axis=2)[..., 0]
            # an id beyond the tokenizer's, of a padded vocabulary, has no text
            after = table.at[state, token].get(mode="fill", fill_value=0).astype(jnp.int32)
            return jnp.where(at >= 0, after, state), None

        return jax.lax.scan(step, jnp.zeros_like(position), jnp.arange(num_chars - 1, -1, -1))[0]

    def find(self, tokens: Sequence[int]) -> int | None:
        """Return the index of the token in which the text ends first, None where it is not among tokens."""
        state = 0
        for index, token in enumerate(tokens):
            state = int(self.table[state, token]) if token < self.table.shape[1] else 0
            if state == len(self.text):
                return index
        return None


def _longest_overlap(text: str, seen: str) -> int:
    """Return the length of the longest start of a text that ends what was seen."""
    return next(length for length in range(len(seen), -1, -1) if seen.endswith(text[:length]))


def _walk(steps: Sequence[dict[str, int]], state: int, token: str) -> int:
    """Return the state after a token's characters."""
    for char in token:
        state = steps[state].get(char, 0)
        if state == len(steps):
            break
    return state
