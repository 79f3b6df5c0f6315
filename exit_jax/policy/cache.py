"""The key/value cache: one prompt shared by the group, and a run of own tokens for each rollout.

The prompt's keys and values are stored once for B prompts, not for B x G rows. The learner uses the same
structure with the gradient flowing through it, so it computes a group's prompt once, too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.types import Array, pytree


@pytree
class LayerCache:
    """Keys and values of one layer, K kv heads of size h; all layers at once have a leading L."""

    prompt_key: Any = None  # [B, K, P, h], None without a shared prompt
    prompt_value: Any = None
    key: Any = None  # [B, G, K, T, h], None where the new tokens see only the prompt and each other
    value: Any = None


@pytree
class Cache:
    """The cache of all layers, and which of its slots hold something."""

    layers: Any  # a LayerCache with leading L, or a tuple of L of them
    prompt_mask: Any = None  # bool [B, P], None without a shared prompt
    mask: Any = None  # bool [B, G, W], W <= T: own tokens that may be attended to; None where nothing is stored
    used: Array | int = 0  # int32 []: slots of T written so far, the same for all rows


def write(slots: Array, new: Array, used: Array | int) -> Array:
    """Write [B, G, K, S, h] into the next S slots of [B, G, K, T, h]."""
    return jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), (0, 0, 0, used, 0))


def compact(cache: Cache) -> Cache:
    """Move each row's own keys and values to its first slots, so that slots that hold nothing can be used again.

    A row that holds slots 0 and 2 of 3 holds 0 and 1 afterwards; the slots used are then those of the longest row.
    """
    order = jnp.argsort(~cache.mask, axis=-1, stable=True)

    def move(layer: LayerCache) -> LayerCache:
        take = lambda slots: jnp.take_along_axis(slots, order[:, :, None, :, None], axis=-2)
        return dataclasses.replace(layer, key=take(layer.key), value=take(layer.value))

    layers = tuple(map(move, cache.layers)) if isinstance(cache.layers, tuple) else jax.vmap(move)(cache.layers)
    mask = jnp.take_along_axis(cache.mask, order, axis=-1)
    return dataclasses.replace(cache, layers=layers, mask=mask, used=mask.sum(-1).max())


def causal_mask(mask: Array, used: Array | int, count: int) -> Array:
    """Return which own slots ``count`` tokens may see that come after ``used`` others, bool [B, G, count, T].

    With 1 slot used of 3 and 2 tokens written: token 0 sees slots 0 and 1, token 1 all three; none that ``mask`` hides. A
    single token comes after all that the mask shows, also where slots are used in a ring.
    """
    if count == 1:
        return mask[:, :, None]
    slot = jnp.arange(mask.shape[-1])
    causal = slot[None] <= (used + jnp.arange(count))[:, None]
    return mask[:, :, None] & causal[None, None]


@pytree
class View:
    """What the new tokens see of the tokens before them."""

    mask: Array  # bool [B, G, W], own slots that hold something, the new tokens' among them
    count: Any = None  # int32 [B, G, W], real tokens in slots up to each; None where no layer has a window
    slot: Any = None  # int32 [B, G, S], own slot of each new token
    position: Any = None  # int32 [B, G, S], of each new token in its row


def view(mask: Array, used: Array | int, positions: Array) -> View:
    """Return the view of new tokens at ``positions`` [B, G, S] that are written after ``used`` slots."""
    slot = jnp.broadcast_to(used + jnp.arange(positions.shape[-1]), positions.shape)
    return View(mask, jnp.cumsum(mask, axis=-1), slot, positions)


def within_window(view: View, window: Array | int) -> Array:
    """Return which own slots are among the last ``window`` tokens of each new one, its own included, bool [B, G, S, W].

    With slots 0, 2 and 3 of 4 in use and a window of 2, the token in slot 3 sees 2 and 3, that in slot 2 sees 0 and 2: with
    ``causal_mask``, which hides later and empty ones. Slots that are used in a ring may hold earlier tokens behind later ones,
    hence the remainder.
    """
    total = jnp.maximum(view.count[..., -1:, None], 1)
    here = jnp.take_along_axis(view.count, view.slot, axis=-1)[..., None]
    return (here - view.count[:, :, None]) % total < window


def prompt_within_window(view: View, window: Array | int, prompt_mask: Array) -> Array:
    """Return which tokens of the prompt, bool [B, P], are within the window of each new one: bool [B, G, S, P]."""
    distance = view.position[..., None] - jnp.arange(prompt_mask.shape[-1])[None, None, None]
    return prompt_mask[:, None, None] & (distance < window)


def share_prompt(prompt: Cache, group_size: int, width: int) -> Cache:
    """Turn the cache of prompts read at G = 1 into one for ``group_size`` rollouts with ``width`` own slots each.

    Width 0 stores nothing: the tokens of the next call see the prompt and each other, which is what a learner needs.
    """

    def share(layer: LayerCache) -> LayerCache:
        key, value = layer.key, layer.value
        slots = None
        if width:
            *lead, batch, _, num_kv_heads, _, head_dim = key.shape
            slots = jnp.zeros((*lead, batch, group_size, num_kv_heads, width, head_dim), key.dtype)
        return LayerCache(jnp.squeeze(key, -4), jnp.squeeze(value, -4), slots, slots)

    layers = tuple(map(share, prompt.layers)) if isinstance(prompt.layers, tuple) else share(prompt.layers)
    mask = jnp.zeros((prompt.mask.shape[0], group_size, width), bool) if width else None
    return Cache(layers, prompt.mask[:, 0], mask)
