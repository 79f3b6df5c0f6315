"""Scaffolds: the ways to spend K + 1 responses a chain that are compared at equal numbers of responses (ExIt §5).

A scaffold is a row: what each response starts from, what is kept of it, and what is reported. One of your own is a row in a
file of yours, which ``eval.scaffolds`` names as ``file.py:ROW`` or ``module:ROW``; nothing else knows which rows there are.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax import plugins
from exit_jax.config.schema import EvalConfig
from exit_jax.errors import ConfigError
from exit_jax.evaluation import figures
from exit_jax.evaluation.outcome import Outcome, Split
from exit_jax.types import Array, History


@dataclasses.dataclass(frozen=True)
class Scaffold:
    """How a chain starts, what it keeps, and what is reported.

    ``start`` and ``keep`` are traced where a domain is graded on the device, and called with NumPy histories where it is graded
    on the host.
    """

    name: str  # key in evaluation.json; responses are stored in answers/<split>-<name>.jsonl
    about: str  # one sentence for those who read evaluation.json
    stream: int  # number folded into the evaluation's key: no other scaffold has it, so that each samples independently
    # (settings, base tasks [R], what is held [R], ordinal k from 0) -> histories [R] that the k-th responses start from
    start: Callable[[EvalConfig, History, History, Array | int], History]
    keep: Callable[[History, History], History]  # (what the response started from, what it led to) [R] -> what is held
    # figures by name: lists over k of eval.steps, or what goes with them
    reported: Callable[[Split, Outcome], dict[str, Any]]
    # settings -> what tells stored responses from those of another recipe; None: the name, which you change with the row
    recipe: Callable[[EvalConfig], dict[str, Any]] | None = None
    saved: bool = False  # whether chains.jsonl has some of its chains, for people to read
    # quality [K + 1, R] -> which response each one started from, -1 for the base task; None: the one before
    parents: Callable[[np.ndarray], np.ndarray] | None = None


def from_held(settings: EvalConfig, tasks: History, held: History, k: Array | int) -> History:
    """Go on from what is held."""
    return held


def from_task(settings: EvalConfig, tasks: History, held: History, k: Array | int) -> History:
    """Begin with the base task every time."""
    return tasks


def from_task_again(settings: EvalConfig, tasks: History, held: History, k: Array | int) -> History:
    """Go on from what is held, and begin with the base task after every ``eval.restart_every`` responses."""
    return jax.tree.map(lambda base, now: jnp.where(k % settings.restart_every == 0, base, now), tasks, held)


def newest(held: History, child: History) -> History:
    """Keep the newest response, whatever it is worth."""
    return child


def better(held: History, child: History) -> History:
    """Keep the better of what was held and the newest response, which counts where they tie and where none was held.

    Which solution a step of the search starts from is this project's choice (ExIt §5 names the scaffold only).
    """
    stays = (held.step >= 0) & (held.quality > child.quality)

    def choose(old, new):
        return jnp.where(stays.reshape(stays.shape + (1,) * (new.ndim - stays.ndim)), old, new)

    return jax.tree.map(choose, held, child)


def parents_of_better(quality: np.ndarray) -> np.ndarray:
    """Return which response each response of greedy searches started from, int [K + 1, R]; -1 for the base task."""
    at, best = np.full(quality.shape, -1), np.zeros(quality.shape[1:], int)
    for k in range(1, len(quality)):
        at[k] = best
        improved = quality[k] >= np.take_along_axis(quality, best[None], axis=0)[0]
        best = np.where(improved, k, best)
    return at


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


def report_greedy(split: Split, outcome: Outcome) -> dict[str, Any]:
    """Return the figures of the best so far, which a greedy search holds and which ``improved`` and ``worsened`` compare to."""
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


CHAIN = Scaffold(
    name="chain",
    about="each step sees the request and the newest response only; the last response counts",
    stream=0,
    start=from_held,
    keep=newest,
    reported=report_chain,
    recipe=lambda settings: {"every": max(settings.steps) + 1},
    saved=True,
)
RESTARTS = Scaffold(
    name="restarts",
    about="chains that begin anew after every eval.restart_every responses; an oracle picks the best response so far",
    stream=1,
    start=from_task_again,
    keep=newest,
    reported=report_restarts,
    recipe=lambda settings: {"every": settings.restart_every},
)
GREEDY = Scaffold(
    name="greedy",
    about="a search: each step goes on from the best response so far, by the score that is reported",
    stream=2,
    start=from_held,
    keep=better,
    reported=report_greedy,
    recipe=lambda settings: {"greedy": True},
    saved=True,
    parents=parents_of_better,
)
BEST_OF_N = Scaffold(
    name="best_of_n",
    about="independent responses to the base task: k + 1 of them, the best by an oracle or the answer that most of them give",
    stream=3,
    start=from_task,
    keep=newest,
    reported=report_best_of_n,
)
SCAFFOLDS = {row.name: row for row in (CHAIN, RESTARTS, GREEDY, BEST_OF_N)}


def chosen(settings: EvalConfig) -> tuple[Scaffold, ...]:
    """Return the scaffolds that an evaluation runs: the plain chain first, then its rivals.

    Raises:
      UserError: if ``eval.scaffolds`` names one that there is not, or two that would share a name or their keys.
    """
    rivals = [RESTARTS] * (settings.restart_every > 0) + [GREEDY] * settings.greedy
    rows = [CHAIN, *rivals, *map(find, settings.scaffolds)]
    for field in ("name", "stream"):
        values = [getattr(row, field) for row in rows]
        if twice := [value for value in values if values.count(value) > 1]:
            raise ConfigError(
                f"eval.scaffolds = {settings.scaffolds}: {values.count(twice[0])} scaffolds have {field} = {twice[0]!r}; "
                "give each its own"
            )
    return tuple(rows)


@functools.cache
def find(name: str) -> Scaffold:
    """Return the scaffold of a name, or the row of ``file.py:ROW`` or ``module:ROW``.

    Raises:
      ConfigError: if there is none.
      PluginError: if its module cannot be imported.
    """
    further = [known for known in SCAFFOLDS if known not in ("chain", "restarts", "greedy")]
    if name in further:
        return SCAFFOLDS[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, further, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if name in SCAFFOLDS:
            hint = (
                "; the plain chain always runs, and eval.restart_every and eval.greedy ask for restarts and the search"
            )
        raise ConfigError(
            f"eval.scaffolds: {name!r} is none of {', '.join(further)}, nor a row of your own, named file.py:ROW or "
            f"module:ROW{hint}"
        )
    module, row = plugins.load("eval.scaffolds", name)
    held = vars(module)
    if not isinstance(held.get(row), Scaffold):
        rows = ", ".join(key for key, value in held.items() if isinstance(value, Scaffold)) or "none"
        raise ConfigError(f"eval.scaffolds = {name!r}: {module.__file__} has no Scaffold named {row}; its rows: {rows}")
    return held[row]
