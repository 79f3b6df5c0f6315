"""Other starts of sudokus: some blanks filled from the solution, one clue more or less; all in jnp.

Gold are the solutions of a split's puzzles, int32 [K, C], of 4x4 ones all that belong to the split. So nothing that is made
here can be a puzzle of another split, as these are kept apart by solution.
"""

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.algorithm.gold import replace_where, share
from exit_jax.algorithm.prompts import piece
from exit_jax.domains.sudoku import puzzles
from exit_jax.domains.sudoku.grading import known_solutions, make_puzzles, quality
from exit_jax.domains.sudoku.grids import content_pieces, unpack, vocabulary_of
from exit_jax.domains.sudoku.settings import SudokuConfig
from exit_jax.types import GENERATED, Array, History


def gold(config: SudokuConfig, split: str) -> np.ndarray:
    """Return the solutions int32 [K, C] of a split."""
    if config.shape != 2:
        return np.unique(make_puzzles(config, split)[1], axis=0)
    return np.array([grid for grid in known_solutions(config) if puzzles.split_of(grid.tolist()) == split], np.int32)


def hint(config: SudokuConfig, solutions: Array, history: History, level: Array, key: Array) -> tuple[History, Array]:
    """Fill a share ``level`` of the blanks with clues, which blanks by the key: the same ones and more at a higher level.

    The history keeps its own clues as context, which no prompt shows, so that the children lose the others again (``grade``).
    """
    given, _ = unpack(vocabulary_of(config), history)
    filled, known = _fill(solutions, given, level, key)
    request = content_pieces(config, filled, filled, jnp.zeros_like(history.step) - 1)["request"]
    pieces = {"context": piece(history, "request", request[0].shape[-1]), "request": request}
    return replace_where(known & (history.step < 0), level > 0, history, pieces)


def prefix(config: SudokuConfig, solutions: Array, history: History, level: Array, key: Array) -> tuple[History, Array]:
    """Fill a share ``level`` of the blanks as if the policy had, at step 0: it is asked to go on as with any grid it holds."""
    given, _ = unpack(vocabulary_of(config), history)
    grid, known = _fill(solutions, given, level, key)
    pieces = content_pieces(config, given, grid, jnp.zeros_like(history.step))
    fields = {"step": jnp.zeros_like(history.step), "quality": quality(config, given, grid)}
    return replace_where(known & (history.step < 0), level > 0, history, pieces, **fields)


def edit(config: SudokuConfig, solutions: Array, history: History, level: Array, key: Array) -> tuple[History, Array]:
    """Add a clue or take one away (ACCEL), either as likely where both can be, at any level above 0; 4x4 only.

    The puzzle keeps its only solution, and a blank at least. It is another task, so it has a number of its own.
    """
    given, _ = unpack(vocabulary_of(config), history)
    solution, known = _solve(solutions, given)
    every = jnp.asarray(known_solutions(config))
    refutes = (given > 0)[:, None] & (given[:, None] != every[None])  # bool [B, K, C]: clues that a solution is not of
    left = (refutes.sum(-1, keepdims=True) == refutes).sum(1)  # int32 [B, C]: solutions without the clue of a cell
    removable, addable = (given > 0) & (left == 1), (given == 0) & ((given == 0).sum(-1, keepdims=True) > 1)
    coin_key, cell_key = jax.random.split(key)
    removes = jax.random.bernoulli(coin_key, shape=level.shape) & removable.any(-1) | ~addable.any(-1)
    options = jnp.where(removes[:, None], removable, addable)
    cell = jnp.argmax(jnp.where(options, jax.random.uniform(cell_key, given.shape), -1.0), axis=-1)
    here = jnp.arange(given.shape[-1])[None] == cell[:, None]
    edited = jnp.where(here, jnp.where(removes[:, None], 0, solution), given)
    pieces = content_pieces(config, edited, edited, jnp.zeros_like(history.step) - 1)
    ok = known & options.any(-1) & (history.step < 0)
    return replace_where(ok, level > 0, history, pieces, task=number_of(edited))


def number_of(given: Array) -> Array:
    """Return a number int32 [...] from GENERATED for clues [..., C]: their FNV-1a hash, folded to what an int32 has room for.

    Equal puzzles have equal ones. One of a million puzzles shares its own with another of them with probability 1e-3.
    """
    number = jnp.full(given.shape[:-1], 2166136261, jnp.uint32)
    for cell in range(given.shape[-1]):
        number = (number ^ given[..., cell].astype(jnp.uint32)) * jnp.uint32(16777619)
    number = (number >> 30) ^ (number & (GENERATED - 1))
    return GENERATED + number.astype(jnp.int32)


def _solve(solutions: Array, given: Array) -> tuple[Array, Array]:
    """Return the solution int32 [B, C] of clues among those [K, C], and whether there is one."""
    fits = ((given == 0)[:, None] | (given[:, None] == solutions[None])).all(-1)
    return solutions[jnp.argmax(fits, axis=-1)], fits.any(-1)


def _fill(solutions: Array, given: Array, level: Array, key: Array) -> tuple[Array, Array]:
    """Return clues [B, C] with a share of the blanks filled, and whether their solution is known."""
    solution, known = _solve(solutions, given)
    order = jnp.argsort(jnp.where(given == 0, jax.random.uniform(key, given.shape), 2.0), axis=-1)
    rank = jnp.argsort(order, axis=-1)  # the blanks' come first
    count = share(level, (given == 0).sum(-1))
    return jnp.where(rank < count[:, None], solution, given), known
