"""From logits to the next token: what may come, what of it is kept, the draw, and whether the token ends its response.

The order is that of `transformers`: repetition penalty, stop tokens held back, suppressed tokens; then, where tokens are
sampled and not the likeliest taken, temperature, top-k, top-p, min-p.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.policy.stops import StopText
from exit_jax.types import Array


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are sampled."""

    max_tokens: int  # T
    stop_tokens: tuple[int, ...]  # each ends a response and is part of it
    temperature: float  # 0 for greedy
    top_k: int = 0  # keep the k likeliest tokens; 0 for all
    top_p: float = 1.0  # keep the smallest set of likeliest tokens whose probability reaches p
    min_p: float = 0.0  # keep tokens at least this times as probable as the likeliest
    min_tokens: int = 0  # no stop token, nor the last one of a stop sequence or text, before this many others
    stop_sequences: tuple[tuple[int, ...], ...] = ()  # each ends a response when its last tokens equal it
    stop_text: StopText | None = None  # ends a response with the token that completes it
    repetition_penalty: float = 1.0  # penalty on tokens that prompt or response hold (CTRL, arXiv 1909.05858)
    suppress_tokens: tuple[int, ...] = ()  # never sampled

    @property
    def counts_repeats(self) -> bool:
        """Whether it must be known which tokens each row holds."""
        return self.repetition_penalty != 1.0


def mark(seen: Array, tokens: Array, real: Array) -> Array:
    """Return ``seen``, bool [B, G, V], with the ids of tokens [B, G, S] marked where these are ``real``.

    Of 4 ids, tokens 2 and 3 of which the second is padding mark [False, False, True, False].
    """
    batch, group_size, vocab_size = seen.shape
    ids = jnp.where(real, tokens, vocab_size)  # beyond the last, so that nothing is marked
    return seen.at[jnp.arange(batch)[:, None, None], jnp.arange(group_size)[None, :, None], ids].set(True, mode="drop")


def end_with(tokens: Array, count: Array, sequence: Sequence[int]) -> Array:
    """Return bool [B, G]: do the first ``count`` (of all rows, or [B, G]) of tokens [B, G, T] end with a sequence?"""
    first = jnp.broadcast_to(count, tokens.shape[:2]) - len(sequence)
    at = lambda index: jnp.take_along_axis(tokens, jnp.maximum(index, 0)[..., None], axis=2)[..., 0]
    equal = first >= 0
    for i, token in enumerate(sequence):
        equal = equal & (at(first + i) == token)
    return equal


def ends(config: SamplingConfig, tokens: Array, position: Array) -> Array:
    """Return bool [B, G]: does the token at ``position`` (of all rows, or [B, G]) of tokens [B, G, T] end its row?"""
    stops = (*((token,) for token in config.stop_tokens), *config.stop_sequences)
    ended = jnp.zeros(tokens.shape[:2], bool)
    for stop in stops:
        ended = ended | end_with(tokens, position + 1, stop)
    if config.stop_text:
        state = config.stop_text.state(tokens, jnp.broadcast_to(position, tokens.shape[:2]))
        ended = ended | (state == len(config.stop_text.text))
    return ended


def allow(config: SamplingConfig, logits: Array, tokens: Array, position: Array, seen: Array | None) -> Array:
    """Return logits [B, G, V] of the token at ``position`` as rules about the row change them; -inf for what may not come.

    Args:
      tokens: int32 [B, G, T], the rows' own tokens up to ``position``, which is one for all rows, or [B, G].
      seen: bool [B, G, V], the ids that a row holds, its prompt included; None where ``config`` counts no repeats.
    """
    penalty, ids = config.repetition_penalty, np.arange(logits.shape[-1])
    if seen is not None and config.counts_repeats:
        logits = jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
    if config.min_tokens:
        early = jnp.broadcast_to(position < config.min_tokens, logits.shape[:2])
        held_back = early[..., None] & np.isin(ids, config.stop_tokens)[None, None]
        for *start, last in config.stop_sequences:
            begun = early & end_with(tokens, position, start)
            held_back = held_back | (begun[..., None] & (ids == last)[None, None])
        if config.stop_text:
            table, num_chars = config.stop_text.table, len(config.stop_text.text)
            completes = np.zeros((num_chars + 1, ids.size), bool)  # an id beyond the tokenizer's has no text
            completes[:, : table.shape[1]] = table[:, : ids.size] == num_chars
            before = config.stop_text.state(tokens, jnp.broadcast_to(position - 1, logits.shape[:2]))
            held_back = held_back | (early[..., None] & jnp.asarray(completes)[before])
        logits = jnp.where(held_back, -jnp.inf, logits)
    if config.suppress_tokens:
        logits = jnp.where(np.isin(ids, config.suppress_tokens)[None, None], -jnp.inf, logits)
    return logits


def truncate(logits: Array, top_k: int, top_p: float, min_p: float = 0.0) -> Array:
    """Set logits [..., V] outside the top k, the nucleus of mass p (arXiv 1904.09751), and min-p (arXiv 2407.01082) to -inf."""
    if top_k and top_k < logits.shape[-1]:
        kept, _ = jax.lax.top_k(logits, top_k)
        logits = jnp.where(logits < kept[..., -1:], -jnp.inf, logits)
    if top_p < 1.0:
        descending = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        probability = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability  # mass of all likelier tokens
        smallest = jnp.where(before < top_p, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if min_p > 0.0:
        floor = logits.max(-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return logits


def gather_logits(logits: Array, tokens: Array) -> Array:
    """Return logits [..., V] at tokens [...]; a masked sum, since a gather would undo a vocabulary split over devices."""
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == tokens[..., None]
    return jnp.where(chosen, logits, 0.0).sum(-1)


def log_probability(logits: Array, tokens: Array) -> Array:
    """Return log-probs of tokens [...] under logits [..., V]."""
    return gather_logits(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def gumbel_argmax(keys: Array, logits: Array) -> Array:
    """Sample tokens [B, G] from logits [B, G, V], as ``jax.random.categorical`` does with one key a row, by Gumbel's trick.

    The largest is found in plain reductions, as XLA's CPU backend fuses the noise into its argmax and takes thrice as long.
    """
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:])))(keys)
    noisy = jax.lax.optimization_barrier(logits + noise)
    index = jax.lax.broadcasted_iota(jnp.int32, noisy.shape, noisy.ndim - 1)
    return jnp.where(noisy == noisy.max(-1, keepdims=True), index, logits.shape[-1]).min(-1)


def sample_token(config: SamplingConfig, logits: Array, allowed: Array, keys: Array) -> tuple[Array, Array, Array]:
    """Sample tokens [B, G] from logits [B, G, V] with one key a row.

    Args:
      allowed: the same as ``allow`` returns them, from which tokens are sampled.

    Returns:
      tokens; log-probs under the policy at this temperature, nothing changed or cut off; log-probs under what was sampled from.
    """
    if config.temperature == 0:
        tokens = jnp.argmax(allowed, axis=-1)
        return tokens, log_probability(logits, tokens), jnp.zeros(tokens.shape, jnp.float32)
    whole = logits / config.temperature
    kept = truncate(allowed / config.temperature, config.top_k, config.top_p, config.min_p)
    tokens = gumbel_argmax(keys, kept)
    return tokens, log_probability(whole, tokens), log_probability(kept, tokens)
