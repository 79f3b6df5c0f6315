"""The key/value cache: one prompt shared by the group, and a run of own tokens for each rollout.

The prompt's keys and values are stored once for B prompts, not for B x G rows. The learner uses the same
structure with the gradient flowing through it, so it computes a group's prompt once, too.
"""

import dataclasses

import jax
import jax.numpy as jnp

from exit_jax.algorithm.types import Array, pytree


@pytree
class Cache:
    """Keys and values of all layers; K kv heads of size h."""

    prompt_key: Array | None  # [L, B, K, P, h], None while the prompt itself is read
    prompt_value: Array | None
    prompt_mask: Array | None  # bool [B, P]
    key: Array  # [L, B, G, K, T, h]
    value: Array
    mask: Array  # bool [B, G, T], True for own tokens that may be attended to
    used: Array  # int32 []: slots of T written so far, the same for all rows

    def layers(self, num_layers: int) -> "LayerCache":
        """Return the cache as one pytree whose leaves all lead with L, for a scan over layers."""
        repeat = lambda x: jnp.broadcast_to(x, (num_layers, *x.shape))
        return LayerCache(
            self.prompt_key,
            self.prompt_value,
            None if self.prompt_mask is None else repeat(self.prompt_mask),
            self.key,
            self.value,
            repeat(self.mask),
            repeat(self.used),
        )

    def with_layers(self, layers: "LayerCache") -> "Cache":
        """Return the cache after the layers wrote their keys and values."""
        return dataclasses.replace(self, key=layers.key, value=layers.value, used=layers.used[0])


@pytree
class LayerCache:
    """One layer of ``Cache``, without the leading L."""

    prompt_key: Array | None
    prompt_value: Array | None
    prompt_mask: Array | None
    key: Array
    value: Array
    mask: Array
    used: Array

    def write(self, key: Array, value: Array) -> "LayerCache":
        """Write keys and values [B, G, K, S, h] into the next S slots."""
        start = (0, 0, 0, self.used, 0)
        return dataclasses.replace(
            self,
            key=jax.lax.dynamic_update_slice(self.key, key.astype(self.key.dtype), start),
            value=jax.lax.dynamic_update_slice(self.value, value.astype(self.value.dtype), start),
            used=self.used + key.shape[3],
        )

    def own_mask(self, count: int) -> Array:
        """Return which own slots the last ``count`` tokens may see, bool [B, G, S, T]: none later, none masked.

        With 2 slots used after writing 2 of 3: token 0 sees slot 0, token 1 sees slots 0 and 1, slot 2 is unseen.
        """
        written = self.used - count + jnp.arange(count)
        causal = jnp.arange(self.mask.shape[-1])[None] <= written[:, None]
        return self.mask[:, :, None] & causal[None, None]


def empty(shape: tuple[int, int, int, int, int, int], dtype, mask: Array) -> Cache:
    """Return a cache without a prompt for ``shape`` = (L, B, G, K, T, h); ``mask`` is bool [B, G, T]."""
    return Cache(None, None, None, jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), mask, jnp.int32(0))


def share_prompt(prompt: Cache, group_size: int, width: int) -> Cache:
    """Turn the cache of prompts read at G = 1 into one for ``group_size`` rollouts with ``width`` own slots each."""
    num_layers, batch, _, num_kv_heads, _, head_dim = prompt.key.shape
    own = empty(
        (num_layers, batch, group_size, num_kv_heads, width, head_dim),
        prompt.key.dtype,
        jnp.ones((batch, group_size, width), bool),
    )
    return dataclasses.replace(
        own, prompt_key=prompt.key[:, :, 0], prompt_value=prompt.value[:, :, 0], prompt_mask=prompt.mask[:, 0]
    )
