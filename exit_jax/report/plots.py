"""Plots for a paper: labelled, with units, safe for colour-blind readers, mean and band over seeds."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from exit_jax.report.runs import (
    Groups,
    Run,
    all_runs,
    by_k,
    mean_std,
    other_figures,
    other_scaffolds,
    splits_of,
    standard_error,
    title_of,
)
from exit_jax.workdir.evaluation import ACCURACIES

# Okabe & Ito's colours, which people with any colour vision can tell apart; their yellow is too pale for a line
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
VERMILLION, GREEN, GREY = *COLOURS[2:4], "#8C8C8C"
PALE_BLUE, PALE_VERMILLION = "#8EC1E3", "#F0A875"
MARKERS = "osD^vPX"
STEP = "self-improvement step k"
WIDTH = 6.75  # inches, of a page's text
STYLE: dict = {
    "font.size": 8,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.2,
    "savefig.dpi": 200,
}

WORDS = {  # metric of an evaluation -> what it means
    ("best_so_far",): "*Best so far* is an oracle's pick among the iterates",
    ("stopped",): "*stopped* ends, without an oracle, at the first iterate that the policy's own sign calls done",
    ("restarts", "best_so_far"): "*restarts* begin anew, at equal numbers of responses",
    ("restarts", "majority"): "*majority* is the vote of the restarts' answers",
}

Plot = tuple[Figure, str] | None  # a figure and its caption; None where there is nothing to draw


def style(index: int) -> dict:
    """Return the colour and marker of the index-th line."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def draw_mean(ax: Axes, x, values: np.ndarray, error: np.ndarray | None = None, **look) -> None:
    """Draw the mean of values [runs, n] and a band of ``error`` [n], else of one standard deviation of several runs."""
    mean, std = mean_std(values)
    error = std if error is None else error
    if np.isfinite(mean).any():
        ax.plot(x, mean, **look)
    if np.isfinite(error).any():
        ax.fill_between(x, mean - error, mean + error, color=look["color"], alpha=0.15, linewidth=0)


def new_figure(num_panels: int, columns: int, width: float, height: float, **options) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row; places that are left over stay blank."""
    rows = -(-num_panels // columns)
    fig = Figure(figsize=(width, height * rows), layout="constrained")
    axes = list(fig.subplots(rows, columns, squeeze=False, **options).flat)
    for ax in axes[num_panels:]:
        ax.set_axis_off()
    return fig, axes


def add_legend(fig: Figure, axes: Sequence[Axes]) -> None:
    """Name all lines once: in a blank place of the last row, else above the panels, or beside a narrow one."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    if len(handles) < 2:
        return
    if not axes[-1].axison:
        axes[-1].legend(handles.values(), handles.keys(), loc="center")
    elif fig.get_figwidth() < WIDTH:
        fig.legend(handles.values(), handles.keys(), loc="outside right center")
    else:
        rows = -(-len(handles) // 6)
        fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=-(-len(handles) // rows))


def plot_by_k(groups: Groups, ylabel: str, metric: str, thin: tuple[str, str, int], draw_single) -> Figure | None:
    """Plot a metric over categorical k, one panel a split.

    Of several groups, ``thin`` (metric, name, sign) is drawn too, dashed, if there is room; a single group is left to
    ``draw_single``, which gets the axes, x, a function from a metric's path to its values [runs, k], and one that draws the
    mean of a path's values with a band of its standard error.
    """
    splits = splits_of(groups)
    if not splits:
        return None
    columns = len(splits) if len(splits) <= 4 else 3 if len(splits) in (5, 6, 9) else 4
    one_row = columns == len(splits)
    width, height = (WIDTH if len(splits) > 1 else 5.2), (2.7 if one_row else 1.75)
    fig, axes = new_figure(len(splits), columns, width, height, sharey=one_row)
    for ax, (split, ks) in zip(axes, splits.items()):
        x = np.arange(len(ks))
        for i, (label, runs) in enumerate(groups.items()):
            values = functools.partial(by_k, runs, split, ks)
            line = functools.partial(draw_by_k, ax, groups, runs, split, ks)
            if len(groups) == 1:
                draw_single(ax, x, values, line)
                continue
            line(metric, label=label, **style(i))
            if one_row:
                second = thin[2] * mean_std(values(thin[0]))[0]
                ax.plot(x, second, color=style(i)["color"], linestyle="--", linewidth=0.7)
        if len(groups) > 1 and one_row:
            ax.plot([], [], color=GREY, linestyle="--", linewidth=0.7, label=thin[1])
        ax.set(title=split)
        ax.set_xticks(x, [str(k) for k in ks])
    for ax in axes[: len(splits)]:
        widen(ax, 1)  # ticks of hundredths of a percent would say nothing of a line that does not move
    fig.supxlabel(STEP, fontsize=8)
    fig.supylabel(ylabel, fontsize=8)
    add_legend(fig, axes)
    return fig


def widen(ax: Axes, span: float) -> None:
    """Let the y axis span at least so much, with a margin below what is drawn."""
    low, high = ax.get_ylim()
    if high - low < span:
        ax.set_ylim(low - 0.05 * span, low + span)


def count_iterations(axis: Axis) -> None:
    """Let an axis of iterations have no ticks between them, however few there are."""
    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))


