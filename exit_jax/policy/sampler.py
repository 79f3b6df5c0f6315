"""Sampling of grouped responses, and their log-probs for the learner; the two read a prompt the same way.

A row's tokens are those of its prompt, shared by the group, then its own. ``start`` reads prompts, ``extend`` reads own
tokens that are given, ``generate`` samples until every row has ended; a conversation alternates the last two over one cache.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.policy import cache as caches
from exit_jax.policy import decoder
from exit_jax.policy.cache import Cache
from exit_jax.policy.choice import SamplingConfig, allow, ends, gather_logits, mark, sample_token
from exit_jax.policy.shape import DecoderConfig
from exit_jax.types import Array, Params, Rollouts, pytree

READ_CHUNK = 128  # tokens of each row: of tools on v5e:4x4, 256 take 1.5 GiB a chip more


@pytree
class DecodeCursor:
    """Where the rows stand: what has been read, and what predicts the next token."""

    cache: Cache
    hidden: Array  # [B, G, D] of the last token read
    length: Array  # int32 [B, G]: tokens read, the position of the next
    token: Array  # int32 [B, G]: sampled and not read yet
    unread: Array  # bool [B, G], False where there is no such token
    seen: Any = None  # bool [B, G, V], ids among all tokens of a row, read or not; None where no one asks for them


@pytree
class DecodeState:
    """The carry of the decoding loop."""

    position: Array  # int32 []: tokens sampled so far, at least 1
    tokens: Array  # int32 [B, G, T]
    logp: Array  # float32 [B, G, T]
    sampled_logp: Array  # float32 [B, G, T]
    mask: Array  # bool [B, G, T]
    done: Array  # bool [B, G]: stop token sampled
    hidden: Array  # [B, G, D]
    total: Array  # float32 [B, G, D]: sum of the hidden states that tokens were sampled from
    cache: Cache
    seen: Any  # as in DecodeCursor


def prefill(config: DecoderConfig, params: Params, prompt: Array, prompt_length: Array) -> tuple[Array, Cache]:
    """Read prompts [B, P]: hidden state [B, D] of each last token, and the cache of the prompts (at G = 1)."""
    batch, width = prompt.shape
    position = jnp.broadcast_to(jnp.arange(width), (batch, 1, width))
    mask = position < prompt_length[:, None, None]
    hidden, cache = decoder.apply(config, params, prompt[:, None], position, mask)
    last = jnp.take_along_axis(hidden[:, 0], (prompt_length - 1)[:, None, None], axis=1)
    return last[:, 0], cache


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
    last, cache = prefill(config, params, prompt, prompt_length)
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


def prefill_chunked(config: DecoderConfig, params: Params, tokens: Array, position: Array, mask: Array, cache: Cache):
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
    hidden, cache = prefill_chunked(config, params, tokens, position, mask, caches.compact(held))
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
        t = state.position
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(row_keys, t)
        logits = decoder.logits(config, params, state.hidden)
        allowed = allow(sampling, logits, state.tokens, t, state.seen)
        token, logp, sampled_logp = sample_token(sampling, logits, allowed, keys)

        def put(array, value, otherwise):
            return jax.lax.dynamic_update_index_in_dim(array, jnp.where(state.done, otherwise, value), t, axis=2)

        tokens = put(state.tokens, token, 0)
        seen = None if state.seen is None else mark(state.seen, token[..., None], ~state.done[..., None])
        return dataclasses.replace(
            state,
            position=t + 1,
            tokens=tokens,
            logp=put(state.logp, logp, 0.0),
            sampled_logp=put(state.sampled_logp, sampled_logp, 0.0),
            mask=put(state.mask, True, False),
            done=state.done | ends(sampling, tokens, t),
            total=state.total + jnp.where(state.done[..., None], 0.0, state.hidden.astype(jnp.float32)),
            seen=seen,
        )

    def step(state: DecodeState) -> DecodeState:
        """Read the last token of every row, then sample the next."""
        t = state.position
        last = lambda array: jax.lax.dynamic_slice_in_dim(array, t - 1, 1, axis=2)
        position = cursor.length[..., None] + t - 1
        real = last(state.mask)
        hidden, cache = decoder.apply(config, params, last(state.tokens), position, real, state.cache)
        hidden = jnp.where(real, hidden[:, :, 0], state.hidden)  # a row that has ended stays where it was
        return record(dataclasses.replace(state, hidden=hidden, cache=cache))

    shape = (batch, group_size, width)
    begin = DecodeState(
        position=jnp.int32(0),
        tokens=jnp.zeros(shape, jnp.int32),
        logp=jnp.zeros(shape, jnp.float32),
        sampled_logp=jnp.zeros(shape, jnp.float32),
        mask=jnp.zeros(shape, bool),
        done=jnp.zeros(shape[:2], bool) if active is None else ~active,
        hidden=cursor.hidden,
        total=jnp.zeros(cursor.hidden.shape, jnp.float32),
        cache=cursor.cache,
        seen=cursor.seen,
    )
    end = record(begin)
    slots = cursor.cache.mask.shape[-1]
    for stage in range(1, config.decode_stages + 1):
        end = while_within(-(-slots * stage // config.decode_stages), width, step, end)

    count = end.mask.sum(-1)
    newest = jnp.take_along_axis(end.tokens, jnp.maximum(count - 1, 0)[..., None], axis=2)[..., 0]
    unread = (count == end.position) & (count > 0)  # sampled in the last step, so that no step has read it
    cursor = DecodeCursor(end.cache, end.hidden, cursor.length + count - unread, newest, unread, end.seen)
    rollouts = Rollouts(
        tokens=end.tokens,
        mask=end.mask,
        logp=end.logp,
        sampled_logp=end.sampled_logp,
        finished=end.done,
        hidden=end.total / jnp.maximum(count, 1)[..., None],
    )
    return cursor, rollouts


def while_within(
    window: int, width: int, step: Callable[[DecodeState], DecodeState], state: DecodeState
) -> DecodeState:
    """Take steps until every row has ended, ``width`` tokens are out, or the next token's slot is beyond the first ``window``.

    Only that many slots are read: the memory's bandwidth is what decoding waits for, and slots that are not in use yet cost
    as much as others.
    """
    whole = state.cache.mask
    look = lambda state, mask: dataclasses.replace(state, cache=dataclasses.replace(state.cache, mask=mask))
    more = lambda state: (state.position < width) & (state.cache.used < window) & ~state.done.all()
    state = jax.lax.while_loop(more, step, look(state, whole[..., :window]))
    return look(state, whole.at[..., :window].set(state.cache.mask))


@pytree
class SlotState:
    """The carry of the loop that refills slots: g slots a prompt, G responses to come."""

    time: Array  # int32 []: steps so far
    row: Array  # int32 [B, g]: response in the slot, G where none is left
    position: Array  # int32 [B, g]: tokens of it
    taken: Array  # int32 [B]: responses begun
    hidden: Array  # [B, g, D]
    cache: Cache  # its own slots of keys are a ring: no response is longer
    rollouts: Rollouts  # [B, G, ...]; ``hidden`` is a sum
    seen: Any  # bool [B, g, V], as in DecodeCursor


def sample_in_slots(
    config: DecoderConfig,
    sampling: SamplingConfig,
    group_size: int,
    num_slots: int,
    params: Params,
    prompt: Array,
    prompt_length: Array,
    key: Array,
) -> Rollouts:
    """Sample as ``sample`` does, the same tokens, in ``num_slots`` rows a prompt: one that has ended makes room for another.

    Without this, every row waits for the batch's longest. Refilling within a prompt keeps its keys and values shared.
    """
    batch, width = prompt.shape[0], sampling.max_tokens
    last, prompt_cache = prefill(config, params, prompt, prompt_length)
    first_hidden = jnp.broadcast_to(last[:, None], (batch, num_slots, last.shape[-1]))
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch * group_size))
    in_prompt = see_prompts(config, prompt, prompt_length, num_slots) if sampling.counts_repeats else None
    own = jnp.arange(group_size)[None, :, None]
    place = jnp.arange(width)[None, None]

    def of_slots(state: SlotState) -> Array:
        """Return the own tokens [B, g, T] of the responses in the slots."""
        at = jnp.minimum(state.row, group_size - 1)
        return jnp.take_along_axis(state.rollouts.tokens, at[..., None], axis=1)

    def record(state: SlotState) -> SlotState:
        """Sample the next token of every slot, end responses and begin others."""
        running = state.row < group_size
        logical = jnp.arange(batch)[:, None] * group_size + jnp.minimum(state.row, group_size - 1)
        keys = jax.vmap(jax.vmap(jax.random.fold_in))(row_keys[logical], state.position)
        logits = decoder.logits(config, params, state.hidden)
        allowed = allow(sampling, logits, of_slots(state), state.position, state.seen)
        token, logp, sampled_logp = sample_token(sampling, logits, allowed, keys)
        out = state.rollouts

        # a response is in one slot at most, so a sum over slots picks its value
        of_slot = (own == state.row[:, None]) & running[:, None]  # [B, G, g]
        now = of_slot.any(-1)
        to_row = lambda value: jnp.where(of_slot, value[:, None], 0).sum(-1, dtype=value.dtype)
        here = now[..., None] & (place == to_row(state.position)[..., None])

        def put(array, value):
            return jnp.where(here, to_row(value)[..., None], array)

        hidden = jnp.einsum("bgs,bsd->bgd", of_slot.astype(jnp.float32), state.hidden.astype(jnp.float32))
        tokens = put(out.tokens, token)
        ended = now & ends(sampling, tokens, to_row(state.position))
        over = now & (ended | (to_row(state.position) + 1 >= width))
        out = Rollouts(
            tokens=tokens,
            mask=out.mask | here,
            logp=put(out.logp, logp),
            sampled_logp=put(out.sampled_logp, sampled_logp),
            finished=out.finished | ended,
            hidden=out.hidden + hidden,
        )
        free = running & (of_slot & over[..., None]).any(1)  # [B, g]
        refill = state.taken[:, None] + jnp.cumsum(free, axis=1) - 1
        seen = state.seen
        if seen is not None and in_prompt is not None:
            seen = jnp.where(free[..., None], in_prompt, mark(seen, token[..., None], running[..., None]))
        return dataclasses.replace(
            state,
            row=jnp.where(free, jnp.minimum(refill, group_size), state.row),
            position=jnp.where(free, 0, state.position + 1),
            taken=state.taken + free.sum(1),
            rollouts=out,
            seen=seen,
        )

    def step(state: SlotState) -> SlotState:
        """Read the token that each slot's response has come to, unless it is yet to begin; then sample."""
        goes_on = (state.row < group_size) & (state.position > 0)
        token = jnp.take_along_axis(of_slots(state), jnp.maximum(state.position - 1, 0)[..., None], axis=2)
        kept = state.cache.mask & goes_on[..., None]  # what a slot held before belongs to another response
        cache = dataclasses.replace(state.cache, mask=kept, used=state.time % kept.shape[-1])
        position = (prompt_length[:, None] + state.position - 1)[..., None]
        hidden, cache = decoder.apply(config, params, token, position, goes_on[..., None], cache)
        hidden = jnp.where(goes_on[..., None], hidden[:, :, 0], first_hidden)
        return record(dataclasses.replace(state, time=state.time + 1, hidden=hidden, cache=cache))

    shape = (batch, group_size, width)
    blank = Rollouts(
        tokens=jnp.zeros(shape, jnp.int32),
        mask=jnp.zeros(shape, bool),
        logp=jnp.zeros(shape, jnp.float32),
        sampled_logp=jnp.zeros(shape, jnp.float32),
        finished=jnp.zeros(shape[:2], bool),
        hidden=jnp.zeros((*shape[:2], last.shape[-1]), jnp.float32),
    )
    slots = jnp.broadcast_to(jnp.arange(num_slots), (batch, num_slots))
    begin = SlotState(
        time=jnp.int32(0),
        row=slots,
        position=jnp.zeros_like(slots),
        taken=jnp.full(batch, num_slots),
        hidden=first_hidden,
        cache=dataclasses.replace(caches.share_prompt(prompt_cache, num_slots, max(width - 1, 1)), used=jnp.int32(0)),
        rollouts=blank,
        seen=in_prompt,
    )
    rollouts = jax.lax.while_loop(lambda state: (state.row < group_size).any(), step, record(begin)).rollouts
    count = jnp.maximum(rollouts.mask.sum(-1), 1)
    return dataclasses.replace(rollouts, hidden=rollouts.hidden / count[..., None])


