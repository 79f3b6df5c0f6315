"""Objectives, advantages and what else the field changes of the loss: by identities, by NumPy and by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from exit_jax.algorithm import baseline, covariance, distillation, grpo
from exit_jax.algorithm.objectives import ADVANTAGE_NORMS, OBJECTIVES
from exit_jax.types import Instances, Rollouts

B, G, T = 4, 6, 5
NO_PROMPTS = Instances(None, None, None, None, None, None)


def make_rollouts(old, mask=None):
    mask = np.ones(old.shape, bool) if mask is None else mask
    finished = jnp.ones(old.shape[:2], bool)
    logp = jnp.asarray(old)
    return Rollouts(tokens=None, mask=jnp.asarray(mask), logp=logp, sampled_logp=None, finished=finished, hidden=None)


def gradient(config, logp, old, reward, mask=None, reference=None, A=None, key=None):
    """Return the loss and its gradient to the log-probs; a response is right where its reward is 1."""
    reward = jnp.asarray(reward)
    A = grpo.advantages(reward, config.advantage_norm, config.advantage_eps) if A is None else jnp.asarray(A)
    told = reward, reward == 1.0, key
    batch = grpo.make_batch(config, NO_PROMPTS, make_rollouts(old, mask), A, reference, T, *told)
    found = jax.value_and_grad(lambda logp: grpo.loss(config, logp, jnp.zeros_like(logp), batch)[0])(jnp.asarray(logp))
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "dr_grpo"])
@pytest.mark.parametrize(("objective", "norm"), [("nft", "none"), ("nft_std", "group")])
def test_nft_on_policy_is_grpo_in_float64(exit_config, objective, norm, aggregation):
    """At π_θ = π_old weight 1 - p gives Dr. GRPO's gradient, √((1 - p) / p) that of GRPO (arXiv 2505.18116, §4)."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        logp, mask = -rng.random((B, G, T)), rng.random((B, G, T)) < 0.8
        reward = (np.arange(G) < np.array([[1], [2], [5], [0]])).astype(float)  # the last group teaches nothing
        given = {"aggregation": aggregation, "zero_variance": "drop", "advantage_eps": 0.0, "advantage_norm": norm}
        _, found = gradient(exit_config(objective=objective, **given), logp, logp, reward, mask)
        _, expected = gradient(exit_config(**given), logp, logp, reward, mask)
        assert found.dtype == np.float64
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_nft_without_wrong_responses_is_rft(exit_config):
    """Each group's gradient is then that of the likelihood of right responses, times the group's weight."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        logp = -rng.random((B, G, T))
        reward = (np.arange(G) < np.array([[1], [2], [3], [5]])).astype(float)
        p = reward.mean(1)[:, None, None]
        _, rft = gradient(exit_config(objective="rft"), logp, logp, reward)
        for objective, weight in (("nft", 1 - p), ("nft_std", np.sqrt((1 - p) / p))):
            _, found = gradient(exit_config(objective=objective, negative_weight=0.0), logp, logp, reward)
            np.testing.assert_allclose(found, weight * rft, rtol=1e-12, atol=1e-15)


def plain(name, c, logp, old, reference, A, r, p):
    """Return a token's objective, as its paper writes it."""
    R, right = np.exp(logp - old), r == 1.0
    if name == "clip":
        return min(R * A, min(max(R, 1 - c.clip_low), 1 + c.clip_high) * A)
    if name == "rft":
        return logp if right else 0.0
    if name == "rwr":
        return np.exp(r / c.reward_temperature) * logp
    if name == "ail":
        if right:
            return plain("clip", c, logp, old, reference, A, r, p)
        return c.negative_weight * np.log(1 / (1 + np.exp(logp - reference)))
    p = min(max(p, 0.02), 0.98)
    weight = {"nft": 1 - p, "nft_std": ((1 - p) / p) ** 0.5}[name]
    wrong = c.negative_weight * np.log(max((1 - p * R) / (1 - p), 1.0))
    return weight * (np.log(R) if right else wrong)


