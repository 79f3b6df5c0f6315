"""Test the sudoku domain against its rules written a second time, in plain Python over sets and lists."""

import collections
import dataclasses
import functools
import itertools
import pathlib
import random
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm.learnability import reward
from exit_jax.algorithm.prompts import piece, render_by_mode
from exit_jax.config.parse import validate
from exit_jax.domains.domain import DomainError
from exit_jax.domains.sudoku import domain as sudoku
from exit_jax.domains.sudoku import grading, grids, puzzles
from exit_jax.domains.sudoku.grids import CLASH, DONE, OPEN, STUCK, Vocabulary
from exit_jax.domains.sudoku.settings import SudokuConfig
from exit_jax.types import BASE, DIVERGE, IMPROVE, MODES, Instances, Rollouts

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "sudoku.py"
END, BLANK = 8, 9  # then n clues, n own digits and n² cells


def settings(box=2, clues=(4, 7), **changes):
    height, width = sides(box)
    plain = SudokuConfig(
        box=height,
        box_columns=0 if isinstance(box, int) else width,
        num_clues=clues,
        num_train=64,
        eval_clues=clues,
        num_eval=16,
        max_edits=3,
        data_seed=0,
        feedback=True,
        on_host=False,
        demo_clues=clues,
        demo_noise=0.3,
        demo_wrong=0.3,
    )
    return dataclasses.replace(plain, **changes)


def sides(box):
    return box if isinstance(box, tuple) else (box, box)


def size(box):
    """Return the number of digits."""
    return sides(box)[0] * sides(box)[1]


def parse(text):
    """Return the cells of "12.. 34.. ...."."""
    return [int(cell) for cell in text.replace(".", "0").replace(" ", "")]


def one_history(given, grid, step, c=None):
    given, grid = jnp.array([parse(given)]), jnp.array([parse(grid)])
    return grids.pack_grids(c or settings(), given, grid, jnp.array([step]), task=0)


# The rules, again


