"""How varied the task space is that training leaves: distances between its instances' embeddings, and a map of them."""

import importlib

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from scipy.linalg import eigh

from exit_jax.report.plots import WIDTH, Plot, add_legend, count_iterations, draw_mean, new_figure, style, widen
from exit_jax.report.runs import MAX_INSTANCES, Groups, all_runs
from exit_jax.report.tables import cells
from exit_jax.workdir.markdown import table

WINDOWS = 10  # parts of training, for the distances over it
MIN_SPAN = 0.01  # of the distances' axes; without it instances that are alike get ticks of rounding errors
MAX_POINTS = 1000  # a panel of the map
MEASURES = ("cosine distance", "L2 distance")


def mean_distances(rows: np.ndarray, task: np.ndarray | None = None) -> tuple[float, float]:
    """Return the mean cosine (1 - cos) and L2 distance over all pairs of rows [n, E], or those of one task [n].

    NaN where there is no pair.
    """
    pairs = ~np.eye(len(rows), dtype=bool)
    if task is not None:
        pairs &= task[:, None] == task
    if not pairs.any():
        return np.nan, np.nan
    rows = rows.astype(np.float64)  # |a|² + |b|² - 2ab of close rows cancels
    gram, square = rows @ rows.T, (rows**2).sum(1)
    cosine = 1 - gram / np.sqrt(np.outer(square, square))
    l2 = np.sqrt(np.maximum(np.add.outer(square, square) - 2 * gram, 0))
    return cosine[pairs].mean(), l2[pairs].mean()


def distances(groups: Groups) -> Plot:
    """Plot the mean distance of the final buffer's instances by the tenth of training that made them; a table of all."""
    last = max((run.instances["iteration"].max() for run in all_runs(groups) if run.instances), default=None)
    if last is None:
        return None
    edges = np.linspace(0, last + 1, WINDOWS + 1)
    fig, axes = new_figure(2, 2, WIDTH, 2.2)
    rows = []
    for i, (label, runs) in enumerate(groups.items()):
        some = [run.instances for run in runs if run.instances]
        if not some:
            continue
        held = [(np.digitize(one["iteration"], edges) - 1, one["embedding"]) for one in some]
        windows = np.array([[mean_distances(known[at == n]) for n in range(WINDOWS)] for at, known in held])
        for ax, values in zip(axes, np.moveaxis(windows, -1, 0)):
            draw_mean(ax, (edges[:-1] + edges[1:]) / 2, values, label=label, **style(i))
        rows.append((label, *cells(np.array([mean_distances(known) for _, known in held]), 3)))
    for ax, name in zip(axes, MEASURES):
        ax.set_title(f"mean pairwise {name}", loc="left")
        ax.set(xlabel="iteration", xlim=(0, last + 1))
        count_iterations(ax.xaxis)
        widen(ax, MIN_SPAN)
    add_legend(fig, axes)
    text = f"Distances between the embeddings of instances in the final buffer that were made within {edges[1]:.3g} "
    text += f"iterations, and below of all of them: of all pairs of at most {MAX_INSTANCES} instances a run.\n\n"
    return fig, text + table(("mean pairwise", *MEASURES), rows) + starting_solutions(groups)


def starting_solutions(groups: Groups) -> str:
    """Return a table of the distances among the solutions that training started from (ExIt Tab. 2); "" if files tell none."""
    rows = []
    for label, runs in groups.items():
        some = [run.instances for run in runs if len(run.instances.get("start_task", ()))]
        found = [mean_distances(held["start_embedding"], held["start_task"]) for held in some]
        counts = [[float(held["start_task"].size)] for held in some]
        if some:
            rows.append((label, *cells(np.array(found), 3), *cells(np.array(counts), 0)))
    if not rows:
        return ""
    text = "\n\nAmong a sample of the solutions that training started from, of pairs of one task:\n\n"
    return text + table(("starting solutions", *MEASURES, "number"), rows)


def instance_map(groups: Groups) -> Plot:
    """Draw the instances of each variant on one plane, coloured by the iteration that made them."""
    found, left_out = {}, []
    for label, runs in groups.items():
        known = [run.instances for run in runs if run.instances]
        widths = {held["embedding"].shape[1] for held in known} | {rows.shape[1] for _, rows in found.values()}
        if known and len(widths) == 1:  # other encoders' spaces have no place on this map
            joined = [np.concatenate([held[name] for held in known]) for name in ("iteration", "embedding")]
            some = np.random.default_rng(0).permutation(len(joined[0]))[:MAX_POINTS]
            found[label] = joined[0][some], joined[1][some]
        elif known:
            left_out.append(label)
    rows = np.concatenate([rows for _, rows in found.values()]) if found else np.zeros((0, 0))
    if min(rows.shape) < 3:
        return None
    points, method = project(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    columns = min(len(found), 3)
    fig, axes = new_figure(
        len(found), columns, WIDTH if columns > 1 else 4, 2.2 if columns > 1 else 3.2, sharex=True, sharey=True
    )
    last, start = max(at.max() for at, _ in found.values()), 0
    for ax, (label, (at, _)) in zip(axes, found.items()):
        x, y = points[start : start + at.size].T
        ax.scatter(x, y, 4, at, cmap="viridis", vmin=0, vmax=last, linewidths=0, alpha=0.7)
        ax.set_title(label)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color="#C8C8C8")
        start += at.size
    scale = ScalarMappable(Normalize(0, last), "viridis")
    bar = fig.colorbar(scale, ax=axes, label="iteration", fraction=0.04, shrink=0.8, aspect=30)
    count_iterations(bar.ax.yaxis)
    text = f"Instances in the final buffer, at most {MAX_POINTS} a variant, by {method}; one plane for all variants."
    if left_out:
        text += f" Left out, since of another encoder: {', '.join(left_out)}."
    return fig, text


def project(rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Return rows of unit length [n, E] as points [n, 2], and what made them: UMAP if it is installed, else PCA."""
    try:
        umap = importlib.import_module("umap")  # the extra "map": it brings a compiler with it
    except ImportError:
        centred = (rows - rows.mean(0)).astype(np.float64)
        scatter = centred.T @ centred
        values, axes = eigh(scatter, subset_by_index=[len(scatter) - 2, len(scatter) - 1])
        share = 100 * values.sum() / max(np.trace(scatter), 1e-12)
        return centred @ axes[:, ::-1], f"PCA ({share:.0f} % of the variance; with umap-learn installed, UMAP)"
    return umap.UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(rows), "UMAP (cosine distance)"
