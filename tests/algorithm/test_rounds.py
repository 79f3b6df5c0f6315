"""Rounds: what is learnt from, and when, against lists in plain Python; and a policy's fits in closed form."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_admission import make_groups

from exit_jax.algorithm import pool as pools
from exit_jax.algorithm import rounds
from exit_jax.algorithm.method_settings import ReplayConfig, RoundsConfig
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import Instances

B, G = 4, 3
SGD = optax.sgd(0.1, momentum=0.5)


def config_of(iterations, restart="last", num_epochs=1, **fields):
    held = RoundsConfig(iterations, restart)
    return ExItConfig(num_prompts=B, rounds=held, admission="right", num_epochs=num_epochs, objective="rft", **fields)


def begin(config, step=0):
    params = {"w": jnp.float32(1.0)}
    return types.SimpleNamespace(
        params=params,
        reference={"w": jnp.float32(-7.0)},
        opt_state=SGD.init(params),
        initial=params if config.rounds.restart == "base" else None,
        pool=pools.create(make_groups(np.zeros(B)), config.rounds.iterations),
        step=jnp.int32(step),
        key=jax.random.key(3),
    )


def run(config, batches):
    """Learn from batches of (numbers, bool for right) by gradients w - mean of the numbers.

    Returns states, metrics and the numbers of each update, by the batch.
    """
    seen, now = [], []

    def update(params, reference, opt_state, instances, rollouts, advantage, reward, right, admitted):
        number = jnp.where(admitted, instances.prompt_length, 0)
        jax.debug.callback(lambda number: now.append(sorted(n for n in number.tolist() if n)), number, ordered=True)
        grads = {"w": params["w"] - number.sum() / admitted.sum()}
        updates, opt_state = SGD.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, {"grad_norm": grads["w"], "loss": 1.0 * admitted.sum()}

    state, states, metrics = begin(config), [], []
    improve = jax.jit(lambda state, groups: rounds.improve(SGD, config, update, of(state), *groups))
    of = lambda fields: types.SimpleNamespace(**fields)
    for number, right in batches:
        reward = jnp.broadcast_to(jnp.float32(right)[:, None], (B, G))
        groups = dataclasses.replace(make_groups(number), reward=reward)
        policy, pool, told = improve(vars(state), (Instances(*6 * [None]), groups))
        jax.effects_barrier()
        params, reference, opt_state = policy
        fields = {
            "params": params,
            "reference": reference,
            "opt_state": opt_state,
            "pool": pool,
            "step": state.step + 1,
        }
        state = types.SimpleNamespace(**(vars(state) | fields))
        states.append(state)
        metrics.append(jax.tree.map(float, told))
        seen.append(now[:])
        now.clear()
    return states, metrics, seen


def batches_of(rng, count):
    return [(1 + i * B + np.arange(B), rng.uniform(size=B) < 0.6) for i in range(count)]


@pytest.mark.parametrize("restart", ["last", "base"])
@pytest.mark.parametrize("num_epochs", [1, 3])
def test_a_round_is_learnt_from_as_a_whole(restart, num_epochs):
    rng, iterations = np.random.default_rng(0), 3
    batches = batches_of(rng, 12)
    batches[6:9] = [(number, np.zeros(B, bool)) for number, _ in batches[6:9]]  # a round with nothing right
    config = config_of(iterations, restart, num_epochs, reference_every=2, reference_mix=1.0)
    states, metrics, seen = run(config, batches)
    w, velocity, reference, updates, held, orders = 1.0, 0.0, -7.0, 0, [], {}
    for i, (number, right) in enumerate(batches):
        held += number[right].tolist()
        if (i + 1) % iterations or not held:
            assert not seen[i]
            assert metrics[i]["grad_norm"] == 0
            assert np.isnan(metrics[i]["loss"])
        else:
            per_epoch = -(-len(held) // B)
            assert len(seen[i]) == num_epochs * per_epoch
            for epoch in range(num_epochs):
                each = seen[i][epoch * per_epoch : (epoch + 1) * per_epoch]
                assert sorted(n for one in each for n in one) == held, "each group once an epoch"
                assert [len(one) for one in each[:-1]] == [B] * (per_epoch - 1)
            orders |= {i: {str(seen[i][epoch * per_epoch :][:per_epoch]) for epoch in range(num_epochs)}}
            if restart == "base":
                w, velocity = 1.0, 0.0
            for one in seen[i]:
                velocity = 0.5 * velocity + (w - np.mean(one))
                w -= 0.1 * velocity
            updates += 1
            reference = w if updates % 2 == 0 else reference
            assert metrics[i]["loss"] == pytest.approx(np.mean([len(one) for one in seen[i]]))
        if (i + 1) % iterations == 0:
            held = []
        np.testing.assert_allclose(states[i].params["w"], w, rtol=1e-5)
        np.testing.assert_allclose(states[i].reference["w"], reference, rtol=1e-5)
        assert metrics[i]["pool/waiting"] == len(held)
        assert metrics[i]["pool/updates"] == updates
        assert metrics[i]["admitted"] == right.mean()
    assert updates == 3
    assert max(map(len, orders.values())) == num_epochs, "each epoch in an order of its own"


def test_the_first_right_ones_count():
    right = jnp.array([[False, True, True, True], [True, False, False, True], [False] * 4])
    assert rounds.at_most(right, 2).tolist() == [[False, True, True, False], [True, False, False, True], [False] * 4]
    assert rounds.at_most(right, 1).sum(1).tolist() == [1, 1, 0]
    np.testing.assert_array_equal(rounds.at_most(right, 0), right)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ExItConfig(rounds=RoundsConfig(2), refill=True, admission="spread"), "with refill = True: a round"),
        (ExItConfig(rounds=RoundsConfig(2), protocol="own"), "with protocol = 'own': a round"),
        (ExItConfig(rounds=RoundsConfig(2), replay=ReplayConfig(2048)), "with replay.size = 2048: a round"),
        (ExItConfig(rounds=RoundsConfig(2), clip_cov_share=0.1), "with clip_cov_share = 0.1: a round"),
        (ExItConfig(right_kept=2), "would count as wrong"),
    ],
)
def test_faults(config, message):
    assert any(message in fault for fault in config.faults())
    assert not config_of(2, right_kept=2).faults()


def test_a_restart_without_rounds_is_a_fault():
    assert "without rounds nothing begins anew" in RoundsConfig(0, "base").faults()[0]
    assert not RoundsConfig(3, "base").faults()
    assert not RoundsConfig().faults()
