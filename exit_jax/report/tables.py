"""The report as Markdown: what was run, tables, plots with their captions, and what is missing."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from exit_jax.report.plots import explain_picks
from exit_jax.report.runs import (
    Groups,
    all_runs,
    by_k,
    has_scores,
    mean_std,
    other_figures,
    other_scaffolds,
    splits_of,
    title_of,
)
from exit_jax.workdir.evaluation import MEAN, SCORES, chain_of, stands_for
from exit_jax.workdir.markdown import table

BY_K = {  # rows of the table: a figure of the plain chain, or a scaffold and its figure -> name
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
    ("net_corrections_sum",): "net corrections, sum",
    ("corrected",): "wrong → right",
    ("broken",): "right → wrong",
    ("unchanged_right",): "right left unchanged",
    ("unchanged_wrong",): "wrong left unchanged",
}
CHAIN, CHAIN_BEST = "plain chain, last response", "plain chain, best so far"
SCAFFOLDS = {  # name -> scaffold, and the figure that is its score, of a split and of each of its tasks
    CHAIN: ("chain", "quality"),
    CHAIN_BEST: ("chain", "best_quality"),
    "greedy search": ("greedy", "quality"),
    "restarts, best so far": ("restarts", "best_quality"),
}
SCORES_BY_K = {  # rows of a single run's table, all of them shares in %
    ("quality",): CHAIN,
    ("quality_se",): "its standard error over tasks",
    ("best_quality",): CHAIN_BEST,
    ("greedy", "quality"): "greedy search",
    ("greedy", "quality_se"): "its standard error over tasks",
    ("restarts", "best_quality"): "restarts, best so far",
    ("improved",): "plain chain: steps up to k that raised the score",
    ("worsened",): "and that lowered it",
    ("greedy", "improved"): "greedy search: steps that beat the best",
    ("greedy", "worsened"): "and that fell below it",
}
LAST = [  # what the table of several variants shows at the last k alone
    ("delta",),
    ("net_corrections_sum",),
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
        parts += [*score_tables(groups, split, ks), *note_tables(groups, split, ks)]
    parts += wall_times(groups)
    parts += [f"## {name.replace('_', ' ')}\n\n![{name}]({name}.png)\n\n{text}" for name, text in captions.items()]
    if notes := [*faults(groups), *(f"`{name}.png` is not drawn" for name in plots if name not in captions)]:
        parts.append("## What is missing\n\n" + "\n".join(f"- {note}." for note in notes))
    return "\n\n".join(parts) + "\n"


def overview(groups: Groups) -> list[str]:
    """Return, where there are several splits, what ExIt's Table 1 shows: accuracy at first and last k, and Δ, by split.

    Where quality is a score, its figures and the greedy search's follow.
    """
    splits = splits_of(groups)
    ks = sorted(set.intersection(*map(set, splits.values()))) if len(splits) > 1 else []
    if not ks:
        return []
    end = f"k = {ks[-1]}"
    measures = {f"accuracy, k = {ks[0]}": (ks[:1], "accuracy"), f"accuracy, {end}": (ks[-1:], "accuracy")}
    measures |= {f"Δ, {end}": (ks[-1:], "delta")}
    if len(groups) == 1:
        measures |= {f"net corrections, {end}": (ks[-1:], "net_corrections")}
    if scored_splits(groups):
        measures |= {f"score, k = {ks[0]}": (ks[:1], "quality"), f"score, {end}": (ks[-1:], "quality")}
        measures |= {f"score, greedy search, {end}": (ks[-1:], "greedy", "quality")}
    text = "## All splits\n\nAll in %; Δ is the gain in accuracy since k = 0."
    text += f" *{MEAN}* is the unweighted mean of the test splits." if MEAN in splits else ""
    tables = [
        [
            (label if len(groups) > 1 else title, *(cells(by_k(runs, split, k, *path))[0] for split in splits))
            for label, runs in groups.items()
        ]
        for title, (k, *path) in measures.items()
    ]
    if len(groups) == 1:
        return [text, table(("", *splits), [row for rows in tables for row in rows])]
    return [text, *(table((title, *splits), rows) for title, rows in zip(measures, tables))]


def split_tables(groups: Groups, split: str, ks: Sequence[int]) -> list[str]:
    """Return the tables of a split: over k, and at the last k by difficulty; what no evaluation has is left out."""
    first = next(run.evaluation[split] for run in all_runs(groups) if split in run.evaluation)
    size, beyond = f"{first['num_tasks']} tasks", first.get("num_too_long", 0)
    chain = chain_of(first)
    size += f" ({beyond} of them too long for a prompt, and so wrong)" if beyond else ""
    size += f", {first['samples_per_task']} sample(s) of each" if "samples_per_task" in first else ""
    text = f"## {split}\n\n{size}. All in %, but for the sum; "
    text += "Δ is the gain in accuracy since k = 0, and equals net corrections per 100 tasks, a mean over a task's samples; "
    text += "*net corrections, sum* counts those of all samples, as the paper does. "
    parts, last = [text + explain_picks(groups, [split])], ks[-1:]

    def known(paths, ks):
        some = {path: [by_k(runs, split, ks, *path) for runs in groups.values()] for path in paths}
        return {path: values for path, values in some.items() if any(np.isfinite(one).any() for one in values)}

    further = other_figures(all_runs(groups), [split])
    named = BY_K | further
    if len(groups) == 1:
        rows = [(named[path], *cells(values)) for path, (values,) in known(named, ks).items()]
        parts.append(table(("k", *map(str, ks)), rows))
    else:
        others = known([*LAST, *further], last)
        header = "accuracy, k =", *map(str, ks), *(f"{named[path]}, k = {ks[-1]}" for path in others)
        rows = [
            (label, *cells(by_k(runs, split, ks, "accuracy")), *(cells(values[i])[0] for values in others.values()))
            for i, (label, runs) in enumerate(groups.items())
        ]
        parts.append(table(header, rows))
    if figures := {name.replace("_", " "): ("figures", name) for name in chain.get("figures", {})}:
        parts.append(plain_table(groups, split, ks, "an episode", figures, 2))
    broken_down = [(kind, *item) for kind in ("by_difficulty", "by_category") for item in chain.get(kind, {}).items()]
    for kind, name, levels in broken_down:
        paths = [(kind, name, level, "accuracy") for level in levels]
        rows = [
            (label, *(cells(by_k(runs, split, last, *path))[0] for path in paths)) for label, runs in groups.items()
        ]
        header = [f"{level} ({content['num_tasks']} tasks)" for level, content in levels.items()]
        parts.append(table((f"accuracy, k = {ks[-1]}, by {name}", *header), rows))
    return parts


def scored_splits(groups: Groups) -> dict[str, list[int]]:
    """Return the splits, each with its k, of which some evaluation has qualities beside 0 and 1."""
    return {split: ks for split, ks in splits_of(groups).items() if has_scores(all_runs(groups), split)}


def known_scaffolds(groups: Groups, splits: dict[str, list[int]]) -> dict[str, tuple[str, str]]:
    """Return SCAFFOLDS and others that some evaluation of these splits has the score of; independent responses as such."""
    runs = all_runs(groups)
    others = {
        title_of(name): (name, stands_for(entry, SCORES)) for name, entry in other_scaffolds(runs, splits).items()
    }
    found = {
        name: path
        for name, path in (SCAFFOLDS | others).items()
        if any(np.isfinite(by_k(runs, split, ks, *path)).any() for split, ks in splits.items())
    }
    rows = (run.evaluation[split]["scaffolds"] for run in runs for split in splits if split in run.evaluation)
    every = {scaffolds["restarts"].get("every") for scaffolds in rows if "restarts" in scaffolds}
    rename = {"restarts, best so far": "best of n independent"} if every == {1} else {}
    return {rename.get(name, name): path for name, path in found.items()}


def score_tables(groups: Groups, split: str, ks: Sequence[int]) -> list[str]:
    """Return the scores of a split by k and Δ: rows are figures of a single group, or groups in a table a scaffold."""
    if not has_scores(all_runs(groups), split):
        return []
    text = f"Normalised score in %; Δ is its gain since k = {ks[0]}."
    if len(groups) == 1:
        (runs,) = groups.values()
        scored = known_scaffolds(groups, {split: list(ks)})
        further = {path: name for name, path in scored.items() if path not in SCAFFOLDS.values()}
        rows = []
        for path, name in (SCORES_BY_K | further).items():
            values = by_k(runs, split, ks, *path)
            if np.isfinite(values).any():
                is_score = path in (("quality",), ("best_quality",), *scored.values())
                rows.append((name, *cells(values), *(cells(rise(values)) if is_score else "–")))
        return [text, table(("score, k =", *map(str, ks), f"Δ_{ks[-1]}"), rows)]
    parts = [text]
    for name, path in known_scaffolds(groups, {split: list(ks)}).items():
        table_of = {label: by_k(runs, split, ks, *path) for label, runs in groups.items()}
        rows = [(label, *cells(values), *cells(rise(values))) for label, values in table_of.items()]
        parts.append(table((f"{name}, k =", *map(str, ks), f"Δ_{ks[-1]}"), rows))
    return parts


def rise(values: np.ndarray) -> np.ndarray:
    """Return by how much values [runs, n] grow from the first k to the last, [runs, 1]."""
    return values[:, -1:] - values[:, :1]


def note_tables(groups: Groups, split: str, ks: Sequence[int]) -> list[str]:
    """Return what else grading says of responses, such as whether a script crashed: by k, or at the last k by group."""
    found = {}
    for figures in (run.evaluation[split] for run in all_runs(groups) if split in run.evaluation):
        for scaffold, entry in figures["scaffolds"].items():
            start = "" if scaffold == "chain" else f"{title_of(scaffold)}: "
            found |= {f"{start}{name.replace('_', ' ')}": (scaffold, "notes", name) for name in entry.get("notes", {})}
    if not found:
        return []
    return [plain_table(groups, split, ks, "a response", found, 3)]


def plain_table(
    groups: Groups, split: str, ks: Sequence[int], title: str, paths: Mapping[str, Sequence[str]], digits: int
) -> str:
    """Return a table of figures that are no shares, by name: over k of a single group, at the last k of several."""
    values = {name: [by_k(runs, split, ks, *path) / 100 for runs in groups.values()] for name, path in paths.items()}
    if len(groups) == 1:
        rows = [(name, *cells(by_group[0], digits)) for name, by_group in values.items()]
        return table((f"{title}, k =", *map(str, ks)), rows)
    rows = [
        (label, *(cells(by_group[i][:, -1:], digits)[0] for by_group in values.values()))
        for i, label in enumerate(groups)
    ]
    return table((f"{title}, k = {ks[-1]}", *paths), rows)


def wall_times(groups: Groups) -> list[str]:
    """Return the seconds that evaluations took, all splits together, by kind of chain; and what grading says of its own."""
    runs = [run for run in all_runs(groups) if run.timing.get("secs")]
    kinds = list(dict.fromkeys(kind for run in runs for secs in run.timing["secs"].values() for kind in secs))
    if not runs:
        return []
    rows = []
    for run in runs:
        totals = [sum(secs.get(kind, 0.0) for secs in run.timing["secs"].values()) for kind in kinds]
        rows.append((run.folder, *(f"{total:.1f}" for total in totals)))
    text = "Wall time of evaluation, all splits; of one that was resumed, its last session's."
    parts = [text, table(("seconds", *kinds), rows)]
    noted = [
        (run, split, kind, said)
        for run in runs
        for split, kinds in run.timing.get("notes", {}).items()
        for kind, said in kinds.items()
    ]
    if names := list(dict.fromkeys(name for *_, said in noted for name in said)):
        header = ("mean of a response", *(name.replace("_", " ") for name in names))
        rows = [
            (f"{run.folder}, {split}, {kind}", *(f"{said.get(name, np.nan):.3f}" for name in names))
            for run, split, kind, said in noted
        ]
        parts.append(table(header, rows))
    return parts


def cells(values: np.ndarray, digits: int = 1) -> list[str]:
    """Return mean ± standard deviation of values [runs, n] as n cells of a table; a dash for nothing."""
    return [
        "–" if np.isnan(mean) else f"{mean:.{digits}f}" + ("" if np.isnan(std) else f" ± {std:.{digits}f}")
        for mean, std in zip(*mean_std(values))
    ]


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
