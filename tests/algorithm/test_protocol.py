"""Protocols of two attempts: what both are paid, by hand, what second ones go on from, and what is learnt from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm import attempts
from exit_jax.algorithm.attempts import Second
from exit_jax.algorithm.protocol import PROTOCOLS
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import CRITIQUE, IMPROVE, Grades, Rollouts

RIGHT, WRONG, HALF = 1.0, 0.0, 0.5


@pytest.mark.parametrize(
    ("first", "second", "paid"), [(WRONG, RIGHT, 1.0), (RIGHT, RIGHT, 0.75), (RIGHT, HALF, 0.25), (HALF, WRONG, 0.0)]
)
def test_srpos_table(first, second, paid):
    rewards = PROTOCOLS["srpo"](ExItConfig(), jnp.int32(0), jnp.array([[first]]), jnp.array([[second]]))
    assert [float(reward[0, 0]) for reward in rewards] == [paid, paid]


def test_scores_two_stages():
    config, first, second = ExItConfig(protocol_stage=5, protocol_alpha=10.0), jnp.array([[0.5]]), jnp.array([[0.75]])
    paid = lambda step: [float(reward[0, 0]) for reward in PROTOCOLS["score"](config, jnp.int32(step), first, second)]
    assert paid(4) == [0.0, 0.75]
    assert paid(5) == [0.5, 0.75 + 10 * 0.25]


B, G, T, P, W = 2, 3, 4, 6, 8
TEMPLATES = {"base": ("request",), "improve": ((1,), "request", "solution"), "diverge": ((2,), "request")}


def first_attempts(make_history):
    """Return rollouts and grades of which child b, g has the request 10 + b and the solution 20 + 3 b + g."""
    b, g = np.meshgrid(np.arange(B), np.arange(G), indexing="ij")
    tokens = np.zeros((B, G, 1, W))
    tokens[:, :, 0, 0], tokens[:, :, 0, 1] = 10 + b, 20 + G * b + g
    lengths = np.broadcast_to([0, 1, 1, 0], (B, G, 1, 4))
    children = make_history(B, G, 1, width=W, tokens=tokens, lengths=lengths, step=0, task=b[..., None])
    finished = jnp.ones((B, G), bool).at[0, 1].set(False)
    insertable = jnp.ones((B, G, 1), bool).at[1, 2].set(False)
    blank = jnp.zeros((B, G, T))
    rollouts = Rollouts(blank.astype(jnp.int32), blank > 0, blank, blank, finished, None)
    grades = Grades(jnp.zeros((B, G)), jnp.ones((B, G), bool), jnp.zeros((B, G, 1)), children, insertable, {})
    return rollouts, grades


def test_second_attempts_go_on_from_what_the_first_led_to(make_history):
    instances, made = attempts.follow(TEMPLATES, P, *first_attempts(make_history))
    np.testing.assert_array_equal(instances.prompt[:, :3], [[1, 10 + n // G, 20 + n] for n in range(B * G)])
    np.testing.assert_array_equal(instances.prompt_length, 3)
    np.testing.assert_array_equal(instances.mode, IMPROVE)
    assert np.flatnonzero(~np.asarray(made)).tolist() == [1, 5]  # unfinished, and of no use


def test_what_is_paid_and_learnt_from(make_history):
    # Qualities of the pairs: 0→1, 1→1 (not made), .5→0 | 1→.5, 0→0 (second invalid), .5→1
    rollouts, grades = first_attempts(make_history)
    instances, made = attempts.follow(TEMPLATES, P, rollouts, grades)
    quality = jnp.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]])
    later = jnp.array([1.0, 0.3, 0.0, 0.5, 0.9, 1.0])[:, None]
    valid = jnp.array([True, True, True, True, False, True])[:, None]
    made = jnp.array([True, False, True, True, True, True])
    one = jax.tree.map(lambda leaf: leaf.reshape(B * G, 1, *leaf.shape[2:]), (rollouts, grades.children))
    second = Second(instances, one[0], Grades(later, valid, None, one[1], None, {}), made)
    config = ExItConfig(protocol="own", advantage_norm="none")
    first_valid = jnp.ones((B, G), bool).at[1, 2].set(False)
    first, (more,), metrics = attempts.pay(config, jnp.int32(0), quality, first_valid, second)
    np.testing.assert_allclose(first, [[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]])
    reward = np.array([[1.0, 1.0, 0.0], [0.5, 0.0, 1.0]])
    np.testing.assert_allclose(more.rows.reward.reshape(B, G), reward)
    np.testing.assert_allclose(more.rows.advantage.reshape(B, G), reward - reward.mean(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(more.rows.right[:, 0], [True, True, False, False, False, True])
    np.testing.assert_array_equal(more.rows.admitted, made)
    assert (more.name, more.weight) == ("second", 1.0)
    values = {name: float(value) for name, value in metrics.items()}
    assert values == pytest.approx(
        {"second/made": 5 / 6, "second/quality": 2.5 / 5, "second/better": 2 / 5, "second/worse": 2 / 5}
    )


def test_a_critique_is_paid_what_the_attempt_after_it_gained(make_history):
    rollouts, grades = first_attempts(make_history)
    asked, spoken = attempts.follow(TEMPLATES | {"critique": ((3,), "solution")}, P, rollouts, grades, CRITIQUE)
    np.testing.assert_array_equal(asked.prompt[:, :2], [[3, 20 + n] for n in range(B * G)])
    np.testing.assert_array_equal(asked.mode, CRITIQUE)
    quality = jnp.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]])
    later = jnp.array([[1.0, 1.0, 0.0], [0.5, 0.0, 1.0]])
    one = jax.tree.map(lambda leaf: leaf.reshape(B * G, 1, *leaf.shape[2:]), (rollouts, grades.children))
    graded = Grades(later.reshape(-1, 1), jnp.ones((B * G, 1), bool), None, one[1], None, {})
    made = jnp.array([True, False, True, True, True, True])
    second = Second(asked, one[0], graded, made, critique=Second(asked, one[0], graded, spoken))
    config = ExItConfig(protocol="critique", advantage_norm="none")
    first, more, _ = attempts.pay(config, jnp.int32(0), quality, jnp.ones((B, G), bool), second)
    assert [rows.name for rows in more] == ["second", "critique"]
    np.testing.assert_allclose(first, quality)
    gain = np.array([[1.0, 0.0, -0.5], [-0.5, 0.0, 0.5]])
    np.testing.assert_allclose(more[1].rows.reward.reshape(B, G), gain)
    np.testing.assert_allclose(more[1].rows.advantage.reshape(B, G), gain - gain.mean(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(more[1].rows.admitted, spoken)


def test_responses_of_an_iteration():
    counts = {name: ExItConfig(num_prompts=4, group_size=8, protocol=name).responses for name in PROTOCOLS}
    assert counts == {"single": 32, "own": 64, "score": 64, "srpo": 64, "critique": 96}


def test_faults():
    for fields in ({"rollout_lag": 1}, {"refill": True, "admission": "spread"}, {"advantage_norm": "ema"}):
        assert any(
            "second attempts follow at once" in fault for fault in ExItConfig(protocol="srpo", **fields).faults()
        )
    assert not ExItConfig(protocol="srpo").faults()
