"""The sudoku domain: a response is an edit script on the grid that is held, graded in jnp on the device.

A prompt is the mode, the grid cell by cell (clues and the policy's own digits are different tokens) and one feedback
token. A response is up to ``max_edits`` pairs (cell, digit), then the end token; so an empty puzzle of 9 and more
blanks cannot be solved by one response.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.algorithm.prompts import pack, piece
from exit_jax.domains.domain import Domain
from exit_jax.domains.sudoku import puzzles
from exit_jax.domains.sudoku.settings import Box, SudokuConfig, num_digits, sides
from exit_jax.settings import younger_defaults
from exit_jax.types import BASE, DIVERGE, IMPROVE, Array, Grades, History, Instances, Rollouts, make_history

OPEN, STUCK, CLASH, DONE = range(4)  # what the feedback token says of a grid; all can be read off the grid itself


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Token ids: pad, modes, feedback, end, blank, clues 1..n, own digits 1..n, cells; then those of pencil marks, if any.

    A grid is written as a script is, in pairs (cell, content): cells and digits then mean the same in prompt and response.
    One token a cell, whether with content alone or with cell and content in one, learned less from the same
    demonstrations (docs/results.md).
    """

    box: Box
    pencil_marks: bool = False

    mode = (1, 2, 3)
    feedback = 4  # + OPEN .. DONE
    end = 8
    blank = 9  # clue d is blank + d

    @property
    def digits(self) -> int:
        return num_digits(self.box)

    @property
    def cells(self) -> int:
        return self.digits**2

    @property
    def own(self) -> int:  # own digit d is own + d
        return self.blank + self.digits

    @property
    def cell(self) -> int:  # cell c is cell + c
        return self.own + self.digits + 1

    @property
    def clashing(self) -> int:  # own digit d that clashes is clashing + d
        return self.cell + self.cells - 1

    @property
    def marks(self) -> int:  # a blank that the digits d, ... fit is marks + 2^(d-1) + ...
        return self.clashing + self.digits + 1

    @property
    def size(self) -> int:
        return self.marks + 2**self.digits if self.pencil_marks else self.cell + self.cells

    def describe(self) -> str:
        """Return what the ids are, for people."""
        span = lambda start, count: f"{start} to {start + count - 1}"
        return (
            f"They are symbols of a {self.digits}x{self.digits} sudoku: 0 is padding, {span(1, 3)} begin a base, improve or "
            f"diverge prompt, {span(self.feedback, 4)} say that a grid is open, stuck, clashing or done, {self.end} ends a "
            f"response, {self.blank} is a blank, {span(self.blank + 1, self.digits)} are clues, "
            f"{span(self.own + 1, self.digits)} the policy's own digits, {span(self.cell, self.cells)} cells."
        ) + (
            f" {span(self.clashing + 1, self.digits)} are own digits that clash, {span(self.marks, 2**self.digits)} blanks by "
            "the set of digits that fit."
            if self.pencil_marks
            else ""
        )


def grid_tokens(vocabulary: Vocabulary, given: Array, grid: Array, marked: bool = False) -> Array:
    """Return the tokens [..., 2C] of grids [..., C] whose non-zero cells of ``given`` are clues; with pencil marks if asked."""
    v = vocabulary
    content = v.blank + grid + jnp.where((given == 0) & (grid > 0), v.digits, 0)
    if marked:
        seen = seen_digits(v.box, grid)
        fitting = jnp.einsum("...d,d->...", (~seen).astype(jnp.int32), 2 ** jnp.arange(v.digits))
        is_clash = (seen & jax.nn.one_hot(grid - 1, v.digits, dtype=bool)).any(-1)
        content = jnp.where(is_clash & (given == 0), v.clashing + grid, content)
        content = jnp.where(grid == 0, v.marks + fitting, content)
    cell = jnp.broadcast_to(v.cell + jnp.arange(v.cells), grid.shape)
    return jnp.stack([cell, content], axis=-1).reshape(*grid.shape[:-1], 2 * v.cells)


def seen_digits(box: Box, grid: Array) -> Array:
    """Return which digits stand in the row, column or box of each cell, the cell itself aside: bool [..., C, n]."""
    peers = jnp.asarray(is_peer(box), jnp.float32)
    return jnp.einsum("...cd,ec->...ed", jax.nn.one_hot(grid - 1, num_digits(box)), peers) > 0


