"""The figures of ``evaluation.json``: what scaffolds report, put together from the arithmetic here, in NumPy.

Lists run over ``k`` of ``eval.steps``, with null for what is undefined; ``_se`` are standard errors over tasks, and ``_delta``
gains since k = 0.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exit_jax.evaluation.outcome import Chains, Outcome, Split, Table
from exit_jax.workdir.evaluation import COUNTS, TOTALS, to_lists

Series = list[float | None]  # a value at each k
MAX_LEVELS = 8  # levels of a difficulty; more of them are put together in ranges


def at_steps(split: Split, values: Table) -> list[float]:
    """Return values [K + 1] at each k of ``eval.steps``."""
    return [float(values[k]) for k in split.steps]


def over_tasks(split: Split, values: np.ndarray) -> tuple[Series, Series]:
    """Return the mean of values [K + 1, R] at each k of ``eval.steps``, and its standard error over tasks."""
    steps, samples = split.steps, split.settings.samples_per_task
    count = values.shape[1] // samples
    per_task = values.reshape(len(values), samples, count).mean(1)
    error = per_task.std(1, ddof=1) / np.sqrt(count) if count > 1 else np.full(len(values), np.nan)
    return to_lists(values.mean(1)[steps]), to_lists(error[steps])


def with_error(split: Split, name: str, values: np.ndarray) -> dict[str, Series]:
    """Return the mean of values [K + 1, R] by ``name``, and its standard error."""
    mean, error = over_tasks(split, values)
    return {name: mean, f"{name}_se": error}


def qualities(split: Split, name: str, quality: np.ndarray) -> dict[str, Series]:
    """Return the figures of qualities [K + 1, R]: by name their mean, its error, and the gain since k = 0."""
    mean, error = over_tasks(split, quality)
    first = float(quality[0].mean())
    gain: Series = [None if value is None else value - first for value in mean]
    return {name: mean, f"{name}_se": error, f"{name}_delta": gain}


def sampled_rows(chains: Chains) -> np.ndarray:
    """Return which rows after the first hold responses of their own, bool [K, 1]."""
    return np.ones((len(chains.quality) - 1, 1), bool) if chains.sampled is None else chains.sampled[1:, None]


def gains(split: Split, chains: Chains, held: np.ndarray) -> dict[str, Series]:
    """Return the shares of steps up to k whose response is better or worse than what they started from, and the net.

    Args:
      held: quality of what chains held after each response [K + 1, R].
    """
    quality = np.asarray(chains.quality)
    ordinal = np.maximum(np.cumsum(sampled_rows(chains), axis=0), 1)
    change = quality[1:] - held[:-1]
    events = {"improved": change > 0, "worsened": change < 0, "net_gains": np.sign(change)}
    figures = {}
    for name, values in events.items():
        share = np.concatenate([np.full_like(quality[:1], np.nan), np.cumsum(values, axis=0) / ordinal])
        figures[name], error = over_tasks(split, share)
        if name == "net_gains":
            figures["net_gains_se"] = error
    return figures


def corrections(split: Split, right: np.ndarray) -> dict[str, list]:
    """Return how often neighbouring iterates went from wrong to right, and back, up to k, of ``right`` [K + 1, R]."""

    def count(events: np.ndarray) -> list[int]:  # [K, R] -> those up to k
        total = np.concatenate([[0], np.cumsum(events.sum(1))])
        return [int(total[k]) for k in split.steps]

    def mean_over_samples(total: Sequence[int]) -> list[float]:
        return [value / split.settings.samples_per_task for value in total]

    corrected, broken = count(right[1:] & ~right[:-1]), count(right[:-1] & ~right[1:])
    net = [up - down for up, down in zip(corrected, broken)]
    return {
        "net_corrections": mean_over_samples(net),
        "net_corrections_sum": net,
        "corrected": mean_over_samples(corrected),
        "broken": mean_over_samples(broken),
    }


def unchanged(split: Split, chains: Chains, right: np.ndarray) -> dict[str, Series]:
    """Return the shares of responses up to k that left a right or a wrong answer as it was; null where there was none."""

    def share(among: np.ndarray) -> Series:
        among = among & sampled_rows(chains)
        hits, total = np.cumsum((chains.unchanged[1:] & among).sum(1)), np.cumsum(among.sum(1))
        return [float(hits[k - 1] / total[k - 1]) if k and total[k - 1] else None for k in split.steps]

    return {"unchanged_right": share(right[:-1]), "unchanged_wrong": share(~right[:-1])}


def spent(split: Split, chains: Chains) -> dict[str, Any]:
    """Return how many tokens a chain has sampled up to k, and the means of what else the grading says of the k-th responses."""
    notes = {name: values for name, values in chains.notes.items() if name not in split.domain.timings}
    return {
        "tokens": at_steps(split, np.cumsum(chains.tokens.mean(1))),
        "notes": {name: at_steps(split, values.mean(1)) for name, values in notes.items()},
    }


def stopped(split: Split, chains: Chains) -> Series:
    """Return the accuracy of the first iterate up to k that calls itself complete, or else of the k-th.

    The policy's own sign asks no oracle; null where the domain has none.
    """
    if not split.domain.complete:
        return [None for _ in split.steps]
    right = np.asarray(chains.quality >= 1.0)
    done = np.maximum.accumulate(chains.complete, axis=0)
    first = np.argmax(chains.complete, axis=0)
    at_first = np.take_along_axis(right, first[None], axis=0)
    return [*at_steps(split, np.where(done, at_first, right).mean(1))]


def by_task(split: Split, **values: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Return the means of values [K + 1, R], by name, of each task that the domain names."""
    num_tasks = len(split.names)
    return {
        task: {name: at_steps(split, table[:, place::num_tasks].mean(1)) for name, table in values.items()}
        for place, task in enumerate(split.names)
    }


