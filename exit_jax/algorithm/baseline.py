"""SPIRAL's running baseline of the reward, one for each mode, in place of the group's mean (RAE, arXiv 2506.24119).

Its authors keep one for each game and role; here the mode is the role, as base, improve and diverge steps are paid differently.
Their baseline moves with every episode, ours once a batch by the mean of the batch.
"""

import jax.numpy as jnp

from exit_jax.types import MODES, Array, Metrics


def create() -> Array:
    """Return the baselines before any reward, float32 [number of modes]: 0, as the authors begin."""
    return jnp.zeros(len(MODES), jnp.float32)


def update(baseline: Array | None, decay: float, reward_BG: Array, mode_B: Array, lost_B: Array | None) -> Array | None:
    """Return b ← decay · b + (1 - decay) · mean reward of each mode; that of a mode without a prompt stays.

    Args:
      baseline: float32 [number of modes]; None where none is kept.
      lost_B: bool [B], prompts that no response was worth anything to (``Grades.lost``), which do not count; None for no one.
    """
    if baseline is None:
        return None
    of_mode = mode_B[None] == jnp.arange(baseline.size)[:, None]  # [modes, B]
    of_mode = of_mode if lost_B is None else of_mode & ~lost_B[None]
    count = of_mode.sum(1)
    mean = jnp.where(of_mode, reward_BG.mean(1)[None], 0.0).sum(1) / jnp.maximum(count, 1)
    return jnp.where(count > 0, decay * baseline + (1.0 - decay) * mean, baseline)


def metrics(baseline: Array | None) -> Metrics:
    """Return the baseline of each mode; none where none is kept."""
    return {} if baseline is None else {f"baseline/{name}": baseline[index] for index, name in enumerate(MODES)}
