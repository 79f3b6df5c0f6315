"""The sudoku domain: a response is an edit script on the grid that is held, graded in jnp on the device.

A prompt is the mode, the grid cell by cell (clues and the policy's own digits are different tokens) and one feedback
token. A response is up to ``max_edits`` pairs (cell, digit), then the end token; so an empty puzzle of 9 and more
blanks cannot be solved by one response.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from exit_jax.domains.domain import Domain
from exit_jax.domains.sudoku import starts
from exit_jax.domains.sudoku.demonstrations import demonstrate
from exit_jax.domains.sudoku.grading import demo_puzzles, make_puzzles, quality
from exit_jax.domains.sudoku.grids import Vocabulary, apply_script, asked, pack_grids, unpack, vocabulary_of
from exit_jax.domains.sudoku.settings import SudokuConfig, sides
from exit_jax.settings import younger_defaults
from exit_jax.types import BASE, DIVERGE, IMPROVE, Array, Grades, History, Instances, Rollouts


def grade(config: SudokuConfig, instances: Instances, rollouts: Rollouts) -> Grades:
    """Run every script on the grid of its instance. The embedding is the grid that results, one-hot.

    Quality is of the task's own blanks, those that a hint filled included; children have these blank again.
    """
    v = vocabulary_of(config)
    parent = instances.history
    group = rollouts.tokens.shape[:2]
    puzzle, held = (x[:, None] for x in unpack(v, parent))
    task = asked(v, parent)[:, None]
    given, grid = (jnp.broadcast_to(x, (*group, v.cells)) for x in (puzzle, held))
    tokens = jnp.where(rollouts.mask, rollouts.tokens, 0)
    edited, valid = apply_script(v, config.max_edits, given, grid, tokens, config.erase)

    def spread(value):
        return jnp.broadcast_to(value[:, None, None], (*group, 1))

    result = quality(config, task, edited)
    own = jnp.where(puzzle != task, 0, edited)
    quality_of_own = quality(config, task, own)
    # an invalid script leaves the stored quality as it is, too: 0 for a base task, not the clue grid's own
    result, quality_of_own = (jnp.where(valid, value, parent.quality[:, None]) for value in (result, quality_of_own))
    children = pack_grids(
        config,
        jnp.broadcast_to(task, given.shape)[:, :, None],
        own[:, :, None],
        spread(parent.step + 1),
        task=spread(parent.task),
        turn=spread(parent.turn),
        quality=quality_of_own[..., None],
    )
    embedding = jax.nn.one_hot(edited - 1, v.digits).reshape(*group, -1)
    return Grades(
        quality=result, valid=valid, embedding=embedding, children=children, insertable=valid[..., None], notes={}
    )


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
    v = vocabulary_of(config)

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
    variants = {"hint": starts.hint, "prefix": starts.prefix} | ({"edit": starts.edit} if config.shape == 2 else {})
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
        easier_by=frozenset({"clues"}),
        difficulty=lambda split: {"clues": (make_puzzles(config, split)[0] > 0).sum(-1)},
        grade=jax.jit(functools.partial(grade, config)) if config.on_host else functools.partial(grade, config),
        on_host=config.on_host,
        complete=complete,
        demonstrations=demonstrations,
        demonstrations_id=f"SudokuConfig({', '.join(f'{name}={value!r}' for name, value in demo_fields.items())})",
        gold=functools.cache(functools.partial(starts.gold, config)),
        variants={name: functools.partial(variant, config) for name, variant in variants.items()},
        describe=functools.partial(describe, v),
        tokens_are=v.describe(),
    )
