"""Starts of base tasks with some of a gold solution: as a hint (GHPO), as its beginning (R3), or its answer alone (STaR).

A base history has no solution and no feedback yet, so these two pieces carry what is added: "feedback" a hint, which stands
after the request, "solution" what is written of the response already, with which the prompt ends. ``show_starts`` makes the
prompt that shows them; it is the plain one where both are empty. So a hint is no part of the request, and goes into no child.

A variant is a function of (gold, histories [B], level float32 [B], key) that returns histories and ok, bool [B]: level 0 is the
identity, bit for bit, and where ok is False, for want of gold or room, the history is what it was, too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from exit_jax.algorithm.prompts import Template, concatenate, pack, piece
from exit_jax.types import PIECES, Array, History, pytree

Variant = Callable[[Any, History, Array, Array], tuple[History, Array]]


@pytree
class Gold:
    """The gold solutions and answers of a split's tasks [M], in tokens; of what exceeds L only the length is known."""

    first: Array  # int32 []: number of the split's first task
    tokens: Array  # int32 [M, L]
    length: Array  # int32 [M]: tokens of the whole solution, 0 for none
    answer: Array  # int32 [M, A]: tokens of the final answer
    answer_length: Array  # int32 [M], 0 for none
    before_hint: Array  # int32 [n]: what introduces a hint
    before_answer: Array  # int32 [n]: what introduces an answer
    after: Array  # int32 [n]: what ends either


@pytree
class GoldTurns:
    """The conversations [M] of gold responses up to the last one, which cannot be given: nothing would be left to do."""

    first: Array  # int32 []: number of the split's first task
    tokens: Array  # int32 [M, L]: context after the last turn that can be given
    ends: Array  # int32 [M, K + 1]: tokens of the context after so many turns; 0 from where there are no more
    request: Array  # int32 [M, K + 1, R]: request in hand then
    request_length: Array  # int32 [M, K + 1]


def show_starts(template: Template) -> Template:
    """Return a base prompt that shows what variants add: "feedback" after its last piece, "solution" at its end."""
    items = list(template)
    if "feedback" not in items:
        items.insert(1 + max((i for i, item in enumerate(items) if isinstance(item, str)), default=-1), "feedback")
    return tuple(items if "solution" in items else [*items, "solution"])


def share(level: Array, length: Array) -> Array:
    """Return how many of ``length`` [B] things a level [B] stands for, int32 [B]: at least one above 0, all at 1.

    For 8 things a level of 1/4 is 2 and one of 0.3 is 3.
    """
    count = jnp.ceil(level * length - 1e-3).astype(jnp.int32)  # float32 has 0.3 · 100 above 30
    return jnp.clip(count, jnp.minimum((level > 0).astype(jnp.int32), length), length)


def hint(template: Template, width: int, gold: Gold, history: History, level: Array, key: Array):
    """Show the first ``level`` of the gold solution after the request.

    Args:
      template: the base prompt, of ``show_starts``.
      width: tokens that a prompt may have.
    """
    del key
    row, known = find(gold.first, gold.length, history)
    length, count = gold.length[row], share(level, gold.length[row])
    added = _introduced(gold.before_hint, (gold.tokens[row], count), gold.after)
    ok = known & (length > 0) & (count <= gold.tokens.shape[1])
    return _with_piece(template, width, history, "feedback", added, wanted=level > 0, ok=ok)


def answer(template: Template, width: int, gold: Gold, history: History, level: Array, key: Array):
    """Show the final answer, whatever the level above 0, after the request; else as ``hint``."""
    del key
    row, known = find(gold.first, gold.answer_length, history)
    length = gold.answer_length[row]
    added = _introduced(gold.before_answer, (gold.answer[row], length), gold.after)
    return _with_piece(template, width, history, "feedback", added, wanted=level > 0, ok=known & (length > 0))


def prefix(template: Template, width: int, gold: Gold, history: History, level: Array, key: Array):
    """Let the response begin with the first ``level`` of the gold solution, which the prompt ends with; else as ``hint``.

    What is sampled goes on from there. A domain that offers it grades both together, and its children hold both.
    """
    del key
    row, known = find(gold.first, gold.length, history)
    count = share(level, gold.length[row])
    ok = known & (gold.length[row] > 0) & (count <= gold.tokens.shape[1])
    return _with_piece(template, width, history, "solution", (gold.tokens[row], count), wanted=level > 0, ok=ok)


