"""Grids of a sudoku: their tokens, the rules that they are held against, and the scripts that edit them; in jnp."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.algorithm.prompts import pack, piece
from exit_jax.domains.sudoku import puzzles
from exit_jax.domains.sudoku.settings import Box, SudokuConfig, num_digits
from exit_jax.types import Array, History, make_history

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


def vocabulary_of(config: SudokuConfig) -> Vocabulary:
    """Return the vocabulary of a family of puzzles."""
    return Vocabulary(config.shape, config.pencil_marks != "none")


def grid_tokens(vocabulary: Vocabulary, given: Array, grid: Array, marked: bool = False) -> Array:
    """Return the tokens [..., 2C] of grids [..., C] whose non-zero cells of ``given`` are clues; with pencil marks if asked."""
    v = vocabulary
    content = v.blank + grid + jnp.where((given == 0) & (grid > 0), v.digits, 0)
    if marked:
        is_fitting = ~seen_digits(v.box, grid)
        fitting = jnp.einsum("...d,d->...", is_fitting.astype(jnp.int32), 2 ** jnp.arange(v.digits))
        content = jnp.where(clashes(v.box, grid) & (given == 0), v.clashing + grid, content)
        content = jnp.where(grid == 0, v.marks + fitting, content)
    cell = jnp.broadcast_to(v.cell + jnp.arange(v.cells), grid.shape)
    return jnp.stack([cell, content], axis=-1).reshape(*grid.shape[:-1], 2 * v.cells)


def digits_of(vocabulary: Vocabulary, content: Array) -> Array:
    """Return the digits, 0 for a blank, that content tokens of a grid stand for."""
    v = vocabulary
    digit = content - v.blank
    digit = jnp.where(digit > v.digits, digit - v.digits, digit)
    if v.pencil_marks:
        digit = jnp.where(content > v.clashing, content - v.clashing, digit)
        digit = jnp.where(content >= v.marks, 0, digit)
    return digit


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


def pack_grids(config: SudokuConfig, given: Array, grid: Array, step: Array, **fields: Any) -> History:
    """Pack clues and grids [..., C] as histories; those at step -1 hold a request only."""
    tokens, lengths = pack(content_pieces(config, given, grid, step), width=4 * vocabulary_of(config).cells + 1)
    return make_history(tokens, lengths, step=step, **fields)


def content_pieces(config: SudokuConfig, given: Array, grid: Array, step: Array) -> dict[str, tuple[Array, Array]]:
    """Return the pieces of clues and grids [..., C], name -> (tokens, length); those at step -1 have a request only."""
    v = vocabulary_of(config)
    shape = given.shape[:-1]
    held = step >= 0
    state = feedback(config.shape, grid) if config.feedback else jnp.zeros(shape, jnp.int32)
    return {
        "request": (grid_tokens(v, given, given, config.pencil_marks == "all"), jnp.full(shape, 2 * v.cells)),
        "solution": (grid_tokens(v, given, grid, config.pencil_marks != "none"), jnp.where(held, 2 * v.cells, 0)),
        "feedback": ((v.feedback + state)[..., None], held.astype(jnp.int32)),
    }


def asked(vocabulary: Vocabulary, history: History) -> Array:
    """Return the clues [..., C] of the task itself, without those that a hint has added."""
    request, _ = piece(history, "request", 2 * vocabulary.cells)
    context, length = piece(history, "context", 2 * vocabulary.cells)
    return digits_of(vocabulary, jnp.where((length > 0)[..., None], context, request)[..., 1::2])