def slope(name, c, logp, old, reference, A, r, p):
    """Return its derivative to log π_θ: where it is smooth by central differences, else as the papers say."""
    R, bounded = np.exp(logp - old), min(max(p, 0.02), 0.98)
    if name == "cispo":  # sg(min(ρ, 1 + ε)) A
        return min(R, 1 + c.clip_high) * A
    if name in ("nft", "nft_std") and r != 1.0 and (1 - bounded * R) / (1 - bounded) <= 1:
        weight = {"nft": 1 - bounded, "nft_std": ((1 - bounded) / bounded) ** 0.5}[name]
        return weight * c.negative_weight * -bounded * R / (1 - bounded)  # the gradient goes straight through the bound
    up, down = (plain(name, c, logp + h, old, reference, A, r, p) for h in (1e-6, -1e-6))
    return (up - down) / 2e-6


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_off_policy_equal_their_papers(exit_config, name, with_reference):
    """Values and gradients of every token, ratios well off 1, graded rewards, groups of one kind only, padding of NaN."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        old, reference = -1 - rng.random((2, B, G, T))
        logp, mask = old + 0.5 * rng.normal(size=(B, G, T)), rng.random((B, G, T)) < 0.8
        reward = rng.choice([0.0, 0.5, 1.0], (B, G))
        reward[0], reward[1] = 1.0, 0.5 * (reward[1] == 1.0)
        config = exit_config(
            objective=name, aggregation="token_mean", negative_weight=0.3, reward_temperature=0.7, clip_high=0.3
        )
        config = dataclasses.replace(config, kl_coef=1e-30 if with_reference else 0.0)
        A = np.asarray(grpo.advantages(jnp.asarray(reward), "group", 1e-6))
        anchor = reference if with_reference else old
        given = jnp.where(mask, reference, jnp.nan) if with_reference else None
        soiled = np.where(mask, logp, np.nan), np.where(mask, old, np.nan)
        value, found = gradient(config, *soiled, reward, mask, reference=given, A=A)
        total = 0.0
        for b, g, t in itertools.product(range(B), range(G), range(T)):
            if not mask[b, g, t]:
                assert found[b, g, t] == 0.0
                continue
            about = logp[b, g, t], old[b, g, t], anchor[b, g, t], A[b, g], reward[b, g], np.mean(reward[b] == 1.0)
            np.testing.assert_allclose(-found[b, g, t] * mask.sum(), slope(name, config, *about), rtol=1e-5, atol=1e-9)
            cispo = lambda c, x, o, _, A, *__: min(np.exp(x - o), 1 + c.clip_high) * A * x
            total += cispo(config, *about) if name == "cispo" else plain(name, config, *about)
        np.testing.assert_allclose(value, -total / mask.sum(), rtol=1e-9)


def test_the_gradient_of_nft_passes_its_bound_by_hand(exit_config):
    # p = 1/2, ρ = 2: (1 - 1) / (1/2) = 0, bounded to 1, so the loss is -w log 1 = 0, its slope in log π w p ρ / (1 - p) = 1.
    # A plain maximum would have none, and a wrong response that has become likelier could not be unlearnt.
    config = exit_config(objective="nft", aggregation="token_mean")
    value, found = gradient(config, np.log([[[1.0], [2.0]]]), np.zeros((1, 2, 1)), np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(value, 0.0, atol=1e-7)
    np.testing.assert_allclose(2 * found[0, :, 0], [-0.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("clip", [0, 1, 0, 1, 0]),
        ("nft", [0, 0, 0, 1, 0]),
        ("rft", [0, 0, 0, 1, 1]),
        ("rwr", [1, 1, 1, 1, 1]),
        ("ail", [1, 1, 1, 1, 0]),
    ],
)
def test_groups_are_dropped_that_have_nothing_to_teach_the_objective(exit_config, objective, expected):
    """All wrong, wrong in two ways, half right each, both kinds, all right."""
    reward = np.array([[0.0, 0.0], [0.0, 0.5], [0.5, 0.5], [0.0, 1.0], [1.0, 1.0]])
    logp = np.full((5, 2, T), -1.0)
    config = exit_config(objective=objective, zero_variance="drop")
    A = grpo.advantages(jnp.asarray(reward), "group", 1e-6)
    batch = grpo.make_batch(
        config, NO_PROMPTS, make_rollouts(logp), A, None, T, jnp.asarray(reward), jnp.asarray(reward == 1.0)
    )
    np.testing.assert_array_equal(batch.mask.any(axis=(1, 2)), expected)


def test_advantages_over_the_mean_and_from_a_baseline_by_hand():
    # 1 0 0 0 over its mean 1/4: 3, -1, -1, -1 (MaxRL); all wrong has none, nor has all right. From a baseline of 1/4: 3/4, -1/4
    reward = jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0] * 4, [1.0] * 4])
    np.testing.assert_allclose(grpo.advantages(reward, "mean", 1e-6), [[3, -1, -1, -1], [0] * 4, [0] * 4], atol=1e-6)
    found = grpo.advantages(reward, "ema", 1e-6, jnp.array([[0.25], [0.25], [0.5]]))
    np.testing.assert_allclose(found, [[0.75, -0.25, -0.25, -0.25], [-0.25] * 4, [0.5] * 4])
    assert set(ADVANTAGE_NORMS) == {"group", "batch", "none", "mean", "ema"}


def test_the_running_baseline_by_hand():
    # decay 3/4: base 0 · 3/4 + 1/4 · mean of (1, 0, 1/2, 1/2) = 1/8; improve, whose only prompt was lost, and diverge stay
    b = jnp.array([0.0, 0.5, 0.25])
    reward, mode = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]), jnp.array([0, 0, 1])
    lost = jnp.array([False, False, True])
    np.testing.assert_allclose(baseline.update(b, 0.75, reward, mode, lost), [0.125, 0.5, 0.25])
    np.testing.assert_allclose(baseline.update(b, 0.75, reward, mode, None), [0.125, 0.375, 0.25])
    assert baseline.update(None, 0.75, reward, mode, None) is None
    assert not baseline.create().any()


def test_covariance_leaves_out_a_share_of_the_tokens_in_the_band():
    rng = np.random.default_rng(3)
    A, logp, mask = rng.normal(size=(B, G, 1)), -2 + rng.normal(size=(B, G, T)), rng.random((B, G, T)) < 0.8
    wide, n = np.broadcast_to(A, mask.shape), mask.sum()
    c = (wide - wide[mask].mean()) * (logp - logp[mask].mean())
    inside = mask & (c > 0.2) & (c < 1.5)
    assert inside.sum() > 10
    soiled = jnp.asarray(np.where(mask, logp, np.nan), jnp.float32)
    draw = lambda share, seed: np.asarray(
        covariance.left_out(jnp.float32(A), soiled, jnp.asarray(mask), share, (0.2, 1.5), jax.random.key(seed))
    )
    found = [draw(0.05, seed) for seed in range(40)]
    for out in found:
        assert out.sum() == int(0.05 * n)
        assert not (out & ~inside).any()
    np.testing.assert_array_equal(np.any(found, axis=0) & inside, inside)  # any of them may be drawn
    np.testing.assert_array_equal(draw(1.0, 0), inside)  # no more than there are
    assert draw(1e-9, 0).sum() == 1  # as the authors: at least one


def test_tokens_left_out_have_no_gradient_and_weigh_as_before(exit_config):
    rng = np.random.default_rng(4)
    old, reward = -2 + rng.normal(size=(B, G, T)), 1.0 * (np.arange(G) < np.array([[1], [2], [3], [5]]))
    given = exit_config(), exit_config(clip_cov_share=0.1, clip_cov_band=(0.0, 40.0))
    whole, some = (gradient(config, old, old, reward, key=jax.random.key(0))[1] for config in given)
    out = np.asarray(some == 0) & np.asarray(whole != 0)
    assert out.sum() == int(0.1 * old.size)
    np.testing.assert_array_equal(some, np.where(out, 0, whole))


# Self-distillation, of a policy that is one softmax over four tokens, shifted by what the prompt begins with


def logprobs(params, prompt, prompt_length, tokens):
    logp_BV = jax.nn.log_softmax(params["w"][None] + jnp.sin(prompt[:, :1] * 3.0 + jnp.arange(4.0)[None]))
    logp = jax.vmap(lambda logp, t: logp[t])(logp_BV, tokens)
    return logp, jnp.zeros_like(logp)


def distil(config, prompt, teacher, tokens, reward, w, parts=1, mask=None):
    """Return the weights after one step of gradient descent of rate 1, and metrics."""
    params, optimizer = {"w": jnp.asarray(w)}, optax.sgd(1.0)
    length = jnp.ones(len(prompt), jnp.int32)
    logp, _ = logprobs(params, prompt, length, tokens)
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    rollouts = dataclasses.replace(make_rollouts(jnp.where(mask, logp, jnp.nan), mask), tokens=tokens)
    params, _, metrics = grpo.update(
        config,
        logprobs,
        optimizer,
        num_microbatches=parts,
        max_tokens=tokens.shape[-1],
        params=params,
        reference=None,
        opt_state=optimizer.init(params),
        instances=Instances(None, None, None, None, prompt, length),
        rollouts=rollouts,
        advantage=grpo.advantages(reward, "group", 1e-6),
        reward=reward,
        right=reward == 1.0,
        teacher=teacher,
    )
    return params["w"], metrics


def test_distillation_is_the_gradient_of_the_divergence_from_the_teacher(exit_config):
    """Tokens in the very shares of a policy of tenths: the sum over them is the expectation, so there is no noise."""
    tokens = jnp.array([[[0], [0], [0], [0], [1], [1], [1], [2], [2], [3]]])
    prompt = jnp.array([[2]])
    shift = lambda p: jnp.sin(p * 3.0 + jnp.arange(4.0))
    w = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1])) - shift(2.0)
    teacher = distillation.Teacher(jnp.full((1, 10, 1), 5), jnp.ones((1, 10), jnp.int32), jnp.ones((1, 10), bool))
    config = exit_config(self_distillation=1.0, zero_variance="drop")
    moved, metrics = distil(config, prompt, teacher, tokens, jnp.zeros((1, 10)), w)
    target = jax.nn.log_softmax(w + shift(5.0))

    def divergence(w):
        logp = jax.nn.log_softmax(w + shift(2.0))
        return (jnp.exp(logp) * (logp - target)).sum()

    expected = jax.grad(divergence)(w)
    assert jnp.abs(expected).max() > 0.05
    np.testing.assert_allclose(w - moved, expected, rtol=1e-4, atol=1e-6)
    assert metrics["teacher/informed"] == 1.0
    told = target - jax.nn.log_softmax(w + shift(2.0))
    np.testing.assert_allclose(metrics["teacher/advantage"], jnp.abs(told[tokens]).mean(), rtol=1e-5)


def batch_to_distil():
    rng = np.random.default_rng(5)
    tokens, prompt = jnp.asarray(rng.integers(4, size=(B, G, T))), jnp.asarray(rng.integers(9, size=(B, 1)))
    informed = rng.random((B, G)) < 0.5
    teacher = distillation.Teacher(
        jnp.asarray(rng.integers(9, size=(B, G, 1))), jnp.ones((B, G), jnp.int32), jnp.asarray(informed)
    )
    mask = jnp.asarray(rng.random((B, G, T)) < 0.8)
    return prompt, teacher, tokens, jnp.asarray(rng.choice([0.0, 1.0], (B, G)), jnp.float32), jnp.arange(4.0), mask


def test_a_share_of_the_advantage_is_the_teachers_where_there_is_feedback(exit_config):
    prompt, teacher, tokens, reward, w, mask = batch_to_distil()
    share, config = 0.25, exit_config(self_distillation=0.25, aggregation="token_mean")
    moved, _ = distil(config, prompt, teacher, tokens, reward, w, mask=mask)
    A, of_w = np.asarray(grpo.advantages(reward, "group", 1e-6)), np.zeros(4)
    shifted = lambda p: np.asarray(jax.nn.log_softmax(w + np.sin(p * 3.0 + np.arange(4.0))))
    for b, g, t in zip(*np.nonzero(np.asarray(mask))):
        y, student, taught = int(tokens[b, g, t]), shifted(prompt[b, 0]), shifted(teacher.prompt[b, g, 0])
        told = (taught - student)[y] if teacher.informed[b, g] else 0.0
        of_w += ((1 - share) * A[b, g] + share * told) * (np.eye(4)[y] - np.exp(student))
    np.testing.assert_allclose(moved - w, of_w / int(mask.sum()), rtol=1e-4, atol=1e-6)
    for parts in (2, 4):
        other, _ = distil(config, prompt, teacher, tokens, reward, w, parts, mask)
        np.testing.assert_allclose(other, moved, rtol=1e-5)


def test_without_feedback_nothing_is_distilled(exit_config):
    prompt, teacher, tokens, reward, w, mask = batch_to_distil()
    nobody = dataclasses.replace(teacher, informed=jnp.zeros_like(teacher.informed))
    moved, metrics = distil(exit_config(self_distillation=1.0), prompt, nobody, tokens, reward, w, mask=mask)
    np.testing.assert_array_equal(moved, w)
    assert metrics["teacher/informed"] == 0.0
    assert np.isnan(metrics["teacher/advantage"])


def test_the_teacher_reads_the_last_child_with_its_feedback(make_history):
    """Of three responses one has no feedback, and the prompt of one is too long."""
    lengths = np.zeros((1, 3, 2, 4), int)
    lengths[0, :, 1, 3] = 1, 0, 2
    children = make_history(1, 3, 2, lengths=lengths, task=[[[0, 1]]])

    def render(history):
        return jnp.stack([history.task] * 4, -1), 3 + history.lengths[..., 3]

    found = distillation.teacher(render, children)
    np.testing.assert_array_equal(found.prompt, np.ones((1, 3, 4)))
    np.testing.assert_array_equal(found.length, [[4, 3, 5]])
    np.testing.assert_array_equal(found.informed, [[True, False, False]])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_microbatches_have_the_gradient_of_the_batch_for_every_objective(exit_config, objective):
    prompt, _, tokens, reward, w, mask = batch_to_distil()
    reward = reward.at[0].set(1.0).at[1].set(0.0)
    config = exit_config(objective=objective, num_epochs=2, zero_variance="drop")
    whole, *others = (distil(config, prompt, None, tokens, reward, w, parts, mask)[0] for parts in (1, 2, 4))
    assert jnp.abs(whole - w).max() > 1e-3
    for other in others:
        np.testing.assert_allclose(other, whole, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [*({"objective": name} for name in OBJECTIVES), *({"advantage_norm": name} for name in ADVANTAGE_NORMS)],
    ids=lambda settings: "-".join(settings.values()),
)
def test_a_policy_of_four_answers_learns_the_right_one(exit_config, settings):
    config = exit_config(**settings, zero_variance="drop", negative_weight=0.5)
    prompt, length = jnp.zeros((16, 1), jnp.int32), jnp.ones(16, jnp.int32)
    optimizer = optax.sgd(1.0)

    @jax.jit
    def iterate(carry, key):
        params, b = carry
        logits = params["w"] + jnp.sin(jnp.arange(4.0))
        tokens = jax.random.categorical(key, logits, shape=(16, 8, 1))
        reward = jnp.where(tokens[..., 0] == 2, 1.0, jnp.where(tokens[..., 0] == 1, 0.25, 0.0))
        norm = config.advantage_norm, config.advantage_eps, jnp.full((16, 1), b[0])
        params, _, _ = grpo.update(
            config,
            logprobs,
            optimizer,
            num_microbatches=1,
            max_tokens=1,
            params=params,
            reference=None,
            opt_state=optimizer.init(params),
            instances=Instances(None, None, None, None, prompt, length),
            rollouts=dataclasses.replace(make_rollouts(logprobs(params, prompt, length, tokens)[0]), tokens=tokens),
            advantage=grpo.advantages(reward, *norm),
            reward=reward,
            right=reward == 1.0,
        )
        return (params, baseline.update(b, 0.8, reward, jnp.zeros(16, jnp.int32), None)), logits

    start = {"w": -jnp.sin(jnp.arange(4.0))}, baseline.create()  # 1/4 each
    (params, _), _ = jax.lax.scan(iterate, start, jax.random.split(jax.random.key(0), 60))
    assert jax.nn.softmax(params["w"] + jnp.sin(jnp.arange(4.0)))[2] > 0.6