def draw_by_k(ax: Axes, groups: Groups, runs: Sequence[Run], split: str, ks: Sequence[int], *path: str, **look) -> None:
    """Draw the mean of a metric over categorical k and, where these runs get one, a band of its standard error."""
    error = standard_error(runs, split, ks, *path) if has_error(groups, runs) else np.full(len(ks), np.nan)
    draw_mean(ax, np.arange(len(ks)), by_k(runs, split, ks, *path), error, **look)


def has_error(groups: Groups, runs: Sequence[Run]) -> bool:
    """Do these runs get a band? Errors over the problems of one run are not drawn beside errors over others' seeds."""
    return len(runs) > 1 or all(len(others) == 1 for others in groups.values())


def describe_bands(groups: Groups, metric: str, unit: str = "problems") -> str:
    """Return a sentence on the bands of a plot over k; "" where there are none. ``unit`` is what a single run's are over."""
    several = any(len(runs) > 1 for runs in groups.values())
    errors = (
        standard_error(runs, split, ks, metric) for split, ks in splits_of(groups).items() for runs in groups.values()
    )
    if not any(np.isfinite(error).any() for error in errors):
        return ""
    return f" Bands: one standard error, over {'seeds' if several else unit}."


def explain_picks(groups: Groups, splits: Sequence[str]) -> str:
    """Explain the ways to pick an answer that these splits' evaluations report."""
    ks = splits_of(groups)
    some = [
        text
        for path, text in WORDS.items()
        if any(np.isfinite(by_k(all_runs(groups), split, ks[split], *path)).any() for split in splits)
    ]
    others = other_scaffolds(all_runs(groups), splits).items()
    some += [f"*{title_of(name)}*: {explain_scaffold(entry)}" for name, entry in others if "about" in entry]
    return f"{'; '.join(some)}." if some else ""


def explain_scaffold(entry: Mapping[str, Any]) -> str:
    """Return what a scaffold does, whether it looks at the grader meanwhile, and how near it is to its source."""
    looks = "uses the grader while it searches" if entry.get("looks_at_grader") else ""
    notes = [note for note in (looks, entry.get("label", "")) if note not in ("", "faithful")]
    return entry["about"] + (f" ({'; '.join(notes)})" if notes else "")


def accuracy_by_k(groups: Groups) -> Plot:
    """Plot the accuracy of the last iterate, of the best so far and, of a single group, of what else can be picked."""

    def draw(ax, x, values, line):
        hollow = {"linewidth": 1.0, "markersize": 5.5, "markerfacecolor": "none"}  # it often lies on the last iterate
        line("accuracy", label="last iterate", **style(0))
        line("best_so_far", label="best so far (oracle)", linestyle="--", **style(1) | hollow)
        line("stopped", label="stopped (no oracle)", linestyle=":", **style(2))
        rival: dict = style(3) | {"color": GREY, "linestyle": "-."}
        line("restarts", "best_so_far", label="restarts, best so far (oracle)", **rival)
        line("restarts", "majority", label="restarts, majority (no oracle)", **style(4))
        for i, (path, name) in enumerate(other_figures(all_runs(groups), splits_of(groups)).items()):
            if path[1] in (*ACCURACIES, "majority"):
                line(*path, label=name, **style(5 + i))

    fig = plot_by_k(groups, "accuracy (%)", "accuracy", ("best_so_far", "best so far (oracle)", 1), draw)
    if fig is None:
        return None
    text = (
        f"Accuracy after k self-improvement steps, of the last iterate and others.{describe_bands(groups, 'accuracy')} "
    )
    return fig, text + explain_picks(groups, list(splits_of(groups)))


def net_corrections(groups: Groups) -> Plot:
    """Plot wrong→right minus right→wrong changes (ExIt §5), and the two apart."""

    def draw(ax, x, values, line):
        ax.bar(x, mean_std(values("corrected"))[0], 0.55, color=PALE_BLUE, label="wrong → right")
        ax.bar(x, -mean_std(values("broken"))[0], 0.55, color=PALE_VERMILLION, label="right → wrong")
        line("net_corrections", label="net corrections", **style(0))

    thin = "broken", "right → wrong alone", -1
    fig = plot_by_k(groups, "corrections per 100 tasks", "net_corrections", thin, draw)
    if fig is None:
        return None
    draw_zero(fig)
    text = "Wrong → right minus right → wrong changes between neighbouring iterates, up to k."
    return fig, text + describe_bands(groups, "net_corrections")


def draw_zero(fig: Figure) -> None:
    """Draw a line at zero in every panel."""
    for ax in fig.axes:
        if ax.axison:
            ax.axhline(0, color=GREY, linewidth=0.6)
