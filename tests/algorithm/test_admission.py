"""Admission of groups and the pool, against a queue in plain Python; and an update of what the pool gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm import pool as pools
from exit_jax.algorithm.admission import ADMISSIONS
from exit_jax.algorithm.pool import Groups
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import Instances, Rollouts

B, G, P, T = 4, 3, 5, 6


def make_groups(number, prompt_width=P, width=T):
    """Return groups numbered [B], of which every array says its number."""
    number = jnp.asarray(number, jnp.int32)
    fill = lambda dtype, *more: jnp.broadcast_to(number.reshape(-1, *(1,) * len(more)), (len(number), *more)).astype(
        dtype
    )
    rollouts = Rollouts(
        tokens=fill(jnp.int32, G, width),
        mask=fill(bool, G, width),
        logp=fill(jnp.float32, G, width),
        sampled_logp=fill(jnp.float32, G, width),
        finished=fill(bool, G),
        hidden=None,
    )
    prompt, length = fill(jnp.int32, prompt_width), fill(jnp.int32)
    return Groups(prompt, length, rollouts, fill(jnp.float32, G), fill(jnp.float32, G), fill(bool, G))


def test_rules_by_hand():
    reward = jnp.array([[0.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 0.2], [0.4, 1.0], [0.8, 1.0]])
    admit = lambda rule: ADMISSIONS[rule](ExItConfig(), reward).tolist()
    assert admit("all") == [True] * 6
    assert admit("spread") == [False, False, True, True, True, True]
    assert admit("right") == [False, False, True, False, True, True]  # paid 1
    assert admit("band") == [False, True, True, False, True, False]  # means 0, .5, .5, .1, .7, .9 within .2 and .8


def test_the_pool_is_a_queue():
    rng, add = np.random.default_rng(0), jax.jit(pools.add)
    pool, queue, learnt = pools.create(make_groups(np.zeros(B))), [], 0
    for step in range(40):
        number = 1 + step * B + np.arange(B)
        admitted = rng.uniform(size=B) < 0.4
        widths = (P, T) if step % 2 else (P - 2, T - 1)  # a batch may be cut to narrower buckets
        pool = add(pool, make_groups(number, *widths), admitted)
        queue += number[admitted].tolist()
        ready = bool(pool.count >= B)
        assert ready == (len(queue) >= B)
        if ready:
            first = pools.first_batch(pool)
            np.testing.assert_array_equal(first.prompt_length, queue[:B])
            np.testing.assert_array_equal(first.rollouts.tokens[:, 0, 0], queue[:B])
            assert first.rollouts.tokens.shape == (B, G, T)
            del queue[:B]
            learnt += 1
        pool = pools.after_learning(pool, jnp.bool_(ready))
        assert int(pool.count) == len(queue)
        np.testing.assert_array_equal(pool.groups.prompt_length[: len(queue)], queue)
    assert int(pool.updates) == learnt > 5


@dataclasses.dataclass
class Policy:
    params: float
    reference: float
    opt_state: int
    step: jnp.ndarray
    pool: object


def run(config, batches, pool=None):
    """Learn from batches of numbered groups by adding up the numbers that count; returns the states and metrics."""

    def update(params, reference, opt_state, instances, rollouts, advantage, reward, right, admitted):
        counts = jnp.ones(B, bool) if admitted is None else admitted
        total = jnp.where(counts, instances.prompt_length, 0).sum()
        return params + total, opt_state + 1, {"grad_norm": total, "loss": 1.0 * total}

    instances = Instances(None, None, None, None, None, None)
    state, seen = Policy(jnp.float32(0), jnp.float32(0), jnp.int32(0), jnp.int32(0), pool), []
    for number, reward in batches:
        groups = dataclasses.replace(make_groups(number), reward=jnp.float32(reward))
        policy, pool, metrics = pools.improve(config, update, state, instances, groups)
        state = Policy(*policy, state.step + 1, pool)
        seen.append(jax.tree.map(float, metrics))
    return state, seen


SPREAD, FLAT = [0.0, 0.5, 1.0], [0.5, 0.5, 0.5]


def test_without_a_pool_what_is_not_admitted_counts_nothing():
    batches = [([1, 2, 3, 4], [SPREAD, FLAT, SPREAD, FLAT]), ([5, 6, 7, 8], [FLAT] * 4)]
    state, metrics = run(ExItConfig(num_prompts=B, admission="spread", reference_every=1, reference_mix=1.0), batches)
    assert int(state.params) == int(state.reference) == 1 + 3
    assert int(state.opt_state) == 2
    assert [row["admitted"] for row in metrics] == [0.5, 0.0]
    state, metrics = run(ExItConfig(num_prompts=B), batches)
    assert int(state.params) == 36
    assert "admitted" not in metrics[0]


def test_refilling_learns_from_whole_batches_and_updates_count():
    batches = [
        ([1, 2, 3, 4], [SPREAD, FLAT, SPREAD, SPREAD]),  # 1, 3, 4 wait
        ([5, 6, 7, 8], [FLAT, SPREAD, SPREAD, FLAT]),  # 1, 3, 4, 6 are learnt from, 7 waits
        ([9, 10, 11, 12], [FLAT] * 4),
        ([13, 14, 15, 16], [SPREAD] * 4),  # 7, 13, 14, 15
    ]
    config = ExItConfig(num_prompts=B, admission="spread", refill=True, reference_every=2, reference_mix=1.0)
    state, metrics = run(config, batches, pools.create(make_groups(np.zeros(B))))
    assert int(state.params) == 1 + 3 + 4 + 6 + 7 + 13 + 14 + 15
    after_two, _ = run(config, batches[:2], pools.create(make_groups(np.zeros(B))))
    assert (int(after_two.params), int(after_two.reference)) == (14, 0)
    assert int(state.reference) == int(state.params), "the reference follows every second update"
    assert int(state.opt_state) == 2
    assert [row["pool/waiting"] for row in metrics] == [3, 1, 1, 1]
    assert [row["pool/updates"] for row in metrics] == [0, 1, 1, 2]
    assert [row["grad_norm"] for row in metrics] == [0, 14, 0, 49]
    assert np.isnan([row["loss"] for row in metrics]).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"refill": True}, 'admission = "all": every group is admitted'),
        ({"admission": "band", "admission_band": (0.8, 0.2)}, "is not (low, high)"),
        ({"admission": "band", "admission_band": (0.2,)}, "is not (low, high)"),
        ({"refill": True, "admission": "spread", "self_distillation": 0.5}, "set one off"),
    ],
)
def test_faults(fields, message):
    assert any(message in fault for fault in ExItConfig(**fields).faults())
    assert not ExItConfig(refill=True, admission="spread").faults()
