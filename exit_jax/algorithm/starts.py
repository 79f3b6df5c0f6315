"""A reservoir of the solutions that training started from, kept inside jit for the distances among them (ExIt Tab. 2)."""

import jax
import jax.numpy as jnp

from exit_jax.algorithm.buffer import blank_history
from exit_jax.types import Array, History, Starts

SIZE = 256  # some 11,000 pairs within tasks, where there are three


def create(history_width: int) -> Starts:
    """Return an empty reservoir."""
    return Starts(blank_history(SIZE, history_width), jnp.full((SIZE,), -1.0, jnp.float32))


def add(starts: Starts, history: History, key: Array) -> Starts:
    """Return the reservoir after training started from histories [B]; base tasks, which hold no solution, are passed over.

    Reservoir sampling by priorities (Algorithm A-ES of Efraimidis and Spirakis, at equal weights): each history draws one in
    [0, 1), and the SIZE highest stay, so that of all starts every set of SIZE is equally likely.
    """
    priority = jnp.where(history.step >= 0, jax.random.uniform(key, history.step.shape), -1.0)
    priority, kept = jax.lax.top_k(jnp.concatenate([starts.lot, priority]), SIZE)
    history = jax.tree.map(lambda held, drawn: jnp.concatenate([held, drawn])[kept], starts.history, history)
    return Starts(history, priority)
