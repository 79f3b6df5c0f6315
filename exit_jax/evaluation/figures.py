"""What held-out chains came to: the figures of ``evaluation.json``, in NumPy."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from exit_jax import domains
from exit_jax.config.schema import Config
from exit_jax.types import Array, History, pytree
from exit_jax.workdir import identity
from exit_jax.workdir.results import to_lists


@pytree
class Chains:
    """What the K + 1 responses of each of R chains came to."""

    quality: Array  # float32 [K + 1, R]
    unchanged: Array  # bool [K + 1, R]: the response left the answer as it was
    valid: Array  # bool [K + 1, R]
    complete: Array  # bool [K + 1, R]: the policy's own sign that it is done; False where the domain has none
    tokens: Array  # int32 [K + 1, R]: sampled
    mode: Array  # int32 [K + 1, R]
    notes: dict[str, Array]  # float32 [K + 1, R] by name: what else the domain's grading says
    history: History | None  # [K + 1, R]; None where the host has made texts of it already


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The chains of a split; of tasks of several turns, what episodes came to after k self-iterations on each turn."""

    chains: Chains  # without histories
    describe: Callable[[int], list[str]]  # number of a chain -> its K + 1 responses
    answers: list[list[str]] | None  # [K + 1][R]; None where the domain tells none
    feedback: Callable[[int], list[str]] | None = None  # number of a chain -> what was said of each response
    figures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # [K + 1, R] by name, of episodes


def task_names(about: Sequence[Mapping[str, str]]) -> list[str]:
    """Return what the domain calls each task of a split; nothing if it does not name them all."""
    names = [row["name"] for row in about if "name" in row]
    return names if len(names) == len(about) else []


def mean_of(splits: Sequence[dict]) -> dict:
    """Return the unweighted mean of splits' figures: lists over k, each a share of the split's tasks or a length."""
    first = splits[0]
    mean: dict[str, Any] = {"k": first["k"], "num_tasks": sum(figures["num_tasks"] for figures in splits)}
    shares = ("accuracy", "quality", "delta", "best_so_far", "best_quality", "stopped", "invalid", "tokens")
    mean |= _mean_lists(
        splits,
        (*shares, "quality_delta", "best_quality_delta", "improved", "worsened", "net_gains"),
        ("accuracy", "quality"),
    )
    rivals = {
        "restarts": ("best_so_far", "best_quality", "best_quality_delta", "tokens"),
        "greedy": ("accuracy", "quality", "quality_delta", "tokens"),
    }
    for rival, names in rivals.items():
        if all(rival in figures for figures in splits):
            inner = [figures[rival] for figures in splits]
            mean[rival] = _mean_lists(inner, names, [name for name in names if f"{name}_se" in inner[0]])
    for name in ("net_corrections", "corrected", "broken"):  # as a share of tasks, times their number, as in any split
        share = np.array([np.array(figures[name]) / figures["num_tasks"] for figures in splits]).mean(0)
        mean[name] = (share * mean["num_tasks"]).tolist()
    mean["net_corrections_sum"] = np.sum([figures["net_corrections_sum"] for figures in splits], axis=0).tolist()
    mean["num_too_long"] = sum(figures["num_too_long"] for figures in splits)
    return mean | {"samples_per_task": first["samples_per_task"], "settings": first["settings"]}


def _mean_lists(splits: Sequence[dict], names: Sequence[str], with_error: Sequence[str]) -> dict[str, list]:
    """Return the mean over splits of lists over k, and the error of the mean of those that have one."""
    table = lambda name: np.array([figures[name] for figures in splits], float)
    mean = {name: to_lists(table(name).mean(0)) for name in names}
    # standard errors of independent means add up in squares
    return mean | {
        f"{name}_se": to_lists(np.sqrt((table(f"{name}_se") ** 2).sum(0)) / len(splits)) for name in with_error
    }


