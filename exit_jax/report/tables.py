"""The report as Markdown: what was run, tables, plots with their captions, and what is missing."""

from collections.abc import Iterable, Sequence

import numpy as np

from exit_jax.report.plots import words
from exit_jax.report.runs import MEAN, Groups, all_runs, by_k, mean_std, splits_of

BY_K = {  # rows of the table: path in evaluation.json -> name
    ("accuracy",): "accuracy",
    ("accuracy_se",): "its standard error over problems",
    ("delta",): "Δ",
    ("quality",): "quality",
    ("best_so_far",): "best so far",
    ("stopped",): "stopped",
    ("restarts", "best_so_far"): "restarts, best so far",
    ("restarts", "stopped"): "restarts, stopped",
    ("restarts", "majority"): "restarts, majority",
    ("net_corrections",): "net corrections",
    ("corrected",): "wrong → right",
    ("broken",): "right → wrong",
    ("unchanged_right",): "right left unchanged",
    ("unchanged_wrong",): "wrong left unchanged",
}
LAST = [  # of these, the table of several variants shows the last k
    ("delta",),
    ("best_so_far",),
    ("stopped",),
    ("restarts", "best_so_far"),
    ("restarts", "stopped"),
    ("restarts", "majority"),
]
REMEDIES = {
    "config": "no config.json, so its folder's name stands for its variant; `--mode train` writes one",
    "rows": "no metrics in train.jsonl, so no plots of training, curriculum and buffer; run `--mode train`",
    "evaluation": "no evaluation.json, so no tables and no plots by k; run `--mode evaluate`",
    "chains": "no chains.jsonl, so no lineage and no page of chains; run `--mode evaluate` with "
    "`eval.num_chains_saved` above 0",
    "instances": "no instances.npz, so no distances and no map; `--mode train` writes it where a policy embeds instances",
}


def markdown(groups: Groups, captions: dict[str, str], plots: Iterable[str], page: str = "") -> str:
    """Return the report: what was run, the tables, the plots, and what is missing; ``page`` is the note on chains.html."""
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
        text = "Lines are means over a variant's runs; ± and bands are their standard deviation (n - 1), "
        parts.append(text + "but for the bands over k, which are standard errors.")
    if page:
        parts.append(f"**[Step through the chains](chains.html)**, in any browser: {page}")
    parts += overview(groups)
    for split, ks in splits_of(groups).items():
        parts += split_tables(groups, split, ks)
    parts += [f"## {name.replace('_', ' ')}\n\n![{name}]({name}.png)\n\n{text}" for name, text in captions.items()]
    if notes := [*faults(groups), *(f"`{name}.png` is not drawn" for name in plots if name not in captions)]:
        parts.append("## What is missing\n\n" + "\n".join(f"- {note}." for note in notes))
    return "\n\n".join(parts) + "\n"


def overview(groups: Groups) -> list[str]:
    """Return, where there are several splits, what ExIt's Table 1 shows: accuracy at first and last k, and Δ, by split."""
    splits = splits_of(groups)
    ks = sorted(set.intersection(*map(set, splits.values()))) if len(splits) > 1 else []
    if not ks:
        return []
    measures = {f"accuracy, k = {ks[0]}": ("accuracy", ks[:1]), f"accuracy, k = {ks[-1]}": ("accuracy", ks[-1:])}
    measures |= {f"Δ, k = {ks[-1]}": ("delta", ks[-1:]), f"net corrections, k = {ks[-1]}": ("net_corrections", ks[-1:])}
    text = "## All splits\n\nAll in %; Δ is the gain in accuracy since k = 0."
    text += f" *{MEAN}* is the unweighted mean of the test splits." if MEAN in splits else ""
    tables = [
        [
            (label if len(groups) > 1 else title, *(cells(by_k(runs, split, k, metric))[0] for split in splits))
            for label, runs in groups.items()
        ]
        for title, (metric, k) in measures.items()
    ]
    if len(groups) == 1:
        return [text, table(("", *splits), [row for rows in tables for row in rows])]
    return [text, *(table((title, *splits), rows) for title, rows in zip(list(measures)[:3], tables))]


