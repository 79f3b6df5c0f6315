"""The report as Markdown: what was run, tables, plots with their captions, and what is missing."""

from collections.abc import Iterable, Sequence

import numpy as np

from exit_jax.report.plots import WORDS
from exit_jax.report.runs import Groups, all_runs, by_k, mean_std, splits_of

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
REMEDIES = {
    "config": "no config.json, so its folder's name stands for its variant; `--mode train` writes one",
    "rows": "no metrics in train.jsonl, so no plots of training, curriculum and buffer; run `--mode train`",
    "evaluation": "no evaluation.json, so no tables and no plots by k; run `--mode evaluate`",
    "chains": "no chains.jsonl, so no lineage; run `--mode evaluate` with `eval.num_chains_saved` above 0",
}


def markdown(groups: Groups, captions: dict[str, str], plots: Iterable[str]) -> str:
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
    if notes := [*faults(groups), *(f"`{name}.png` is not drawn" for name in plots if name not in captions)]:
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
