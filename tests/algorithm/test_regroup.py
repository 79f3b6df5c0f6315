"""Groups that take the places of others, against a heap in plain Python, and what is drawn against its law."""

import dataclasses
import heapq
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_admission import make_groups

from exit_jax.algorithm import regroup
from exit_jax.algorithm.settings import ExItConfig

B, G, P, T, K = 4, 3, 5, 6, 5


def numbered(rng, first, *widths):
    """Return groups [B] that say their numbers, of rewards that differ in about half of them, with advantages."""
    number = first + np.arange(B)
    reward = rng.uniform(size=(B, G)) * (rng.uniform(size=(B, 1)) < 0.5) + 0.25
    advantage = (reward - reward.mean(1, keepdims=True)) / (reward.std(1, keepdims=True) + 1e-6)
    new = {"reward": jnp.float32(reward), "advantage": jnp.float32(advantage)}
    return number, dataclasses.replace(make_groups(number, *widths), **new)


def test_the_places_are_a_heap_of_the_highest_scores():
    rng, exchange = np.random.default_rng(0), jax.jit(regroup.exchange)
    kept, heap = regroup.create(make_groups(np.zeros(B)), K), []
    told, many = 0, set()
    for step in range(30):
        widths = (P, T) if step % 2 else (P - 2, T - 1)  # a batch may be cut to narrower buckets
        number, groups = numbered(rng, 1 + step * B, *widths)
        kept, learnt, metrics = exchange(kept, groups, jax.random.key(step))
        reward, differ = np.asarray(groups.reward), np.asarray(groups.reward).std(1) > 0
        score = np.abs(np.asarray(groups.advantage)).sum(1) * reward.std(1)
        for one, name, yes in zip(score.tolist(), number.tolist(), differ, strict=True):
            if yes and len(heap) < K:
                heapq.heappush(heap, (one, name))
            elif yes and one > heap[0][0]:
                heapq.heapreplace(heap, (one, name))
        full = np.asarray(kept.score) > 0
        assert set(np.asarray(kept.groups.prompt_length)[full].tolist()) == {name for _, name in heap}
        np.testing.assert_allclose(sorted(np.asarray(kept.score)[full]), sorted(one for one, _ in heap), rtol=1e-4)
        now = np.asarray(learnt.prompt_length)
        assert learnt.rollouts.tokens.shape == (B, G, T)
        assert now[differ].tolist() == number[differ].tolist(), "groups with an advantage stay"
        for array in (learnt.prompt[:, 0], learnt.rollouts.tokens[:, 0, 0], learnt.rollouts.logp[:, 0, 0]):
            np.testing.assert_array_equal(array, now)
        if not heap:
            assert now.tolist() == number.tolist()
            continue
        drawn = now[~differ].tolist()
        assert set(drawn) <= {name for _, name in heap}
        assert len(drawn) > len(heap) or len(set(drawn)) == len(drawn), "none twice while there are enough"
        for row, name in enumerate(now.tolist()):  # what it was paid comes with it
            place = np.flatnonzero(np.asarray(kept.groups.prompt_length) == name)
            if not differ[row]:
                np.testing.assert_array_equal(learnt.advantage[row], kept.groups.advantage[place[0]])
                np.testing.assert_array_equal(learnt.reward[row], kept.groups.reward[place[0]])
        assert metrics["regroup/replaced"] == (~differ).mean()
        assert metrics["regroup/kept"] == len(heap)
        told, many = told + len(drawn), many | set(drawn)
    assert told > 40
    assert len(many) > K


def test_of_equal_scores_the_older_stays():
    reward = jnp.array([[0.0, 1.0]] * 3)
    groups = lambda first: dataclasses.replace(
        make_groups(first + np.arange(3)), reward=reward, advantage=2 * reward - 1
    )
    kept = regroup.create(groups(0), 2)
    for first in (1, 4):
        kept, _, _ = regroup.exchange(kept, groups(first), jax.random.key(0))
        assert kept.groups.prompt_length.tolist() == [1, 2]
        np.testing.assert_allclose(kept.score, [1.0, 1.0])  # |-1| + |1|, times a half


@pytest.mark.parametrize(("count", "score"), [(2, [1.0, 3.0, 0.0, 6.0]), (3, [1.0, 0.0, 3.0])])
def test_draws_follow_the_scores(count, score):
    """In proportion one after the other, without what was drawn; by themselves where there are too few."""
    score = np.array(score)
    drawn = jax.vmap(lambda key: regroup.draw(jnp.float32(score), jnp.int32(count), 3, key))(
        jax.random.split(jax.random.key(0), 20000)
    )
    found = {}
    for row in np.asarray(drawn)[:, :count].tolist():
        found[tuple(row)] = found.get(tuple(row), 0) + 1 / 20000
    alone = count > (score > 0).sum()
    for row in itertools.product(range(len(score)), repeat=count):
        due, left = 1.0, score.copy()
        for one in row:
            due *= left[one] / left.sum()
            left[one] = left[one] if alone else 0.0
        assert found.get(row, 0.0) == pytest.approx(due, abs=0.02), row


@pytest.mark.parametrize("fields", [{"recompute_logp": True}, {"self_distillation": 0.5}])
def test_faults(fields):
    assert any("that it was sampled with" in fault for fault in ExItConfig(regroup=4, **fields).faults())
    assert not ExItConfig(regroup=4).faults()