def split_tables(groups: Groups, split: str, ks: Sequence[int]) -> list[str]:
    """Return the tables of a split: over k, and at the last k by difficulty; what no evaluation has is left out."""
    first = next(run.evaluation[split] for run in all_runs(groups) if split in run.evaluation)
    samples = f", {first['samples_per_task']} sample(s) of each" if "samples_per_task" in first else ""
    text = f"## {split}\n\n{first['num_tasks']} tasks{samples}. All in %; "
    text += "Δ is the gain in accuracy since k = 0, and equals net corrections per 100 tasks. "
    parts, last = [text + words(groups, [split])], ks[-1:]

    def known(paths, ks):
        some = {path: [by_k(runs, split, ks, *path) for runs in groups.values()] for path in paths}
        return {path: values for path, values in some.items() if any(np.isfinite(one).any() for one in values)}

    if len(groups) == 1:
        rows = [(BY_K[path], *cells(values)) for path, (values,) in known(BY_K, ks).items()]
        parts.append(table(("k", *map(str, ks)), rows))
    else:
        others = known(LAST, last)
        header = "accuracy, k =", *map(str, ks), *(f"{BY_K[path]}, k = {ks[-1]}" for path in others)
        rows = [
            (label, *cells(by_k(runs, split, ks, "accuracy")), *(cells(values[i])[0] for values in others.values()))
            for i, (label, runs) in enumerate(groups.items())
        ]
        parts.append(table(header, rows))
    if names := list(first.get("figures", {})):
        values = {
            name: [by_k(runs, split, ks, "figures", name) / 100 for runs in groups.values()] for name in names
        }  # not in %
        if len(groups) == 1:
            rows = [(name.replace("_", " "), *cells(value, 2)) for name, (value,) in values.items()]
            parts.append(table(("an episode, k =", *map(str, ks)), rows))
        else:
            rows = [
                (label, *(cells(value[i][:, -1:], 2)[0] for value in values.values())) for i, label in enumerate(groups)
            ]
            parts.append(table((f"an episode, k = {ks[-1]}", *(name.replace("_", " ") for name in names)), rows))
    for name, levels in first.get("by_difficulty", {}).items():
        paths = [("by_difficulty", name, level, "accuracy") for level in levels]
        rows = [
            (label, *(cells(by_k(runs, split, last, *path))[0] for path in paths)) for label, runs in groups.items()
        ]
        header = [f"{level} ({content['num_tasks']} tasks)" for level, content in levels.items()]
        parts.append(table((f"accuracy, k = {ks[-1]}, by {name}", *header), rows))
    return parts


def cells(values: np.ndarray, digits: int = 1) -> list[str]:
    """Return mean ± standard deviation of values [runs, n] as n cells of a table; a dash for nothing."""
    return [
        "–" if np.isnan(mean) else f"{mean:.{digits}f}" + ("" if np.isnan(std) else f" ± {std:.{digits}f}")
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
        if not getattr(run, field)
        and not (field in ("rows", "instances") and run.config.get("run", {}).get("num_iterations") == 0)
    ]
    skipped = {run.folder: run.chains.num_skipped for run in all_runs(groups) if run.chains.num_skipped}
    found += [
        f"{folder}: {count} rows of chains.jsonl that are no chains were passed over"
        for folder, count in skipped.items()
    ]
    for label, runs in groups.items():
        configs = [{k: v for k, v in run.config.items() if k not in ("seed", "run")} for run in runs]
        if differing := sorted(key for key in configs[0] if any(configs[0][key] != c.get(key) for c in configs)):
            found.append(f"{label}: its runs differ in {', '.join(differing)} of config.json, not in their seed alone")
    return found
