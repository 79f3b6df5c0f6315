"""The GRPO loss against a NumPy oracle of loops, by hand, and in what must not change it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from exit_jax.algorithm import grpo
from exit_jax.algorithm.objectives import OBJECTIVES
from exit_jax.types import Instances, Rollouts

B, G, T = 3, 4, 5


def oracle_advantages(reward_BG, norm, eps):
    """Return A as the papers write it, one number at a time."""
    A = np.zeros_like(reward_BG)
    for b, g in np.ndindex(*A.shape):
        std = {"group": np.std(reward_BG[b]), "batch": np.std(reward_BG), "none": 1.0 - eps}[norm]
        A[b, g] = (reward_BG[b, g] - np.mean(reward_BG[b])) / (std + eps)
    return A


def oracle_loss(config, logp, entropy, reference, old, A, mask, finished):
    """Return the loss as the papers write it, one token at a time."""
    rows = []  # of each row that counts, the losses of its tokens
    for b, g in itertools.product(range(B), range(G)):
        if config.zero_variance == "drop" and not any(A[b]):
            continue
        keep = [t for t in range(T) if mask[b, g, t] and (finished[b, g] or not config.mask_overlong)]
        log_ratio = {t: logp[b, g, t] - old[b, g, t] for t in keep}
        if config.ratio_level == "sequence" and keep:
            log_ratio = dict.fromkeys(keep, np.mean(list(log_ratio.values())))
        row = []
        for t in keep:
            ratio, x = np.exp(log_ratio[t]), reference[b, g, t] - logp[b, g, t]
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            kl = {"k1": -x, "k2": x**2 / 2, "k3": np.exp(x) - 1 - x}[config.kl_estimator]
            gain = min(ratio * A[b, g], clipped * A[b, g])
            row.append(-gain + config.kl_coef * kl - config.entropy_coef * entropy[b, g, t])
        rows.append(row)
    if config.aggregation == "sequence_mean":
        return sum(sum(row) / max(len(row), 1) for row in rows) / max(len(rows), 1)
    if config.aggregation == "token_mean":
        return sum(map(sum, rows)) / max(sum(map(len, rows)), 1)
    return sum(map(sum, rows)) / (max(len(rows), 1) * T)


def random_batch(seed=0):
    """Return log-probs, entropies, reference and old log-probs, rewards, mask, finished; float64, padding of noise."""
    rng = np.random.default_rng(seed)
    logp, reference, old = -1.0 + 0.4 * rng.normal(size=(3, B, G, T))
    entropy, mask, finished = rng.random((B, G, T)), rng.random((B, G, T)) < 0.7, rng.random((B, G)) < 0.6
    mask[0, 1] = False  # a response without one token of its own
    finished[1] = False  # a group that ran out of room
    reward = rng.choice([0.0, 0.25, 1.0], (B, G))
    reward[2] = 0.5  # a group without variance
    return logp, entropy, reference, old, reward, mask, finished


def to_rollouts(old, mask, finished):
    mask, old, finished = jnp.asarray(mask), jnp.float32(old), jnp.asarray(finished)
    return Rollouts(tokens=None, mask=mask, logp=old, sampled_logp=None, finished=finished, hidden=None)


def loss(config, logp, entropy, reference, A, rollouts, *outcome):
    """Return the loss of a whole batch, whose prompts do not matter here; ``outcome`` is reward and right [B, G]."""
    no_prompts = Instances(None, None, None, None, None, None)
    return grpo.loss(config, logp, entropy, grpo.make_batch(config, no_prompts, rollouts, A, reference, T, *outcome))


def value_and_grad(config, logp, entropy, reference, old, A, mask, finished, *outcome):
    """Return the loss, its gradients to log-probs and entropies, and its metrics."""
    rollouts = to_rollouts(old, mask, finished)
    reference = jnp.float32(reference) if config.kl_coef else None
    f = lambda logp, entropy: loss(config, logp, entropy, reference, jnp.float32(A), rollouts, *outcome)
    (value, metrics), grads = jax.value_and_grad(f, (0, 1), has_aux=True)(jnp.float32(logp), jnp.float32(entropy))
    return value, grads, metrics


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "dr_grpo"])
@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
def test_loss_and_gradient_equal_the_oracle(exit_config, aggregation, ratio_level, kl_estimator):
    logp, entropy, reference, old, reward, mask, finished = random_batch()
    direction = np.random.default_rng(1).normal(size=logp.shape)
    for (norm, clip), overlong, zero_variance in itertools.product(
        (("group", (0.2, 0.2)), ("batch", (0.1, 0.28)), ("none", (0.3, 0.1))), (False, True), ("keep", "drop")
    ):
        config = exit_config(
            aggregation=aggregation,
            ratio_level=ratio_level,
            kl_estimator=kl_estimator,
            kl_coef=0.3,
            entropy_coef=0.1,
            clip_low=clip[0],
            clip_high=clip[1],
            mask_overlong=overlong,
            zero_variance=zero_variance,
        )
        A = oracle_advantages(reward, norm, 1e-6)
        np.testing.assert_allclose(grpo.advantages(jnp.float32(reward), norm, 1e-6), A, rtol=1e-5, atol=1e-6)
        of_logp = lambda logp: oracle_loss(config, logp, entropy, reference, old, A, mask, finished)  # noqa: B023
        value, (grad, _), _ = value_and_grad(config, logp, entropy, reference, old, A, mask, finished)
        np.testing.assert_allclose(value, of_logp(logp), rtol=1e-5, atol=1e-6)
        slope = (of_logp(logp + 1e-6 * direction) - of_logp(logp - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose((grad * direction).sum(), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "dr_grpo"])
def test_overlong_filtering_is_by_response_where_a_row_has_several(exit_config, aggregation):
    """What has an ending counts in a row that is not finished, and what has none does not in one that is."""
    logp, entropy, reference, old, reward, mask, finished = random_batch()
    ended = mask & (np.random.default_rng(2).random(mask.shape) < 0.6)
    A = oracle_advantages(reward, "group", 1e-6)
    config = exit_config(aggregation=aggregation, mask_overlong=True)
    rollouts = dataclasses.replace(to_rollouts(old, mask, finished), ended=jnp.asarray(ended))
    told = jnp.float32(entropy), None, jnp.float32(A), rollouts
    value, grad = jax.value_and_grad(lambda logp: loss(config, logp, *told)[0])(jnp.float32(logp))
    expected = oracle_loss(config, logp, entropy, reference, old, A, ended, np.ones_like(finished))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    assert not np.asarray(grad)[~ended].any()
    assert (np.asarray(grad)[ended & ~finished[..., None]] != 0).any()
    every = loss(exit_config(aggregation=aggregation, mask_overlong=False), jnp.float32(logp), *told)[0]
    np.testing.assert_allclose(
        every, oracle_loss(config, logp, entropy, reference, old, A, mask, np.ones_like(finished)), rtol=1e-5, atol=1e-6
    )


def test_clipping_by_hand(exit_config):
    # ρ = 3/2 or 1/2, A = ±1, bounds .8 and 1.2, so the loss a token, -min(ρA, clip(ρ)A), and its slope in log π are
    #   A = 1:  ρ = 3/2: -1.2, 0 (clipped)      ρ = 1/2: -1/2, -1/2
    #   A = -1: ρ = 3/2:  3/2, 3/2              ρ = 1/2:   .8, 0 (clipped)
    # With max for A < 0, a common error, the last row reads 1.2, 0 and 1/2, 1/2: a bad token could never be unlearnt.
    log_ratio = jnp.log(jnp.array([[[1.5, 0.5], [1.5, 0.5]]]))
    rollouts = to_rollouts(jnp.zeros((1, 2, 2)), jnp.ones((1, 2, 2), bool), jnp.ones((1, 2), bool))
    f = lambda logp: loss(exit_config(), logp, logp, None, jnp.array([[1.0, -1.0]]), rollouts)
    (value, metrics), grad = jax.value_and_grad(f, has_aux=True)(log_ratio)
    np.testing.assert_allclose(value, (-1.2 - 0.5 + 1.5 + 0.8) / 4, rtol=1e-6)
    np.testing.assert_allclose(4 * grad, [[[0.0, -0.5], [1.5, 0.0]]], atol=1e-6)
    np.testing.assert_allclose(metrics["clip_fraction"], 0.5)
    # KL(π_old ‖ π_θ) by k3, e^x - x - 1 with x = log ρ: (3/2 - log 3/2 - 1 + 1/2 - log 1/2 - 1) / 2
    np.testing.assert_allclose(metrics["approx_kl_old"], -np.log(0.75) / 2, rtol=1e-5)


def test_kl_estimators_by_hand_and_without_overflow():
    # π_θ / π_ref = 2, so x = -log 2: k1 = log 2, k2 = log² 2 / 2, k3 = 1/2 + log 2 - 1 (of π_ref ‖ π_θ: 1 - log 2).
    logp, reference = jnp.log(jnp.array([0.5, 1e-30])), jnp.log(jnp.array([0.25, 1.0]))
    expected = {"k1": np.log(2), "k2": np.log(2) ** 2 / 2, "k3": np.log(2) - 0.5}
    for estimator, value in expected.items():
        found = grpo.kl(logp, reference, estimator)
        np.testing.assert_allclose(found[0], value, rtol=1e-6)
        assert jnp.isfinite(found).all()
    np.testing.assert_allclose(grpo.kl(logp, reference, "k1")[1], -40.0)  # log 1e30 = 69 is clamped


@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e4])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_content_of_padding_is_irrelevant(exit_config, objective, ratio_level, kl_estimator, padding):
    logp, entropy, reference, old, reward, mask, finished = random_batch()
    terms = {"objective": objective, "ratio_level": ratio_level, "kl_estimator": kl_estimator}
    config = exit_config(**terms, kl_coef=0.3, entropy_coef=0.1)
    rest = oracle_advantages(reward, "group", 1e-6), mask, finished, jnp.float32(reward), jnp.asarray(reward == 1.0)
    clean, soiled = (
        value_and_grad(config, *(np.where(mask, x, fill) for x in (logp, entropy, reference, old)), *rest)
        for fill in (0.0, padding)
    )
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    jax.tree.map(np.testing.assert_array_equal, clean, soiled)


@pytest.mark.parametrize("eps", [1e-6, 0.0])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_equal_rewards_have_no_advantage(norm, eps):
    # The mean of 14 times .97 is off by an ulp in float32, and divided by the epsilon of 1e-6 that would be .19.
    reward_BG = jnp.linspace(0.0, 1.0, 101)[:, None]
    for group_size in (3, 6, 8, 14):
        A = grpo.advantages(jnp.tile(reward_BG, (1, group_size)), norm, eps)
        assert not A.any(), f"{jnp.abs(A).max()} for a group of {group_size}"
    assert not grpo.advantages(jnp.ones((2, 4)), norm, eps).any()


def test_advantages_by_hand():
    # Rewards 1 0 0 0: mean 1/4, population std √3/4; the sample std, 1/2, would give 1.5. The batch's std is √7/8.
    reward_BG = jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(grpo.advantages(reward_BG, "group", 0.0)[0], [3**0.5, *3 * [-(3**-0.5)]], rtol=1e-6)
    np.testing.assert_allclose(grpo.advantages(reward_BG, "batch", 0.0)[0, 0], 0.75 / (7**0.5 / 8), rtol=1e-6)
    np.testing.assert_allclose(grpo.advantages(reward_BG, "none", 0.0)[0], [0.75, -0.25, -0.25, -0.25])


def test_dropped_groups_do_not_dilute_the_others(exit_config):
    # A loss of -1 a token in one group of three: mean -1/3 if the groups without advantage are kept, else -1.
    logp, mask, finished = np.zeros((B, G, T)), np.ones((B, G, T), bool), np.ones((B, G), bool)
    A = np.array([[1.0], [0.0], [0.0]]) * np.ones((B, G))
    for zero_variance, expected in (("keep", -1 / 3), ("drop", -1.0)):
        config = exit_config(zero_variance=zero_variance)
        value, _, _ = value_and_grad(config, logp, logp, None, logp, A, mask, finished)
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("zero_variance", ["keep", "drop"])
@pytest.mark.parametrize("mask_overlong", [False, True])
@pytest.mark.parametrize("everywhere", [False, True])
def test_metrics_are_means_over_all_sampled_tokens(exit_config, zero_variance, mask_overlong, everywhere):
    """Whatever counts in the loss: where all groups are dropped, an entropy of 0 would look like collapse."""
    logp, entropy, reference, old, reward, mask, finished = random_batch()
    A = np.zeros((B, G)) if everywhere else oracle_advantages(reward, "group", 1e-6)
    logp, old = np.where(mask, logp, np.nan), np.where(mask, old, np.nan)  # what was not sampled means nothing
    config = exit_config(zero_variance=zero_variance, mask_overlong=mask_overlong, kl_coef=0.3)
    value, (grad, _), metrics = value_and_grad(config, logp, entropy, reference, old, A, mask, finished)
    x = (reference - logp)[mask]
    y = (logp - old)[mask]
    np.testing.assert_allclose(metrics["entropy"], entropy[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["kl_reference"], (np.exp(x) - x - 1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["approx_kl_old"], (np.exp(y) - y - 1).mean(), rtol=1e-5)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_metrics_of_nothing_are_no_number(exit_config):
    nothing, zeros = np.zeros((B, G, T), bool), np.zeros((B, G, T))
    config = exit_config(zero_variance="drop", kl_coef=0.3)
    value, _, metrics = value_and_grad(
        config, zeros, zeros, zeros, zeros, np.ones((B, G)), nothing, np.ones((B, G), bool)
    )
    assert value == 0
    for name in ("entropy", "kl_reference", "approx_kl_old", "clip_fraction"):
        assert np.isnan(metrics[name]), name
    gaps = grpo.sampler_gap(config, jnp.asarray(zeros), to_rollouts(zeros, nothing, np.ones((B, G), bool)))
    assert all(map(np.isnan, gaps.values()))


# ``update`` of a policy that is one softmax over four tokens, whatever the prompt.


def toy_logprobs(params, prompt, prompt_length, tokens):
    """Return log-probs and entropies of tokens under softmax(w)."""
    logp_V = jax.nn.log_softmax(params["w"])
    entropy = -(jnp.exp(logp_V) * logp_V).sum()
    return logp_V[tokens], jnp.broadcast_to(entropy, tokens.shape)


def run_update(config, w, advantage_BG, reference_w=None, opt_state=None, tokens=((0, 1, 3), (2, 3, 3))):
    """Return weights, optimiser state and metrics after ``update`` on rollouts sampled from zero weights."""
    tokens = jnp.array([tokens])
    rollouts = dataclasses.replace(
        to_rollouts(jnp.full(tokens.shape, -np.log(4)), jnp.ones(tokens.shape, bool), jnp.ones((1, 2), bool)),
        tokens=tokens,
    )
    instances = Instances(
        history=None, mode=None, from_buffer=None, fresh=None, prompt=jnp.zeros((1, 1)), prompt_length=jnp.ones(1)
    )
    optimizer, params = optax.adam(0.3), {"w": jnp.asarray(w, jnp.float32)}
    opt_state = optimizer.init(params) if opt_state is None else opt_state
    reference = None if reference_w is None else {"w": jnp.asarray(reference_w, jnp.float32)}
    params, opt_state, metrics = grpo.update(
        config,
        toy_logprobs,
        optimizer,
        num_microbatches=1,
        max_tokens=3,
        params=params,
        reference=reference,
        opt_state=opt_state,
        instances=instances,
        rollouts=rollouts,
        advantage=jnp.array([advantage_BG]),
    )
    return params["w"], opt_state, metrics


def test_two_epochs_are_two_steps_with_the_old_log_probs_fixed(exit_config):
    start, A = np.zeros(4), [1.0, -1.0]
    once, opt_state, metrics_1 = run_update(exit_config(), start, A)
    twice, _, metrics_2 = run_update(exit_config(), once, A, opt_state=opt_state)
    both, _, metrics = run_update(exit_config(num_epochs=2), start, A)
    np.testing.assert_allclose(both, twice, rtol=1e-5)
    assert jnp.abs(both - once).max() > 0.1
    assert metrics_1["approx_kl_old"] == 0
    assert metrics_2["approx_kl_old"] > 0.01  # 0 if the old log-probs were taken anew
    for name, value in metrics.items():
        if name.startswith("gap/"):  # of the first epoch
            continue
        np.testing.assert_allclose(value, (metrics_1[name] + metrics_2[name]) / 2, rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_update_follows_the_advantage(exit_config):
    w, _, _ = run_update(exit_config(), np.zeros(4), [1.0, -1.0], tokens=((0, 0, 0), (2, 2, 2)))
    assert w[0] > w[1] > w[2]


def test_without_advantage_the_policy_stays(exit_config):
    w, _, metrics = run_update(exit_config(), np.arange(4.0), [0.0, 0.0])
    np.testing.assert_array_equal(w, np.arange(4.0))
    assert metrics["grad_norm"] == 0


def test_the_entropy_bonus_raises_entropy_and_the_kl_term_goes_to_the_reference(exit_config):
    start, A = np.array([2.0, 0.0, 0.0, -1.0]), [0.0, 0.0]
    entropy = lambda w: -(jax.nn.softmax(w) * jax.nn.log_softmax(w)).sum()
    assert entropy(run_update(exit_config(entropy_coef=0.1), start, A)[0]) > entropy(start) + 0.05

    reference = np.array([-1.0, 0.0, 2.0, 0.0])
    distance = lambda w: (jax.nn.softmax(w) * (jax.nn.log_softmax(w) - jax.nn.log_softmax(reference))).sum()
    for estimator in ("k2", "k3"):  # k1 has no such gradient: it is that of the log-probs themselves
        config = exit_config(kl_coef=0.1, kl_estimator=estimator)
        w, _, metrics = run_update(config, start, A, reference, tokens=((0, 1, 3), (0, 2, 0)))
        assert distance(w) < distance(start) - 0.05
        assert metrics["kl_reference"] > 0.1


def test_the_reference_moves_a_share_alpha_every_m_iterations():
    reference = {"w": jnp.array([0.0, 4.0])}
    params = {"w": jnp.array([8.0, 8.0])}
    moved = [
        grpo.mix_reference(reference, params, jnp.int32(step), every=3, mix=0.25)["w"].tolist() for step in range(1, 7)
    ]
    kept, mixed = [0.0, 4.0], [2.0, 5.0]
    assert moved == [kept, kept, mixed, kept, kept, mixed]
    assert grpo.mix_reference(reference, params, jnp.int32(3), every=3, mix=1.0)["w"].tolist() == [8.0, 8.0]
    assert grpo.mix_reference(None, params, jnp.int32(3), every=3, mix=1.0) is None


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "dr_grpo"])
@pytest.mark.parametrize("zero_variance", ["keep", "drop"])
def test_microbatches_have_the_gradient_of_the_batch(exit_config, aggregation, zero_variance):
    """Parts with rows of all lengths, an empty row and a group without variance add up to the whole, to float32 rounding."""
    _, _, _, old, reward, mask, finished = random_batch()
    wide = lambda x: jnp.asarray(np.concatenate([x, x[::-1]]))  # 6 prompts
    rng = np.random.default_rng(3)
    rollouts = dataclasses.replace(
        to_rollouts(wide(old), wide(mask), wide(finished)), tokens=jnp.asarray(rng.integers(4, size=(2 * B, G, T)))
    )
    prompts = Instances(None, None, None, None, jnp.asarray(rng.integers(4, size=(2 * B, 3))), jnp.full(2 * B, 3))
    A = grpo.advantages(jnp.float32(wide(reward)), "group", 1e-6)
    config = exit_config(
        aggregation=aggregation, zero_variance=zero_variance, kl_coef=0.1, entropy_coef=0.1, num_epochs=2
    )

    def logprobs(params, prompt, prompt_length, tokens):  # depends on the prompt, so that rows must stay with theirs
        logp_BV = jax.nn.log_softmax(params["w"][None] + jnp.sin(prompt.sum(1, keepdims=True) + jnp.arange(4.0)[None]))
        entropy_B = -(jnp.exp(logp_BV) * logp_BV).sum(1)
        return jax.vmap(lambda logp, t: logp[t])(logp_BV, tokens), jnp.broadcast_to(
            entropy_B[:, None, None], tokens.shape
        )

    def run(parts):
        optimizer, params = optax.sgd(1.0), {"w": jnp.arange(4.0)}
        reference = {"w": jnp.ones(4)}
        state = optimizer.init(params)
        batch = {"instances": prompts, "rollouts": rollouts, "advantage": A}
        learner = {"params": params, "reference": reference, "opt_state": state}
        return grpo.update(config, logprobs, optimizer, num_microbatches=parts, max_tokens=T, **learner, **batch)

    (params, _, metrics), *others = (run(parts) for parts in (1, 2, 3, 6))
    assert jnp.abs(params["w"] - jnp.arange(4.0)).max() > 0.01
    for other, _, other_metrics in others:
        np.testing.assert_allclose(other["w"], params["w"], rtol=1e-5)
        for name in metrics:
            np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_parts_hold_rows_of_every_device():
    rows = jnp.arange(8)
    np.testing.assert_array_equal(grpo._split(rows, 2), [[0, 2, 4, 6], [1, 3, 5, 7]])
    np.testing.assert_array_equal(grpo._join(grpo._split(rows, 2)), rows)


def test_the_gap_between_sampler_and_learner_is_reported_and_can_be_removed(exit_config):
    """Rollouts of uniform log-probs, a learner whose softmax is (.4, .2, .2, .2): gaps of log 1.6 and log .8."""
    w, A = np.log([0.4, 0.2, 0.2, 0.2]), [1.0, -1.0]
    _, _, metrics = run_update(exit_config(clip_low=0.3), w, A, tokens=((0, 1, 1), (2, 2, 2)))
    np.testing.assert_allclose(metrics["gap/max"], np.log(1.6), rtol=1e-5)
    np.testing.assert_allclose(metrics["gap/mean"], (np.log(1.6) - 5 * np.log(0.8)) / 6, rtol=1e-5)
    np.testing.assert_allclose(metrics["gap/ratio_max"], 1.6, rtol=1e-5)
    np.testing.assert_allclose(metrics["gap/clipped"], 1 / 6, rtol=1e-5)  # .8 is within .7 and 1.2, 1.6 is not
    assert metrics["approx_kl_old"] > 0.01
    _, _, metrics = run_update(exit_config(recompute_logp=True), w, A, tokens=((0, 1, 1), (2, 2, 2)))
    np.testing.assert_allclose(metrics["gap/max"], np.log(1.6), rtol=1e-5)
    assert metrics["approx_kl_old"] == 0


# Tokens 0, 1, 1 and 2, 2, 2 sampled at 1/4 each, of which the learner says .4 for 0 and .2 for the others: 1.6 and .8 times
WEIGHTS = {
    "token_truncate": [[1.5, 0.8, 0.8], [0.8, 0.8, 0.8]],
    "token_mask": [[0.0, 0.8, 0.8], [0.8, 0.8, 0.8]],
    "sequence_truncate": [[1.6 * 0.64] * 3, [0.6] * 3],  # the second's is .512
    "sequence_mask": [[1.6 * 0.64] * 3, [0.0] * 3],
}


@pytest.mark.parametrize("mode", WEIGHTS)
def test_importance_weighs_each_token_by_how_far_the_sampler_was(mode, exit_config):
    w, A, tokens = np.log([0.4, 0.2, 0.2, 0.2]), np.array([1.0, -1.0]), ((0, 1, 1), (2, 2, 2))
    bounds = {"importance_min": 0.6, "importance_max": 1.5}
    found = run_update(exit_config(recompute_logp=True, importance=mode, **bounds), w, A, tokens=tokens)
    by_hand = run_update(exit_config(recompute_logp=True), w, A[:, None] * np.array(WEIGHTS[mode]), tokens=tokens)
    np.testing.assert_allclose(found[1][0].mu["w"], by_hand[1][0].mu["w"], rtol=1e-5)
    np.testing.assert_allclose(found[2]["importance/weight"], np.mean(WEIGHTS[mode]), rtol=1e-5)
    bounded = {"token_truncate": 1, "token_mask": 1, "sequence_truncate": 3, "sequence_mask": 3}[mode] / 6
    np.testing.assert_allclose(found[2]["importance/bounded"], bounded, rtol=1e-5)


def test_importance_changes_nothing_where_sampler_and_learner_agree(exit_config):
    plain = run_update(exit_config(recompute_logp=True), np.zeros(4), [1.0, -1.0])
    weighed = run_update(exit_config(recompute_logp=True, importance="token_truncate"), np.zeros(4), [1.0, -1.0])
    np.testing.assert_array_equal(plain[1][0].mu["w"], weighed[1][0].mu["w"])