def summarise(
    config: Config,
    outcome: Outcome,
    rival: Outcome | None,
    difficulty: Mapping[str, np.ndarray],
    search: Outcome | None = None,
    names: Sequence[str] = (),
    num_too_long: int = 0,
) -> dict:
    """Reduce the chains of a split to what is reported at each k.

    Lists run over ``k``. ``accuracy`` and ``quality`` are those of the last iterate, ``accuracy_se`` the standard error over
    tasks. ``best_so_far`` is the accuracy of an oracle that picks the best iterate; ``stopped`` that of stopping, without an
    oracle, at the first iterate that the policy's own sign calls done (null where the domain has no such sign).
    ``net_corrections`` = ``corrected`` - ``broken`` counts wrong→right and right→wrong changes between neighbouring iterates
    up to k, a mean over the samples of a task; ``net_corrections_sum``, which the paper reports (ExIt §5), counts those of all
    samples: n · M · Δ for n samples of M tasks. ``unchanged_right`` and ``unchanged_wrong`` are the shares of responses that
    left a right or wrong answer as it was, up to k (null where there was none). ``restarts`` is the rival at equal responses:
    chains that start over every ``eval.restart_every`` responses, by the same rules; where they do so after each response, its
    ``best_so_far`` is best-of-n by an oracle, and ``majority`` the most frequent answer's accuracy.

    Where quality is more than right or wrong: ``best_quality`` is the quality of the best so far, ``_delta`` the gain in a
    quality since k = 0. ``improved`` and ``worsened`` are the shares of steps up to k that raised or lowered the quality of
    what they started from, and ``net_gains`` their difference (null at k = 0). ``greedy`` is the search at equal responses:
    figures of the best so far, which is what it holds. ``notes`` are means of what else the grading said of the k-th
    responses. ``by_task`` has the qualities of each task that the domain names. ``_se`` are standard errors over tasks.
    ``num_too_long`` of the ``num_tasks`` did not fit into a prompt; all their figures are 0.
    """
    samples, quality = config.eval.samples_per_task, outcome.chains.quality
    at = lambda values: [float(values[k]) for k in config.eval.steps]  # [K + 1] -> list over k
    right, held = quality >= 1.0, np.maximum.accumulate(quality, axis=0)
    num_tasks = right.shape[1] // samples
    accuracy, accuracy_se = over_tasks(config, right)
    summary = {
        "k": list(config.eval.steps),
        "accuracy": accuracy,
        "accuracy_se": accuracy_se,
        **qualities(config, "quality", quality),
        **qualities(config, "best_quality", held),
        **gains(config, quality, quality),
        "delta": [value - float(right[0].mean()) for value in accuracy],
        **corrections(config, right),
        "best_so_far": at((held >= 1.0).mean(1)),
        **keeping(config, outcome.chains, right),
        "invalid": at(1.0 - outcome.chains.valid.mean(1)),
        **said(config, outcome.chains),
        "stopped": stopped(config, outcome.chains),
        "by_difficulty": {
            name: {
                level: {
                    "accuracy": at(right[:, np.tile(among, samples)].mean(1)),
                    "num_tasks": int(among.sum()),
                }
                for level, among in levels(np.asarray(values)).items()
            }
            for name, values in difficulty.items()
        },
        "figures": {name: at(values.mean(1)) for name, values in outcome.figures.items()},
        "num_tasks": num_tasks,
        "num_too_long": num_too_long,
        "samples_per_task": samples,
        "settings": identity.to_dict(config)["eval"],
    }
    found = {"quality": quality, "best_quality": held}
    if rival:
        found["restarts"] = best = np.maximum.accumulate(rival.chains.quality, axis=0)
        summary["restarts"] = {
            "every": config.eval.restart_every,
            "best_so_far": at((best >= 1.0).mean(1)),
            **qualities(config, "best_quality", best),
            **said(config, rival.chains),
            "stopped": stopped(config, rival.chains),
        }
        if config.eval.restart_every == 1 and rival.answers:
            summary["restarts"]["majority"] = at(_vote(rival).mean(1))
    if search:
        found["greedy"] = best = np.maximum.accumulate(search.chains.quality, axis=0)
        accuracy, accuracy_se = over_tasks(config, best >= 1.0)
        summary["greedy"] = {
            "accuracy": accuracy,
            "accuracy_se": accuracy_se,
            **qualities(config, "quality", best),
            **gains(config, best, search.chains.quality),
            **said(config, search.chains),
        }
    summary["by_task"] = {
        name: {kind: at(values[:, task::num_tasks].mean(1)) for kind, values in found.items()}
        for task, name in enumerate(names)
    }
    return summary


def said(config: Config, chains: Chains) -> dict:
    """Return how many tokens a chain has sampled up to k, and the means of what else the grading said of the k-th responses."""
    timings = domains.make(config.domain_name, config.domain).timings
    at = lambda values: [float(values[k]) for k in config.eval.steps]
    notes = {name: at(values.mean(1)) for name, values in chains.notes.items() if name not in timings}
    return {"tokens": at(np.cumsum(chains.tokens.mean(1))), "notes": notes}


def stopped(config: Config, chains: Chains) -> list[float | None]:
    """Return the accuracy of stopping by the policy's own sign; null where the domain has none."""
    if not domains.make(config.domain_name, config.domain).complete:
        return [None for _ in config.eval.steps]
    accuracy = _stop(chains).mean(1)
    return [float(accuracy[k]) for k in config.eval.steps]


