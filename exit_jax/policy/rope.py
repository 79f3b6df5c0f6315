"""Rotary position embeddings (RoPE), in decoders and encoders alike."""

import math

import jax.numpy as jnp
import numpy as np

from exit_jax.types import Array


def rope_frequencies(head_dim: int, theta: float, scaling: tuple[float, ...]) -> Array:
    """Return the angle a position adds to each pair, float32 [head_dim / 2].

    ``scaling`` is as in DecoderConfig. A linear one stretches all wavelengths by ``factor``. With Llama 3's, wavelengths above
    ``original length / low`` are stretched, those below ``original length / high`` are kept, and the ones between are
    interpolated. Yarn (arXiv 2309.00071) interpolates between pairs that turn ``fast beta`` times within the original length
    and those that turn ``slow beta`` times. Computed in NumPy in the order of transformers, since a frequency that is off by an
    ulp turns position 3000 by 2e-4.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    period = (theta ** exponent.astype(np.float64)).astype(np.float32)
    frequency = np.float32(1) / period
    if len(scaling) == 1:
        frequency = frequency / np.float32(scaling[0])
    elif len(scaling) == 6:
        frequency = _yarn(period, theta, *scaling[:4], bool(scaling[5]))
    elif scaling:
        factor, low, high, original = map(np.float32, scaling)
        turns = original / (np.float32(2 * np.pi) / frequency)  # turns within the original length
        kept = np.clip((turns - low) / (high - low), np.float32(0), np.float32(1))
        frequency = (1 - kept) * frequency / factor + kept * frequency
    return jnp.asarray(frequency)


def _yarn(period: np.ndarray, theta: float, factor: float, original: float, fast: float, slow: float, whole: bool):
    """Return yarn's frequencies of pairs that turn once in ``period`` / 2 pi positions without it, float32 [dim / 2]."""
    dim = 2 * period.size
    low, high = (dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow))
    if whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    kept = 1 - np.clip((np.arange(period.size, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1)
    return np.float32(1) / (np.float32(factor) * period) * (1 - kept) + np.float32(1) / period * kept


def length_of(scaling: tuple[float, ...]) -> float:
    """Return what turned pairs are longer by: yarn's attention factor; 1 for all others."""
    return scaling[4] if len(scaling) == 6 else 1.0


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
