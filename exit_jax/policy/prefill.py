"""Prefill: prompts, and later tokens that are given, are read into the KV cache that sampling goes on from.

A row's tokens are those of its prompt, shared by the group, then its own. ``start`` reads prompts, ``extend`` reads own
tokens that are given, ``decode.generate`` samples until every row has ended; a conversation alternates the last two over one
cache.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from exit_jax.policy import cache as caches
from exit_jax.policy import decoder
from exit_jax.policy.cache import Cache
from exit_jax.policy.choice import mark
from exit_jax.policy.shape import DecoderConfig
from exit_jax.types import Array, Params, pytree

READ_CHUNK = 128  # tokens of each row; on v5e:4x4, for the tool-use config, 256 take 1.5 GiB a chip more


@pytree
class DecodeCursor:
    """Where the rows stand: what has been read, and what predicts the next token."""

    cache: Cache
    hidden: Array  # [B, G, D] of the last token read
    length: Array  # int32 [B, G]: tokens read, the position of the next
    token: Array  # int32 [B, G]: sampled and not read yet
    unread: Array  # bool [B, G], False where there is no such token
    seen: Any = None  # bool [B, G, V], ids among all tokens of a row, read or not; None where no one asks for them


def read_prompts(config: DecoderConfig, params: Params, prompt: Array, prompt_length: Array) -> tuple[Array, Cache]:
    """Read prompts [B, P]: hidden state [B, D] of each last token, and the cache of the prompts (at G = 1)."""
    batch, width = prompt.shape
    position = jnp.broadcast_to(jnp.arange(width), (batch, 1, width))
    mask = position < prompt_length[:, None, None]
    hidden, cache = decoder.apply(config, params, prompt[:, None], position, mask, last=prompt_length[:, None] - 1)
    return hidden[:, 0, 0], cache


def start(
    config: DecoderConfig,
    params: Params,
    group_size: int,
    width: int,
    prompt: Array,
    prompt_length: Array,
    counts_repeats: bool = False,
) -> DecodeCursor:
    """Read prompts [B, P] once for ``group_size`` rows each, with room for ``width`` own tokens a row.

    Args:
      counts_repeats: whether to keep which tokens a row holds, as a repetition penalty needs to know.
    """
    prompt_length = jnp.minimum(prompt_length, prompt.shape[1])  # what did not fit is not read
    last, cache = read_prompts(config, params, prompt, prompt_length)
    shape = (prompt.shape[0], group_size)
    seen = see_prompts(config, prompt, prompt_length, group_size) if counts_repeats else None
    return DecodeCursor(
        cache=caches.share_prompt(cache, group_size, width),
        hidden=jnp.broadcast_to(last[:, None], (*shape, last.shape[-1])),
        length=jnp.broadcast_to(prompt_length[:, None], shape),
        token=jnp.zeros(shape, jnp.int32),
        unread=jnp.zeros(shape, bool),
        seen=seen,
    )


def see_prompts(config: DecoderConfig, prompt: Array, prompt_length: Array, group_size: int) -> Array:
    """Return which ids are in prompts [B, P], for ``group_size`` rows each: bool [B, G, V]."""
    batch, width = prompt.shape
    real = jnp.broadcast_to(jnp.arange(width), (batch, 1, width)) < prompt_length[:, None, None]
    seen = mark(jnp.zeros((batch, 1, config.vocab_size), bool), prompt[:, None], real)
    return jnp.broadcast_to(seen, (batch, group_size, config.vocab_size))


def read_chunked(config: DecoderConfig, params: Params, tokens: Array, position: Array, mask: Array, cache: Cache):
    """Read tokens [B, G, S] after what a cache holds, READ_CHUNK at a time: hidden states [B, G, S, D], and the cache.

    The scores of all of them, against all that is held, are too much at once: 8 GiB a chip for 1,028 tokens of 16 rows after
    17,000, with 7 heads.
    """
    parts = []
    for start in range(0, tokens.shape[-1], READ_CHUNK):
        chunk = slice(start, start + READ_CHUNK)
        rows = tokens[..., chunk], position[..., chunk], mask[..., chunk]
        hidden, cache = decoder.apply(config, params, *rows, cache)
        parts.append(hidden)
    return jnp.concatenate(parts, axis=2), cache


def extend(
    config: DecoderConfig,
    params: Params,
    cursor: DecodeCursor,
    tokens: Array,
    count: Array,
    active: Array | None = None,
) -> DecodeCursor:
    """Read given tokens int32 [B, G, S] after what the rows hold, of which the first ``count`` [B, G] are real.

    A token that was sampled last and not read yet goes first, so S + 1 slots of the cache are used, after those of the
    longest row: what rows that ended earlier left unused is used first.

    Args:
      active: bool [B, G], rows that go on; what the others hold is given up, and its slots with it. None for all.
    """
    held = cursor.cache
    if active is not None:
        held = dataclasses.replace(held, mask=held.mask & active[..., None])
    given = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape) < count[..., None]
    tokens = jnp.concatenate([cursor.token[..., None], tokens], axis=-1)
    mask = jnp.concatenate([cursor.unread[..., None], given], axis=-1)
    position = cursor.length[..., None] + jnp.cumsum(mask, axis=-1) - 1
    hidden, cache = read_chunked(config, params, tokens, position, mask, caches.compact(held))
    new = jnp.take_along_axis(hidden, count[..., None, None], axis=2)[:, :, 0]
    total = mask.sum(-1)
    return DecodeCursor(
        cache=cache,
        hidden=jnp.where((total > 0)[..., None], new, cursor.hidden),
        length=cursor.length + total,
        token=jnp.zeros_like(cursor.token),
        unread=jnp.zeros_like(cursor.unread),
        seen=None if cursor.seen is None else mark(cursor.seen, tokens, mask),
    )
