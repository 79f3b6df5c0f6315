"""What scaffolds report, from the arithmetic of figures.py."""

from typing import Any

import numpy as np

from exit_jax.evaluation import figures
from exit_jax.evaluation.outcome import Outcome, Split


def report_chain(split: Split, outcome: Outcome) -> dict[str, Any]:
    """Return the figures of plain chains.

    ``accuracy`` and ``quality`` are those of the last iterate. ``best_so_far`` is the accuracy of an oracle that picks the best
    iterate, and ``best_quality`` its quality; ``stopped`` the accuracy of stopping, without an oracle, at the first iterate
    that the policy's own sign calls done. ``net_corrections`` = ``corrected`` - ``broken`` counts wrong→right and right→wrong
    changes between neighbouring iterates up to k, a mean over the samples of a task; ``net_corrections_sum``, which the paper
    reports (ExIt §5), counts those of all samples: n · M · Δ for n samples of M tasks. ``unchanged_right`` and
    ``unchanged_wrong`` are the shares of responses up to k that left a right or wrong answer as it was. ``improved`` and
    ``worsened`` are the shares of steps up to k that raised or lowered the quality, and ``net_gains`` their difference.
    """
    chains = outcome.chains
    quality = np.asarray(chains.quality)
    right, best = quality >= 1.0, np.maximum.accumulate(quality, axis=0)
    first = float(right[0].mean())
    return {
        **figures.with_error(split, "accuracy", right),
        "delta": [value - first for value in figures.at_steps(split, right.mean(1))],
        **figures.qualities(split, "quality", quality),
        "best_so_far": figures.at_steps(split, (best >= 1.0).mean(1)),
        **figures.qualities(split, "best_quality", best),
        "stopped": figures.stopped(split, chains),
        **figures.corrections(split, right),
        **figures.unchanged(split, chains, right),
        **figures.gains(split, chains, quality),
        "invalid": figures.at_steps(split, 1.0 - chains.valid.mean(1)),
        **figures.spent(split, chains),
        "by_difficulty": figures.by_difficulty(split, right),
        "by_category": figures.by_category(split, right, quality),
        "by_task": figures.by_task(split, quality=quality, best_quality=best),
        "figures": {name: figures.at_steps(split, values.mean(1)) for name, values in outcome.figures.items()},
    }


def report_restarts(split: Split, outcome: Outcome) -> dict[str, Any]:
    """Return the figures of chains that start over, by the rules of ``report_chain``.

    Where they do so after each response, ``best_so_far`` is best-of-n by an oracle, and ``majority`` the accuracy of a vote.
    """
    best = np.maximum.accumulate(np.asarray(outcome.chains.quality), axis=0)
    independent = split.settings.restart_every == 1
    return {
        "every": split.settings.restart_every,
        "best_so_far": figures.at_steps(split, (best >= 1.0).mean(1)),
        **figures.qualities(split, "best_quality", best),
        "stopped": figures.stopped(split, outcome.chains),
        **(figures.majority(split, outcome) if independent else {}),
        **figures.spent(split, outcome.chains),
        "by_task": figures.by_task(split, best_quality=best),
    }


def report_search(split: Split, outcome: Outcome) -> dict[str, Any]:
    """Return the figures of the best so far: what a search returns, and what ``improved`` and ``worsened`` compare to."""
    quality = np.asarray(outcome.chains.quality)
    best = np.maximum.accumulate(quality, axis=0)
    return {
        **figures.with_error(split, "accuracy", best >= 1.0),
        **figures.qualities(split, "quality", best),
        **figures.gains(split, outcome.chains, best),
        **figures.spent(split, outcome.chains),
        "by_task": figures.by_task(split, quality=best),
    }


def report_best_of_n(split: Split, outcome: Outcome) -> dict[str, Any]:
    """Return the figures of k + 1 independent responses: the best of them by an oracle and, where there are answers, a vote.

    ``pass_at_k`` and ``best_quality`` are unbiased estimates from all ``num_responses`` of a task, those of its samples
    together: pass@(k + 1), as k counts from 0. ``majority`` is of the first k + 1 responses of each sample.
    """
    samples, quality = split.settings.samples_per_task, np.asarray(outcome.chains.quality)
    most = len(quality)  # K + 1
    pooled = quality.reshape(most * samples, -1)  # [K + 1, n, M] -> [(K + 1) · n, M]
    # [K + 1, M] -> [K + 1, R]: an estimate is the same for all samples of a task
    passed = np.tile(figures.pass_at(pooled >= 1.0, most), (1, samples))
    best = np.tile(figures.best_at(pooled, most), (1, samples))
    return {
        "num_responses": len(pooled),
        **figures.with_error(split, "pass_at_k", passed),
        **figures.majority(split, outcome),
        **figures.qualities(split, "best_quality", best),
        **figures.spent(split, outcome.chains),
        "by_task": figures.by_task(split, best_quality=best),
    }
