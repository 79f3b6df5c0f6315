"""Puzzles and solutions of a run, and the quality of a grid by them."""

import functools

import jax.numpy as jnp
import numpy as np

from exit_jax.domains.sudoku import puzzles
from exit_jax.domains.sudoku.grids import clashes
from exit_jax.domains.sudoku.settings import SudokuConfig
from exit_jax.types import Array


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
    if config.shape == 2:
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
