"""Decoding in slots: one that a response has left is refilled, so that none waits for the batch's longest."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.policy import cache as caches
from exit_jax.policy import decoder
from exit_jax.policy.cache import Cache
from exit_jax.policy.choice import SamplingConfig, allow, ends, mark, sample_token
from exit_jax.policy.decode import blank_rollouts
from exit_jax.policy.prefill import read_prompts, see_prompts
from exit_jax.policy.shape import DecoderConfig
from exit_jax.types import Array, Params, Rollouts, pytree


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


def write(
    sampling: SamplingConfig, state: SlotState, token: Array, logp: Array, sampled_logp: Array
) -> tuple[Rollouts, Array]:
    """Write each slot's token to the response in it: the rollouts, and bool [B, g], slots whose response is over."""
    out = state.rollouts
    group_size, width = out.tokens.shape[1:]
    # a response is in one slot at most, so a sum over slots picks its value
    in_slot = jnp.arange(group_size)[None, :, None] == state.row[:, None]  # [B, G, g]; none where the row is G
    now = in_slot.any(-1)
    to_row = lambda value: jnp.where(in_slot, value[:, None], 0).sum(-1, dtype=value.dtype)
    position = to_row(state.position)
    here = now[..., None] & (jnp.arange(width)[None, None] == position[..., None])

    def put(array, value):
        return jnp.where(here, to_row(value)[..., None], array)

    hidden = jnp.einsum("bgs,bsd->bgd", in_slot.astype(jnp.float32), state.hidden.astype(jnp.float32))
    tokens = put(out.tokens, token)
    ended = now & ends(sampling, tokens, position)
    over = now & (ended | (position + 1 >= width))
    out = Rollouts(
        tokens=tokens,
        mask=out.mask | here,
        logp=put(out.logp, logp),
        sampled_logp=put(out.sampled_logp, sampled_logp),
        finished=out.finished | ended,
        hidden=out.hidden + hidden,
    )
    return out, (in_slot & over[..., None]).any(1)


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
    """Sample as ``sampler.sample`` does, the same tokens, in ``num_slots`` rows a prompt.

    Refilling within a prompt keeps its keys and values shared.
    """
    batch, width = prompt.shape[0], sampling.max_tokens
    prompt_length = jnp.minimum(prompt_length, prompt.shape[1])  # what did not fit is not read
    last, prompt_cache = read_prompts(config, params, prompt, prompt_length)
    first_hidden = jnp.broadcast_to(last[:, None], (batch, num_slots, last.shape[-1]))
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch * group_size))
    in_prompt = see_prompts(config, prompt, prompt_length, num_slots) if sampling.counts_repeats else None

    def response_of(state: SlotState) -> Array:
        """Return which response is in each slot, int32 [B, g]; the last where there is none."""
        return jnp.minimum(state.row, group_size - 1)

    def tokens_of(state: SlotState) -> Array:
        """Return the own tokens [B, g, T] of the responses in the slots."""
        return jnp.take_along_axis(state.rollouts.tokens, response_of(state)[..., None], axis=1)

    def record(state: SlotState) -> SlotState:
        """Sample the next token of every slot, end responses and begin others."""
        running = state.row < group_size
        logical = jnp.arange(batch)[:, None] * group_size + response_of(state)
        keys = jax.vmap(jax.vmap(jax.random.fold_in))(row_keys[logical], state.position)
        logits = decoder.logits(config, params, state.hidden)
        allowed = allow(sampling, logits, tokens_of(state), state.position, state.seen)
        token, logp, sampled_logp = sample_token(sampling, logits, allowed, keys)
        rollouts, free = write(sampling, state, token, logp, sampled_logp)
        refill = state.taken[:, None] + jnp.cumsum(free, axis=1) - 1
        seen = state.seen
        if seen is not None and in_prompt is not None:
            seen = jnp.where(free[..., None], in_prompt, mark(seen, token[..., None], running[..., None]))
        return dataclasses.replace(
            state,
            row=jnp.where(free, jnp.minimum(refill, group_size), state.row),
            position=jnp.where(free, 0, state.position + 1),
            taken=state.taken + free.sum(1),
            rollouts=rollouts,
            seen=seen,
        )

    def step(state: SlotState) -> SlotState:
        """Read the token that each slot's response has come to, unless it is yet to begin; then sample."""
        goes_on = (state.row < group_size) & (state.position > 0)
        token = jnp.take_along_axis(tokens_of(state), jnp.maximum(state.position - 1, 0)[..., None], axis=2)
        kept = state.cache.mask & goes_on[..., None]  # what a slot held before belongs to another response
        cache = dataclasses.replace(state.cache, mask=kept, used=state.time % kept.shape[-1])
        position = (prompt_length[:, None] + state.position - 1)[..., None]
        hidden, cache = decoder.apply(config, params, token, position, goes_on[..., None], cache)
        hidden = jnp.where(goes_on[..., None], hidden[:, :, 0], first_hidden)
        return record(dataclasses.replace(state, time=state.time + 1, hidden=hidden, cache=cache))

    slots = jnp.broadcast_to(jnp.arange(num_slots), (batch, num_slots))
    begin = SlotState(
        time=jnp.int32(0),
        row=slots,
        position=jnp.zeros_like(slots),
        taken=jnp.full(batch, num_slots),
        hidden=first_hidden,
        cache=dataclasses.replace(caches.share_prompt(prompt_cache, num_slots, max(width - 1, 1)), used=jnp.int32(0)),
        rollouts=blank_rollouts(batch, group_size, width, last.shape[-1]),
        seen=in_prompt,
    )
    rollouts = jax.lax.while_loop(lambda state: (state.row < group_size).any(), step, record(begin)).rollouts
    count = jnp.maximum(rollouts.mask.sum(-1), 1)
    return dataclasses.replace(rollouts, hidden=rollouts.hidden / count[..., None])
