"""Demonstrations for the warm start of sudoku, made on the device."""

import jax
import jax.numpy as jnp

from exit_jax.domains.sudoku.grading import quality
from exit_jax.domains.sudoku.grids import clashes, is_peer, pack_grids, seen_digits, vocabulary_of
from exit_jax.domains.sudoku.settings import SudokuConfig
from exit_jax.types import BASE, DIVERGE, IMPROVE, Array


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
    v = vocabulary_of(config)
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
