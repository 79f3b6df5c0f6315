"""Rewards, learnability and the diversity bonus: hand values and NumPy oracles."""

import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm.diversity import diversity
from exit_jax.algorithm.grpo import advantages
from exit_jax.algorithm.learnability import SCORES, Group, improvement, reward, variance
from exit_jax.types import BASE, DIVERGE, IMPROVE


def test_improvement_is_the_share_of_the_possible_gain():
    # (.75 - .5) / (1 - .5) = .5, not the plain gain .25; a loss pays 0, not -1; nothing is left to gain from 1.
    found = improvement(jnp.array([0.75, 0.0, 1.0, 1.0, 0.3]), jnp.array([0.5, 0.5, 0.5, 1.0, 1.0]))
    np.testing.assert_allclose(found, [0.5, 0.0, 1.0, 0.0, 0.0], atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "paid_to_improve"),
    [
        ("quality", [[0.75, 0.25, 0.0], [1.0, 0.25, 0.0]]),
        ("improvement", [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        ("improve_or_keep", [[0.5, 0.0, 0.0], [1.0, 0.25, 0.0]]),
    ],
)
def test_only_improve_steps_are_paid_by_kind_and_an_invalid_response_is_paid_nothing(kind, paid_to_improve):
    # Prompts: improve from 1/2, improve from 1, base, diverge from 1/2. The third response of each is not valid.
    quality_BG = jnp.array([[0.75, 0.25, 1.0], [1.0, 0.25, 1.0], [0.75, 0.25, 1.0], [0.75, 0.25, 1.0]])
    valid_BG = jnp.array([[True, True, False]] * 4)
    before_B, mode_B = jnp.array([0.5, 1.0, 0.0, 0.5]), jnp.array([IMPROVE, IMPROVE, BASE, DIVERGE])
    plain = [[0.75, 0.25, 0.0]] * 2
    np.testing.assert_allclose(reward(kind, quality_BG, valid_BG, before_B, mode_B), paid_to_improve + plain, atol=1e-7)


@pytest.mark.parametrize(
    ("learnability_of", "drawn"), [("quality", [0.957, 0.017, 0.026]), ("reward", [0.071, 0.819, 0.111])]
)
def test_what_never_improves_is_drawn_less_by_the_variance_of_the_reward(learnability_of, drawn):
    """Where improvement is paid, the variance of the quality prefers what crashes to what can be learnt (kappa = 20).

    Rewrites of the first entry crash half of the time and never improve, so all their advantages are 0: the quality's variance
    is .45² = .2025, the reward's 0. Those of the second go from .9 to .97 half of the time: .035² = .001225 of the quality,
    and .35² = .1225 of the reward (.97 - .9) / (1 - .9) = .7. The third is a base task, .15² = .0225 of both.
    """
    quality_BG = jnp.array([[0.0, 0.9] * 4, [0.9, 0.97] * 4, [0.5, 0.8] * 4])
    before_B, mode_B = jnp.array([0.9, 0.9, 0.0]), jnp.array([IMPROVE, IMPROVE, BASE])
    reward_BG = reward("improvement", quality_BG, quality_BG >= 0, before_B, mode_B)
    score_B = np.asarray(SCORES[learnability_of](Group(quality_BG, reward_BG, reward_BG)), np.float64)
    np.testing.assert_allclose(np.exp(20 * score_B) / np.exp(20 * score_B).sum(), drawn, atol=5e-4)


def test_learnability_is_the_population_variance():
    # One success of four: 1/4 · 3/4 = 3/16 (the sample variance would say 1/4); half of them: 1/4, the most there is.
    outcome_BG = jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    np.testing.assert_allclose(variance(outcome_BG), [3 / 16, 1 / 4, 0.0], atol=1e-7)
    tenths_BG = jnp.broadcast_to(jnp.arange(11.0)[:, None] / 10, (11, 9))
    assert (variance(tenths_BG) == 0).all(), "the mean of equal outcomes is rounded"
    assert variance(jnp.asarray(np.random.default_rng(0).random((100, 5)), jnp.float32)).max() <= 0.25


@pytest.mark.parametrize("name", SCORES)
def test_any_score_is_blind_to_order_and_zero_for_equal_responses(name):
    reward_BG = jnp.asarray(np.random.default_rng(0).choice([0.0, 0.25, 1.0], (20, 6)), jnp.float32)
    score = lambda reward_BG: SCORES[name](Group(reward_BG, reward_BG, advantages(reward_BG, "group", 1e-6)))
    score_B = np.asarray(score(reward_BG))
    assert score_B.shape == (20,)
    assert np.isfinite(score_B).all()
    assert (score_B >= 0).all()
    np.testing.assert_allclose(score(reward_BG[:, ::-1]), score_B, rtol=1e-5)
    assert not score(jnp.full((3, 6), 0.97)).any()


def test_diversity_may_exceed_one():
    # Centroid (0, 0); distances 3, 3, 1, 1; range 2: d = 3/2 and 1/2. Minus the minimum it would be 1 and 0.
    embedding_BGE = jnp.array([[[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]])
    np.testing.assert_allclose(diversity(embedding_BGE, jnp.inf), [[1.5, 1.5, 0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(diversity(embedding_BGE, 1.2), [[1.2, 1.2, 0.5, 0.5]], rtol=1e-6)


def test_diversity_equals_equation_6():
    embedding_BGE = np.random.default_rng(0).normal(size=(20, 6, 5))
    for embedding_GE, d_G in zip(embedding_BGE, diversity(jnp.asarray(embedding_BGE, jnp.float32), jnp.inf)):
        distance_G = [np.linalg.norm(e - embedding_GE.mean(0)) for e in embedding_GE]
        np.testing.assert_allclose(d_G, np.array(distance_G) / (max(distance_G) - min(distance_G)), rtol=1e-4)


@pytest.mark.parametrize(
    "embedding_GE",
    [
        [[0.1, 0.2]] * 3,  # all alike
        [[0.0, 0.0]] * 3,
        [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]],  # all equally far: range 0
        [[1.00009, 0.0], [-1.00009, 0.0], [0.0, 1.0], [0.0, -1.0]],  # range 9e-5 of the largest: eq. 6 says 11112
        [[1e4, 7.0], [-1e4, 3.0]],  # two are always equally far from their mean
    ],
)
def test_diversity_of_a_group_without_a_range_is_one(embedding_GE):
    np.testing.assert_array_equal(diversity(jnp.array([embedding_GE]), jnp.inf), np.ones((1, len(embedding_GE))))


def test_diversity_just_above_the_threshold_is_equation_6():
    embedding_BGE = jnp.array([[[1.01, 0.0], [-1.01, 0.0], [0.0, 1.0], [0.0, -1.0]]])
    np.testing.assert_allclose(diversity(embedding_BGE, jnp.inf), [[101.0, 101.0, 100.0, 100.0]], rtol=1e-4)