def turns(gold: GoldTurns, history: History, level: Array, key: Array):
    """Let the first ``level`` of a conversation's gold turns be done, at most all but the last one.

    The histories have a ``turn`` above 0, and an environment is brought to where they stand as to any other's.
    """
    del key
    row, known = find(gold.first, gold.ends[:, 0], history)
    available = (gold.ends[row] > 0).sum(-1) - 1
    count = share(level, jnp.maximum(available, 0))
    pick = lambda table: jnp.take_along_axis(table[row], count[:, None], axis=1)[:, 0]
    request = jnp.take_along_axis(gold.request[row], count[:, None, None], axis=1)[:, 0]
    pieces = {"context": (gold.tokens[row], pick(gold.ends)), "request": (request, pick(gold.request_length))}
    ok = known & (available > 0) & (history.turn == 0)
    return replace_where(ok, level > 0, history, pieces, turn=count)


def replace_where(ok: Array, wanted: Array, history: History, pieces: dict[str, tuple[Array, Array]], **fields: Array):
    """Return the histories [B] of these pieces where they are wanted, ok and fit, else those given; and ok or not wanted.

    Args:
      pieces: name -> (tokens [B, n], length [B]) of all that there are.
      fields: other fields of ``History``, [B].
    """
    width = history.tokens.shape[-1]
    ok = ok & (sum(length for _, length in pieces.values()) <= width)
    tokens, lengths = pack(pieces, width)
    taken = ok & wanted
    changed = {name: jnp.where(taken, value, getattr(history, name)) for name, value in fields.items()}
    changed["tokens"] = jnp.where(taken[:, None], tokens, history.tokens)
    changed["lengths"] = jnp.where(taken[:, None], lengths, history.lengths)
    return dataclasses.replace(history, **changed), ok | ~wanted


def find(first: Array, table: Array, history: History) -> tuple[Array, Array]:
    """Return the row of each history's task in a table of a split [M], and whether it has one that begins with it."""
    row = history.task - first
    known = (row >= 0) & (row < table.shape[0]) & (history.step < 0)
    return jnp.clip(row, 0, table.shape[0] - 1), known


def _introduced(before: Array, content: tuple[Array, Array], after: Array) -> tuple[Array, Array]:
    """Return a piece's tokens [B, n] and lengths [B]: what is said before, the content, what is said after."""
    tokens, length = content
    static = [(part, jnp.full_like(length, part.shape[-1])) for part in (before, after)]
    width = before.shape[-1] + tokens.shape[-1] + after.shape[-1]
    return concatenate([static[0], (tokens, length), static[1]], width)[0], length + before.shape[-1] + after.shape[-1]


def _with_piece(
    template: Template,
    width: int,
    history: History,
    name: str,
    content: tuple[Array, Array],
    *,
    wanted: Array,
    ok: Array,
) -> tuple[History, Array]:
    """Return the histories with a piece's content where it is wanted and ok, and both history and prompt have room."""
    pieces = {other: piece(history, other) for other in PIECES} | {name: content}
    shown = [len(item) if not isinstance(item, str) else pieces[item][1] for item in template]
    return replace_where(ok & (sum(shown) <= width), wanted, history, pieces)


def make_gold(
    first: int, solutions: Any, answers: Any, room: int, before_hint: Any, before_answer: Any, after: Any = ()
) -> Gold:
    """Return the table of solutions and answers [M], token sequences of which () is none, in NumPy.

    Args:
      room: tokens that no prompt could show more of, which bounds the table's width.
    """
    tokens, length = table(solutions, room)
    answer, answer_length = table(answers, room)
    # an answer that was cut off must not pass for the whole
    answer_length = np.where(answer_length > answer.shape[1], 0, answer_length)
    line: Any = lambda ids: np.asarray(ids, np.int32).reshape(-1)
    return Gold(
        first=np.int32(first),  # type: ignore[arg-type]
        tokens=tokens,
        length=length,
        answer=answer,
        answer_length=answer_length,  # type: ignore[arg-type]
        before_hint=line(before_hint),
        before_answer=line(before_answer),
        after=line(after),
    )


def table(rows: Any, room: int) -> Any:
    """Return ragged rows as (tokens int32 [M, L], their lengths int32 [M]); L is the longest one's, from 1 to room."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(lengths), max(min(int(lengths.max(initial=1)), room), 1)), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        kept = np.asarray(ids[: row.size], np.int32)
        row[: kept.size] = kept
    return tokens, lengths
