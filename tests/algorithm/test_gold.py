"""Starts from gold solutions against lists in plain Python."""

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm import gold
from exit_jax.algorithm.prompts import render
from exit_jax.types import GENERATED, PIECES, make_history

BEFORE, BEFORE_ANSWER, AFTER = [91, 92], [93], [94]
FIRST, WIDTH, PROMPT_WIDTH, ROOM = 100, 30, 26, 6
TEMPLATE = ((1,), "context", (2, 3), "request", (4,))
# by task: its solution and answer; some have none, some one that exceeds the table, or with its request the prompt
SOLUTIONS = [[*range(11, 11 + n)] for n in (7, 1, 0, 4, 40, 16)]
ANSWERS = [[21, 22], [23], [], [], [24] * 40, [25]]
REQUESTS = [[5] * n for n in (3, 2, 4, 13, 2, 9)]
CONTEXTS = [[6] * n for n in (2, 0, 1, 3, 0, 2)]


def packed(rows, **fields):
    tokens, lengths = np.zeros((len(rows), WIDTH), np.int32), np.zeros((len(rows), 4), np.int32)
    for i, pieces in enumerate(rows):
        flat = [token for part in pieces for token in part]
        tokens[i, : len(flat)], lengths[i] = flat, [len(part) for part in pieces]
    history = make_history(tokens, lengths, task=FIRST + np.arange(len(rows)))
    return jax.tree.map(jnp.asarray, dataclasses.replace(history, **fields))


@pytest.fixture(scope="module")
def history():
    return packed([(context, request, [], []) for context, request in zip(CONTEXTS, REQUESTS, strict=True)])


@pytest.fixture(scope="module")
def table():
    return gold.make_gold(FIRST, SOLUTIONS, ANSWERS, ROOM, BEFORE, BEFORE_ANSWER, AFTER)


def pieces_of(history, row):
    stop = np.cumsum(history.lengths[row])
    start = stop - np.asarray(history.lengths[row])
    return {name: np.asarray(history.tokens[row, a:b]).tolist() for name, a, b in zip(PIECES, start, stop, strict=True)}


def equal(one, other, rows=slice(None)):
    same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a)[rows], np.asarray(b)[rows]), one, other)
    return all(jax.tree.leaves(same))


def count_of(level, length):
    """Return the share of a length, of an exact level."""
    return max(math.ceil(level * length), 1 if level and length else 0)


def test_starts_are_shown_after_the_request_and_at_the_end():
    assert gold.show_starts(TEMPLATE) == ((1,), "context", (2, 3), "request", "feedback", (4,), "solution")
    assert gold.show_starts(("request", "feedback", (4,))) == ("request", "feedback", (4,), "solution")
    assert gold.show_starts(((1,),)) == ("feedback", (1,), "solution")


def test_prompts_without_a_start_are_the_plain_ones(history):
    for plain, shown in zip(
        render(TEMPLATE, history, PROMPT_WIDTH), render(gold.show_starts(TEMPLATE), history, PROMPT_WIDTH), strict=True
    ):
        np.testing.assert_array_equal(plain, shown)


def test_shares_are_those_of_exact_numbers():
    levels = [Fraction(k, 20) for k in range(21)]
    for length in (0, 1, 2, 3, 7, 10, 64, 100, 511, 700):  # float32 has 0.3 · 100 above 30
        found = gold.share(jnp.array([float(x) for x in levels], jnp.float32), jnp.full(21, length))
        assert found.tolist() == [count_of(level, length) for level in levels]


