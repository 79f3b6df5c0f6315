"""Figures of evaluations whose quality is a score and not only right or wrong, as in ML engineering (ExIt Fig. 5, 9 and 10).

Three ways to spend the same number of responses are compared by their best so far: the plain chain, the greedy search, which
goes on from it, and chains that start over; these take an oracle. The plain chain's last response does not, and stands out.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from exit_jax.report.plots import (
    PALE_BLUE,
    PALE_VERMILLION,
    STEP,
    WIDTH,
    Plot,
    add_legend,
    describe_bands,
    draw_by_k,
    draw_zero,
    new_figure,
    plot_by_k,
    style,
)
from exit_jax.report.runs import Groups, Run, all_runs, by_k, mean_std
from exit_jax.report.tables import CHAIN, CHAIN_BEST, known_scaffolds, scored_splits
from exit_jax.workdir.evaluation import chain_of

MAX_TASKS = 12  # panels


def score_by_k(groups: Groups) -> Plot:
    """Plot the score by k on each split, a line a scaffold; of several groups, a row a scaffold and a line a group.

    What an oracle has picked is drawn dashed; a plain chain's last response is not.
    """
    splits = scored_splits(groups)
    if not splits:
        return None
    scaffolds, single = known_scaffolds(groups, splits), len(groups) == 1
    rows = [list(scaffolds)] if single else [[name] for name in scaffolds]
    columns = len(splits)
    width = WIDTH if columns > 1 or not single else 5.2
    fig, axes = new_figure(len(rows) * columns, columns, width, 2.6 if len(rows) == 1 else 1.9, sharey=True)
    for ax, (names, (split, ks)) in zip(axes, itertools.product(rows, splits.items())):
        for (i, name), (j, (label, runs)) in itertools.product(enumerate(names), enumerate(groups.items())):
            look: dict = style(max(i, j)) | {"label": name if single else label}
            picked = {} if name == CHAIN else {"linestyle": "--", "linewidth": 0.9}
            draw_by_k(ax, groups, runs, split, ks, *scaffolds[name], **look | picked)
        ax.set(title=split if single else f"{split}: {names[0]}")
        ax.set_xticks(range(len(ks)), [str(k) for k in ks])
    fig.supxlabel(STEP, fontsize=8)
    fig.supylabel("normalised score (%)", fontsize=8)
    add_legend(fig, axes)
    return fig, f"Normalised score by k: {explain(scaffolds)}{describe_bands(groups, 'quality', 'tasks')}"


def explain(scaffolds: Iterable[str]) -> str:
    """Return what the scaffolds are, as a sentence or two."""
    texts = {
        CHAIN: "the last response of a *plain chain*",
        CHAIN_BEST: "the best so far of a *plain chain*",
        "greedy search": "the best so far of a *greedy search*, each step of which starts from it",
        "best of n independent": "the best of *n independent* first responses",
        "restarts, best so far": "the best so far of chains that start over (*restarts*)",
    }
    text = "; ".join(texts.get(name, f"*{name}*") for name in scaffolds) + ", at equal numbers of responses."
    return text + " The score itself picks the best: dashed." if set(scaffolds) - {CHAIN} else text


def score_by_task(groups: Groups) -> Plot:
    """Plot the best score so far by k of each task that the domain names: a line a scaffold or, for one scaffold, a group."""
    splits, single = scored_splits(groups), len(groups) == 1
    tasks = [(split, name) for split in splits for name in task_names(all_runs(groups), split)]
    if not tasks:
        return None
    shown = {name: paths for name, paths in known_scaffolds(groups, splits).items() if name != CHAIN}  # like with like
    if not single:
        first = "greedy search" if "greedy search" in shown else next(iter(shown))
        shown = {first: shown[first]}
    some = tasks[:MAX_TASKS]
    columns = min(len(some), 3 if len(some) in (3, 5, 6, 9) else 4)
    fig, axes = new_figure(len(some), columns, WIDTH, 1.75)
    for ax, (split, task) in zip(axes, some):
        x = np.arange(len(splits[split]))
        for (i, name), (j, (label, runs)) in itertools.product(enumerate(shown), enumerate(groups.items())):
            look: dict = style(max(i, j)) | {"label": name if single else label}
            scaffold, figure = shown[name]
            draw_by_k(ax, groups, runs, split, splits[split], scaffold, "by_task", task, figure, **look)
        ax.set_title(f"{split}: {task}")
        ax.set_xticks(x, [str(k) for k in splits[split]])
    fig.supxlabel(STEP, fontsize=8)
    fig.supylabel("normalised score (%)", fontsize=8)
    add_legend(fig, axes)
    text = f"Normalised score of each task by k, of the {' and the '.join(shown)}."
    if any(len(runs) > 1 for runs in groups.values()):
        text += " Bands: one standard error, over seeds."
    if len(tasks) > MAX_TASKS:
        text += f" The first {MAX_TASKS} of {len(tasks)} tasks."
    return fig, text


def task_names(runs: Sequence[Run], split: str) -> list[str]:
    """Return the tasks of a split that evaluations have figures of, in their order."""
    found = (chain_of(run.evaluation[split]) for run in runs if split in run.evaluation)
    return list(dict.fromkeys(name for chain in found for name in chain.get("by_task", {})))


def net_gains(groups: Groups) -> Plot:
    """Plot which share of a plain chain's steps raised or lowered the score, and the difference (ExIt Fig. 10)."""

    def draw(ax, x, values, line):
        ax.bar(x, mean_std(values("improved"))[0], 0.55, color=PALE_BLUE, label="raised the score")
        ax.bar(x, -mean_std(values("worsened"))[0], 0.55, color=PALE_VERMILLION, label="lowered it")
        line("net_gains", label="net gains", **style(0))

    scored = scored_splits(groups)
    if not any(np.isfinite(by_k(all_runs(groups), split, ks, "net_gains")).any() for split, ks in scored.items()):
        return None
    fig = plot_by_k(groups, "steps up to k (%)", "net_gains", ("worsened", "lowered the score alone", -1), draw)
    if fig is None:
        return None
    draw_zero(fig)
    for ax in fig.axes:
        ax.set_xlim(left=0.4)  # no step leads to k = 0
    text = "Net gains: steps of the plain chain up to k that raised the score minus those that lowered it; the others left it."
    return fig, text + describe_bands(groups, "net_gains", "tasks")
