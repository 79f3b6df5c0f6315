"""Decoding: groups of responses are sampled token by token over a KV cache, until every row has ended."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.policy import decoder
from exit_jax.policy.cache import Cache
from exit_jax.policy.choice import SamplingConfig, allow, ends, mark, sample_token
from exit_jax.policy.prefill import DecodeCursor
from exit_jax.policy.shape import DecoderConfig
from exit_jax.types import Array, Params, Rollouts, pytree


@pytree
class DecodeState:
    """The carry of the decoding loop."""

    position: Array  # int32 []: tokens sampled so far, at least 1
    rollouts: Rollouts  # [B, G, ...]; ``hidden`` is a sum, ``finished`` rows and those that take no part sample nothing
    hidden: Array  # [B, G, D] of the last token read
    cache: Cache
    seen: Any  # as in DecodeCursor


def blank_rollouts(batch: int, group_size: int, width: int, hidden_size: int) -> Rollouts:
    """Return rollouts without a token."""
    shape = batch, group_size, width
    return Rollouts(
        tokens=jnp.zeros(shape, jnp.int32),
        mask=jnp.zeros(shape, bool),
        logp=jnp.zeros(shape, jnp.float32),
        sampled_logp=jnp.zeros(shape, jnp.float32),
        finished=jnp.zeros(shape[:2], bool),
        hidden=jnp.zeros((batch, group_size, hidden_size), jnp.float32),
    )


def generate(
    config: DecoderConfig,
    sampling: SamplingConfig,
    params: Params,
    cursor: DecodeCursor,
    key: Array,
    active: Array | None = None,
    first_row: Array | int = 0,
) -> tuple[DecodeCursor, Rollouts]:
    """Sample on from what was read, until every row has ended or T tokens are out.

    The key of a token is folded from ``key``, its logical row (prompt · G + rollout) and its position, so the outcome
    depends neither on the number of devices nor on how long other rows run.

    Args:
      active: bool [B, G], rows that take part; the others sample nothing. None for all.
      first_row: logical row of the first, where these are a part of a larger batch.
    """
    batch, group_size = cursor.length.shape
    width = sampling.max_tokens
    rows = first_row + jnp.arange(batch * group_size).reshape(batch, group_size)
    row_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))(key, rows)

    def record(state: DecodeState) -> DecodeState:
        """Sample the next token of every row that is not done."""
        t, out = state.position, state.rollouts
        done = out.finished
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(row_keys, t)
        logits = decoder.logits(config, params, state.hidden)
        allowed = allow(sampling, logits, out.tokens, t, state.seen)
        token, logp, sampled_logp = sample_token(sampling, logits, allowed, keys)

        def put(array, value, otherwise):
            return jax.lax.dynamic_update_index_in_dim(array, jnp.where(done, otherwise, value), t, axis=2)

        tokens = put(out.tokens, token, 0)
        out = Rollouts(
            tokens=tokens,
            mask=put(out.mask, True, False),
            logp=put(out.logp, logp, 0.0),
            sampled_logp=put(out.sampled_logp, sampled_logp, 0.0),
            finished=done | ends(sampling, tokens, t),
            hidden=out.hidden + jnp.where(done[..., None], 0.0, state.hidden.astype(jnp.float32)),
        )
        seen = None if state.seen is None else mark(state.seen, token[..., None], ~done[..., None])
        return dataclasses.replace(state, position=t + 1, rollouts=out, seen=seen)

    def step(state: DecodeState) -> DecodeState:
        """Read the last token of every row, then sample the next."""
        t = state.position
        last = lambda array: jax.lax.dynamic_slice_in_dim(array, t - 1, 1, axis=2)
        position = cursor.length[..., None] + t - 1
        real = last(state.rollouts.mask)
        hidden, cache = decoder.apply(config, params, last(state.rollouts.tokens), position, real, state.cache)
        hidden = jnp.where(real, hidden[:, :, 0], state.hidden)  # a row that has ended stays where it was
        return record(dataclasses.replace(state, hidden=hidden, cache=cache))

    blank = blank_rollouts(batch, group_size, width, cursor.hidden.shape[-1])
    if active is not None:
        blank = dataclasses.replace(blank, finished=~active)
    end = record(DecodeState(jnp.int32(0), blank, cursor.hidden, cursor.cache, cursor.seen))
    slots = cursor.cache.mask.shape[-1]
    for stage in range(1, config.decode_stages + 1):
        end = while_within(-(-slots * stage // config.decode_stages), width, step, end)

    rollouts = end.rollouts
    count = rollouts.mask.sum(-1)
    newest = jnp.take_along_axis(rollouts.tokens, jnp.maximum(count - 1, 0)[..., None], axis=2)[..., 0]
    unread = (count == end.position) & (count > 0)  # sampled in the last step, so that no step has read it
    cursor = DecodeCursor(end.cache, end.hidden, cursor.length + count - unread, newest, unread, end.seen)
    return cursor, dataclasses.replace(rollouts, hidden=rollouts.hidden / jnp.maximum(count, 1)[..., None])


def while_within(
    window: int, width: int, step: Callable[[DecodeState], DecodeState], state: DecodeState
) -> DecodeState:
    """Take steps until every row has ended, ``width`` tokens are out, or the next token's slot is beyond the first ``window``.

    Only that many slots are read: the memory's bandwidth is what decoding waits for, and slots that are not in use yet cost
    as much as others.
    """
    whole = state.cache.mask
    look = lambda state, mask: dataclasses.replace(state, cache=dataclasses.replace(state.cache, mask=mask))
    more = lambda state: (state.position < width) & (state.cache.used < window) & ~state.rollouts.finished.all()
    state = jax.lax.while_loop(more, step, look(state, whole[..., :window]))
    return look(state, whole.at[..., :window].set(state.cache.mask))