def corrections(config: Config, right: Any) -> dict[str, Sequence[float]]:
    """Return how often neighbouring iterates went from wrong to right, and back, up to k, of ``right`` [K + 1, R]."""

    def counts(events):  # [K, R] -> those up to k
        total = np.concatenate([[0], np.cumsum(events.sum(1))])
        return [int(total[k]) for k in config.eval.steps]

    corrected, broken = counts(right[1:] & ~right[:-1]), counts(right[:-1] & ~right[1:])
    net = [up - down for up, down in zip(corrected, broken)]
    each = lambda total: [count / config.eval.samples_per_task for count in total]
    return {
        "net_corrections": each(net),
        "net_corrections_sum": net,
        "corrected": each(corrected),
        "broken": each(broken),
    }


def keeping(config: Config, chains: Chains, right: Any) -> dict[str, list[float | None]]:
    """Return the shares of responses up to k that left a right or a wrong answer as it was; null where there was none."""

    def share(among):
        hits, total = np.cumsum((chains.unchanged[1:] & among).sum(1)), np.cumsum(among.sum(1))
        return [float(hits[k - 1] / total[k - 1]) if k and total[k - 1] else None for k in config.eval.steps]

    return {"unchanged_right": share(right[:-1]), "unchanged_wrong": share(~right[:-1])}


def over_tasks(config: Config, values: Any) -> tuple[list, list]:
    """Return the mean of values [K + 1, R] at each k of ``eval.steps``, and its standard error over tasks."""
    steps, count = list(config.eval.steps), values.shape[1] // config.eval.samples_per_task
    per_task = values.reshape(len(values), config.eval.samples_per_task, count).mean(1)
    error = per_task.std(1, ddof=1) / np.sqrt(count) if count > 1 else np.full(len(values), np.nan)
    return to_lists(values.mean(1)[steps]), to_lists(error[steps])


def qualities(config: Config, name: str, quality: Any) -> dict[str, list]:
    """Return the figures of qualities [K + 1, R]: by name their mean, its error, and the gain since k = 0."""
    mean, error = over_tasks(config, quality)
    return {name: mean, f"{name}_se": error, f"{name}_delta": [value - float(quality[0].mean()) for value in mean]}


def gains(config: Config, held: Any, quality: Any) -> dict[str, list]:
    """Return the shares of steps up to k whose response is better or worse than what they started from, and the net.

    Args:
      held: quality of what chains held after each response [K + 1, R].
      quality: of the responses [K + 1, R].
    """
    ordinal = np.arange(1, len(quality))[:, None]
    change = quality[1:] - held[:-1]
    events = {"improved": change > 0, "worsened": change < 0, "net_gains": np.sign(change)}
    figures = {}
    for name, values in events.items():
        share = np.concatenate([np.full_like(quality[:1], np.nan), np.cumsum(values, axis=0) / ordinal])
        figures[name], error = over_tasks(config, share)
        if name == "net_gains":
            figures["net_gains_se"] = error
    return figures


def levels(values: np.ndarray, most: int = 8) -> dict[str, np.ndarray]:
    """Return bool [M] by level; more than ``most`` levels are put together in ranges of about equally many tasks."""
    distinct = np.unique(values)
    if distinct.size <= most:
        return {str(level): values == level for level in distinct}
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 5), method="lower"))
    edges[-1] += 1
    return {
        f"{low}-{high - 1}" if high - 1 > low else str(low): (values >= low) & (values < high)
        for low, high in itertools.pairwise(edges)
    }


def _vote(rival: Outcome) -> np.ndarray:
    """Return bool [K + 1, R]: is the most frequent answer among a chain's first k + 1 right? The earliest of ties counts."""
    assert rival.answers is not None
    right = rival.chains.quality >= 1.0
    won = np.zeros_like(right)
    for r in range(right.shape[1]):
        count, first = Counter(), {}
        for k, answers in enumerate(rival.answers):
            if answers[r]:
                count[answers[r]] += 1
                first.setdefault(answers[r], k)
            if count:
                won[k, r] = right[first[count.most_common(1)[0][0]], r]
    return won


def _stop(chains: Chains) -> np.ndarray:
    """Return bool [K + 1, R]: is the first iterate up to k that calls itself complete right, or else the k-th?"""
    right = np.asarray(chains.quality >= 1.0)
    done = np.maximum.accumulate(chains.complete, axis=0)
    first = np.argmax(chains.complete, axis=0)
    at_first = np.take_along_axis(right, first[None], axis=0)
    return np.where(done, at_first, right)
