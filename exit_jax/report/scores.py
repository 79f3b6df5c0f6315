"""Figures of evaluations whose quality is a score and not only right or wrong, as in ML engineering (ExIt Fig. 5, 9 and 10).

Three ways to spend the same number of responses are compared: the plain chain, whose last response counts, the greedy search,
which goes on from the best so far, and the best of chains that start over.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from exit_jax.report.plots import (
    GREY,
    PALE_BLUE,
    PALE_VERMILLION,
    STEP,
    WIDTH,
    Plot,
    add_legend,
    bands,
    draw_by_k,
    new_figure,
    plot_by_k,
    style,
)
from exit_jax.report.runs import Groups, Run, all_runs, by_k, mean_std
from exit_jax.report.tables import known_scaffolds, scored_splits
from exit_jax.workdir.evaluation import chain_of

MAX_TASKS = 12  # panels


def score_by_k(groups: Groups) -> Plot:
    """Plot the score by k on each split: a line a scaffold and, of several groups, a row a scaffold and a line a group."""
    splits = scored_splits(groups)
    if not splits:
        return None
    scaffolds, single = known_scaffolds(groups, splits), len(groups) == 1
    rows = [list(scaffolds)] if single else [[name] for name in scaffolds]
    columns = len(splits)
    width = WIDTH if columns > 1 or not single else 5.2
    fig, axes = new_figure(len(rows) * columns, columns, width, 2.6 if len(rows) == 1 else 1.9, sharey=True)
    for ax, (names, (split, ks)) in zip(axes, itertools.product(rows, splits.items())):
        x = np.arange(len(ks))
        for (i, name), (j, (label, runs)) in itertools.product(enumerate(names), enumerate(groups.items())):
            look: dict = style(max(i, j)) | {"label": name if single else label}
            draw_by_k(ax, groups, runs, split, ks, *scaffolds[name], **look)
        ax.set(title=split if single else f"{split}: {names[0]}")
        ax.set_xticks(x, [str(k) for k in ks])
    fig.supxlabel(STEP, fontsize=8)
    fig.supylabel("normalised score (%)", fontsize=8)
    add_legend(fig, axes)
    return fig, f"Normalised score by k: {explain(scaffolds)}{bands(groups, 'quality').replace('problems', 'tasks')}"


def explain(scaffolds) -> str:
    """Say what the scaffolds are."""
    texts = {
        "plain chain": "the last response of a *plain chain*",
        "greedy search": "the best so far of a *greedy search*, each step of which starts from it",
        "best of n independent": "the best of *n independent* first responses",
        "restarts, best so far": "the best so far of chains that start over (*restarts*)",
    }
    picks = " The score itself picks the best." if len(scaffolds) > 1 else ""
    return "; ".join(texts.get(name, f"*{name}*") for name in scaffolds) + ", at equal numbers of responses." + picks


def score_by_task(groups: Groups) -> Plot:
    """Plot the score by k of each task that the domain names: a line a scaffold, or the search's of each group."""
    splits, single = scored_splits(groups), len(groups) == 1
    tasks = [(split, name) for split in splits for name in task_names(all_runs(groups), split)]
    if not tasks:
        return None
    scaffolds = known_scaffolds(groups, splits)
    search = "greedy search" if "greedy search" in scaffolds else "plain chain"
    shown = scaffolds if single else {search: scaffolds[search]}
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
    text += " Bands: one standard error, over seeds." * any(len(runs) > 1 for runs in groups.values())
    return fig, text + f" The first {MAX_TASKS} of {len(tasks)} tasks." * (len(tasks) > MAX_TASKS)


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
    for ax in fig.axes if fig else ():
        if ax.axison:
            ax.axhline(0, color=GREY, linewidth=0.6)
            ax.set_xlim(left=0.4)  # no step leads to k = 0
    text = "Net gains: steps of the plain chain up to k that raised the score minus those that lowered it; the others left it."
    return fig and (fig, text + bands(groups, "net_gains").replace("problems", "tasks"))
