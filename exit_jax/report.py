"""Tables and plots of finished runs, from the files in their workdirs alone.

Runs are grouped by ``config.variant``: lines are means over a group's runs, bands and "±" their sample standard
deviation (n - 1). Nothing is measured here: all that is shown was written by training or evaluation.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from exit_jax.config import ConfigError
from exit_jax.metrics import read_jsonl

# Okabe & Ito's colours, which people with any colour vision can tell apart; their yellow is too pale for a line
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
VERMILLION, GREEN, GREY = *COLOURS[2:4], "#8C8C8C"
PALE_BLUE, PALE_VERMILLION = "#8EC1E3", "#F0A875"
MARKERS = "osD^vPX"
WIDTH = 6.75  # inches, of a page's text
MAX_BOXES, MAX_LINES, WRAP = 24, 16, 30  # of the lineage
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
}
CURRICULUM = {
    "start depth (responses)": (["start_depth"], 1),
    "start turn": (["start_turn"], 1),
    HISTORIES: (["sampled_from_iteration"], 1),
    "distinct instances": (["distinct_instances"], 1),
    "distinct instances (GRPO = 1)": (["distinct_relative"], 1),
    "instances by mode (%)": ([f"share/{mode}" for mode in MODES], 100),
}
BUFFER = {
    "slots filled (%)": (["buffer/fill"], 100),
    "score S": ([f"buffer/score_{name}" for name in ("max", "median", "min")], 1),
    "entries' age (iterations)": (["buffer/age"], 1),
    "entries' depth (responses)": (["buffer/depth"], 1),
}
BY_K = {  # rows of the table: path in evaluation.json -> name
    ("accuracy",): "accuracy",
    ("delta",): "Δ",
    ("quality",): "quality",
    ("best_so_far",): "best so far",
    ("stopped",): "stopped",
    ("restarts", "best_so_far"): "restarts, best so far",
    ("restarts", "stopped"): "restarts, stopped",
    ("net_corrections",): "net corrections",
    ("corrected",): "wrong → right",
    ("broken",): "right → wrong",
    ("unchanged_right",): "right left unchanged",
    ("unchanged_wrong",): "wrong left unchanged",
}
COUNTS = ("net_corrections", "corrected", "broken")  # over all tasks of the split
ORDER = ("base", "grpo", "curriculum", "improve", "diverge", "exit")  # the paper's, of its Table 1
WORDS = (
    "*Best so far* is an oracle's pick among the iterates; *stopped* ends, without an oracle, at the first iterate "
    "that the policy's own sign calls done; *restarts* begin anew, at equal numbers of responses."
)
REMEDIES = {
    "config": "no config.json, so its folder's name stands for its variant; `--mode train` writes one",
    "rows": "no metrics in train.jsonl, so no plots of training, curriculum and buffer; run `--mode train`",
    "evaluation": "no evaluation.json, so no tables and no plots by k; run `--mode evaluate`",
    "chains": "no chains.jsonl, so no lineage; run `--mode evaluate` with `eval.num_chains_saved` above 0",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir holds; empty where a file is missing or damaged."""

    path: pathlib.Path
    config: dict
    versions: dict
    rows: list[dict]  # train.jsonl
    evaluation: dict  # split -> results
    chains: list[dict]
    scores: dict  # of the final buffer

    @property
    def folder(self) -> str:
        """The end of its path, to tell runs apart without naming a machine's folders."""
        return f"`{self.path.parent.name}/{self.path.name}`"


Groups = dict[str, list[Run]]
Plot = tuple[Figure, str] | None  # with its caption; None where there is nothing to draw


