"""The reservoir of what training started from: fair, and of solutions alone."""

import jax
import numpy as np
from scipy import stats

from exit_jax.algorithm import starts as starting

add = jax.jit(starting.add)


def test_few_starts_are_all_kept(make_history):
    starts = starting.create(4)
    for i in range(3):
        starts = add(starts, make_history(4, step=[0, -1, 2, -1], task=10 * i + np.arange(4)), jax.random.key(i))
    held = np.asarray(starts.lot) >= 0
    assert sorted(np.asarray(starts.history.task)[held]) == [0, 2, 10, 12, 20, 22]
    assert (np.asarray(starts.history.step)[held] >= 0).all()


def test_of_many_starts_each_is_kept_as_often_as_the_others(make_history):
    """Sixteen batches of 64, 40 times over: a quarter of all stays, whichever batch a start was in."""
    counts = np.zeros(16)
    for trial in range(40):
        starts = starting.create(4)
        for i in range(16):
            key = jax.random.fold_in(jax.random.key(trial), i)
            starts = add(starts, make_history(64, step=0, task=np.full(64, i), id=np.arange(64)), key)
        kept = np.asarray(starts.history.task)
        assert len(set(zip(kept.tolist(), np.asarray(starts.history.id).tolist()))) == starting.SIZE, "none twice"
        counts += np.bincount(kept, minlength=16)
    expected = 40 * starting.SIZE / 16
    assert ((counts - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.9999, 15)
