"""Splicing of token pieces against joins of Python lists."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm import prompts
from exit_jax.types import BASE, DIVERGE, IMPROVE, PIECES


def ragged(rng, count, width):
    """Return random rows as lists, and as (tokens [count, width], length [count]) with rubbish for padding."""
    tokens = rng.integers(1, 100, size=(count, width))
    length = rng.integers(width + 1, size=count)
    return [list(t[:n]) for t, n in zip(tokens, length)], (jnp.asarray(tokens), jnp.asarray(length))


def pad(row, width):
    return (row + [0] * width)[:width]


def test_concatenate_does_its_worked_example():
    segments = [(jnp.array([[7, 8, 0]]), jnp.array([2])), (jnp.array([[9, 0]]), jnp.array([1]))]
    tokens, length = prompts.concatenate(segments, width=4)
    assert tokens.tolist() == [[7, 8, 9, 0]]
    assert length.tolist() == [3]


@pytest.mark.parametrize("seed", range(3))
def test_concatenate_equals_a_join_of_lists_and_tells_of_overflow(seed):
    rng = np.random.default_rng(seed)
    rows, segments = zip(*(ragged(rng, 20, width) for width in (3, 0, 4, 2)))
    joined = [list(itertools.chain(*parts)) for parts in zip(*rows)]
    tokens, length = prompts.concatenate(segments, width=6)
    assert tokens.tolist() == [pad(row, 6) for row in joined]
    assert length.tolist() == [len(row) for row in joined]
    assert length.max() > 6  # above the width: the end was cut off


def test_concatenate_repeats_a_segment_that_all_rows_share():
    segments = [(jnp.array([5, 6]), jnp.array([2, 2])), (jnp.array([[7], [8]]), jnp.array([1, 0]))]
    tokens, length = prompts.concatenate(segments, width=3)
    assert tokens.tolist() == [[5, 6, 7], [5, 6, 0]]
    assert length.tolist() == [3, 2]


@pytest.mark.parametrize("seed", range(3))
def test_piece_undoes_pack(make_history, seed):
    rng = np.random.default_rng(seed)
    rows, segments = zip(*(ragged(rng, 6, 3) for _ in PIECES))
    lift = lambda x: x.reshape(2, 3, *x.shape[1:])  # any leading dimensions
    tokens, lengths = prompts.pack({n: (lift(t), lift(k)) for n, (t, k) in zip(PIECES, segments)}, width=12)
    assert tokens.reshape(6, 12).tolist() == [pad([*itertools.chain(*parts)], 12) for parts in zip(*rows)]
    history = make_history(2, 3, width=12, tokens=tokens, lengths=lengths)
    for name, expected in zip(PIECES, rows):
        for width in (None, 3, 5):
            tokens, length = prompts.piece(history, name, width)
            assert tokens.reshape(6, -1).tolist() == [pad(row, width or 12) for row in expected]
            assert length.reshape(6).tolist() == [len(row) for row in expected]


def test_piece_rows_are_the_pieces_without_padding(make_history):
    history = jax.device_get(example(make_history))
    rows = {name: [row.tolist() for row in prompts.piece_rows(history, name)] for name in PIECES}
    assert rows == {"context": [[1], []], "request": [[2, 3], [6]], "solution": [[4], [7, 8, 9]], "feedback": [[5], []]}


def test_pack_leaves_missing_pieces_empty():
    tokens, lengths = prompts.pack({"solution": (jnp.array([[4, 5]]), jnp.array([2]))}, width=3)
    assert tokens.tolist() == [[4, 5, 0]]
    assert lengths.tolist() == [[0, 0, 2, 0]]


def example(make_history):
    """Return two histories: context 1, request 2 3, solution 4, feedback 5; and request 6, solution 7 8 9."""
    tokens = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]]
    return make_history(2, width=5, tokens=tokens, lengths=[[1, 2, 1, 1], [0, 1, 3, 0]])


def test_render_splices_static_tokens_and_pieces(make_history):
    tokens, length = prompts.render(((90,), "solution", "feedback", (91, 92), "request"), example(make_history), 7)
    assert tokens.tolist() == [[90, 4, 5, 91, 92, 2, 3], [90, 7, 8, 9, 91, 92, 6]]
    assert length.tolist() == [7, 7]


def test_render_ignores_what_lies_beyond_a_row(make_history):
    history = example(make_history)
    dirty = dataclasses.replace(history, tokens=history.tokens.at[1, 4].set(77))
    for name in PIECES:
        clean, soiled = (prompts.render((name, (90,)), h, 6) for h in (history, dirty))
        np.testing.assert_array_equal(clean[0], soiled[0])


def test_render_by_mode_tells_of_a_prompt_that_is_too_long(make_history):
    templates = {"base": ("request",), "improve": ((91,), "request", "solution"), "diverge": ((92,), "solution")}
    for mode_B, rows in [
        ([BASE, IMPROVE], [[2, 3], [91, 6, 7, 8, 9]]),
        ([DIVERGE, BASE], [[92, 4], [6]]),
        ([IMPROVE, DIVERGE], [[91, 2, 3, 4], [92, 7, 8, 9]]),
    ]:
        tokens, length = prompts.render_by_mode(templates, example(make_history), jnp.array(mode_B), 3)
        assert tokens.tolist() == [pad(row, 3) for row in rows]
        assert length.tolist() == [len(row) for row in rows]


def test_packing_cuts_tokens_and_lengths_alike():
    pieces = {"request": (jnp.array([7, 8]), jnp.array(2)), "solution": (jnp.array([4, 5, 6]), jnp.array(3))}
    tokens, lengths = prompts.pack(pieces, width=4)
    assert (tokens.tolist(), lengths.tolist()) == ([7, 8, 4, 5], [0, 2, 2, 0])