def report(workdir: pathlib.Path, runs: Sequence[pathlib.Path]) -> pathlib.Path:
    """Write ``report/report.md`` and its plots below ``workdir``: of the runs or, where none is named, of ``workdir``.

    Raises:
      ConfigError: if no folder holds metrics or an evaluation.
    """
    paths = [pathlib.Path(path) for path in runs or [workdir]]
    loaded = [load(path) for path in paths]
    if not any(run.rows or run.evaluation for run in loaded):
        raise ConfigError(
            f"nothing to report on in {', '.join(map(str, paths))}: neither train.jsonl nor evaluation.json; "
            "run --mode train there first, or name the folders of finished runs with --runs"
        )
    groups = group(loaded)
    folder = pathlib.Path(workdir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    captions = {}
    for name, draw in PLOTS.items():
        (folder / f"{name}.png").unlink(missing_ok=True)  # of an earlier report
        with matplotlib.rc_context(STYLE):
            if plot := draw(groups):
                figure, captions[name] = plot
                figure.savefig(folder / f"{name}.png")
    (folder / "report.md").write_text(markdown(groups, captions))
    return folder / "report.md"


def load(path: pathlib.Path) -> Run:
    """Read a run's files."""

    def read(name: str) -> dict:
        try:
            content = json.loads((path / name).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    recorded = read("config.json")
    rows, chains = (read_jsonl(path / f"{name}.jsonl") for name in ("train", "chains"))
    config, versions = recorded.get("config", {}), recorded.get("versions", {})
    return Run(path.absolute(), config, versions, rows, read("evaluation.json"), chains, read("buffer_scores.json"))


def group(runs: Sequence[Run]) -> Groups:
    """Group runs by variant, in the paper's order, and by experiment if there are several."""
    several = len({run.config["name"] for run in runs if run.config}) > 1
    groups: Groups = {}
    for run in runs:
        variant = run.config.get("variant", run.path.name)
        groups.setdefault(f"{variant}, {run.config['name']}" if several and run.config else variant, []).append(run)
    rank = {variant: place for place, variant in enumerate(ORDER)}
    return dict(sorted(groups.items(), key=lambda item: rank.get(item[0].split(",")[0], len(rank))))


def all_runs(groups: Groups) -> list[Run]:
    """Return the runs of all groups."""
    return list(itertools.chain(*groups.values()))


# --- numbers ---


def mean_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and sample standard deviation over axis 0; NaN is left out, and returned for too few values."""
    count = np.isfinite(values).sum(0)
    mean = np.where(count > 0, np.nansum(values, 0) / np.maximum(count, 1), np.nan)
    variance = np.nansum((values - mean) ** 2, 0) / np.maximum(count - 1, 1)
    return mean, np.where(count > 1, np.sqrt(variance), np.nan)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean over a centred, odd window of values [n], shorter at the ends and without NaN."""
    keep, middle = np.isfinite(values), slice(window // 2, window // 2 + values.size)
    total, count = (np.convolve(x, np.ones(window))[middle] for x in (np.where(keep, values, 0.0), keep))
    return np.where(count > 0.5, total / np.maximum(count, 1), np.nan)


def splits_of(groups: Groups) -> dict[str, list[int]]:
    """Return the splits that were evaluated, each with the k that all its evaluations report."""
    splits: dict[str, set[int]] = {}
    for run in all_runs(groups):
        for split, results in run.evaluation.items():
            splits[split] = splits.get(split, set(results["k"])) & set(results["k"])
    return {split: sorted(ks) for split, ks in splits.items() if ks}


def by_k(runs: Sequence[Run], split: str, ks: Sequence[int], *path: str) -> np.ndarray:
    """Return a metric of the runs' evaluations [runs, len(ks)], in percent (of tasks, for counts); null is NaN."""
    table = []
    for results in (run.evaluation[split] for run in runs if split in run.evaluation):
        series = dict(zip(results["k"], functools.reduce(dict.__getitem__, path, results)))
        scale = 100 / results["num_tasks"] if path[-1] in COUNTS else 100
        table.append([np.nan if series[k] is None else scale * series[k] for k in ks])
    return np.array(table, float).reshape(len(table), len(ks))


def over_training(runs: Sequence[Run], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the iterations [n] that all runs with this metric have done, and its values [runs, n]; null is NaN."""
    tables = [{row["step"]: row.get(key) for row in run.rows} for run in runs]
    tables = [table for table in tables if any(value is not None for value in table.values())]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    values = np.array([[table[step] for step in steps] for table in tables], float)
    return np.array(steps), values.reshape(len(tables), len(steps))


def relative_to_grpo(groups: Groups) -> Groups:
    """Replace the counts of distinct instances by their ratio to GRPO's mean at that iteration, if GRPO is there."""
    steps, counts = over_training(groups.get("grpo", []), "distinct_instances")
    if len(groups) == 1 or not steps.size:
        return groups
    baseline = dict(zip(steps.tolist(), counts.mean(0)))

    def relate(row):
        count, theirs = row.get("distinct_instances"), baseline.get(row["step"])
        return row | {"distinct_instances": None, "distinct_relative": count / theirs if count and theirs else None}

    return {
        label: [dataclasses.replace(run, rows=[relate(row) for row in run.rows]) for run in runs]
        for label, runs in groups.items()
    }


# --- plots ---


def style(index: int) -> dict:
    """Return the colour and marker of the index-th line."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def draw_mean(ax: Axes, x, values: np.ndarray, **look) -> None:
    """Draw the mean of values [runs, n], with a band of one standard deviation where there are several runs."""
    mean, std = mean_std(values)
    ax.plot(x, mean, **look)
    if len(values) > 1:
        ax.fill_between(x, mean - std, mean + std, color=look["color"], alpha=0.15, linewidth=0)


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

    Of several groups, ``thin`` (metric, name, sign) is drawn too, dashed; a single group is left to ``draw_single``,
    which gets the axes, x and a function from a metric's path to its values [runs, k].
    """
    splits = splits_of(groups)
    if not splits:
        return None
    fig, axes = new_figure(len(splits), len(splits), WIDTH if len(splits) > 1 else 5.2, 2.7, sharey=True)
    for ax, (split, ks) in zip(axes, splits.items()):
        x = np.arange(len(ks))
        for i, (label, runs) in enumerate(groups.items()):
            if len(groups) == 1:
                draw_single(ax, x, functools.partial(by_k, runs, split, ks))
                continue
            draw_mean(ax, x, by_k(runs, split, ks, metric), label=label, **style(i))
            second = thin[2] * mean_std(by_k(runs, split, ks, thin[0]))[0]
            ax.plot(x, second, color=style(i)["color"], linestyle="--", linewidth=0.7)
        if len(groups) > 1:
            ax.plot([], [], color=GREY, linestyle="--", linewidth=0.7, label=thin[1])
        ax.set(title=split, xlabel="self-improvement step k")
        ax.set_xticks(x, [str(k) for k in ks])
    axes[0].set_ylabel(ylabel)
    add_legend(fig, axes)
    return fig


def accuracy_by_k(groups: Groups) -> Plot:
    """Plot the accuracy of the last iterate, of the best so far and, of a single group, of what else can be picked."""

    def draw(ax, x, values):
        hollow = {"linewidth": 1.0, "markersize": 5.5, "markerfacecolor": "none"}  # it often lies on the last iterate
        draw_mean(ax, x, values("accuracy"), label="last iterate", **style(0))
        draw_mean(ax, x, values("best_so_far"), label="best so far (oracle)", linestyle="--", **style(1) | hollow)
        draw_mean(ax, x, values("stopped"), label="stopped (no oracle)", linestyle=":", **style(2))
        rival = style(3) | {"color": GREY, "linestyle": "-."}
        draw_mean(ax, x, values("restarts", "best_so_far"), label="restarts, best so far (oracle)", **rival)

    fig = plot_by_k(groups, "accuracy (%)", "accuracy", ("best_so_far", "best so far (oracle)", 1), draw)
    return fig and (fig, f"Accuracy after k self-improvement steps, of the last iterate and others. {WORDS}")


def net_corrections(groups: Groups) -> Plot:
    """Plot wrong→right minus right→wrong changes (ExIt §5), and the two apart."""

    def draw(ax, x, values):
        ax.bar(x, mean_std(values("corrected"))[0], 0.55, color=PALE_BLUE, label="wrong → right")
        ax.bar(x, -mean_std(values("broken"))[0], 0.55, color=PALE_VERMILLION, label="right → wrong")
        ax.axhline(0, color=GREY, linewidth=0.6)
        draw_mean(ax, x, values("net_corrections"), label="net corrections", **style(0))

    thin = "broken", "right → wrong alone", -1
    fig = plot_by_k(groups, "corrections per 100 tasks", "net_corrections", thin, draw)
    return fig and (fig, "Wrong → right minus right → wrong changes between neighbouring iterates, up to k.")


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
        ax.set_title(name, loc="left")
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


def curriculum(groups: Groups) -> Plot:
    """Plot what instances training selects (the curriculum figures of ExIt §5)."""
    text = "What is trained on: start depth is the ordinal of the response to be made, 1 for the first, and a history "
    text += "from the buffer is as old as its distance below the dotted line."
    return plot_over_training(relative_to_grpo(groups), CURRICULUM, text)


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


# --- lineage ---


def lineage(groups: Groups) -> Plot:
    """Draw a chain as boxes of text, best a solved one of the test split with many changes."""
    chains = [(run, chain) for run in all_runs(groups) for chain in run.chains if chain["responses"]]
    if not chains:
        return None

    def rank(item):
        changes = sum(a != b for a, b in itertools.pairwise(item[1]["responses"]))
        return item[1]["quality"][-1], item[1]["split"] == "test", changes if changes < MAX_BOXES else -changes

    run, chain = max(chains, key=rank)
    who = f"{run.config.get('variant', run.path.name)}, seed {run.config.get('seed', '?')}"
    end = "solved" if chain["quality"][-1] >= 1 else "not solved, but the best chain"
    fig = draw_boxes(f"{who}, {chain['split']} task {chain['task']}: {end}", collapse(chain))
    return fig, "The responses of one chain; what changed is coloured, and ×n counts equal responses."


def collapse(chain: dict) -> list[tuple[str, float, list[tuple[str, str]]]]:
    """Return a title, the quality and the lines of each response that differs from the one before."""
    boxes, before, k = [], None, 0
    for text, same in itertools.groupby(text.expandtabs(4) for text in chain["responses"]):
        count, quality = len(list(same)), chain["quality"][k]
        span = f"k={k}" if count == 1 else f"k={k}–{k + count - 1} (×{count})"
        boxes.append((f"{span}\nquality {quality:.2f}", quality, lines_of(text, changes(before, text))))
        before, k = text, k + count
    return boxes


def changes(before: str | None, after: str) -> list[bool]:
    """Return which characters differ: by position if the lines are as long as before, else by a diff of words."""
    if before is None:
        return [False] * len(after)
    if [len(line) for line in before.split("\n")] == [len(line) for line in after.split("\n")]:
        return [a != b for a, b in zip(before, after)]
    old, new = (re.findall(r"\w+|\s+|.", text) for text in (before, after))
    steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [tag != "equal" for tag, _, _, start, stop in steps for word in new[start:stop] for _ in word]


def lines_of(text: str, marks: Sequence[bool]) -> list[tuple[str, str]]:
    """Return at most MAX_LINES lines of WRAP characters around the first change, kept and changed characters apart."""
    lines, start = [], 0
    for line in text.split("\n"):
        for at in range(start, start + max(len(line), 1), WRAP):
            pairs = list(zip(text, marks))[at : min(at + WRAP, start + len(line))]
            kept, new = ("".join(c if mark == want else " " for c, mark in pairs) for want in (False, True))
            lines.append((kept, new))
        start += len(line) + 1
    first = next((i for i, (_, new) in enumerate(lines) if new.strip()), 0)
    first = max(0, min(first - 2, len(lines) - MAX_LINES))
    dots = [("…", "")]
    return dots * (first > 0) + lines[first : first + MAX_LINES] + dots * (first + MAX_LINES < len(lines))


def draw_boxes(title: str, boxes) -> Figure:
    """Draw boxes of monospaced text in rows, an arrow before each but the first; lengths are in points."""
    size, leading, pad, gap, head = 7, 8.8, 5, 20, 24
    width = max(max(len(kept) for *_, lines in boxes for kept, _ in lines) * 0.59 * size, 44) + 2 * pad
    columns = min(len(boxes), max(1, int((72 * WIDTH - gap) // (width + gap))))
    rows = [boxes[i : i + columns] for i in range(0, len(boxes), columns)]
    heights = [max(len(lines) for *_, lines in row) * leading + 2 * pad for row in rows]
    page = max(gap + columns * (width + gap), 250), 20 + sum(heights) + len(rows) * (head + 8)
    fig = Figure(figsize=(page[0] / 72, page[1] / 72))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, page[0]), ylim=(page[1], 0))
    ax.set_axis_off()
    ax.text(gap, 6, title, va="top", parse_math=False)
    arrow = {"arrowstyle": "-|>", "color": GREY, "mutation_scale": 8}
    mono = {"fontsize": size, "family": "monospace"}
    looks = mono | {"color": "#404040"}, mono | {"color": VERMILLION, "weight": "bold"}
    for i, (name, quality, lines) in enumerate(boxes):
        row, column = divmod(i, columns)
        x, y, height = gap + column * (width + gap), 20 + head + sum(heights[:row]) + row * (head + 8), heights[row]
        edge, ink = (GREEN, GREEN) if quality >= 1 else (GREY, "black")
        ax.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=3", fc="white", ec=edge))
        ax.text(x + 1, y - 2, name, va="bottom", fontsize=size, color=ink)
        for n, pair in enumerate(lines):
            for text, look in zip(pair, looks):  # equally wide, one over the other
                at = y + pad + (n + 0.5) * leading
                ax.text(x + pad, at, text, look, va="center_baseline", parse_math=False)
        if i:
            ax.annotate("", (x - 2, y + height / 2), (x - gap + 3, y + height / 2), arrowprops=arrow)
    return fig


PLOTS: dict[str, Callable[[Groups], Plot]] = {
    "accuracy_by_k": accuracy_by_k,
    "net_corrections": net_corrections,
    "training_curves": lambda groups: plot_over_training(groups, TRAINING, "What training optimises, and its health."),
    "curriculum": curriculum,
    "buffer": buffer,
    "lineage": lineage,
}


# --- text ---


def markdown(groups: Groups, captions: dict[str, str]) -> str:
    """Return the report: what was run, the tables, the plots, and what is missing."""
    runs = all_runs(groups)
    names = dict.fromkeys(run.config.get("name", run.path.name) for run in runs)
    what = [
        (label, str(run.config.get("seed", "?")), str(run.rows[-1]["step"] if run.rows else 0), run.folder)
        for label, members in groups.items()
        for run in members
    ]
    parts = [f"# {', '.join(names)}", table(("variant", "seed", "iterations", "folder"), what)]
    versions = {", ".join(f"{k} {v}" for k, v in run.versions.items() if v) for run in runs}
    parts += [f"Versions: {text}." for text in sorted(versions - {""})]
    if any(len(members) > 1 for members in groups.values()):
        parts.append("Lines are means over a variant's runs, bands and ± their standard deviation (n - 1).")
    for split, ks in splits_of(groups).items():
        parts += split_tables(groups, split, ks)
    parts += [f"## {name.replace('_', ' ')}\n\n![{name}]({name}.png)\n\n{text}" for name, text in captions.items()]
    if notes := [*faults(groups), *(f"`{name}.png` is not drawn" for name in PLOTS if name not in captions)]:
        parts.append("## What is missing\n\n" + "\n".join(f"- {note}." for note in notes))
    return "\n\n".join(parts) + "\n"


def split_tables(groups: Groups, split: str, ks: Sequence[int]) -> list[str]:
    """Return the tables of a split: over k, and at the last k by difficulty."""
    first = next(run.evaluation[split] for run in all_runs(groups) if split in run.evaluation)
    text = f"## {split}\n\n{first['num_tasks']} tasks, {first['samples_per_task']} sample(s) of each. All in %; "
    text += "Δ is the gain in accuracy since k = 0, and equals net corrections per 100 tasks. "
    parts, last = [text + WORDS], ks[-1:]
    if len(groups) == 1:
        (runs,) = groups.values()
        rows = [(name, *cells(by_k(runs, split, ks, *path))) for path, name in BY_K.items()]
        parts.append(table(("k", *map(str, ks)), rows))
    else:
        others = {path: name for path, name in list(BY_K.items())[1:7] if name != "quality"}
        rows = [(label, *cells(by_k(runs, split, ks, "accuracy"))) for label, runs in groups.items()]
        more = [[cells(by_k(runs, split, last, *path))[0] for path in others] for runs in groups.values()]
        header = "accuracy, k =", *map(str, ks), *(f"{name}, k = {ks[-1]}" for name in others.values())
        parts.append(table(header, [(*row, *rest) for row, rest in zip(rows, more)]))
    for name, levels in first["by_difficulty"].items():
        paths = [("by_difficulty", name, level, "accuracy") for level in levels]
        rows = [
            (label, *(cells(by_k(runs, split, last, *path))[0] for path in paths)) for label, runs in groups.items()
        ]
        header = [f"{level} ({content['num_tasks']} tasks)" for level, content in levels.items()]
        parts.append(table((f"accuracy, k = {ks[-1]}, by {name}", *header), rows))
    return parts


def cells(values: np.ndarray) -> list[str]:
    """Return mean ± standard deviation of values [runs, n] as n cells of a table; a dash for nothing."""
    return [
        "–" if np.isnan(mean) else f"{mean:.1f}" if np.isnan(std) else f"{mean:.1f} ± {std:.1f}"
        for mean, std in zip(*mean_std(values))
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    rule = ["---"] + ["--:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def faults(groups: Groups) -> list[str]:
    """Return which files are missing, and which means are over runs that do not repeat one experiment."""
    found = [
        f"{run.folder}: {text}"
        for run in all_runs(groups)
        for field, text in REMEDIES.items()
        if not getattr(run, field) and not (field == "rows" and run.config.get("run", {}).get("num_iterations") == 0)
    ]
    for label, runs in groups.items():
        configs = [{k: v for k, v in run.config.items() if k not in ("seed", "run")} for run in runs]
        if differing := sorted(key for key in configs[0] if any(configs[0][key] != c.get(key) for c in configs)):
            found.append(f"{label}: its runs differ in {', '.join(differing)} of config.json, not in their seed alone")
    return found
