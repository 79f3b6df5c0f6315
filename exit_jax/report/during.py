"""Plot of the evaluations that runs made while they trained (``run.eval_every``)."""

import re

import numpy as np

from exit_jax.report.plots import WIDTH, Plot, add_legend, draw_mean, new_figure, style
from exit_jax.report.runs import Groups, all_runs, over_training

KEY = re.compile(r"eval/(?P<split>.+)/(?P<figure>accuracy|quality)@(?P<k>\d+)")


def keys_of(groups: Groups) -> dict[tuple[str, str], list[int]]:
    """Return the k at which runs have a figure, ascending, by split and figure; quality only where it is not the accuracy."""
    seen = {key for run in all_runs(groups) for row in run.rows for key in row if key.startswith("eval/")}
    found: dict[tuple[str, str], list[int]] = {}
    for match in filter(None, map(KEY.fullmatch, sorted(seen))):
        found.setdefault((match["split"], match["figure"]), []).append(int(match["k"]))
    scored = {split for split, figure in found if figure == "quality" and is_scored(groups, split)}
    return {place: sorted(ks) for place, ks in found.items() if place[1] == "accuracy" or place[0] in scored}


def is_scored(groups: Groups, split: str) -> bool:
    """Is some mean quality of a split another number than its accuracy?"""
    pairs = (
        (value, row.get(key.replace("/quality@", "/accuracy@")))
        for run in all_runs(groups)
        for row in run.rows
        for key, value in row.items()
        if key.startswith(f"eval/{split}/quality@")
    )
    return any(None not in pair and abs(pair[0] - pair[1]) > 1e-5 for pair in pairs)


def accuracy_by_iteration(groups: Groups) -> Plot:
    """Plot what evaluations during training came to: of one group a line for each k, of several the last k."""
    wanted = keys_of(groups)
    if not wanted:
        return None
    columns = min(len(wanted), 2)
    fig, axes = new_figure(len(wanted), columns, WIDTH if columns > 1 else 5.2, 2.4)
    for ax, ((split, figure), ks) in zip(axes, wanted.items()):
        for i, (label, runs) in enumerate(groups.items()):
            for j, k in enumerate(ks if len(groups) == 1 else ks[-1:]):
                steps, values = over_training(runs, f"eval/{split}/{figure}@{k}")
                known = np.isfinite(values).any(0)
                name = f"k = {k}" if len(groups) == 1 else label
                draw_mean(ax, steps[known], 100 * values[:, known], label=name, **style(j if len(groups) == 1 else i))
        ax.set(title=f"{split}, {figure} (%)" + ("" if len(groups) == 1 else f" at k = {ks[-1]}"), xlabel="iteration")
        ax.set(xlim=(0, None))
    add_legend(fig, axes)
    text = "Evaluations during training, on a sample of tasks (`run.eval_tasks`) that is the same at each iteration."
    several = any(len(runs) > 1 for runs in groups.values())
    return fig, text + (" Bands: one standard deviation over seeds." if several else "")
