"""When two histories are the same: as an entry of the buffer, or by what they hold."""

import jax.numpy as jnp

from exit_jax.algorithm.buffer import is_base_task
from exit_jax.types import NO_ID, Array, History


def same_entry(history: History) -> Array:
    """Return bool [B, B], which histories were drawn as the same one: the same base task, or the same buffer entry."""
    is_base = is_base_task(history)
    value = jnp.where(is_base, history.task, history.id)
    return (is_base[:, None] == is_base[None]) & (value[:, None] == value[None])


def same_content(children: History, parent: History) -> Array:
    """Return bool [B, G, U]: does a child hold the very context, request and solution of its parent [B]?"""
    parent_lengths, parent_tokens = parent.lengths[:, None, None], parent.tokens[:, None, None]
    equal_lengths = (children.lengths[..., :3] == parent_lengths[..., :3]).all(-1)
    position = jnp.arange(children.tokens.shape[-1]).reshape((1,) * (children.tokens.ndim - 1) + (-1,))
    beyond = position >= parent_lengths[..., :3].sum(-1, keepdims=True)
    return equal_lengths & (beyond | (children.tokens == parent_tokens)).all(-1)


def repeats(children: History, wanted: Array, held: History) -> Array:
    """Return bool [B, G, U]: which of the wanted children equal an earlier one of them, or an entry of the buffer [N].

    Equal is who has the same fingerprint. Of a million different pairs, one is taken for equal with a probability of 5e-14.
    """
    mark_C2, wanted_C = fingerprint(children).reshape(-1, 2), wanted.reshape(-1)
    equal = lambda ours, theirs: (ours[:, None] == theirs[None]).all(-1)
    earlier_CC = jnp.tri(wanted_C.size, k=-1, dtype=bool) & wanted_C[None]
    is_held_C = (equal(mark_C2, fingerprint(held)) & (held.id != NO_ID)[None]).any(1)
    comes_again_C = (equal(mark_C2, mark_C2) & earlier_CC).any(1)
    return (wanted_C & (is_held_C | comes_again_C)).reshape(wanted.shape)


def fingerprint(history: History) -> Array:
    """Return uint32 [..., 2], a hash of what histories hold: task, turn, context, request and solution.

    Feedback is left out, as in ``same_content``: it is what the world says of the solution. Each number is hashed with its
    place, and the hashes are added up, modulo 2^32, under two seeds.
    """
    ends = jnp.cumsum(history.lengths[..., :3], axis=-1)
    position = jnp.arange(history.tokens.shape[-1], dtype=jnp.uint32)
    tokens = history.tokens.astype(jnp.uint32)
    inside = jnp.broadcast_to(position.astype(jnp.int32), tokens.shape) < ends[..., -1:]
    head = jnp.stack([history.task, history.turn, *jnp.moveaxis(ends, -1, 0)], axis=-1).astype(jnp.uint32)

    def total(seed: int) -> Array:
        at = lambda place, values: _mix(values ^ jnp.broadcast_to(_mix(place + jnp.uint32(seed)), values.shape))
        of_tokens = jnp.where(inside, at(position, tokens), jnp.uint32(0)).sum(-1, dtype=jnp.uint32)
        of_head = at(jnp.arange(head.shape[-1], dtype=jnp.uint32) + jnp.uint32(2**31), head)
        return of_tokens + of_head.sum(-1, dtype=jnp.uint32)

    return jnp.stack([total(0x9E3779B9), total(0x3C6EF372)], axis=-1)


def _mix(x: Array) -> Array:
    """Return uint32 numbers of which every bit depends on every bit of x (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