def test_the_table_holds_whole_answers_only(table):
    assert table.tokens.shape == (6, ROOM)
    assert table.length.tolist() == [7, 1, 0, 4, 40, 16]
    assert table.answer_length.tolist() == [2, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("name", ["hint", "prefix", "answer"])
def test_starts_by_hand(name, history, table):
    template = gold.show_starts(TEMPLATE)
    start = jax.jit(functools.partial(getattr(gold, name), template, PROMPT_WIDTH))
    seen = set()
    for level in (Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(1)):
        started, ok = start(table, history, jnp.full(6, float(level), jnp.float32), jax.random.key(0))
        prompt, length = render(template, started, PROMPT_WIDTH)
        for row, (solution, answer) in enumerate(zip(SOLUTIONS, ANSWERS, strict=True)):
            content = answer if name == "answer" else solution[: count_of(level, len(solution))]
            added = {"hint": [*BEFORE, *content, *AFTER], "answer": [*BEFORE_ANSWER, *content, *AFTER]}.get(
                name, content
            )
            request = [*CONTEXTS[row], *REQUESTS[row]]
            fits = len(content) <= ROOM and 4 + len(request) + len(added) <= PROMPT_WIDTH
            fits = fits and len(request) + len(added) <= WIDTH and (name != "answer" or len(answer) <= ROOM)
            due = not level or (bool(content) and fits)
            assert ok[row] == due, (row, level)
            seen.add((bool(level), due))
            if not level or not due:
                assert equal(started, history, row)
                continue
            expected = [1, *CONTEXTS[row], 2, 3, *REQUESTS[row], *(() if name == "prefix" else added), 4]
            expected += added if name == "prefix" else []
            assert prompt[row, : length[row]].tolist() == expected
            piece = "solution" if name == "prefix" else "feedback"
            empty = {"solution": [], "feedback": []}
            due_pieces = {"context": CONTEXTS[row], "request": REQUESTS[row], **empty, piece: added}
            assert pieces_of(started, row) == due_pieces
            assert not started.tokens[row, sum(map(len, due_pieces.values())) :].any()
            assert started.step[row] == -1
            assert started.task[row] == FIRST + row
    assert seen == {(False, True), (True, True), (True, False)}


@pytest.mark.parametrize(
    "changes", [{"task": FIRST - 1}, {"task": FIRST + 6}, {"task": GENERATED + FIRST}, {"step": 0}]
)
def test_what_is_no_base_task_of_the_split_stays_as_it_was(changes, history, table):
    (name, value), *_ = changes.items()
    other = dataclasses.replace(history, **{name: jnp.full_like(getattr(history, name), value)})
    start = functools.partial(gold.hint, gold.show_starts(TEMPLATE), PROMPT_WIDTH)
    started, ok = start(table, other, jnp.full(6, 0.5), jax.random.key(0))
    assert not ok.any()
    assert equal(started, other)


def test_gold_turns_by_hand():
    # three turns of which two can be given, one of which none can, one whose context would not fit
    heads, requests = [[6, 6], [7], [8]], [[[1], [2, 2], [3]], [[4]], [[5], [5]]]
    contexts = [[[6, 6], [6, 6, 9], [6, 6, 9, 9, 9]], [[7]], [[8], [8] * 30]]
    width = max(len(context) for stands in contexts for context in stands)
    tokens, ends = np.zeros((3, width), np.int32), np.zeros((3, 3), np.int32)
    request, request_length = np.zeros((3, 3, 2), np.int32), np.zeros((3, 3), np.int32)
    for i, stands in enumerate(contexts):
        tokens[i, : len(stands[-1])] = stands[-1]
        for k, context in enumerate(stands):
            ends[i, k], request_length[i, k] = len(context), len(requests[i][k])
            request[i, k, : request_length[i, k]] = requests[i][k]
    table = gold.GoldTurns(np.int32(FIRST), tokens, ends, request, request_length)
    history = packed([(head, request[0], [], []) for head, request in zip(heads, requests, strict=True)])
    for level, done in ((0.0, 0), (0.25, 1), (0.5, 1), (0.75, 2), (1.0, 2)):
        started, ok = jax.jit(gold.turns)(table, history, jnp.full(3, level), jax.random.key(0))
        assert ok.tolist() == [True, not level, not level]
        assert equal(started, history, [1, 2])
        assert level or equal(started, history)
        assert started.turn.tolist() == [done, 0, 0]
        assert started.step.tolist() == [-1] * 3
        due = {"context": contexts[0][done], "request": requests[0][done], "solution": [], "feedback": []}
        assert pieces_of(started, 0) == due
