"""Plots over training iterations: the objective and its health, the curriculum, the buffer."""

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from exit_jax.report.plots import (
    GREY,
    PALE_BLUE,
    WIDTH,
    Plot,
    add_legend,
    count_iterations,
    draw_mean,
    new_figure,
    style,
)
from exit_jax.report.runs import Groups, all_runs, over_training, relative_to_grpo, running_mean
from exit_jax.types import MODES

# Panels over training: title -> (metrics, scale). With several groups, each metric gets a panel of its own.
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


class Line(NamedTuple):
    """A metric of a group of runs over training."""

    look: dict
    label: str | None
    key: str
    steps: np.ndarray  # [n]
    values: np.ndarray  # [runs, n]


def plot_over_training(
    groups: Groups,
    panels: Mapping[str, tuple[list[str], float]],
    caption: str,
    whole: str | None = None,
    extra: Sequence[Callable[[Axes], None]] = (),
) -> Plot:
    """Plot metrics over iterations as small multiples; the caption adds the smoothing and what never changed.

    Args:
      whole: what the legend calls metrics of a single group that are alone in their panel.
      extra: draws further panels.
    """
    window = max(len(run.rows) for run in all_runs(groups)) // 20 | 1
    wanted, constant = choose_panels(groups, panels, whole)
    num_panels = len(wanted) + len(extra)
    if not num_panels:
        return None
    columns = min(num_panels, 3 if num_panels in (5, 6) else 4)
    height = 1.9 if columns < 4 or num_panels == 4 else 1.6
    fig, axes = new_figure(num_panels, columns, WIDTH * min(1, columns / 3), height)
    last = max((line.steps[-1] for lines in wanted.values() for line in lines), default=1)
    for i, (ax, (name, lines)) in enumerate(zip(axes, wanted.items())):
        draw_panel(ax, lines, window, faint=len(groups) == 1)
        if name == HISTORIES:
            ax.axline((0, 0), slope=1, color=GREY, linestyle=":", linewidth=1, label="present iteration")
        ax.set_title(textwrap.fill(name, 26), loc="left")  # as wide as one of four panels
        is_lowest = i // columns == (num_panels - 1) // columns
        ax.set(xlim=(0, 1.03 * last), xlabel="iteration" if is_lowest else None)
        count_iterations(ax.xaxis)
    for ax, draw in zip(axes[len(wanted) :], extra):
        draw(ax)
    add_legend(fig, axes)
    if wanted:
        caption += f" Running means over {window} iterations, but for counts and fill"
        caption += ", raw values of a single run faint." if len(groups) == 1 else "."
    if constant:
        caption += f" Constant, so not drawn: {'; '.join(constant)}."
    return fig, caption


def draw_panel(ax: Axes, lines: Sequence[Line], window: int, faint: bool) -> None:
    """Draw the running mean of each line and, of a single run if ``faint``, its raw values; markers do not coincide."""
    for i, (look, label, key, steps, values) in enumerate(lines):
        smooth = values if key in EXACT else np.array([running_mean(one, window) for one in values])
        if faint and len(values) == 1:
            ax.plot(steps, values[0], color=look["color"], alpha=0.25, linewidth=0.5)
        every = max(len(steps) // 4, 1)
        draw_mean(ax, steps, smooth, label=label, markevery=(i * every // len(lines), every), **look)


def choose_panels(
    groups: Groups, panels: Mapping[str, tuple[list[str], float]], whole: str | None
) -> tuple[dict[str, list[Line]], list[str]]:
    """Return the lines of the panels that have something to show, by title, and the titles of those that never change."""
    wanted, constant = {}, []
    for title, (keys, scale) in panels.items():
        for some in [keys] if len(groups) == 1 else [[key] for key in keys]:
            name = title if some == keys else f"{title}, {part_of(some[0])}"
            lines = training_lines(groups, some, scale, whole)
            levels = {value for line in lines for value in line.values[np.isfinite(line.values)]}
            if len(levels) > 1:
                wanted[name] = lines
            elif levels:
                constant.append(f"{name} = {levels.pop():g}")
    return wanted, constant


def training_lines(groups: Groups, keys: Sequence[str], scale: float, whole: str | None) -> list[Line]:
    """Return the lines of a panel: one a group or, of a single group, one a metric; ``whole`` is the label of a sole one."""
    lines = []
    for i, (group, runs) in enumerate(groups.items()):
        for j, key in enumerate(keys):
            steps, values = over_training(runs, key)
            if len(groups) > 1:
                index, label = i, group
            elif len(keys) > 1:  # the first look stands for what has a panel to itself
                index, label = 1 + j, part_of(key)
            else:
                index, label = 0, whole
            if steps.size:
                lines.append(Line(style(index), label, key, steps, scale * values))
    return lines


def part_of(key: str) -> str:
    """Return what a metric is of: "base" of "quality/base", "max" of "buffer/score_max"."""
    return re.split("[/_]", key)[-1]


def training_curves(groups: Groups) -> Plot:
    """Plot the objective and the health of training."""
    panels = TRAINING | domain_panels(groups, "grade")
    return plot_over_training(groups, panels, "What training optimises, and its health.", "whole batch")


def domain_panels(groups: Groups, room: str) -> dict:
    """Return a panel for each metric that a domain counts of its ``task`` or ``grade``, like "task/gold_steps"."""
    keys = {key for run in all_runs(groups) for row in run.rows for key in row if key.startswith(f"{room}/")}
    return {f"{room}: {key.partition('/')[2].replace('_', ' ')}": ([key], 1) for key in sorted(keys)}


def curriculum(groups: Groups) -> Plot:
    """Plot what instances training selects (the curriculum figures of ExIt §5)."""
    text = "What is trained on: start depth is the ordinal of the response to be made, 1 for the first, and a history "
    text += "from the buffer is as old as its distance below the dotted line."
    return plot_over_training(relative_to_grpo(groups), CURRICULUM | domain_panels(groups, "task"), text, "whole batch")


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
        ax.xaxis.set_major_locator(MaxNLocator(3))  # more labels of small numbers would overlap

    text = "What the buffer holds, and the scores of its final entries, those of all runs of a variant together."
    extra = [histogram] if any(scores.size for scores in held.values()) else []
    return plot_over_training(groups, BUFFER, text, extra=extra)