def by_difficulty(split: Split, right: np.ndarray) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the accuracy and the number of tasks at each level of each difficulty that the domain tells."""

    def figures(among: np.ndarray) -> dict[str, Any]:
        rows = np.tile(among, split.settings.samples_per_task)
        return {"accuracy": at_steps(split, right[:, rows].mean(1)), "num_tasks": int(among.sum())}

    return {
        name: {level: figures(among) for level, among in levels(np.asarray(values)).items()}
        for name, values in split.difficulty.items()
    }


def by_category(split: Split, right: np.ndarray, quality: np.ndarray) -> dict[str, dict[str, dict[str, Any]]]:
    """Return accuracy, quality and number of tasks of each category of tasks that the domain tells."""

    def figures(among: np.ndarray) -> dict[str, Any]:
        rows = np.tile(among, split.settings.samples_per_task)
        of_rows = lambda values: at_steps(split, values[:, rows].mean(1))
        return {"accuracy": of_rows(right), "quality": of_rows(quality), "num_tasks": int(among.sum())}

    return {
        name: {category: figures(np.array(values) == category) for category in sorted(set(values))}
        for name, values in split.category.items()
    }


def levels(values: np.ndarray) -> dict[str, np.ndarray]:
    """Return bool [M] by level; more than MAX_LEVELS are put together in ranges of about equally many tasks.

    >>> list(levels(np.arange(12))), list(levels(np.arange(12) / 4))
    (['0-1', '2-4', '5-7', '8-11'], ['0 to 0.5', '0.5 to 1.25', '1.25 to 2', '2 to 2.75'])
    """
    distinct = np.unique(values)
    if distinct.size <= MAX_LEVELS:
        return {str(level): values == level for level in distinct}
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 5), method="lower"))
    if not np.issubdtype(values.dtype, np.integer):  # a range ends before the next, the last one with the largest value
        return {
            f"{low:.10g} to {high:.10g}": (values >= low) & ((values < high) | (high == edges[-1]))
            for low, high in itertools.pairwise(edges)
        }
    edges[-1] += 1
    return {
        f"{low}-{high - 1}" if high - 1 > low else str(low): (values >= low) & (values < high)
        for low, high in itertools.pairwise(edges)
    }


def majority(split: Split, outcome: Outcome) -> dict[str, list[float]]:
    """Return the accuracy of the most frequent answer among a chain's first k + 1; nothing where the domain tells none."""
    return {"majority": at_steps(split, vote(outcome).mean(1))} if outcome.answers else {}


