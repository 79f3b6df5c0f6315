"""Statistics of comparisons over seeds: paired intervals, interquartile means, bootstraps, Holm's correction.

Aggregates are rliable's (Agarwal et al. 2021, arXiv 2108.13264): interquartile means and probabilities of improvement, with
intervals by a bootstrap that is stratified over tasks. Scores are lists of arrays, one a task, of a score a seed [seeds].
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 50_000  # rliable's default
LEVEL = 0.95

Scores = Sequence[np.ndarray]  # a task's scores [seeds], for each task


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and the 95% interval around it; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Paired:
    """A mean difference over seeds, half the width of its 95% interval, and the p-value of no difference (Student's t)."""

    mean: float
    half_width: float
    p: float
    num_seeds: int

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.half_width


def paired(differences: np.ndarray) -> Paired:
    """Return what differences [seeds] of the same seeds say; of fewer than two the width and p are NaN."""
    from scipy import stats  # a second of import

    count = len(differences)
    mean = float(differences.mean()) if count else np.nan
    if count < 2:
        return Paired(mean, np.nan, np.nan, count)
    error = float(differences.std(ddof=1)) / count**0.5
    if error == 0:  # all differences are equal, as of two names for one method
        return Paired(mean, 0.0, float(mean == 0), count)
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    return Paired(mean, float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error, p, count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's step-down (1979); NaN stays NaN, and is not counted."""
    p = np.asarray(p_values, float)
    order = [int(i) for i in np.argsort(p) if np.isfinite(p[i])]
    adjusted, largest = np.full(p.shape, np.nan), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted.tolist()


def interquartile_mean(scores: Scores) -> Interval:
    """Return the mean of the middle half of all scores, of tasks and seeds alike, with its stratified bootstrap interval."""
    return _bootstrap(lambda drawn: _trimmed_mean(np.concatenate(drawn, axis=-1)), scores)


def probability_of_improvement(scores: Scores, others: Scores) -> Interval:
    """Return how likely a seed's score is above one of the others', ties for a half, averaged over tasks; with its interval."""

    def value(drawn: list[np.ndarray]) -> np.ndarray:
        pairs = zip(drawn[: len(scores)], drawn[len(scores) :])
        difference = [np.sign(x[..., :, None] - y[..., None, :]).mean((-2, -1)) for x, y in pairs]
        return 0.5 + 0.5 * np.mean(difference, axis=0)

    return _bootstrap(value, [*scores, *others])


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of seeds with a score above each threshold [n], averaged over tasks: float [n]."""
    return np.mean([(task[:, None] > thresholds).mean(0) for task in scores], axis=0)


def _trimmed_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis without the lowest and the highest quarter, rounded down, as SciPy's trim_mean."""
    count = values.shape[-1]
    cut = int(0.25 * count)
    return np.sort(values, axis=-1)[..., cut : count - cut].mean(-1)


def _bootstrap(value, scores: Scores) -> Interval:
    """Return a figure of scores and its percentile interval under draws of each task's seeds with replacement."""
    if min(map(len, scores)) < 2:
        return Interval(float(value(list(scores))), np.nan, np.nan)
    rng, found = np.random.default_rng(0), []
    for _ in range(10):  # a tenth at a time: all pairs of 30 seeds and 50,000 draws would be 360 MB
        drawn = [task[rng.integers(len(task), size=(NUM_RESAMPLES // 10, len(task)))] for task in scores]
        found.append(value(drawn))
    low, high = np.quantile(np.concatenate(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value(list(scores))), float(low), float(high))