@functools.lru_cache
def is_peer(box: Box) -> np.ndarray:
    """Return which cells share a row, column or box with each other, bool [C, C]."""
    peers = puzzles.peers(box)
    shared = np.zeros((len(peers), len(peers)), bool)
    for cell, neighbours in enumerate(peers):
        shared[cell, list(neighbours)] = True
    return shared


def clashes(box: Box, grid: Array) -> Array:
    """Return which filled cells share a row, column or box with an equal digit, bool [..., C]."""
    return (seen_digits(box, grid) & jax.nn.one_hot(grid - 1, num_digits(box), dtype=bool)).any(-1)


def quality(config: SudokuConfig, given: Array, grid: Array) -> Array:
    """Return how many of the blanks of ``given`` [..., C] have a right digit in ``grid`` [..., C], float32 [...]; 1 means all.

    Right is the digit of the solution, or any without a clash, as ``graded_by`` says: a legal guess then earns as much as a
    deduction. Without ``wrong_cost`` this is a share. With it a wrong digit takes off what so many right ones earn, and the
    scale is moved so that 0 still means all wrong: a blank grid then has wrong_cost / (1 + wrong_cost).
    """
    if config.graded_by == "solution":
        right = grid == solution_of(config, given)
    else:
        right = (grid > 0) & ~clashes(config.shape, grid)
    blank, cost = given == 0, config.wrong_cost
    wrong = (grid > 0) & ~right
    earned = (right & blank).sum(-1)
    if cost:
        earned = (earned + cost * (blank & ~wrong).sum(-1)) / (1 + cost)
    return earned / jnp.maximum(blank.sum(-1), 1)


def solution_of(config: SudokuConfig, given: Array) -> Array:
    """Return the only solutions [..., C] of known puzzles by their clues [..., C]; what it returns of others means nothing."""
    known = jnp.asarray(known_solutions(config))
    clues = given[..., None, :]
    fits = ((clues == 0) | (clues == jnp.broadcast_to(known, (*given.shape[:-1], *known.shape)))).all(-1)
    return known[jnp.argmax(fits, axis=-1)]


@functools.lru_cache
def known_solutions(config: SudokuConfig) -> np.ndarray:
    """Return the solutions int32 [M, C] of all puzzles that a run meets; of 4x4 ones, all 288 that there are."""
    if config.shape == 2:  # all are known
        return np.array(puzzles.solutions([0] * 16, box=2, limit=289), np.int32)
    solved = [make_puzzles(config, split)[1] for split in config.splits] + [demo_puzzles(config)[1]]
    return np.unique(np.concatenate(solved), axis=0)


