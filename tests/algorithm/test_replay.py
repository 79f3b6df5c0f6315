"""The ring of good responses against a queue in plain Python, and what an update makes of it."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from exit_jax.algorithm import grpo, replay
from exit_jax.algorithm.method_settings import ReplayConfig
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import Instances, Rollouts

B, G, P, T, V = 3, 4, 5, 6, 7
CONFIG = ReplayConfig(size=16, rows=8, max_age=2, window=5)
NOTHING = dict.fromkeys(("history", "mode", "from_buffer", "fresh"))


def make_batch(rng, first, width=P, length=T):
    """Return prompts [B] and rollouts [B, G] whose first token is their number, counted from ``first``."""
    number = first + np.arange(B * G).reshape(B, G)
    tokens = np.zeros((B, G, length), np.int32)
    tokens[..., 0] = number
    prompt = np.zeros((B, width), np.int32)
    prompt[:, 0] = number[:, 0]
    mask = np.arange(length) < rng.integers(1, length + 1, (B, G, 1))
    logp = np.where(mask, -rng.uniform(0.1, 2.0, mask.shape), 0.0).astype(np.float32)
    arrays = map(jnp.asarray, (tokens, mask, logp))
    finished = jnp.asarray(rng.uniform(size=(B, G)) < 0.9)
    rollouts = Rollouts(*arrays, sampled_logp=None, finished=finished, hidden=None)
    instances = Instances(**NOTHING, prompt=jnp.asarray(prompt), prompt_length=jnp.full(B, 1, jnp.int32))
    return number, instances, rollouts


def test_the_ring_is_a_queue_of_good_responses():
    rng, ring = np.random.default_rng(0), replay.create(CONFIG, P, T)
    held, means = collections.deque(maxlen=CONFIG.size), collections.deque(maxlen=CONFIG.window)
    remember, recall = jax.jit(replay.remember), jax.jit(replay.recall, static_argnums=0)
    seen = set()
    for step in range(12):
        key = jax.random.fold_in(jax.random.key(0), step)
        again = recall(CONFIG, ring, step, key)
        baseline = np.median(means) if means else 0.0
        usable = {number: r for number, born, r in held if step - born <= CONFIG.max_age and r >= baseline}
        drawn = np.asarray(again.rollouts.tokens)[np.asarray(again.admitted), 0, 0].tolist()
        assert len(drawn) == min(len(usable), CONFIG.rows)
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= set(usable)
        seen |= set(drawn)
        for row, number in zip(np.flatnonzero(again.admitted), drawn, strict=True):
            np.testing.assert_allclose(again.advantage[row, 0], usable[number] - baseline, atol=1e-6)
            assert int(again.instances.prompt[row, 0]) == number // G * G, "the prompt of its own group"
        number, instances, rollouts = make_batch(rng, 1000 * G + step * B * G, P - step % 2, T - step % 3)
        reward = jnp.asarray(rng.integers(0, 5, (B, G)) / 4, jnp.float32)
        advantage = reward - reward.mean(1, keepdims=True)
        ring = remember(ring, instances, rollouts, reward, advantage, step)
        good = np.asarray((advantage > 0) & rollouts.finished)
        held.extend(zip(number[good].tolist(), [step] * good.sum(), np.asarray(reward)[good].tolist(), strict=True))
        means.extend(np.asarray(reward).mean(1).tolist())
        kept = {int(n) for n, born in zip(ring.tokens[:, 0], ring.born, strict=True) if born >= 0}
        assert kept == {n for n, _, _ in held}
    assert len(seen) > CONFIG.rows


def test_a_lost_group_has_no_mean():
    _, instances, rollouts = make_batch(np.random.default_rng(0), 0)
    reward, lost = jnp.array([[0.0] * G, [0.5] * G, [1.0] * G]), jnp.array([True, False, False])
    ring = replay.remember(replay.create(CONFIG, P, T), instances, rollouts, reward, 0 * reward, 0, lost)
    np.testing.assert_array_equal(ring.means, [np.nan, 0.5, 1.0, np.nan, np.nan])


def logprobs(params, prompt, prompt_length, tokens):
    """Log-probs of a policy whose logits are a row of parameters for each prompt and position."""
    logits = params["bias"][None, None, None] + params["by_prompt"][prompt[:, 0] % 4][:, None, None]
    logits = jnp.broadcast_to(logits, (*tokens.shape, V))
    log_all = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_all, (tokens % V)[..., None], -1)[..., 0], -(jnp.exp(log_all) * log_all).sum(-1)


def test_the_batch_of_now_replayed_in_full_is_a_second_epoch_on_it(exit_config):
    # At ρ = 1 and a coefficient of 1, the gradient is twice that of the batch alone, entropy bonus apart
    rng = np.random.default_rng(1)
    _, instances, rollouts = make_batch(rng, 0)
    rollouts = dataclasses.replace(rollouts, finished=jnp.ones((B, G), bool))
    params = {"bias": jnp.asarray(rng.normal(size=V)), "by_prompt": jnp.asarray(rng.normal(size=(4, V)))}
    logp = logprobs(params, instances.prompt, None, rollouts.tokens)[0]
    rollouts = dataclasses.replace(rollouts, logp=jnp.where(rollouts.mask, logp, 0.0))
    advantage = jnp.asarray(rng.normal(size=(B, G)), jnp.float32)
    flat = lambda x: x.reshape(B * G, 1, *x.shape[2:])
    again = grpo.Rows(
        instances=Instances(
            **NOTHING,
            prompt=jnp.repeat(instances.prompt, G, 0),
            prompt_length=jnp.repeat(instances.prompt_length, G),
        ),
        rollouts=Rollouts(
            tokens=flat(rollouts.tokens),
            mask=flat(rollouts.mask),
            logp=flat(rollouts.logp),
            sampled_logp=None,
            finished=jnp.ones((B * G, 1), bool),
            hidden=None,
        ),
        advantage=advantage.reshape(-1, 1),
        reward=advantage.reshape(-1, 1),
        right=advantage.reshape(-1, 1) > 0,
        admitted=jnp.ones(B * G, bool),
    )

    def moved(recalled, coef=1.0):
        config = exit_config(zero_variance="keep")
        after, _, metrics = grpo.update(
            config,
            logprobs,
            optax.sgd(1.0),
            num_microbatches=3,
            max_tokens=T,
            params=params,
            reference=None,
            opt_state=optax.sgd(1.0).init(params),
            instances=instances,
            rollouts=rollouts,
            advantage=advantage,
            more=[grpo.More("replay", recalled, replay.plain(config), coef)] if recalled else [],
        )
        return jax.tree.map(lambda new, old: new - old, after, params), metrics

    alone, none = moved(None)
    twice, metrics = moved(again)
    half, _ = moved(again, 0.5)
    for name in params:
        np.testing.assert_allclose(twice[name], 2 * alone[name], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(half[name], 1.5 * alone[name], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(metrics["replay/loss"], metrics["loss"], rtol=1e-5)
    assert "replay/loss" not in none
    # what stands for no response has no part, whatever it holds
    padded = dataclasses.replace(again, admitted=jnp.arange(B * G) < 3, advantage=again.advantage * 0 + 1.0)
    few = dataclasses.replace(padded, advantage=jnp.where(padded.admitted[:, None], 1.0, 1e6))
    for a, b in zip(jax.tree.leaves(moved(padded)[0]), jax.tree.leaves(moved(few)[0]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("size", "faults"), [(0, 0), (1024, 0), (1000, 1)])
def test_a_ring_holds_what_an_iteration_adds(size, faults):
    found = ExItConfig(replay=ReplayConfig(size=size)).faults()  # 128 x 8 responses
    assert len(found) == faults
    assert all("is below the 1024 responses that an iteration may add" in fault for fault in found)