@functools.cache
def units(box):
    """Return the cells of each row, column and box."""
    n, (height, width) = size(box), sides(box)
    cells = [(row, column) for row in range(n) for column in range(n)]
    keys = (lambda r, c: ("row", r), lambda r, c: ("column", c), lambda r, c: ("box", r // height, c // width))
    names = sorted({key(*cell) for key in keys for cell in cells})
    return [{r * n + c for r, c in cells if name in {key(r, c) for key in keys}} for name in names]


def clashing(box, grid):
    """Return the filled cells whose digit stands in one of their units twice."""
    clash = lambda unit, cell: [grid[other] for other in unit].count(grid[cell]) > 1
    return {cell for unit in units(box) for cell in unit if grid[cell] and clash(unit, cell)}


def seen(box, grid, cell):
    """Return the digits in the units of a cell, the cell itself aside."""
    return {grid[other] for unit in units(box) if cell in unit for other in unit - {cell}} - {0}


def quality(box, given, grid, solution=None, wrong_cost=0.0):
    """Return the marks for all blanks between the worst and the best there are: 1 a right digit, -wrong_cost a wrong one.

    Right is what the solution has, where there is one, or what has no clash.
    """
    own = {cell for cell, digit in enumerate(given) if not digit}
    full = {cell for cell in own if grid[cell]}
    right = {cell for cell in full if grid[cell] == solution[cell]} if solution else full - clashing(box, grid)
    marks = sum(1 if cell in right else -wrong_cost for cell in full)
    worst, best = -wrong_cost * len(own), len(own)
    return (marks - worst) / (best - worst)


def feedback(box, grid):
    if clashing(box, grid):
        return CLASH
    blanks = [cell for cell, digit in enumerate(grid) if not digit]
    if any(len(seen(box, grid, cell)) == size(box) for cell in blanks):
        return STUCK
    return OPEN if blanks else DONE


def run_script(box, max_edits, given, grid, tokens, erase=False):
    """Return the grid after a script, and whether the script is valid; with ``erase`` a blank may be written."""
    n = size(box)
    if END not in tokens:
        return grid, False
    words = tokens[: tokens.index(END)]
    if len(words) % 2 or len(words) > 2 * max_edits:
        return grid, False
    after = list(grid)
    for word, answer in zip(words[::2], words[1::2]):
        contents = {BLANK + n + digit: digit for digit in range(1, n + 1)} | ({BLANK: 0} if erase else {})
        cell = word - (BLANK + 2 * n + 1)
        if cell not in range(n * n) or answer not in contents or given[cell]:
            return grid, False
        after[cell] = contents[answer]
    return after, True


@functools.cache
def all_solutions():
    """Return the 288 solved 4x4 grids: all stacks of four permutations that satisfy every unit."""
    rows = list(itertools.permutations(range(1, 5)))
    bands = [a + b for a, b in itertools.product(rows, rows) if not set(a[:2]) & set(b[:2])]  # so right boxes fit, too
    return [a + b for a, b in itertools.product(bands, bands) if all(len(set((a + b)[i::4])) == 4 for i in range(4))]


def completions(puzzle):
    return {grid for grid in all_solutions() if all(clue in (0, digit) for clue, digit in zip(puzzle, grid))}


# Puzzles


def test_there_are_288_small_grids():
    assert len(all_solutions()) == 288
    assert not any(clashing(2, grid) for grid in all_solutions())


def test_search_finds_all_completions():
    rng = random.Random(0)
    sizes = set()
    for _ in range(60):
        grid = [digit if rng.random() < 0.3 else 0 for digit in rng.choice(all_solutions())]
        grid[rng.randrange(16)] = rng.randrange(5)  # some have none
        found = puzzles.solutions(grid, 2, limit=1000)
        assert sorted(map(tuple, found)) == sorted(completions(grid))
        assert puzzles.solutions(grid, 2, limit=2) == found[:2]
        sizes.add(min(len(found), 2))
    assert sizes == {0, 1, 2}


@pytest.mark.parametrize("split", puzzles.SPLIT_SHARE)
def test_small_puzzles_are_unique_distinct_and_of_all_difficulties(split):
    puzzle_MC, solution_MC = puzzles.generate(split, 2, (4, 7), 40, 0)
    for puzzle, solution in zip(puzzle_MC.tolist(), solution_MC.tolist()):
        assert completions(puzzle) == {tuple(solution)}
    assert len(set(map(tuple, puzzle_MC.tolist()))) == 40
    assert collections.Counter((puzzle_MC > 0).sum(1).tolist()) == {4: 10, 5: 10, 6: 10, 7: 10}


@pytest.mark.parametrize(("box", "fewest"), [(3, 30), ((2, 3), 10), ((3, 2), 10)])
def test_large_puzzles_follow_the_rules(box, fewest):
    puzzle_MC, solution_MC = puzzles.generate("train", box, (fewest, fewest + 3), 8, 0)
    assert not any(clashing(box, grid) for grid in solution_MC.tolist())
    assert (solution_MC.min(), solution_MC.max()) == (1, size(box))
    assert (puzzle_MC[puzzle_MC > 0] == solution_MC[puzzle_MC > 0]).all()
    assert sorted((puzzle_MC > 0).sum(1) - fewest) == [0, 0, 1, 1, 2, 2, 3, 3]
    for puzzle, solution in zip(puzzle_MC.tolist(), solution_MC.tolist()):
        assert completions_by_units(box, puzzle) == [solution]


def completions_by_units(box, grid):
    """Return all completions of a grid by trying every digit in the first blank."""
    if clashing(box, grid):
        return []
    if 0 not in grid:
        return [grid]
    blanks = [cell for cell, digit in enumerate(grid) if not digit]
    cell = max(blanks, key=lambda cell: len(seen(box, grid, cell)))  # one with fewest digits left, or it takes too long
    rest = set(range(1, size(box) + 1)) - seen(box, grid, cell)
    return [found for digit in rest for found in completions_by_units(box, [*grid[:cell], digit, *grid[cell + 1 :]])]


def test_splits_share_no_solution():
    owner = {grid: puzzles.split_of(grid) for grid in all_solutions()}
    for split in puzzles.SPLIT_SHARE:
        solution_MC = puzzles.generate(split, 2, (4, 7), 40, 0)[1]
        assert {owner[tuple(solution)] for solution in solution_MC.tolist()} == {split}


def test_puzzles_depend_on_the_seed_alone():
    generate = puzzles.generate.__wrapped__
    one, same, other = (generate("test", 2, (4, 7), 8, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_impossible_request_raises():
    """The only sudoku of one cell is a single puzzle."""
    split = puzzles.split_of([1])
    assert puzzles.generate(split, 1, (1, 1), 1, 0)[0].tolist() == [[1]]
    with pytest.raises(ValueError, match="found only 1 of 2 distinct"):
        puzzles.generate(split, 1, (1, 1), 2, 0)


# Grades


def random_script(rng, v, given, length):
    """Return a script that is often valid, often nearly so, and at times noise."""
    noise = range(v.size + 2)  # a policy may pad its vocabulary
    digits, cells = [v.blank, *range(v.own + 1, v.own + v.digits + 1)], range(v.cell, v.cell + v.cells)
    free, clues = ([cell for cell, digit in zip(cells, given) if bool(digit) == clue] for clue in (False, True))
    pairs = rng.choice([0, 1, 2, 2, 3, 3, 3, 4, 5])
    words = [word for _ in range(pairs) for word in (rng.choice(free), rng.choice(digits))]
    flaw = rng.choice([*6 * ["none"], "repeat", "clue", "swap", "drop", "any", "endless", "noise"])
    if pairs and flaw == "repeat":
        words[-2] = words[0]  # an edit of the same cell
    elif pairs and flaw == "clue":
        words[2 * rng.randrange(pairs)] = rng.choice(clues)
    elif pairs and flaw == "swap":
        words[:2] = words[1::-1]  # a digit where a cell belongs
    elif pairs and flaw == "drop":
        words.pop(rng.randrange(len(words)))
    elif pairs and flaw == "any":
        words[rng.randrange(len(words))] = rng.choice(noise)
    elif flaw == "noise":
        words = rng.choices(noise, k=length)
    end = [] if flaw == "endless" else [v.end]
    return (words + end + rng.choices(noise, k=length))[:length]


def train_puzzles(c):
    return puzzles.generate("train", c.shape, c.num_clues, c.num_train, c.data_seed)


def random_histories(c, rng, count):
    """Return clues, grids and histories of puzzles in all states; a third of them are base tasks."""
    given_BC, solved_BC = (x[:count] for x in train_puzzles(c))
    grid_BC = given_BC.copy()
    for grid, solution in zip(grid_BC[count // 3 :], solved_BC[count // 3 :]):
        share, slip = rng.choice([0.3, 0.6, 0.9, 1.0]), rng.choice([0.0, 0.1, 1.0])
        for cell in np.flatnonzero(grid == 0):
            legal = set(range(1, size(c.shape) + 1)) - seen(c.shape, grid, cell)
            if rng.random() < share and legal:
                grid[cell] = rng.choice(sorted(legal)) if rng.random() < slip else solution[cell]
    step_B = jnp.where(jnp.arange(count) < count // 3, -1, jnp.arange(count))
    stored_B = jnp.where(step_B < 0, 0.0, 0.123)  # told from any quality computed
    fields = {name: jnp.arange(count) + 10 * i for i, name in enumerate(("task", "turn"))}
    history = grids.pack_grids(c, jnp.array(given_BC), jnp.array(grid_BC), step_B, quality=stored_B, **fields)
    fields = {name: jnp.arange(count) + 10 * i for i, name in enumerate(("id", "born", "parent"), 2)}
    history = dataclasses.replace(history, **fields)
    return given_BC.tolist(), grid_BC.tolist(), history


@pytest.mark.parametrize(
    ("graded_by", "wrong_cost", "erase", "marks"),
    [
        ("rules", 0.0, False, "none"),
        ("rules", 1.0, True, "improve"),
        ("solution", 0.0, False, "none"),
        ("solution", 0.5, True, "all"),
    ],
)
@pytest.mark.parametrize(("box", "clues"), [(2, (4, 7)), ((2, 3), (10, 13)), (3, (34, 40))])
def test_grades_are_those_of_plain_python(box, clues, graded_by, wrong_cost, erase, marks):
    c, v, rng = settings(box, clues, graded_by=graded_by), Vocabulary(box, marks != "none"), random.Random(0)
    c = dataclasses.replace(c, wrong_cost=wrong_cost, erase=erase, pencil_marks=marks)
    B, G, T = 30, 32, 11  # room for five pairs, two more than allowed
    given, grid, history = random_histories(c, rng, B)
    scripts = [[random_script(rng, v, given[b], T) for _ in range(G)] for b in range(B)]
    lengths = [[rng.choice([T, T, rng.randint(0, T)]) for _ in range(G)] for _ in range(B)]  # tokens behind are masked
    mask_BGT = np.arange(T) < np.array(lengths)[..., None]
    zeros = jnp.zeros((B, G, T))
    rollouts = Rollouts(jnp.array(scripts), jnp.array(mask_BGT), zeros, zeros, jnp.ones((B, G), bool), zeros)
    mode_B = jnp.full(B, IMPROVE)
    grades = jax.jit(functools.partial(sudoku.grade, c))(Instances(history, mode_B, *4 * [None]), rollouts)
    children = grades.children
    paid = reward("quality", grades.quality, grades.valid, history.quality, mode_B)
    told = piece(children, "feedback", 1)[0] - v.feedback
    same_given, after = grids.unpack(v, children)
    ours = jax.device_get((grades.valid, grades.quality, paid, told[..., 0, 0], after[:, :, 0]))

    kinds = collections.Counter()
    for b, g in itertools.product(range(B), range(G)):
        valid, value, pay, says, result = (array[b, g].tolist() for array in ours)
        expected, is_valid = run_script(box, 3, given[b], grid[b], scripts[b][g][: lengths[b][g]], erase)
        assert (valid, result) == (is_valid, expected)
        solution = train_puzzles(c)[1][b].tolist() if graded_by == "solution" else None
        earned = quality(box, given[b], expected, solution, wrong_cost)
        assert value == pytest.approx(earned if is_valid else history.quality[b].item())
        assert pay == (value if is_valid else 0)
        assert says == feedback(box, expected)
        kinds["valid" if valid else "invalid"] += 1
        kinds[says] += 1
        kinds["erased"] += any(before and not now for before, now in zip(grid[b], result))
    assert erase == (kinds["erased"] > 0)
    del kinds["erased"]
    assert len(kinds) == 6, kinds
    assert min(kinds.values()) > 10, kinds

    np.testing.assert_array_equal(same_given, np.broadcast_to(np.array(given)[:, None, None], same_given.shape))
    np.testing.assert_array_equal(children.step, np.broadcast_to(history.step[:, None, None] + 1, (B, G, 1)))
    np.testing.assert_array_equal(children.task, np.broadcast_to(history.task[:, None, None], (B, G, 1)))
    np.testing.assert_array_equal(children.quality[..., 0], grades.quality)
    np.testing.assert_array_equal(grades.insertable[..., 0], grades.valid)
    np.testing.assert_array_equal(grades.embedding.reshape(B, G, v.cells, -1).argmax(-1) + 1, np.maximum(ours[4], 1))
    np.testing.assert_array_equal(grades.embedding.sum(-1), (ours[4] > 0).sum(-1))


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ("12.. 3412 2143 4321", OPEN),
        (".12. .4.. 3... ....", STUCK),
        (".12. .4.. 3... 1..1", CLASH),
        ("1233 3412 2143 4321", CLASH),
        ("1234 3412 2143 4321", DONE),
    ],
)
def test_feedback(grid, expected):
    assert grids.feedback(2, jnp.array(parse(grid))) == expected
    assert feedback(2, parse(grid)) == expected


@pytest.mark.parametrize(("box", "clues"), [(2, (4, 7)), ((2, 3), (10, 13)), (3, (34, 40))])
def test_the_solutions_of_all_puzzles_are_known(box, clues):
    c = settings(box, clues, graded_by="solution", demo_clues=(clues[0] + 1, clues[1] + 1))
    for split in ("train", "validation", "test"):
        given, solved = grading.make_puzzles(c, split)
        np.testing.assert_array_equal(grading.solution_of(c, jnp.array(given)), solved)
        np.testing.assert_array_equal(grading.quality(c, jnp.array(given), jnp.array(solved)), 1.0)
    given, solved = grading.demo_puzzles(c)
    np.testing.assert_array_equal(grading.solution_of(c, jnp.array(given)), solved)
    if box == 2:
        assert grading.known_solutions(c).shape == (288, 16)


def test_a_legal_guess_is_not_paid_by_the_solution():
    given, grid = parse("1... ..3. .4.. ...2"), parse("12.. ..3. .4.. ...2")
    legal, right = (
        grading.quality(settings(graded_by=name), *map(jnp.array, (given, grid))) for name in ("rules", "solution")
    )
    (solution,) = puzzles.solutions(given, box=2, limit=2)
    assert solution[1] != 2
    assert (legal, right) == (pytest.approx(1 / 12), 0)


def test_a_guess_that_is_as_often_wrong_as_right_earns_nothing_on_average_at_a_cost_of_one():
    c = settings(graded_by="solution", wrong_cost=1.0)
    given = parse("1... ..3. .4.. ...2")
    (solution,) = puzzles.solutions(given, box=2, limit=2)
    cell = given.index(0)
    put = lambda digit: [*given[:cell], digit, *given[cell + 1 :]]
    wrong = next(digit for digit in range(1, 5) if digit != solution[cell])
    left, right, lost = (grading.quality(c, *map(jnp.array, (given, put(d)))) for d in (0, solution[cell], wrong))
    assert left == pytest.approx(1 / 2)
    assert (right - left, left - lost) == (pytest.approx(1 / 24), pytest.approx(1 / 24))


def test_demonstrations_do_not_depend_on_the_grade():
    changes = [{"graded_by": "rules"}, {"graded_by": "solution"}, {"graded_by": "solution", "wrong_cost": 1.0}]
    ids = {sudoku.make_domain(settings(**change)).demonstrations_id for change in changes}
    assert len(ids) == 1
    assert sudoku.make_domain(settings(erase=True)).demonstrations_id not in ids
    # so that policies that were warm-started before there were these settings stay of use
    younger = {"graded_by", "grid_copies", "wrong_cost", "erase", "pencil_marks", "box_columns", "demo_deduce"}
    assert not younger & set(re.findall(r"\w+", ids.pop()))


@pytest.mark.parametrize("marks", ["none", "improve", "all"])
@pytest.mark.parametrize(("box", "clues"), [(2, (4, 7)), ((2, 3), (10, 13)), (3, (34, 40))])
def test_pencil_marks_are_what_the_rules_say(box, clues, marks):
    c, v, n = settings(box, clues, pencil_marks=marks), Vocabulary(box, marks != "none"), size(box)
    given_BC, grid_BC, history = random_histories(c, random.Random(1), 30)
    assert [x.tolist() for x in grids.unpack(v, history)] == [given_BC, grid_BC]
    first_mark = BLANK + 2 * n + 1 + n * n  # behind the cells: own digits that clash, then sets of digits
    for name, shown_BC in (("request", given_BC), ("solution", grid_BC)):
        tokens, lengths = piece(history, name, 2 * n * n)
        marked = marks == "all" or (marks == "improve" and name == "solution")
        for b, (given, grid) in enumerate(zip(given_BC, shown_BC)):
            if not lengths[b]:
                continue
            clash = clashing(box, grid)
            for cell, token in enumerate(tokens[b, 1::2].tolist()):
                fits = set(range(1, n + 1)) - seen(box, grid, cell)
                if marked and not grid[cell]:
                    expected = first_mark + n + sum(2 ** (digit - 1) for digit in fits)
                elif marked and not given[cell] and cell in clash:
                    expected = first_mark + grid[cell] - 1
                else:
                    expected = BLANK + grid[cell] + n * (grid[cell] > 0 and not given[cell])
                assert token == expected
                assert token < v.size


def test_feedback_can_be_switched_off():
    history = one_history(GIVEN, GRID, 0, settings(feedback=False))
    assert piece(history, "feedback", 1)[0] == Vocabulary.feedback + OPEN


def test_no_response_solves_an_evaluation_puzzle():
    c = validate(runpy.run_path(str(CONFIG))["get_config"](), num_devices=1).domain
    for split in ("validation", "test"):
        puzzle_MC, _ = puzzles.generate(split, c.box, c.eval_clues, c.num_eval, c.data_seed)
        assert (puzzle_MC == 0).sum(1).min() == 9
    assert c.max_edits < 9
    assert sudoku.make_domain(c).max_tokens == 2 * c.max_edits + 1


# Demonstrations


def test_demonstrations_are_short_noisy_scripts_where_something_is_due():
    c, v, K, G = settings(), Vocabulary(2), 256, 4
    demonstrations = jax.jit(sudoku.make_domain(c).demonstrations, static_argnums=(2, 3))
    history, mode_K, tokens_KGT, mask_KGT = jax.device_get(demonstrations(jax.random.key(0), 0, K, G))
    given_KC, grid_KC = (x.tolist() for x in grids.unpack(v, history))
    solved = {tuple(clued): solution for clued, solution in zip(*(x.tolist() for x in train_puzzles(c)))}

    own, slips, illegal, lengths = 0, 0, [], collections.Counter()
    for k, (given, grid, mode) in enumerate(zip(given_KC, grid_KC, mode_K)):
        solution = solved[tuple(given)]
        assert all(clue in (0, digit) for clue, digit in zip(given, grid))
        assert history.step[k] == (-1 if grid == given else 0)
        assert (mode == BASE) == (grid == given)
        assert history.quality[k] == pytest.approx(quality(2, given, grid))
        own += sum(not clue and digit > 0 for clue, digit in zip(given, grid))
        slips += sum(digit not in (0, right) for digit, right in zip(grid, solution))
        due = {cell for cell, digit in enumerate(grid) if not digit} | clashing(2, grid)
        due -= {cell for cell, clue in enumerate(given) if clue}
        assert (not due) == (grid == solution)
        for tokens_T, mask_T in zip(tokens_KGT[k], mask_KGT[k]):
            assert not tokens_T[~mask_T].any()
            script = tokens_T[mask_T].tolist()
            assert run_script(2, 3, given, grid, script)[1]
            assert script.index(END) == len(script) - 1
            cells = [token - v.cell for token in script[:-1:2]]
            assert cells == sorted(set(cells) & due)
            assert len(cells) == min(3, len(due))
            lengths[len(cells)] += 1
            for cell, digit in zip(cells, script[1::2]):
                taken = seen(2, grid, cell)
                if len(taken) < 4:
                    illegal.append((digit - v.own in taken, c.demo_noise * len(taken) / 4))
    assert set(lengths) == {0, 1, 2, 3}
    assert set(mode_K) == {BASE, IMPROVE, DIVERGE}
    assert abs(slips - own * c.demo_wrong * 3 / 4) < 4 * (own * 0.225 * 0.775) ** 0.5
    is_illegal, probability = np.array(illegal).T
    assert abs(is_illegal.sum() - probability.sum()) < 4 * (probability * (1 - probability)).sum() ** 0.5


def test_demonstrations_erase_what_may_be_wrong():
    c, v, K, G = settings(erase=True, demo_noise=0.0), Vocabulary(2), 256, 8
    demonstrations = jax.jit(sudoku.make_domain(c).demonstrations, static_argnums=(2, 3))
    history, _, tokens_KGT, mask_KGT = jax.device_get(demonstrations(jax.random.key(0), 0, K, G))
    given_KC, grid_KC = (x.tolist() for x in grids.unpack(v, history))
    kinds = collections.Counter()
    for given, grid, tokens_GT, mask_GT in zip(given_KC, grid_KC, tokens_KGT, mask_KGT):
        fits = {cell: set(range(1, 5)) - seen(2, grid, cell) for cell in range(16)}
        stuck = {cell for cell, digit in enumerate(grid) if not digit and not fits[cell]}
        beside = {other for unit in units(2) if unit & stuck for other in unit}
        doubted = {cell for cell, digit in enumerate(grid) if digit and not given[cell]} & (clashing(2, grid) | beside)
        due = doubted | {cell for cell, digit in enumerate(grid) if not digit} - stuck
        assert (not due) == (feedback(2, grid) == DONE)  # to leave a wrong grid as it is would teach to freeze
        for tokens_T, mask_T in zip(tokens_GT, mask_GT):
            script = tokens_T[mask_T].tolist()
            assert run_script(2, 3, given, grid, script, erase=True)[1]
            cells = [token - v.cell for token in script[:-1:2]]
            assert cells == sorted(set(cells) & due)
            assert len(cells) == min(3, len(due))
            for cell, content in zip(cells, script[1::2]):
                assert content == BLANK or content - v.own in fits[cell]
                if grid[cell]:
                    kinds["some fit" if fits[cell] else "none fits", content == BLANK] += 1
                else:
                    assert content != BLANK
    assert set(kinds) == {("none fits", True), ("some fit", True), ("some fit", False)}
    erased, kept = kinds["some fit", True], kinds["some fit", False]
    assert abs(erased - kept) < 4 * (erased + kept) ** 0.5


@pytest.mark.parametrize(("erase", "share"), [(False, 1.0), (True, 1.0), (True, 0.4)])
def test_a_share_of_demonstrations_edits_what_is_certain(erase, share):
    c, v, K, G = settings(erase=erase, demo_deduce=share, demo_noise=0.0, demo_wrong=0.1), Vocabulary(2), 256, 8
    demonstrations = jax.jit(sudoku.make_domain(c).demonstrations, static_argnums=(2, 3))
    history, _, tokens_KGT, mask_KGT = jax.device_get(demonstrations(jax.random.key(0), 0, K, G))
    given_KC, grid_KC = (x.tolist() for x in grids.unpack(v, history))
    kinds, of_many, deduced = collections.Counter(), 0, 0
    for given, grid, tokens_GT, mask_GT in zip(given_KC, grid_KC, tokens_KGT, mask_KGT):
        blanks = [cell for cell, digit in enumerate(grid) if not digit]
        forced = {cell for cell in blanks if len(seen(2, grid, cell)) == 3}
        own = {cell for cell, digit in enumerate(grid) if digit and not given[cell]}
        refuted = {cell for cell in own if grid[cell] in seen(2, given, cell)}
        certain = forced | refuted
        for tokens_T, mask_T in zip(tokens_GT, mask_GT):
            script = tokens_T[mask_T].tolist()
            assert run_script(2, 3, given, grid, script, erase)[1]
            cells = {token - v.cell for token in script[:-1:2]}
            if share == 1 and certain:
                assert cells <= certain
                assert len(cells) == min(3, len(certain))
                kinds["forced"] += len(cells & forced)
                kinds["refuted"] += len(cells & refuted)
            elif certain and len(blanks) >= 3 + len(certain):  # else guesses may be of these cells alone
                of_many += 1
                deduced += cells <= certain
            kinds["nothing certain"] += not certain
    if share == 1:
        assert min(kinds.values()) > 10, kinds
        assert len(kinds) == 3
    else:
        assert of_many > 100
        assert share - 0.1 < deduced / of_many < share + 0.2


@pytest.mark.parametrize("changes", [{}, {"erase": True}, {"erase": True, "demo_deduce": 0.5}])
def test_demonstrations_use_no_key_twice(changes):
    domain = sudoku.make_domain(settings(**changes))
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: domain.demonstrations(key, 0, 4, 2))(jax.random.key(1))


# Text

# a puzzle by hand, and a state of it: the own 1 in the last row clashes with a clue
GIVEN = "1... ..3. .1.. ...2"
GRID = "13.. .23. .1.. 1.42"


def test_pack_and_unpack_are_inverse():
    given, grid = parse(GIVEN), parse(GRID)
    assert [x[0].tolist() for x in grids.unpack(Vocabulary(2), one_history(GIVEN, GRID, 0))] == [given, grid]
    assert [x[0].tolist() for x in grids.unpack(Vocabulary(2), one_history(GIVEN, GRID, -1))] == [given, given]


def test_describe_draws_clues_own_digits_and_blanks():
    assert sudoku.describe(Vocabulary(2), one_history(GIVEN, GRID, 0)) == [
        " 1 (3)| .  . \n"
        " . (2)| 3  . \n"
        "------+------\n"
        " .  1 | .  . \n"
        "(1) . |(4) 2 "
    ]  # fmt: skip


def test_describe_draws_boxes_that_are_not_square():
    c = settings((2, 3), (10, 13))
    grid = jnp.arange(36)[None] % 7
    history = grids.pack_grids(c, jnp.where(grid > 3, grid, 0), grid, jnp.array([0]), task=0)
    assert sudoku.describe(Vocabulary((2, 3)), history)[0].splitlines()[:4] == [
        " . (1)(2)|(3) 4  5 ",
        " 6  . (1)|(2)(3) 4 ",
        "---------+---------",
        " 5  6  . |(1)(2)(3)",
    ]


@pytest.mark.parametrize(
    ("mode", "step", "expected"),
    [
        (BASE, -1, "1 18 10 19 9 20 9 21 9 22 9 23 9 24 12 25 9 26 9 27 10 28 9 29 9 30 9 31 9 32 9 33 11 0"),
        (IMPROVE, 0, "2 18 10 19 16 20 9 21 9 22 9 23 15 24 12 25 9 26 9 27 10 28 9 29 9 30 14 31 9 32 17 33 11 6"),
        (DIVERGE, 0, "3 18 10 19 16 20 9 21 9 22 9 23 15 24 12 25 9 26 9 27 10 28 9 29 9 30 14 31 9 32 17 33 11 6"),
    ],
    ids=MODES,
)
def test_prompts(mode, step, expected):
    """Clue 1 is 10, own digit 1 is 14, cell 0 is 18, a clash is 6."""
    domain = sudoku.make_domain(settings())
    history = one_history(GIVEN, GRID, step)
    prompt, length = render_by_mode(domain.templates, history, jnp.array([mode]), domain.prompt_width)
    assert " ".join(map(str, prompt[0])) == expected
    assert length == (33 if mode == BASE else 34)
    assert domain.vocab_size == 34
    assert history.tokens.shape == (1, domain.history_width)


@pytest.mark.parametrize(("mode", "step"), [(BASE, -1), (IMPROVE, 0), (DIVERGE, 0)], ids=MODES)
def test_a_prompt_may_hold_the_grid_twice(mode, step):
    once, twice = (sudoku.make_domain(settings(grid_copies=copies)) for copies in (1, 2))
    history = one_history(GIVEN, GRID, step)
    rendered = [render_by_mode(d.templates, history, jnp.array([mode]), d.prompt_width) for d in (once, twice)]
    (short, long), lengths = (
        [tokens[0].tolist() for tokens, _ in rendered],
        [int(length[0]) for _, length in rendered],
    )
    grid = short[1:33]
    assert long == [short[0], *grid, *grid, *short[33:]]
    assert lengths[1] == lengths[0] + 32
    assert once.demonstrations_id != twice.demonstrations_id


@pytest.mark.parametrize(("grid", "expected"), [(GRID, False), ("1111 1131 1111 1112", True)])
def test_complete_means_full_whether_right_or_wrong(grid, expected):
    assert sudoku.make_domain(settings()).complete(one_history(GIVEN, grid, 0)) == expected


def test_base_tasks_are_the_puzzles():
    c = settings()
    domain = sudoku.make_domain(c)
    tasks = domain.tasks("train")
    given_MC, grid_MC = grids.unpack(Vocabulary(2), tasks)
    np.testing.assert_array_equal(given_MC, train_puzzles(c)[0])
    np.testing.assert_array_equal(grid_MC, given_MC)
    np.testing.assert_array_equal(domain.difficulty("train")["clues"], (given_MC > 0).sum(-1))
    np.testing.assert_array_equal(tasks.task, np.arange(64))
    assert {(int(step), float(q)) for step, q in zip(tasks.step, tasks.quality)} == {(-1, 0.0)}


def count_covers(columns, rows, limit):
    """Count exact covers up to ``limit`` by Knuth's Algorithm X: column -> its rows, row -> its columns."""
    if not columns:
        return 1
    count, column = 0, min(columns, key=lambda column: len(columns[column]))
    for row in list(columns[column]):
        removed = {c: columns[c] for c in rows[row]}
        hit = {r for c in rows[row] for r in columns[c]}
        rest = {c: members - hit for c, members in columns.items() if c not in removed}
        count += count_covers(rest, rows, limit - count)
        if count >= limit:
            break
    return count


def test_large_puzzles_have_one_solution_by_exact_cover():
    for puzzle, solution in zip(*puzzles.generate("train", 3, (36, 50), 8, 1)):
        rows = {}
        for cell, digit in itertools.product(range(81), range(1, 10)):
            if puzzle[cell] in (0, digit):
                y, x = divmod(cell, 9)
                box = 3 * (y // 3) + x // 3
                rows[cell, digit] = (("cell", cell), ("row", y, digit), ("column", x, digit), ("box", box, digit))
        columns = {}
        for row, members in rows.items():
            for column in members:
                columns.setdefault(column, set()).add(row)
        assert count_covers(columns, rows, limit=2) == 1
        assert all(clue in (0, digit) for clue, digit in zip(puzzle, solution))


def test_an_unknown_split_is_refused():
    with pytest.raises(DomainError, match="'tset' is not one of"):
        puzzles.generate("tset", 2, (4, 7), 1, 0)
