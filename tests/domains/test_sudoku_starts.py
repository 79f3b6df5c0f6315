"""Starts of sudokus against a list of all 288 grids that is made here, and rules in plain Python."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sudoku import BLANK, END, quality, settings, units

from exit_jax import domains
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.domains.sudoku import grids, starts
from exit_jax.types import BASE, GENERATED, IMPROVE, Instances, Rollouts

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


@functools.cache
def all_grids():
    """Return all 4x4 solutions, by trying all rows."""
    found = [()]
    for _ in range(4):
        longer = [grid + row for grid in found for row in itertools.permutations(range(1, 5))]
        found = [g for g in longer if all(len({*part}) == len(part) for part in filled_units(g))]
    return found


def filled_units(grid):
    return [[grid[cell] for cell in unit if cell < len(grid)] for unit in units(2)]


def solved(clues):
    """Return all solutions of clues."""
    return [grid for grid in all_grids() if all(c in (0, d) for c, d in zip(clues, grid, strict=True))]


@pytest.fixture(scope="module")
def domain():
    return domains.make("sudoku", settings(clues=(4, 9), num_train=24, num_eval=64))


@pytest.fixture(scope="module")
def history(domain):
    return domain.tasks("train")


def start(domain, name, history, level, seed=0, split="train"):
    levels = jnp.full(history.task.shape, level, jnp.float32)
    return jax.jit(domain.variants[name])(domain.gold(split), history, levels, jax.random.key(seed))


def clues_of(history, box=2):
    return np.asarray(grids.unpack(grids.Vocabulary(box), history)[0]).tolist()


def grids_of(history):
    return np.asarray(grids.unpack(grids.Vocabulary(2), history)[1]).tolist()


def equal(one, other):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), one, other)))


def graded(domain, history, scripts, mode=BASE):
    """Return the grades of one script for each history."""
    tokens = np.zeros((len(scripts), 1, domain.max_tokens), np.int32)
    for row, script in zip(tokens[:, 0], scripts, strict=True):
        row[: len(script)] = script
    mask = np.ones(tokens.shape, bool)
    zeros = np.zeros(tokens.shape, np.float32)
    rollouts = Rollouts(tokens, mask, zeros, zeros, mask[..., 0], zeros[..., :1])
    modes = np.full(len(scripts), mode, np.int32)
    return jax.jit(domain.grade)(Instances(history, modes, *4 * [None]), rollouts)


def test_the_list_of_grids_is_whole():
    assert len({*all_grids()}) == 288


@pytest.mark.parametrize("name", ["hint", "prefix", "edit"])
def test_level_0_is_the_identity(domain, history, name):
    started, ok = start(domain, name, history, 0.0)
    assert ok.all()
    assert equal(started, history)


@pytest.mark.parametrize("name", ["hint", "prefix", "edit"])
def test_a_puzzle_without_known_solution_stays_as_it_was(domain, history, name):
    started, ok = start(domain, name, history, 0.5, split="test")
    assert not ok.any()
    assert equal(started, history)


@pytest.mark.parametrize("name", ["hint", "prefix"])
def test_blanks_are_filled_from_the_solution_and_stay_filled_at_higher_levels(domain, history, name):
    plain, before = clues_of(history), clues_of(history)
    for level in LEVELS:
        started, ok = start(domain, name, history, level)
        assert ok.all()
        after = clues_of(started) if name == "hint" else grids_of(started)
        for clues, less, more in zip(plain, before, after, strict=True):
            (solution,) = solved(clues)
            assert sum(map(bool, more)) - sum(map(bool, clues)) == math.ceil(level * clues.count(0))
            assert all(digit in (0, right) for digit, right in zip(more, solution, strict=True))
            assert all(digit == kept for digit, kept in zip(more, less, strict=True) if kept)
        before = after
    other, _ = start(domain, name, history, 0.5, seed=1)
    assert not equal(other, start(domain, name, history, 0.5)[0])  # the key says which


def test_a_hint_is_shown_as_clues_of_a_base_prompt(domain, history):
    started, _ = start(domain, "hint", history, 0.5)
    tokens, length = render_by_mode(domain.templates, started, jnp.full_like(started.step, BASE), domain.prompt_width)
    v = grids.Vocabulary(2)
    for row, clues in enumerate(clues_of(started)):
        cells = [token for cell, digit in enumerate(clues) for token in (v.cell + cell, BLANK + digit)]
        assert tokens[row, : length[row]].tolist() == [v.mode[BASE], *cells]
    assert (started.step == -1).all()
    np.testing.assert_array_equal(started.task, history.task)


@pytest.mark.parametrize("changes", [{}, {"graded_by": "solution"}, {"wrong_cost": 1.0}])
def test_children_of_a_hint_are_of_the_task_itself_and_hold_own_digits_alone(changes):
    domain = domains.make("sudoku", settings(clues=(4, 9), num_train=24, **changes))
    history, v = domain.tasks("train"), grids.Vocabulary(2)
    started, _ = start(domain, "hint", history, 0.5)
    plain, shown = clues_of(history), clues_of(started)
    edits = [(clues.index(0), 1 + row % 4) for row, clues in enumerate(shown)]  # right or wrong, as it comes
    grades = graded(domain, started, [[v.cell + cell, v.own + digit, END] for cell, digit in edits])
    children = jax.tree.map(lambda leaf: leaf[:, 0, 0], grades.children)
    for row, (clues, hinted, (cell, digit)) in enumerate(zip(plain, shown, edits, strict=True)):
        (solution,) = solved(clues)
        by = solution if changes.get("graded_by") else None
        with_hint, own = list(hinted), list(clues)
        with_hint[cell] = own[cell] = digit
        cost = changes.get("wrong_cost", 0.0)
        np.testing.assert_allclose(grades.quality[row, 0], quality(2, clues, with_hint, by, cost), atol=1e-6)
        np.testing.assert_allclose(children.quality[row], quality(2, clues, own, by, cost), atol=1e-6)
        assert clues_of(children)[row] == clues
        assert grids_of(children)[row] == own
    assert not children.lengths[:, 0].any()


def test_a_script_may_not_edit_a_hint(domain, history):
    started, _ = start(domain, "hint", history, 0.5)
    v = grids.Vocabulary(2)
    hinted = [next(c for c in range(16) if b[c] and not a[c]) for a, b in zip(clues_of(history), clues_of(started))]
    grades = graded(domain, started, [[v.cell + cell, v.own + 1, END] for cell in hinted])
    assert not grades.valid.any()
    assert not grades.quality.any()


@pytest.mark.parametrize("name", ["hint", "prefix"])
def test_a_whole_start_is_solved_by_the_end_token(domain, history, name):
    means = []
    for level in LEVELS:
        started, _ = start(domain, name, history, level)
        means.append(float(graded(domain, started, [[END]] * 24, BASE if name == "hint" else IMPROVE).quality.mean()))
    assert means == sorted(means)
    assert len({*means}) == len(LEVELS)
    assert means[-1] == 1.0


def test_a_prefix_is_held_as_own_digits_at_step_0(domain, history):
    started, _ = start(domain, "prefix", history, 0.5)
    assert clues_of(started) == clues_of(history)
    assert (started.step == 0).all()
    expected = [quality(2, clues, grid) for clues, grid in zip(clues_of(history), grids_of(started), strict=True)]
    np.testing.assert_allclose(started.quality, expected, atol=1e-6)
    given, grid = (jnp.asarray(x) for x in (clues_of(history), grids_of(started)))
    held = grids.pack_grids(settings(), given, grid, jnp.zeros(24, jnp.int32), task=started.task)
    np.testing.assert_array_equal(started.tokens, held.tokens)
    np.testing.assert_array_equal(started.lengths, held.lengths)


def test_edits_change_one_clue_and_keep_the_only_solution(domain, history):
    solution = [solved(clues)[0] for clues in clues_of(history)]
    changes, numbers = [], {}
    for seed in range(25):
        before = clues_of(history)
        history, ok = start(domain, "edit", history, 1.0, seed)
        assert ok.all()
        for row, (less, more) in enumerate(zip(before, clues_of(history), strict=True)):
            assert sum(a != b for a, b in zip(less, more, strict=True)) == 1
            changes.append(sum(map(bool, more)) - sum(map(bool, less)))
            assert solved(more) == [solution[row]]
            assert 0 in more
            numbers.setdefault(tuple(more), set()).add(int(history.task[row]))
    assert {*changes} == {-1, 1}
    assert abs(np.mean(changes)) < 0.5
    assert all(len(found) == 1 and min(found) >= GENERATED for found in numbers.values())
    assert len(set.union(*numbers.values())) == len(numbers)  # 600 puzzles have 600 numbers
    assert (history.step == -1).all()
    assert history.lengths.tolist() == [[0, 32, 0, 0]] * 24


def test_nothing_of_other_splits_is_made(domain, history):
    def solutions_of(history):
        return {tuple(grid) for clues in clues_of(history) for grid in solved(clues)}

    held_out = solutions_of(domain.tasks("validation")) | solutions_of(domain.tasks("test"))
    assert len(held_out) > 40
    gold = {split: {tuple(grid) for grid in domain.gold(split).tolist()} for split in ("train", "test")}
    assert solutions_of(history) <= gold["train"]
    assert not gold["train"] & (gold["test"] | held_out)
    edited, ok = start(domain, "edit", history, 1.0)
    assert ok.all()
    assert clues_of(edited) != clues_of(history)
    assert solutions_of(edited) == solutions_of(history)
    assert not solutions_of(edited) & held_out


def test_an_edited_puzzle_is_graded_by_its_solution():
    domain = domains.make("sudoku", settings(clues=(6, 9), num_train=16, graded_by="solution"))
    before = domain.tasks("train")
    made, ok = start(domain, "edit", before, 1.0)
    assert ok.all()
    v, blanks = grids.Vocabulary(2), [clues.index(0) for clues in clues_of(made)]
    right = [solved(clues)[0][cell] for clues, cell in zip(clues_of(made), blanks, strict=True)]
    due = [1 / clues.count(0) for clues in clues_of(made)]
    for digits, share in ((right, 1.0), ([1 + digit % 4 for digit in right], 0.0)):
        scripts = [[v.cell + cell, v.own + digit, END] for cell, digit in zip(blanks, digits, strict=True)]
        graded_as = graded(domain, made, scripts).quality[:, 0]
        np.testing.assert_allclose(graded_as, [share * part for part in due], atol=1e-6)
    hinted, ok = start(domain, "hint", made, 1.0)
    assert ok.all()
    assert graded(domain, hinted, [[END]] * 16).quality.min() == 1.0


def test_bigger_puzzles_have_hints_but_no_edits():
    c = settings(box=(2, 3), clues=(14, 20), num_train=6, num_eval=2)
    domain = domains.make("sudoku", c)
    assert {*domain.variants} == {"hint", "prefix"}
    history = domain.tasks("train")
    started, ok = start(domain, "hint", history, 1.0)
    assert ok.all()
    for clues, filled in zip(clues_of(history, (2, 3)), clues_of(started, (2, 3)), strict=True):
        assert all(a in (0, b) for a, b in zip(clues, filled, strict=True))
        assert all({filled[cell] for cell in unit} == {*range(1, 7)} for unit in units((2, 3)))


def test_pencil_marks_show_what_a_hint_leaves_open():
    c = settings(clues=(4, 9), num_train=8, pencil_marks="all")
    domain = domains.make("sudoku", c)
    started, _ = start(domain, "hint", domain.tasks("train"), 0.5)
    given, _ = grids.unpack(grids.vocabulary_of(c), started)
    expected = grids.pack_grids(c, given, given, jnp.full(8, -1), task=0)
    request = dataclasses.replace(started, lengths=started.lengths.at[:, 0].set(0), tokens=started.tokens[:, 32:])
    np.testing.assert_array_equal(request.tokens[:, :32], expected.tokens[:, :32])


def test_numbers_of_puzzles_are_their_hash():
    def fnv_1a(digits):  # as its authors define it, for bytes
        number = 0x811C9DC5
        for digit in digits:
            number = (number ^ digit) * 0x01000193 % 2**32
        return number

    given = jax.random.randint(jax.random.key(0), (2000, 16), 0, 5)
    expected = [GENERATED + (fnv_1a(row) >> 30 ^ fnv_1a(row) % 2**30) for row in given.tolist()]
    assert starts.number_of(given).tolist() == expected
    assert len({*expected}) == 2000
