"""Plots for a paper: labelled, with units, safe for colour-blind readers, mean and band over seeds."""

import functools
import itertools
import re
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exit_jax.report.runs import (
    Groups,
    Run,
    all_runs,
    by_k,
    mean_std,
    other_figures,
    other_scaffolds,
    over_training,
    relative_to_grpo,
    running_mean,
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

# Panels over training: title -> (metrics, scale). With several groups, each metric gets a panel of its own.
MODES = ("base", "improve", "diverge")
EXACT = ("distinct_instances", "distinct_relative", "buffer/fill")  # not smoothed
HISTORIES = "drawn histories' iteration"
TRAINING = {
    "reward": (["reward"], 1),
    "quality": ([f"quality/{mode}" for mode in MODES], 1),
    "learnability S": ([f"learnability/{mode}" for mode in MODES], 1),
    "entropy (nats/token)": (["entropy"], 1),
    "response length (tokens)": (["response_length"], 1),
    "invalid responses (%)": (["invalid"], 100),
    "gradient norm": (["grad_norm"], 1),
    "clipped tokens (%)": (["clip_fraction"], 100),
    "device wait (% of time)": (["time/device_wait_share"], 100),
}
CURRICULUM = {
    "start depth (responses)": (["start_depth"], 1),
    "start turn": (["start_turn"], 1),
    HISTORIES: (["sampled_from_iteration"], 1),
    "distinct instances": (["distinct_instances"], 1),
    "distinct instances (GRPO\u00a0=\u00a01)": (["distinct_relative"], 1),
    "instances by mode (%)": ([f"share/{mode}" for mode in MODES], 100),
}
BUFFER = {
    "slots filled (%)": (["buffer/fill"], 100),
    "score S": ([f"buffer/score_{name}" for name in ("max", "median", "min")], 1),
    "entries' age (iterations)": (["buffer/age"], 1),
    "entries' depth (responses)": (["buffer/depth"], 1),
}
WORDS = {  # metric of an evaluation -> what it means
    ("best_so_far",): "*Best so far* is an oracle's pick among the iterates",
    ("stopped",): "*stopped* ends, without an oracle, at the first iterate that the policy's own sign calls done",
    ("restarts", "best_so_far"): "*restarts* begin anew, at equal numbers of responses",
    ("restarts", "majority"): "*majority* is the vote of the restarts' answers",
}

Plot = tuple[Figure, str] | None  # with its caption; None where there is nothing to draw


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
    fig.supxlabel(STEP, fontsize=8)
    fig.supylabel(ylabel, fontsize=8)
    add_legend(fig, axes)
    return fig


def draw_by_k(ax: Axes, groups: Groups, runs: Sequence[Run], split: str, ks: Sequence[int], *path: str, **look) -> None:
    """Draw the mean of a metric over categorical k and, where these runs get one, a band of its standard error."""
    error = standard_error(runs, split, ks, *path) if has_error(groups, runs) else np.full(len(ks), np.nan)
    draw_mean(ax, np.arange(len(ks)), by_k(runs, split, ks, *path), error, **look)


def has_error(groups: Groups, runs: Sequence[Run]) -> bool:
    """Do these runs get a band? Errors over the problems of one run are not drawn beside errors over others' seeds."""
    return len(runs) > 1 or all(len(others) == 1 for others in groups.values())


def bands(groups: Groups, metric: str) -> str:
    """Say what the bands of a plot over k are."""
    several = any(len(runs) > 1 for runs in groups.values())
    errors = (
        standard_error(runs, split, ks, metric) for split, ks in splits_of(groups).items() for runs in groups.values()
    )
    if not any(np.isfinite(error).any() for error in errors):
        return ""
    return f" Bands: one standard error, over {'seeds' if several else 'problems'}."


def words(groups: Groups, splits: Sequence[str]) -> str:
    """Explain the ways to pick an answer that these splits' evaluations report."""
    ks = splits_of(groups)
    some = [
        text
        for path, text in WORDS.items()
        if any(np.isfinite(by_k(all_runs(groups), split, ks[split], *path)).any() for split in splits)
    ]
    others = other_scaffolds(all_runs(groups), splits).items()
    some += [f"*{title_of(name)}*: {entry['about']}" for name, entry in others if "about" in entry]
    return "; ".join(some) + "." * bool(some)


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
    text = f"Accuracy after k self-improvement steps, of the last iterate and others.{bands(groups, 'accuracy')} "
    return fig and (fig, text + words(groups, list(splits_of(groups))))


def net_corrections(groups: Groups) -> Plot:
    """Plot wrong→right minus right→wrong changes (ExIt §5), and the two apart."""

    def draw(ax, x, values, line):
        ax.bar(x, mean_std(values("corrected"))[0], 0.55, color=PALE_BLUE, label="wrong → right")
        ax.bar(x, -mean_std(values("broken"))[0], 0.55, color=PALE_VERMILLION, label="right → wrong")
        line("net_corrections", label="net corrections", **style(0))

    thin = "broken", "right → wrong alone", -1
    fig = plot_by_k(groups, "corrections per 100 tasks", "net_corrections", thin, draw)
    for ax in fig.axes if fig else ():
        if ax.axison:
            ax.axhline(0, color=GREY, linewidth=0.6)
    text = "Wrong → right minus right → wrong changes between neighbouring iterates, up to k."
    return fig and (fig, text + bands(groups, "net_corrections"))


def plot_over_training(groups: Groups, panels, caption: str, *extra: Callable[[Axes], None]) -> Plot:
    """Plot metrics over iterations as small multiples; the caption adds the smoothing and what never changed."""
    window = max(len(run.rows) for run in all_runs(groups)) // 20 | 1
    wanted, constant = choose_panels(groups, panels)
    num_panels = len(wanted) + len(extra)
    if not num_panels:
        return None
    columns = min(num_panels, 3 if num_panels in (5, 6) else 4)
    fig, axes = new_figure(
        num_panels, columns, WIDTH * min(1, columns / 3), 1.9 if columns < 4 or num_panels == 4 else 1.6
    )
    last = max([steps[-1] for _, lines in wanted for *_, steps, _ in lines], default=1)
    for i, (ax, (name, lines)) in enumerate(zip(axes, wanted)):
        for j, (look, label, key, steps, values) in enumerate(lines):
            smooth = values if key in EXACT else np.array([running_mean(one, window) for one in values])
            if len(groups) == 1 and len(values) == 1:
                ax.plot(steps, values[0], color=look["color"], alpha=0.25, linewidth=0.5)
            every = max(len(steps) // 4, 1)
            draw_mean(ax, steps, smooth, label=label, markevery=(j * every // len(lines), every), **look)
        if name == HISTORIES:
            ax.axline((0, 0), slope=1, color=GREY, linestyle=":", linewidth=1, label="present iteration")
        ax.set_title(textwrap.fill(name, 26), loc="left")  # as wide as one of four panels
        ax.set(xlim=(0, 1.03 * last), xlabel="iteration" if i // columns == (num_panels - 1) // columns else None)
    for ax, draw in zip(axes[len(wanted) :], extra):
        draw(ax)
    add_legend(fig, axes)
    if wanted:
        caption += f" Running means over {window} iterations, but for counts and fill"
        caption += ", raw values of a single run faint." if len(groups) == 1 else "."
    return fig, caption + (f" Constant, so not drawn: {'; '.join(constant)}." if constant else "")


def choose_panels(groups: Groups, panels) -> tuple[list, list[str]]:
    """Return the panels that have something to show, as names and lines, and the names of those that never change.

    A line is a style, a label or None, the metric, its steps [n] and values [runs, n].
    """
    single = len(groups) == 1
    wanted, constant = [], []
    for title, (keys, scale) in panels.items():
        for some in [keys] if single else [[key] for key in keys]:
            words = [re.split("[/_]", key)[-1] for key in some]  # "base" of "quality/base", "max" of "buffer/score_max"
            name = title if some == keys else f"{title}, {words[0]}"
            lines = []
            for (i, (label, runs)), (j, key) in itertools.product(enumerate(groups.items()), enumerate(some)):
                steps, values = over_training(runs, key)
                if steps.size:
                    label = label if not single else words[j] if len(keys) > 1 else None
                    lines.append((style(j if single else i), label, key, steps, scale * values))
            levels = {value for *_, values in lines for value in values[np.isfinite(values)]}
            if len(levels) > 1:
                wanted.append((name, lines))
            elif levels:
                constant.append(f"{name} = {levels.pop():g}")
    return wanted, constant


def training_curves(groups: Groups) -> Plot:
    """Plot the objective and the health of training."""
    return plot_over_training(groups, TRAINING | named(groups, "grade"), "What training optimises, and its health.")


def named(groups: Groups, room: str) -> dict:
    """Return a panel for each metric that a domain counts of its ``task`` or ``grade``, like "task/gold_steps"."""
    keys = {key for run in all_runs(groups) for row in run.rows for key in row if key.startswith(f"{room}/")}
    return {f"{room}: {key.partition('/')[2].replace('_', ' ')}": ([key], 1) for key in sorted(keys)}


def curriculum(groups: Groups) -> Plot:
    """Plot what instances training selects (the curriculum figures of ExIt §5)."""
    text = "What is trained on: start depth is the ordinal of the response to be made, 1 for the first, and a history "
    text += "from the buffer is as old as its distance below the dotted line."
    return plot_over_training(relative_to_grpo(groups), CURRICULUM | named(groups, "task"), text)


def buffer(groups: Groups) -> Plot:
    """Plot the state of the buffer over training and, where ``buffer_scores.json`` is there, its final scores."""
    kept = {label: [run.scores["score"] for run in runs if run.scores] for label, runs in groups.items()}
    held = {label: np.concatenate([np.array(one, float) for one in scores] or [[]]) for label, scores in kept.items()}

    def histogram(ax):
        bins = np.linspace(0, max(scores.max(initial=1e-3) for scores in held.values()), 25).tolist()
        for i, scores in enumerate(held.values()):
            look = {"histtype": "stepfilled", "color": PALE_BLUE} if len(groups) == 1 else {"histtype": "step"}
            share = np.full(scores.size, 100 / max(scores.size, 1))
            ax.hist(scores, bins, weights=share, **{"color": style(i)["color"]} | look)
        ax.set_title("final entries (%)", loc="left")
        ax.set(xlabel="score S", xlim=(0, None))

    text = "What the buffer holds, and the scores of its final entries, those of all runs of a variant together."
    return plot_over_training(groups, BUFFER, text, *[histogram] * any(scores.size for scores in held.values()))
