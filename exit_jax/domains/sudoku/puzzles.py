"""Puzzles with a verified unique solution, split by solution grid. Plain Python and NumPy, on the host, at start.

A grid is a flat list of C = n² digits in row-major order, 0 for empty. A box has n cells: ``box`` rows and columns, or
(rows, columns) where these differ; so n is 4 for 2, 6 for (2, 3) and 9 for 3.
"""

import functools
import random
import zlib

import numpy as np

from exit_jax.domains.domain import DomainError
from exit_jax.domains.sudoku.settings import Box, num_digits, sides

# A 4x4 sudoku has only 288 solutions, so puzzles are kept apart by solution: nobody trains on a test answer.
SPLIT_SHARE = {"train": range(0, 14), "validation": range(14, 17), "test": range(17, 20)}


@functools.lru_cache
def peers(box: Box) -> tuple[tuple[int, ...], ...]:
    """Return for each cell the cells that share its row, column or box."""
    n, (rows, columns) = num_digits(box), sides(box)

    def units(cell):
        row, column = divmod(cell, n)
        return row, n + column, 2 * n + (row // rows) * rows + column // columns

    return tuple(tuple(b for b in range(n * n) if b != a and set(units(a)) & set(units(b))) for a in range(n * n))


def solutions(grid: list[int], box: Box, limit: int, rng: random.Random | None = None) -> list[list[int]]:
    """Return up to ``limit`` completions of ``grid``, by depth-first search on the cell with fewest candidates.

    ``rng`` shuffles the digits tried, which makes the first completion of an empty grid a random one.
    """
    n, neighbours = num_digits(box), peers(box)
    grid = list(grid)
    found: list[list[int]] = []
    allowed = []
    for cell, digit in enumerate(grid):
        taken = {grid[peer] for peer in neighbours[cell]}
        if digit and digit in taken:
            return []
        allowed.append(0 if digit else sum(1 << d for d in range(1, n + 1) if d not in taken))

    def search():
        empty = [cell for cell, digit in enumerate(grid) if not digit]
        if not empty:
            found.append(list(grid))
            return
        cell = min(empty, key=lambda c: allowed[c].bit_count())
        digits = [d for d in range(1, n + 1) if allowed[cell] >> d & 1]
        if rng:
            rng.shuffle(digits)
        for digit in digits:
            grid[cell] = digit
            changed = [peer for peer in neighbours[cell] if not grid[peer] and allowed[peer] >> digit & 1]
            for peer in changed:
                allowed[peer] ^= 1 << digit
            search()
            for peer in changed:
                allowed[peer] |= 1 << digit
            grid[cell] = 0
            if len(found) >= limit:
                return

    search()
    return found


def split_of(solution: list[int]) -> str:
    """Return the split that all puzzles of this solution belong to, by a hash of the solution."""
    bucket = zlib.crc32(bytes(solution)) % 20
    return next(split for split, buckets in SPLIT_SHARE.items() if bucket in buckets)


def dig(solution: list[int], box: Box, num_clues: int, rng: random.Random) -> list[int] | None:
    """Empty cells in random order while the solution stays unique, down to ``num_clues``; None if stuck above that."""
    puzzle = list(solution)
    cells = list(range(len(puzzle)))
    rng.shuffle(cells)
    clues = len(puzzle)
    for cell in cells:
        if clues == num_clues:
            return puzzle
        kept, puzzle[cell] = puzzle[cell], 0
        if len(solutions(puzzle, box, limit=2)) == 1:
            clues -= 1
        else:
            puzzle[cell] = kept
    return puzzle if clues == num_clues else None


@functools.lru_cache
def generate(split: str, box: Box, clues: tuple[int, int], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Generate ``count`` distinct puzzles of a split: (puzzles, solutions), int32 [count, C] each.

    Clue counts go round-robin over the inclusive range ``clues``, easiest last, so that difficulties are equally common.

    Raises:
      DomainError: if there is no such split, or so many distinct puzzles with so few clues cannot be found.
    """
    if split not in SPLIT_SHARE:
        raise DomainError(f"split {split!r} is not one of {tuple(SPLIT_SHARE)}")
    rng = random.Random(f"sudoku {split} {box} {clues} {seed}")
    levels = range(clues[0], clues[1] + 1)
    puzzles: dict[tuple[int, ...], list[int]] = {}
    failures = 0
    while len(puzzles) < count:
        solution = solutions([0] * num_digits(box) ** 2, box, limit=1, rng=rng)[0]
        if split_of(solution) != split:
            continue
        puzzle = dig(solution, box, levels[len(puzzles) % len(levels)], rng)
        if puzzle is None or tuple(puzzle) in puzzles:
            failures += 1
            if failures > 200 * count + 10_000:
                raise DomainError(
                    f"found only {len(puzzles)} of {count} distinct {split} puzzles with {clues[0]}-{clues[1]} clues; "
                    "ask for fewer puzzles or more clues"
                )
            continue
        puzzles[tuple(puzzle)] = solution
    return np.array(list(puzzles), np.int32), np.array(list(puzzles.values()), np.int32)