def make_puzzles(config: SudokuConfig, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the tasks of a split: (puzzles, solutions), int32 [M, C] each."""
    train = split == "train"
    clues, count = (config.num_clues, config.num_train) if train else (config.eval_clues, config.num_eval)
    return puzzles.generate(split, config.shape, tuple(clues), count, config.data_seed)


def demo_puzzles(config: SudokuConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return what demonstrations are made of, as ``make_puzzles``: puzzles of the training split."""
    return puzzles.generate("train", config.shape, tuple(config.demo_clues), config.num_train, config.data_seed)


def feedback(box: Box, grid: Array) -> Array:
    """Return what can be read off a grid [..., C]: CLASH, else DONE, else STUCK (a blank without a digit), else OPEN."""
    blank = grid == 0
    stuck = (blank & seen_digits(box, grid).all(-1)).any(-1)
    state = jnp.where(stuck, STUCK, jnp.where(blank.any(-1), OPEN, DONE))
    return jnp.where(clashes(box, grid).any(-1), CLASH, state)


def apply_script(
    vocabulary: Vocabulary, max_edits: int, given: Array, grid: Array, tokens: Array, erase: bool = False
) -> tuple[Array, Array]:
    """Apply edit scripts tokens [..., T] to grids [..., C].

    A script is up to ``max_edits`` pairs (cell, digit), then the end token; what stands after it is ignored. Edits apply in
    order, so the last one of a cell counts. With ``erase`` a blank may stand for the digit. Any other sequence, and any edit
    of a given cell, is invalid and changes nothing.

    Returns:
      The grids after the scripts, and valid bool [...].
    """
    v = vocabulary
    ended = tokens == v.end
    length = jnp.where(ended.any(-1), jnp.argmax(ended, -1), tokens.shape[-1] + 1)
    valid = (length % 2 == 0) & (length <= 2 * max_edits)
    edited = grid
    for edit in range(max_edits):
        used = 2 * edit < length
        cell, content = tokens[..., 2 * edit] - v.cell, tokens[..., 2 * edit + 1]
        target = jax.nn.one_hot(cell, v.cells, dtype=bool)
        digit = content - v.own
        is_content = (digit >= 1) & (digit <= v.digits)
        if erase:
            is_content |= content == v.blank
            digit = jnp.maximum(digit, 0)  # the blank's id is below those of the digits
        legal = target.any(-1) & is_content & ~(target & (given > 0)).any(-1)
        valid &= legal | ~used
        edited = jnp.where(target & used[..., None], digit[..., None], edited)
    return jnp.where(valid[..., None], edited, grid), valid


def unpack(vocabulary: Vocabulary, history: History) -> tuple[Array, Array]:
    """Return the clues and the current grid of histories, digits [..., C] each; without a solution they are equal."""
    v = vocabulary
    request, _ = piece(history, "request", 2 * v.cells)
    solution, length = piece(history, "solution", 2 * v.cells)
    given, grid = (digits_of(v, tokens[..., 1::2]) for tokens in (request, solution))
    return given, jnp.where((length > 0)[..., None], grid, given)


def digits_of(vocabulary: Vocabulary, content: Array) -> Array:
    """Return the digits, 0 for a blank, that content tokens of a grid stand for."""
    v = vocabulary
    digit = content - v.blank
    digit = jnp.where(digit > v.digits, digit - v.digits, digit)
    if v.pencil_marks:
        digit = jnp.where(content > v.clashing, content - v.clashing, digit)
        digit = jnp.where(content >= v.marks, 0, digit)
    return digit


def pack_grids(config: SudokuConfig, given: Array, grid: Array, step: Array, **fields: Any) -> History:
    """Pack clues and grids [..., C] as histories; those at step -1 hold a request only."""
    v = Vocabulary(config.shape, config.pencil_marks != "none")
    shape = given.shape[:-1]
    held = step >= 0
    state = feedback(config.shape, grid) if config.feedback else jnp.zeros(shape, jnp.int32)
    tokens, lengths = pack(
        {
            "request": (grid_tokens(v, given, given, config.pencil_marks == "all"), jnp.full(shape, 2 * v.cells)),
            "solution": (grid_tokens(v, given, grid, config.pencil_marks != "none"), jnp.where(held, 2 * v.cells, 0)),
            "feedback": ((v.feedback + state)[..., None], held.astype(jnp.int32)),
        },
        width=4 * v.cells + 1,
    )
    return make_history(tokens, lengths, step=step, **fields)


def grade(config: SudokuConfig, instances: Instances, rollouts: Rollouts) -> Grades:
    """Run every script on the grid of its instance. The embedding is the grid that results, one-hot."""
    v = Vocabulary(config.shape, config.pencil_marks != "none")
    parent = instances.history
    group = rollouts.tokens.shape[:2]
    puzzle, held = (x[:, None] for x in unpack(v, parent))
    given, grid = (jnp.broadcast_to(x, (*group, v.cells)) for x in (puzzle, held))
    tokens = jnp.where(rollouts.mask, rollouts.tokens, 0)
    edited, valid = apply_script(v, config.max_edits, given, grid, tokens, config.erase)

    def spread(value):
        return jnp.broadcast_to(value[:, None, None], (*group, 1))

    result = quality(config, puzzle, edited)
    # an invalid script leaves the stored quality as it is, too: 0 for a base task, not the clue grid's own
    result = jnp.where(valid, result, parent.quality[:, None])
    children = pack_grids(
        config,
        given[:, :, None],
        edited[:, :, None],
        spread(parent.step + 1),
        task=spread(parent.task),
        turn=spread(parent.turn),
        quality=result[..., None],
    )
    embedding = jax.nn.one_hot(edited - 1, v.digits).reshape(*group, -1)
    return Grades(
        quality=result, valid=valid, embedding=embedding, children=children, insertable=valid[..., None], notes={}
    )


def demonstrate(config: SudokuConfig, solved: Array, clued: Array, key: Array, count: int, group_size: int):
    """Make demonstrations by a teacher that knows the rules of sudoku, but neither the solution nor any strategy.

    A puzzle gets a random share of its blanks filled, a share ``demo_wrong`` of them at random, the others from the solution.
    Each script edits up to ``max_edits`` random cells that are blank or clash, in the order of cells, never without need.
    A digit is random among those that no peer holds, or among all where there is none or with probability
    ``demo_noise``. A solved grid is answered by the end token alone. Teaching the solution's digits instead makes the policy
    learn the training solutions by heart (docs/results.md). With ``erase`` a blank that no digit fits stays one, own digits
    beside it are edited as those that clash are, and such edits erase where no digit fits, else every other time. A share
    ``demo_deduce`` of scripts edits only what is certain by the rules, where anything is: blanks that a single digit fits, and
    own digits that clash with a clue.

    Args:
      solved, clued: digits [M, C] of the puzzles to draw from.

    Returns:
      Histories [K], their modes [K], and their scripts: tokens [K, G, T], mask [K, G, T]; K = count, G = group_size.
    """
    v = Vocabulary(config.shape, config.pencil_marks != "none")
    keys = iter(jax.random.split(key, 9))
    row = jax.random.randint(next(keys), (count,), 0, solved.shape[0])
    solution, given = solved[row], clued[row]
    share = jax.random.uniform(next(keys), (count, 1)) * 1.25 - 0.1  # some grids stay blank, some become full
    fill = (jax.random.uniform(next(keys), given.shape) < share) & (given == 0)
    slips = jax.random.randint(next(keys), given.shape, 1, v.digits + 1)
    slipped = jax.random.uniform(next(keys), given.shape) < config.demo_wrong
    grid = jnp.where(given > 0, given, jnp.where(fill, jnp.where(slipped, slips, solution), 0))
    started = fill.any(-1)
    mode = jnp.where(jax.random.bernoulli(next(keys), shape=(count,)), IMPROVE, DIVERGE)
    step = jnp.where(started, 0, -1)
    history = pack_grids(config, given, grid, step, task=0, quality=quality(config, given, grid))

    cell_key, digit_key, noise_key = next(keys), next(keys), next(keys)
    if config.erase:
        noise_key, erase_key = jax.random.split(noise_key)
    if config.demo_deduce:
        cell_key, deduce_key = jax.random.split(cell_key)
    shape = (count, group_size, v.cells)
    seen = seen_digits(config.shape, grid)
    clash, stuck = clashes(config.shape, grid), (grid == 0) & seen.all(-1)
    if config.erase:
        num_stuck_peers = jnp.einsum(
            "kc,ec->ke", stuck.astype(jnp.int32), jnp.asarray(is_peer(config.shape), jnp.int32)
        )
        doubted = (grid > 0) & (clash | (num_stuck_peers > 0))
        due = (given == 0) & ((grid == 0) & ~stuck | doubted)
    else:
        due = (given == 0) & ((grid == 0) | clash)
    due = jnp.broadcast_to(due[:, None], shape)
    if config.demo_deduce:
        forced = (grid == 0) & (seen.sum(-1) == v.digits - 1)
        refuted = (given == 0) & (
            seen_digits(config.shape, given) & jax.nn.one_hot(grid - 1, v.digits, dtype=bool)
        ).any(-1)
        certain = jnp.broadcast_to((forced | refuted)[:, None], shape)
        deduces = jax.random.bernoulli(deduce_key, config.demo_deduce, (*shape[:2], 1)) & certain.any(-1, keepdims=True)
        due = jnp.where(deduces, certain, due)
    best, cells = jax.lax.top_k(jnp.where(due, jax.random.uniform(cell_key, shape), -1.0), config.max_edits)
    cells = jnp.sort(jnp.where(best > 0, cells, v.cells), axis=-1)  # unneeded edits last
    any_digit = jnp.broadcast_to((seen.all(-1, keepdims=True))[:, None], (*shape, 1))
    any_digit |= jax.random.bernoulli(noise_key, config.demo_noise, (*shape, 1))
    allowed = any_digit | jnp.broadcast_to(~seen[:, None], (*shape, v.digits))
    digits = 1 + jax.random.categorical(digit_key, jnp.where(allowed, 0.0, -jnp.inf))
    contents = v.own + digits
    if config.erase:
        erased = seen.all(-1)[:, None] | jax.random.bernoulli(erase_key, 0.5, shape)
        contents = jnp.where((grid > 0)[:, None] & erased, v.blank, contents)
    contents = jnp.take_along_axis(contents, jnp.minimum(cells, v.cells - 1), axis=-1)
    pairs = jnp.stack([v.cell + cells, contents], axis=-1).reshape(count, group_size, -1)
    num_tokens = 2 * (cells < v.cells).sum(-1, keepdims=True)
    position = jnp.arange(2 * config.max_edits + 1).reshape(1, 1, -1)
    padded = jnp.pad(pairs, ((0, 0), (0, 0), (0, 1)))
    tokens = jnp.where(position < num_tokens, padded, jnp.where(position == num_tokens, v.end, 0))
    return history, jnp.where(started, mode, BASE), tokens, position <= num_tokens


def describe(vocabulary: Vocabulary, history: History) -> list[str]:
    """Draw each grid [K]: clues as digits, own digits in brackets, blanks as dots."""
    given, grid = jax.device_get(jax.jit(unpack, static_argnums=0)(vocabulary, history))
    n, (height, width) = vocabulary.digits, sides(vocabulary.box)

    def cell(clue, digit):
        return f" {clue} " if clue else f"({digit})" if digit else " . "

    def draw(clues, digits):
        rows = [[cell(c, d) for c, d in zip(clues[i : i + n], digits[i : i + n])] for i in range(0, n * n, n)]
        bars = ["|".join("".join(row[i : i + width]) for i in range(0, n, width)) for row in rows]
        rule = "+".join("-" * 3 * width for _ in range(height))
        return f"\n{rule}\n".join("\n".join(bars[i : i + height]) for i in range(0, n, height))

    return [draw(clues, digits) for clues, digits in zip(given, grid)]


def make_domain(config: SudokuConfig) -> Domain:
    """Build the sudoku domain; puzzles of a split are generated when first asked for."""
    v = Vocabulary(config.shape, config.pencil_marks != "none")

    @jax.jit
    def make_tasks(given: Array) -> History:
        row = jnp.arange(given.shape[0])
        return pack_grids(config, given, given, jnp.full_like(row, -1), task=row)

    @functools.lru_cache
    def tasks(split: str) -> History:
        return make_tasks(make_puzzles(config, split)[0])

    def demonstrations(key, step, count, group_size):
        clued, solved = demo_puzzles(config)
        key = jax.random.fold_in(key, step)
        return demonstrate(config, jnp.asarray(solved), jnp.asarray(clued), key, count, group_size)

    def complete(history: History) -> Array:
        _, grid = unpack(v, history)
        return (grid > 0).all(-1)

    modes = [(v.mode[mode],) for mode in (BASE, IMPROVE, DIVERGE)]
    demo = dataclasses.replace(config, num_clues=(1, 1), eval_clues=(1, 1), num_eval=1, on_host=False)  # not theirs
    demo = dataclasses.replace(demo, graded_by="rules", wrong_cost=0.0)
    younger = younger_defaults(demo)
    demo_fields = {name: value for name, value in vars(demo).items() if value != younger.get(name)}
    request, solution = ((name,) * config.grid_copies for name in ("request", "solution"))
    return Domain(
        name=f"sudoku{v.digits}",
        splits=SudokuConfig.splits,
        vocab_size=v.size,
        history_width=4 * v.cells + 1,
        prompt_width=2 * v.cells * config.grid_copies + 2,
        max_tokens=2 * config.max_edits + 1,
        stop_tokens=(v.end,),
        embedding_width=v.cells * v.digits,
        templates={
            "base": (modes[0], *request),
            "improve": (modes[1], *solution, "feedback"),
            "diverge": (modes[2], *solution, "feedback"),
        },
        tasks=tasks,
        difficulty=lambda split: {"clues": (make_puzzles(config, split)[0] > 0).sum(-1)},
        grade=jax.jit(functools.partial(grade, config)) if config.on_host else functools.partial(grade, config),
        on_host=config.on_host,
        complete=complete,
        demonstrations=demonstrations,
        demonstrations_id=f"SudokuConfig({', '.join(f'{name}={value!r}' for name, value in demo_fields.items())})",
        describe=functools.partial(describe, v),
        tokens_are=v.describe(),
    )