def sample(
    config: DecoderConfig,
    sampling: SamplingConfig,
    group_size: int,
    params: Params,
    prompt: Array,
    prompt_length: Array,
    key: Array,
    num_slots: int = 0,
) -> Rollouts:
    """Sample ``group_size`` responses to each prompt [B, P]; see ``generate``, and ``sample_in_slots`` for fewer slots."""
    if 0 < num_slots < group_size:
        return sample_in_slots(config, sampling, group_size, num_slots, params, prompt, prompt_length, key)
    room = max(sampling.max_tokens - 1, 1)  # the last token is not read
    cursor = start(config, params, group_size, room, prompt, prompt_length, sampling.counts_repeats)
    return generate(config, sampling, params, cursor, key)[1]


def finite_share(rollouts: Rollouts) -> Array:
    """Return the share of the sampled tokens whose logits were finite, as their log-probs tell; float32 [], 1 of no tokens."""
    lost = (rollouts.mask & ~jnp.isfinite(rollouts.logp)).sum()
    return 1.0 - lost / jnp.maximum(rollouts.mask.sum(), 1)


def logprobs(
    config: DecoderConfig,
    temperature: float,
    token_chunk: int,
    params: Params,
    prompt: Array,
    prompt_length: Array,
    tokens: Array,
) -> tuple[Array, Array]:
    """Return log-probs of tokens [B, G, T] and the entropies they were sampled at, nats, float32 [B, G, T].

    Token t is predicted from the prompt and the tokens before it: the last prompt token gives the first. The prompt is
    read once a group. Values after a response's end mean nothing; mask them.

    Logits of ``token_chunk`` positions of each row exist at once (0: of all), and the backward pass computes them anew.
    """
    batch, group_size, width = tokens.shape
    last, prompt_cache = prefill(config, params, prompt, prompt_length)
    hidden = jnp.broadcast_to(last[:, None, None], (batch, group_size, 1, last.shape[-1]))
    if width > 1:
        position = prompt_length[:, None, None] + jnp.broadcast_to(jnp.arange(width), tokens.shape)
        cache = caches.share_prompt(prompt_cache, group_size, 0)
        # nothing follows the last token; it is read so that the width can be split over devices
        rest, _ = decoder.apply(config, params, tokens, position, jnp.ones(tokens.shape, bool), cache)
        hidden = jnp.concatenate([hidden, rest[..., :-1, :]], axis=2)

    def score(hidden: Array, tokens: Array) -> tuple[Array, Array]:
        logits = decoder.logits(config, params, hidden) / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        probability = jnp.exp(logits - total[..., None])
        return gather_logits(logits, tokens) - total, total - (probability * logits).sum(-1)

    if not token_chunk or token_chunk >= width:
        return score(hidden, tokens)
    padded = -width % token_chunk
    chunks = lambda x: jnp.moveaxis(
        jnp.pad(x, [(0, 0), (0, 0), (0, padded)] + [(0, 0)] * (x.ndim - 3)).reshape(
            batch, group_size, -1, token_chunk, *x.shape[3:]
        ),
        2,
        0,
    )
    together = lambda x: jnp.moveaxis(x, 0, 2).reshape(batch, group_size, -1)[..., :width]
    _, scores = jax.lax.scan(lambda _, xs: (None, jax.checkpoint(score)(*xs)), None, (chunks(hidden), chunks(tokens)))
    return jax.tree.map(together, scores)
