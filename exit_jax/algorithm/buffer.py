"""The task buffer: top-N partial histories by learnability, updated in place inside jit (ExIt §4.1).

The paper inserts one item at a time: into an empty slot if there is one, else over the current minimum if the newcomer
scores at least as much. Processed in order, that keeps exactly the top N of (score, id), where ids count
insertions; so one sort of N + C pairs replaces the loop over C newcomers, and only rows that move are written.
"""

import dataclasses

import jax
import jax.numpy as jnp

from exit_jax.types import NO_ID, Array, History, TaskBuffer, make_history


def create(size: int, history_width: int, scored: bool = False, best: bool = False) -> TaskBuffer:
    """Return an empty buffer of ``size`` slots for histories of up to ``history_width`` tokens.

    Args:
      scored, best: whether these fields are kept, which some draws ask for.
    """
    lowest, zeros = jnp.full((size,), -jnp.inf, jnp.float32), jnp.zeros((size,), jnp.int32)
    history = blank_history(size, history_width)
    return TaskBuffer(history, lowest, zeros, jnp.int32(0), zeros if scored else None, lowest if best else None)


def blank_history(size: int, history_width: int) -> History:
    """Return ``size`` histories without content."""
    return make_history(jnp.zeros((size, history_width), jnp.int32), jnp.zeros((size, 4), jnp.int32), task=-1)


def filled(buffer: TaskBuffer) -> Array:
    """Return which slots hold an entry, bool [N]."""
    return buffer.history.id != NO_ID


def is_base_task(history: History) -> Array:
    """Return which histories are base tasks: first turn, nothing answered yet."""
    return (history.step < 0) & (history.turn == 0)


def locate(buffer: TaskBuffer, history: History) -> tuple[Array, Array]:
    """Find histories [B] in the buffer: (slot int32 [B], found bool [B]).

    An entry is found by its id, so one that was replaced since it was drawn is not; a base task is found by its task,
    however it was drawn, because it holds at most one slot.
    """
    held = buffer.history
    same_task = (is_base_task(held) & filled(buffer))[None] & (held.task[None] == history.task[:, None])
    same_id = (held.id[None] == history.id[:, None]) & (history.id != NO_ID)[:, None]
    match_BN = jnp.where(is_base_task(history)[:, None], same_task, same_id)
    return jnp.argmax(match_BN, axis=1), match_BN.any(axis=1)


def rescore(
    buffer: TaskBuffer, slot: Array, found: Array, score: Array, step: Array | int = 0, best: Array | None = None
) -> TaskBuffer:
    """Write fresh scores [B] to slots [B] where ``found``, and count the draw. Equal slots must carry equal scores.

    Args:
      step: iteration that the scores are of.
      best: float32 [B], the highest quality of each group.
    """
    target = jnp.where(found, slot, buffer.score.size)
    return dataclasses.replace(
        buffer,
        score=buffer.score.at[target].set(score, mode="drop"),
        num_draws=buffer.num_draws.at[target].add(1, mode="drop"),
        scored=None if buffer.scored is None else buffer.scored.at[target].set(step, mode="drop"),
        best=None if buffer.best is None else buffer.best.at[target].max(best, mode="drop"),
    )


def drop(buffer: TaskBuffer, slot: Array, found: Array) -> TaskBuffer:
    """Empty the slots [B] where ``found``."""
    target = jnp.where(found, slot, buffer.score.size)
    held = dataclasses.replace(buffer.history, id=buffer.history.id.at[target].set(NO_ID, mode="drop"))
    return dataclasses.replace(buffer, history=held, score=buffer.score.at[target].set(-jnp.inf, mode="drop"))


def assign_ids(buffer: TaskBuffer, valid: Array) -> tuple[TaskBuffer, Array]:
    """Number the valid items [C] of a coming insertion in order; the others get NO_ID."""
    ids = buffer.next_id + jnp.cumsum(valid, dtype=jnp.int32) - 1
    buffer = dataclasses.replace(buffer, next_id=buffer.next_id + valid.sum(dtype=jnp.int32))
    return buffer, jnp.where(valid, ids, NO_ID)


def insert(
    buffer: TaskBuffer, history: History, score: Array, num_draws: Array, best: Array | None = None
) -> tuple[TaskBuffer, Array]:
    """Insert histories [C], numbered by ``assign_ids``; those with NO_ID or a score that is not finite are left out.

    Their scores are of the iteration that they were born in, and ``best`` float32 [C] is what is known of their children.

    Survivors never move: the winners among the newcomers are scattered into the slots of the entries they displace, which are
    as many, because those that are left out sort below everything else.

    Returns:
      The buffer, and bool [C]: which newcomers it now holds.
    """
    size, count = buffer.score.size, score.size
    valid = (history.id != NO_ID) & jnp.isfinite(score)
    all_scores = jnp.concatenate([buffer.score, jnp.where(valid, score, -jnp.inf)])
    all_ids = jnp.concatenate([buffer.history.id, jnp.where(valid, history.id, NO_ID - 1)])
    _, _, ascending = jax.lax.sort((all_scores, all_ids, jnp.arange(size + count)), num_keys=2)
    loses = jnp.zeros(size + count, bool).at[ascending[:count]].set(True)
    wins = ~loses[size:] & valid
    (winner,) = jnp.nonzero(wins, size=count, fill_value=count)
    (slot,) = jnp.nonzero(loses[:size], size=count, fill_value=size)

    def scatter(held, new):
        return held.at[slot].set(new[winner], mode="drop")

    return dataclasses.replace(
        buffer,
        history=jax.tree.map(scatter, buffer.history, history),
        score=scatter(buffer.score, score),
        num_draws=scatter(buffer.num_draws, num_draws),
        scored=None if buffer.scored is None else scatter(buffer.scored, history.born),
        best=None if buffer.best is None else scatter(buffer.best, best),
    ), wins
