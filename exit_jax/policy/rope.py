"""Rotary position embeddings (RoPE), in decoders and encoders alike."""

import jax.numpy as jnp
import numpy as np

from exit_jax.types import Array


def rope_frequencies(head_dim: int, theta: float, scaling: tuple[float, ...]) -> Array:
    """Return the angle a position adds to each pair, float32 [head_dim / 2].

    With Llama 3's scaling, wavelengths above ``original length / low`` are stretched by ``factor``, those below ``original
    length / high`` are kept, and the ones between are interpolated. Computed in NumPy in the order of transformers, since a
    frequency that is off by an ulp turns position 3000 by 2e-4.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = np.float32(1) / (theta ** exponent.astype(np.float64)).astype(np.float32)
    if scaling:
        factor, low, high, original = map(np.float32, scaling)
        turns = original / (np.float32(2 * np.pi) / frequency)  # turns within the original length
        kept = np.clip((turns - low) / (high - low), np.float32(0), np.float32(1))
        frequency = (1 - kept) * frequency / factor + kept * frequency
    return jnp.asarray(frequency)


def rotation(positions: Array, frequency: Array) -> tuple[Array, Array]:
    """Return sin and cos of the angles that positions [B, ...] turn pairs by, float32 [B, ..., h / 2].

    Their length is 1 already. Undivided, XLA's CPU backend takes a sine for cheap and computes it anew for every head and pass.
    """
    angle = positions[..., None].astype(jnp.float32) * jnp.expand_dims(frequency, range(positions.ndim))
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    length = jnp.sqrt(sin**2 + cos**2)
    return sin / length, cos / length


def rope(x: Array, sin: Array, cos: Array) -> Array:
    """Rotate x [B, ..., H, h] by its ``rotation`` (RoFormer, arXiv 2104.09864; halves as in Llama's HF layout)."""
    half = x.shape[-1] // 2
    sin, cos = sin[..., None, :], cos[..., None, :]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
