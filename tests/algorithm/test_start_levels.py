"""Levels of starts by hand, and selection with starts: what is asked, what the buffer is told, what is learnt from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm import buffer as buffers
from exit_jax.algorithm import start_levels
from exit_jax.algorithm.gold import replace_where
from exit_jax.algorithm.iteration import init_state, with_learnt_prompt, without_starts
from exit_jax.algorithm.method_settings import StartsConfig
from exit_jax.algorithm.selection import select
from exit_jax.types import BASE, GENERATED, IMPROVE

WON, LOST, MIXED = [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]


def levels_after(config, groups, num_tasks=4, first=10):
    """Return the levels of four tasks after groups of (task, rewards)."""
    state = start_levels.create(config, num_tasks, first)
    for task, reward in groups:
        state = start_levels.observe(config, state, jnp.array([task]), jnp.array([reward]))
    return state


def test_failed_groups_get_more_and_successes_less():
    config = StartsConfig("hint", "failed", level=0.75, stride=0.25)
    groups = [(11, LOST)] * 5 + [(12, LOST), (12, MIXED), (13, LOST), (13, LOST), (13, WON), (10, WON), (99, LOST)]
    np.testing.assert_allclose(levels_after(config, groups).level, [0.0, 0.75, 0.25, 0.25])


def test_reversed_starts_go_down_with_success():
    config = StartsConfig("prefix", "reverse", level=0.75, stride=0.5, target=0.5)
    groups = [(10, MIXED), (11, WON), (11, WON), (12, LOST)]
    np.testing.assert_allclose(levels_after(config, groups).level, [0.25, 0.0, 0.75, 0.75])


def test_groups_of_one_batch_add_up():
    config = StartsConfig("hint", "failed", level=1.0)
    state = start_levels.create(config, 2, 0)
    state = start_levels.observe(config, state, jnp.array([1, 1, 0]), jnp.array([LOST, LOST, MIXED]))
    np.testing.assert_allclose(state.level, [0.0, 0.5])


@pytest.mark.parametrize(
    ("rule", "expected"), [("constant", [0.5, 0.5]), ("anneal", [0.3, 0.3]), ("failed", [0.1, 0.0])]
)
def test_draws_of_tasks_and_of_what_is_in_no_table(rule, expected):
    config = StartsConfig("hint", rule, level=0.5, over=10)
    state = start_levels.create(config, 4, 10)
    if rule == "failed":
        state = dataclasses.replace(state, level=state.level.at[2].set(0.1))
    drawn = start_levels.draw(config, state, jnp.array([12, GENERATED]), jnp.int32(4), jax.random.key(0))
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)


def test_a_lost_group_moves_no_level():
    config = StartsConfig("hint", "failed", level=1.0)
    state = start_levels.create(config, 2, 0)
    state = start_levels.observe(config, state, jnp.array([0, 1]), jnp.array([LOST, LOST]), jnp.array([True, False]))
    np.testing.assert_allclose(state.level, [0.0, 0.25])


def test_uniform_draws_fill_the_range():
    config = StartsConfig("prefix", "uniform", level=0.5)
    task = jnp.zeros(4000, jnp.int32)
    drawn = start_levels.draw(config, start_levels.create(config, 1, 0), task, jnp.int32(0), jax.random.key(0))
    np.testing.assert_allclose(np.quantile(drawn, [0.0, 0.5, 1.0]), [0.0, 0.25, 0.5], atol=0.02)


TEMPLATES = {"base": ("request", "feedback"), "improve": ((1,), "request", "solution"), "diverge": ((2,), "request")}


def start(history, level, key):
    """Hint 90 where the level is above 0; task 5 becomes a task of its own."""
    lines = jnp.full((*level.shape, 1), 90), jnp.ones(level.shape, jnp.int32)
    pieces = {"request": (history.tokens[:, :1], jnp.ones(level.shape, jnp.int32)), "feedback": lines}
    task = jnp.where(history.task == 5, GENERATED + 5, history.task)
    return replace_where(jnp.ones(level.shape, bool), level > 0, history, pieces, task=task)


@pytest.mark.parametrize("forget", [False, True])
def test_what_is_asked_and_what_the_buffer_is_told(exit_config, make_history, forget):
    starts = StartsConfig("hint", "constant", level=0.5, forget=forget)
    config = exit_config(num_prompts=400, min_buffer_size=1, selection_prob=0.5, starts=starts)
    tasks = make_history(6, task=np.arange(6), tokens=[[10 + m, 0, 0, 0] for m in range(6)], lengths=[0, 1, 0, 0])
    levels = start_levels.create(starts, 6, 0)
    state = init_state(config, {}, (), jax.random.key(0), 4, start_level=levels)
    # one answered history in the buffer, which is no base task and gets no hint
    held = make_history(8, id=np.where(np.arange(8) == 0, 0, -1), step=0, tokens=[[7, 8, 0, 0]], lengths=[0, 1, 1, 0])
    buffer = dataclasses.replace(buffers.create(8, 4), history=held, score=jnp.full(8, -jnp.inf).at[0].set(0.1))
    state = dataclasses.replace(state, buffer=buffer)
    chosen = jax.jit(lambda state: select(config, TEMPLATES, 4, tasks, state, start=start))(state)
    drawn, base = np.asarray(chosen.from_buffer), ~np.asarray(chosen.from_buffer)
    assert 150 < drawn.sum() < 250
    np.testing.assert_array_equal(np.asarray(chosen.mode), np.where(drawn, IMPROVE, BASE))
    request = 10 + np.asarray(chosen.history.task)[base] % GENERATED
    np.testing.assert_array_equal(
        np.asarray(chosen.prompt)[base, :2], np.stack([request, np.full_like(request, 90)], 1)
    )
    np.testing.assert_array_equal(np.asarray(chosen.prompt)[drawn][:, :3], [[1, 7, 8]] * drawn.sum())
    plain = without_starts(chosen).history
    fresh = np.asarray(chosen.history.task) >= GENERATED  # a task of its own has no other form
    assert fresh.any()
    np.testing.assert_array_equal(np.asarray(plain.lengths)[base & ~fresh], [[0, 1, 0, 0]] * (base & ~fresh).sum())
    np.testing.assert_array_equal(np.asarray(plain.lengths)[fresh], [[0, 1, 0, 1]] * fresh.sum())
    learnt = with_learnt_prompt(chosen)
    hinted = np.asarray(learnt.prompt_length)[base & ~fresh]
    assert (hinted == (1 if forget else 2)).all()
    assert (np.asarray(learnt.prompt_length)[drawn] == 3).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "hint", "level_by": "anneal"}, "over = 0: say how many iterations"),
        ({"variant": "prefix", "forget": True}, "a prefix is part of the response"),
    ],
)
def test_faults(fields, message):
    (fault,) = StartsConfig(**fields).faults()
    assert message in fault
    assert not StartsConfig("hint", forget=True).faults()