def vote(outcome: Outcome) -> np.ndarray:
    """Return bool [K + 1, R]: is the most frequent answer among a chain's first k + 1 right? The earliest of ties counts."""
    assert outcome.answers is not None
    right = np.asarray(outcome.chains.quality >= 1.0)
    won = np.zeros_like(right)
    for r in range(right.shape[1]):
        count, first = Counter(), {}
        for k, answers in enumerate(outcome.answers):
            if answers[r]:
                count[answers[r]] += 1
                first.setdefault(answers[r], k)
            if count:
                won[k, r] = right[first[count.most_common(1)[0][0]], r]
    return won


def pass_at(right: np.ndarray, most: int) -> np.ndarray:
    """Return the unbiased estimate of pass@j, float [most, M] for j = 1 ... most, of n independent responses ``right`` [n, M].

    The share of sets of j responses with a right one among them, 1 - C(n - c, j) / C(n, j) where c of the n are right (Chen et
    al. 2021, eq. 1). Of n = 3 with c = 1 it is 1/3, 2/3, 1.
    """
    total = len(right)
    table = [
        [1.0 - math.comb(total - c, j) / math.comb(total, j) for c in range(total + 1)] for j in range(1, most + 1)
    ]
    return np.array(table)[:, right.sum(0)]


def best_at(quality: np.ndarray, most: int) -> np.ndarray:
    """Return the unbiased estimate of the best quality of j responses, float [most, M] for j = 1 ... most, of quality [n, M].

    The mean over sets of j responses: the i-th lowest of the n is the best of C(i - 1, j - 1) of the C(n, j) sets. Of
    qualities 0 and 1 it equals ``pass_at``.
    """
    total = len(quality)
    weight = [[math.comb(i, j - 1) / math.comb(total, j) for i in range(total)] for j in range(1, most + 1)]
    return np.array(weight) @ np.sort(quality.astype(float), axis=0)


def mean_of(splits: Sequence[dict]) -> dict[str, Any]:
    """Return the unweighted mean of splits' figures: of each scaffold, what is a list over k in all of them."""
    first, sizes = splits[0], np.array([[figures["num_tasks"]] for figures in splits])
    together = [name for name in first["scaffolds"] if all(name in figures["scaffolds"] for figures in splits)]
    return {
        "k": first["k"],
        "num_tasks": int(sizes.sum()),
        "num_too_long": sum(figures["num_too_long"] for figures in splits),
        "samples_per_task": first["samples_per_task"],
        "scaffolds": {
            name: _mean_entry([figures["scaffolds"][name] for figures in splits], sizes) for name in together
        },
    }


def _mean_entry(entries: Sequence[Mapping[str, Any]], sizes: np.ndarray) -> dict[str, Any]:
    """Return the mean of a scaffold's figures over splits of ``sizes`` [splits, 1] tasks, and scalars that all agree on."""
    mean = {}
    for name, value in entries[0].items():
        if any(name not in entry for entry in entries):
            continue
        if not isinstance(value, list):
            if not isinstance(value, dict) and all(entry[name] == value for entry in entries):
                mean[name] = value
        elif name in TOTALS:
            mean[name] = np.sum([entry[name] for entry in entries], axis=0).tolist()
        else:
            table = np.array([entry[name] for entry in entries], float)  # null is NaN
            if name in COUNTS:  # a mean share of the tasks, times their number, as in any split
                mean[name] = ((table / sizes).mean(0) * sizes.sum()).tolist()
            elif name.endswith("_se"):  # errors of independent means add up in squares
                mean[name] = to_lists(np.sqrt((table**2).sum(0)) / len(entries))
            else:
                mean[name] = to_lists(table.mean(0))
    return mean
