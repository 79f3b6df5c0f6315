"""Selection: epochs of base tasks, draws from the buffer, and the instances made of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from exit_jax.algorithm import buffer as buffers
from exit_jax.algorithm.buffer_draws import DRAWS
from exit_jax.algorithm.iteration import init_state
from exit_jax.algorithm.selection import draw_base, select
from exit_jax.types import BASE, DIVERGE, IMPROVE, NO_ID

draw_base = jax.jit(draw_base, static_argnums=(2, 3))


@functools.partial(jax.jit, static_argnums=(0, 3))
def draw_buffer(config, buffer, key, count):
    return DRAWS[config.selection](config, buffer, jnp.int32(10), key, count)


def make_buffer(make_history, score_N, **fields):
    """Return a buffer with these scores, NaN for an empty slot; entries hold the first response of task 0."""
    score_N = np.float32(score_N)
    held_N = np.isfinite(score_N)
    fields = {"step": 0, "id": np.arange(score_N.size)} | fields
    history = make_history(score_N.size, **fields | {"id": np.where(held_N, fields["id"], NO_ID)})
    buffer = buffers.create(score_N.size, 4)
    return dataclasses.replace(buffer, history=history, score=jnp.asarray(np.where(held_N, score_N, -np.inf)))


@pytest.mark.parametrize(("num_tasks", "count"), [(7, 3), (5, 17)])
def test_base_draws_visit_each_task_once_an_epoch(num_tasks, count):
    num_batches = 2 * num_tasks  # whole epochs, whose ends fall inside batches
    drawn = np.concatenate([draw_base(jax.random.key(0), n * count, count, num_tasks) for n in range(num_batches)])
    epochs = drawn.reshape(-1, num_tasks)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_tasks), (len(epochs), 1)))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1  # shuffled anew
    np.testing.assert_array_equal(drawn[:12], draw_base(jax.random.key(0), 0, 12, num_tasks))  # batches do not matter
    assert (drawn[:12] != draw_base(jax.random.key(1), 0, 12, num_tasks)).any()


@pytest.mark.parametrize("selection", ["softmax", "uniform"])
def test_buffer_draws_follow_the_scores(exit_config, make_history, selection):
    score_N = np.array([np.nan, 0.25, 0.0, np.nan, 0.1, 0.2, 0.2, np.nan])
    config = exit_config(selection=selection, score_temperature=10.0)
    slot = draw_buffer(config, make_buffer(make_history, score_N), jax.random.key(0), 20_000)
    observed_N = np.bincount(slot, minlength=8)
    held_N = np.isfinite(score_N)
    assert not observed_N[~held_N].any()
    weight = np.exp(10.0 * score_N[held_N]) if selection == "softmax" else np.ones(held_N.sum())
    expected = 20_000 * weight / weight.sum()
    assert ((observed_N[held_N] - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.9999, held_N.sum() - 1)


def test_buffer_draws_at_the_ends_of_the_unit_interval_hit_filled_slots(exit_config, make_history, monkeypatch):
    # A parallel cumulative sum may still grow by an ulp over slots of zero weight; the largest u is 1 - 2^-23.
    extremes = jnp.array([0.0, 1.0 - 2**-23])
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: extremes)
    config, rng, key = exit_config(), np.random.default_rng(0), jax.random.key(0)
    draw = jax.jit(lambda buffer: buffers.filled(buffer)[draw_buffer.__wrapped__(config, buffer, key, 2)])
    for fill in range(1, 1024, 7):
        score_N = np.where(np.arange(-1, 1023) % 1024 < fill, rng.choice([0.0, 0.1, 0.1875, 0.2, 0.25], 1024), np.nan)
        assert draw(make_buffer(make_history, score_N)).all(), f"with {fill} slots filled after an empty one"


def held_frequencies(config, buffer, count=20_000):
    slot = draw_buffer(config, buffer, jax.random.key(0), count)
    return np.bincount(slot, minlength=buffer.score.size)


def assert_drawn(observed, share):
    share, total = np.asarray(share, float), observed.sum()
    assert not observed[share == 0].any()
    expected = total * share[share > 0] / share.sum()
    assert ((observed[share > 0] - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.9999, expected.size - 1)


def test_a_draw_by_rank_prefers_the_older_of_equal_scores(exit_config, make_history):
    # ranks of .25, 0, .2, .2 are 1, 4, 2, 3; the exponent is -1/β = -1
    buffer = make_buffer(make_history, [0.25, np.nan, 0.0, 0.2, 0.2])
    observed = held_frequencies(exit_config(selection="rank", selection_exponent=1.0), buffer)
    assert_drawn(observed, [1, 0, 1 / 4, 1 / 2, 1 / 3])


@pytest.mark.parametrize("selection", ["softmax", "uniform", "rank"])
def test_staleness_mixes_in_the_time_since_an_entry_was_scored(exit_config, make_history, selection):
    # at iteration 10: ages 1, 2, 7, and 0 of what was scored just now
    buffer = make_buffer(make_history, [0.25, 0.0, np.nan, 0.1, 0.2])
    buffer = dataclasses.replace(buffer, scored=jnp.array([9, 8, 0, 3, 10]))
    config = exit_config(selection=selection, selection_staleness=0.3, score_temperature=10.0, selection_exponent=1.0)
    own = {
        "softmax": np.exp(10.0 * np.array([0.25, 0.0, -np.inf, 0.1, 0.2])),
        "uniform": np.array([1, 1, 0, 1, 1]),
        "rank": np.array([1, 1 / 4, 0, 1 / 3, 1 / 2]),
    }[selection]
    assert_drawn(held_frequencies(config, buffer), 0.7 * own / own.sum() + 0.3 * np.array([1, 2, 0, 7, 0]) / 10)


def test_puct_takes_the_highest_in_order(exit_config, make_history):
    rng = np.random.default_rng(0)
    held = rng.uniform(size=12) < 0.8
    quality, best = rng.uniform(size=12).astype(np.float32), rng.uniform(size=12).astype(np.float32)
    best[rng.uniform(size=12) < 0.4] = -np.inf
    draws = rng.integers(0, 5, 12).astype(np.int32)
    buffer = make_buffer(make_history, np.where(held, 0.1, np.nan), quality=quality)
    buffer = dataclasses.replace(buffer, num_draws=jnp.asarray(draws), best=jnp.asarray(best))
    # by brute force, as the paper has it
    slots = [i for i in range(12) if held[i]]
    spread = max(quality[slots]) - min(quality[slots])
    ranked = sorted(slots, key=lambda i: -quality[i])
    prior = {i: (len(slots) - ranked.index(i)) / sum(range(1, len(slots) + 1)) for i in slots}
    total = sum(draws[slots])
    value = lambda i: (
        (quality[i] if np.isneginf(best[i]) else best[i])
        + (0.7 * spread * prior[i] * np.sqrt(1 + total) / (1 + draws[i]))
    )
    expected = sorted(slots, key=lambda i: -value(i))
    config = exit_config(selection="puct", puct_exploration=0.7)
    slot = draw_buffer(config, buffer, jax.random.key(0), 2 * len(slots))
    np.testing.assert_array_equal(slot, 2 * expected)
    assert draw_buffer(config, make_buffer_without_entries(buffer), jax.random.key(0), 3).shape == (3,)


def make_buffer_without_entries(buffer):
    blank = buffers.create(buffer.score.size, 4, best=True)
    return dataclasses.replace(blank, num_draws=buffer.num_draws)


# ``select`` on 6 base tasks with the request 10 + m, and a buffer of entries with the request 20 + n.

TEMPLATES = {"base": ("request",), "improve": ((1,), "request"), "diverge": ((2,), "request")}


def make_state(exit_config, make_history, buffer, **fields):
    """Return a state around a buffer, before the first iteration but for the fields given."""
    state = init_state(exit_config(), {}, (), jax.random.key(0), 4)
    tokens_NW = jnp.zeros_like(buffer.history.tokens).at[:, 0].set(20 + jnp.arange(buffer.score.size))
    lengths_N4 = jnp.zeros_like(buffer.history.lengths).at[:, 1].set(1)
    history = dataclasses.replace(buffer.history, tokens=tokens_NW, lengths=lengths_N4)
    return dataclasses.replace(state, buffer=dataclasses.replace(buffer, history=history), **fields)


def run_select(exit_config, make_history, state, prob=0.5, diverge=0.0):
    """Return, as NumPy arrays, 2000 instances that ``select`` makes of the six base tasks and the state."""
    tokens_MW = [[10 + m, 0, 0, 0] for m in range(6)]
    tasks = make_history(6, task=np.arange(6), tokens=tokens_MW, lengths=[0, 1, 0, 0])
    probs = {"selection_prob": prob, "divergence_prob": diverge}
    return jax.tree.map(np.asarray, compiled_select(exit_config(num_prompts=2000), probs, tasks, state))


@functools.partial(jax.jit, static_argnums=0)
def compiled_select(config, probs, tasks, state):
    """Compile once for all tests: the probabilities are traced."""
    return select(dataclasses.replace(config, **probs), TEMPLATES, 3, tasks, state)


def assert_share(count, total, share):
    """Check a binomial count to five standard deviations."""
    assert abs(count - share * total) < 5 * (total * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(("prob", "fill", "from_buffer"), [(0.0, 8, False), (1.0, 3, False), (1.0, 4, True)])
def test_the_buffer_is_used_with_probability_p_once_it_holds_enough(exit_config, make_history, prob, fill, from_buffer):
    buffer = make_buffer(make_history, [0.1] * fill + [np.nan] * (8 - fill), task=5)
    state = make_state(exit_config, make_history, buffer, cursor=jnp.int32(4))
    instances = run_select(exit_config, make_history, state, prob)  # of a buffer that must hold 4
    assert (instances.from_buffer == from_buffer).all()
    assert (instances.prompt_length == 1 + from_buffer).all()
    if from_buffer:
        assert set(instances.history.id) == set(range(fill))
        assert instances.prompt.tolist() == [[1, 20 + id, 0] for id in instances.history.id]
    else:
        np.testing.assert_array_equal(instances.history.task, draw_base(jax.random.key(0), 4, 2000, 6))
        assert instances.prompt.tolist() == [[10 + task, 0, 0] for task in instances.history.task]
        assert set(instances.history.id) == {NO_ID}


def test_base_draws_of_a_mixed_batch_take_the_next_tasks_in_turn(exit_config, make_history):
    state = make_state(exit_config, make_history, make_buffer(make_history, [0.1] * 8), cursor=jnp.int32(2))
    instances = run_select(exit_config, make_history, state, prob=0.3)
    base_B = ~instances.from_buffer
    assert_share(base_B.sum(), 2000, 0.7)
    in_turn = draw_base(jax.random.key(0), 2, 2000, 6)[: base_B.sum()]
    np.testing.assert_array_equal(instances.history.task[base_B], in_turn)
    # Fresh are the four base draws left of the first epoch, and entries never drawn.
    np.testing.assert_array_equal(instances.fresh[base_B], np.arange(base_B.sum()) < 4)
    assert instances.fresh[~base_B].all()


def test_only_held_responses_drawn_from_the_buffer_diverge(exit_config, make_history):
    # Half of the slots hold a response; the others are base tasks and turn prefixes, which get the plain prompt.
    buffer = make_buffer(make_history, [0.1] * 8, step=[0, 3, 0, 0, -1, -1, -1, -1], turn=[0] * 6 + [1] * 2)
    buffer = dataclasses.replace(buffer, num_draws=jnp.array([0, 2, 0, 1, 0, 1, 0, 1]))
    state = make_state(exit_config, make_history, buffer, cursor=jnp.int32(6))
    instances = run_select(exit_config, make_history, state, prob=0.75, diverge=0.2)
    holds_B = instances.history.step >= 0
    assert (instances.from_buffer | ~holds_B).all()
    assert_share(holds_B.sum(), 2000, 0.75 / 2)
    np.testing.assert_array_equal(instances.mode == BASE, ~holds_B)
    assert_share((instances.mode == DIVERGE).sum(), holds_B.sum(), 0.2)
    assert set(zip(instances.mode[holds_B], instances.prompt[holds_B, 0])) == {(IMPROVE, 1), (DIVERGE, 2)}
    # In the second epoch no base task is fresh, nor is one that the buffer holds; of the rest, those never drawn.
    fresh_of = dict(zip(instances.history.id.tolist(), instances.fresh.tolist()))
    assert fresh_of == {NO_ID: False, 0: True, 1: False, 2: True, 3: False, 4: False, 5: False, 6: True, 7: False}


def test_selection_depends_on_key_and_step_alone(exit_config, make_history):
    state = make_state(exit_config, make_history, make_buffer(make_history, [0.1] * 8))

    def draw(**changes):
        instances = run_select(exit_config, make_history, dataclasses.replace(state, **changes), diverge=0.5)
        return np.array([instances.from_buffer, instances.mode, instances.history.id])

    drawn = draw()
    np.testing.assert_array_equal(drawn, draw())
    for change in ({"step": jnp.int32(1)}, {"key": jax.random.key(1)}):
        assert (drawn != draw(**change)).any(axis=1).all()
