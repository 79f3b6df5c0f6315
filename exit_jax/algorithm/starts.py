"""A fair sample of the solutions that training started from, kept inside jit for the distances among them (ExIt Tab. 2)."""

import jax
import jax.numpy as jnp

from exit_jax.algorithm.buffer import blank_history
from exit_jax.types import Array, History, Starts

SIZE = 256  # some 11,000 pairs a task where there are three


def create(history_width: int) -> Starts:
    """Return a sample that holds nothing yet."""
    return Starts(blank_history(SIZE, history_width), jnp.full((SIZE,), -1.0, jnp.float32))


def note(starts: Starts, history: History, key: Array) -> Starts:
    """Return the sample after training started from histories [B]; base tasks, which hold no solution, are passed over.

    Each gets a lot in [0, 1), and the largest lots stay: of all starts, every set of SIZE is equally likely.
    """
    lot = jnp.where(history.step >= 0, jax.random.uniform(key, history.step.shape), -1.0)
    lot, kept = jax.lax.top_k(jnp.concatenate([starts.lot, lot]), SIZE)
    history = jax.tree.map(lambda held, drawn: jnp.concatenate([held, drawn])[kept], starts.history, history)
    return Starts(history, lot)
