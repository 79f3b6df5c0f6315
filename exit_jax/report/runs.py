"""What finished runs left in their workdirs, and the numbers that tables and plots show of it."""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeGuard

import numpy as np

from exit_jax.errors import ConfigError
from exit_jax.workdir import evaluation
from exit_jax.workdir.evaluation import COUNTS, MEAN, TOTALS
from exit_jax.workdir.metrics import read_jsonl

ORDER = ("base", "grpo", "curriculum", "improve", "diverge", "exit")  # the paper's, of its Table 1
MAX_INSTANCES = 2000  # instances of a run: their 2 million pairs take a second
DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)  # what np.load raises


class Chains:
    """The rows of chains.jsonl, read anew at each pass: those of a whole evaluation may be gigabytes.

    A row that is no chain is passed over; ``num_skipped`` counts those of the last whole pass.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self.num_skipped = path, 0

    def __iter__(self) -> Iterator[dict]:
        if not self.path.exists():
            return
        num_skipped = 0
        with self.path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if is_chain(row):
                    yield row
                else:
                    num_skipped += bool(line.strip())
        self.num_skipped = num_skipped

    def __bool__(self) -> bool:
        return any(True for _ in self)


def is_chain(row) -> TypeGuard[dict]:
    """Does a row say its split and task and, for each of its responses, one at least, the quality?"""
    match row:
        case {"split": str(), "task": int(), "quality": [_, *_] as quality, "responses": list() as texts}:
            numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in quality)
            complete = len(texts) == len(quality) and all(isinstance(text, str) for text in texts)
            return numbers and complete and isinstance(row.get("sample", 0), int)
    return False


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir holds; empty where a file is missing or damaged."""

    path: pathlib.Path
    config: dict
    versions: dict
    rows: list[dict]  # train.jsonl
    evaluation: dict  # split -> its figures, as workdir.evaluation has them
    chains: Chains
    # "secs": split -> kind of chain -> seconds; "notes": the same -> means of what may differ when it is repeated
    timing: dict
    scores: dict  # the final buffer's
    # some of the final buffer's: iteration [n] that made them, embedding [n, E]; and start_task [m], start_embedding [m, E] of
    # solutions that training started from, which older runs lack
    instances: dict[str, np.ndarray]

    @property
    def folder(self) -> str:
        """The end of its path, to tell runs apart without naming a machine's folders."""
        return f"`{self.path.parent.name}/{self.path.name}`"


Groups = dict[str, list[Run]]


def load_object(path: pathlib.Path) -> dict:
    """Return the object in a JSON file, {} where it is missing or damaged."""
    try:
        return _object(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError):
        return {}


def load(path: pathlib.Path) -> Run:
    """Read a run's files; what is damaged is left out."""
    recorded, scores = load_object(path / "config.json"), load_object(path / "buffer_scores.json")
    config = _object(recorded.get("config"))
    return Run(
        path=path.absolute(),
        config=config if all(isinstance(config.get(name), str) for name in ("name", "variant")) else {},
        versions=_object(recorded.get("versions")),
        rows=[row for row in read_jsonl(path / "train.jsonl", "step") if is_row(row)],
        evaluation=load_evaluation(path / evaluation.NAME),
        chains=Chains(path / "chains.jsonl"),
        timing={
            kind: content
            for kind, content in load_object(path / "evaluation_timing.json").items()
            if _is_nested(content)
        },
        scores=scores if _are_numbers(scores.get("score")) else {},
        instances=load_instances(path / "instances.npz"),
    )


def _object(content) -> dict:
    """Return what JSON says if it is an object, else an empty one."""
    return content if isinstance(content, dict) else {}


def _is_nested(content) -> bool:
    """Is it what evaluation_timing.json says of all splits: an object of objects?"""
    return isinstance(content, dict) and all(isinstance(value, dict) for value in content.values())


def _are_numbers(content) -> TypeGuard[list]:
    return isinstance(content, list) and all(isinstance(value, int | float) for value in content)


def is_row(row) -> TypeGuard[dict]:
    """Is a row of train.jsonl numbers, or null, by name, of a step?"""
    known = isinstance(row, dict) and type(row.get("step")) is int
    return known and all(value is None or isinstance(value, int | float) for value in row.values())


def load_evaluation(path: pathlib.Path) -> dict:
    """Return the figures of each split; what is damaged is left out."""
    try:
        splits = evaluation.read(path)["splits"]
    except (OSError, ConfigError):
        return {}
    return {split: figures for split, figures in splits.items() if is_result(figures)}


def is_result(figures) -> TypeGuard[dict]:
    """Do the figures of a split say its k, and the plain chain's accuracy and quality at each of them?"""
    match figures:
        case {
            "k": [_, *_] as k,
            "num_tasks": int(),
            "scaffolds": {"chain": {"accuracy": right, "quality": quality}} as rows,
        }:
            known = all(isinstance(series, list) and len(series) == len(k) for series in (right, quality))
            return known and all(type(value) is int for value in k) and _is_nested(rows)
    return False


def load_instances(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return a random MAX_INSTANCES of the instances that have an embedding, in order; nothing of a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            iteration, embedding = file["iteration"], file["embedding"]
            known = with_embedding(embedding)
            if known.size > MAX_INSTANCES:
                known = np.sort(np.random.default_rng(0).choice(known, MAX_INSTANCES, replace=False))
            held = {"iteration": iteration[known], "embedding": embedding[known].astype(np.float32)}
            if "start_embedding" in file:
                started = file["start_embedding"]
                some = with_embedding(started)
                held |= {
                    "start_task": file["start_task"][some],
                    "start_embedding": started[some].astype(np.float32),
                }
            return held if known.size else {}
    except (*DAMAGE, IndexError):
        return {}


def with_embedding(rows: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows [n, E] that are embeddings: neither blank nor beyond float16."""
    return np.flatnonzero(np.isfinite(rows).all(1) & rows.any(1))


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
    """Return the splits that were evaluated, their mean first, each with the k that all its evaluations report."""
    splits: dict[str, set[int]] = {}
    for run in all_runs(groups):
        for split, results in run.evaluation.items():
            splits[split] = splits.get(split, set(results["k"])) & set(results["k"])
    return {split: sorted(splits[split]) for split in sorted(splits, key=MEAN.__ne__) if splits[split]}


def by_k(runs: Sequence[Run], split: str, ks: Sequence[int], *path: str) -> np.ndarray:
    """Return a metric of the runs' evaluations [runs, len(ks)]; NaN for null or none.

    In percent, COUNTS in percent of the tasks, TOTALS as they are.

    Args:
      path: a figure of the plain chain, or the name of a scaffold and its figure.
    """
    table = []
    for results in (run.evaluation[split] for run in runs if split in run.evaluation):
        scaffolds = results["scaffolds"]
        place = scaffolds if path[0] in scaffolds else scaffolds["chain"]
        found = functools.reduce(lambda at, key: at.get(key) or {}, path, place)
        series = dict(zip(results["k"], found)) if isinstance(found, list) else {}
        scale = 1 if path[-1] in TOTALS else 100 / results["num_tasks"] if path[-1] in COUNTS else 100
        table.append([np.nan if series.get(k) is None else scale * series[k] for k in ks])
    return np.array(table, float).reshape(len(table), len(ks))


def standard_error(runs: Sequence[Run], split: str, ks: Sequence[int], *path: str) -> np.ndarray:
    """Return the standard error [len(ks)] of a metric's mean: over runs or, of a single one, over its problems."""
    values = by_k(runs, split, ks, *path)
    if len(values) > 1:
        return mean_std(values)[1] / np.sqrt(np.isfinite(values).sum(0))
    return mean_std(by_k(runs, split, ks, *path[:-1], f"{path[-1]}_se"))[0]


def has_scores(runs: Sequence[Run], split: str) -> bool:
    """Do some evaluations of a split have qualities beside 0 and 1, so that their mean is no accuracy?"""
    found = (evaluation.chain_of(run.evaluation[split]) for run in runs if split in run.evaluation)
    return any(evaluation.is_scored(chain["quality"], chain["accuracy"]) for chain in found)


TITLES = {"chain": "plain chain", "greedy": "greedy search"}
KNOWN = ("chain", "restarts", "greedy")  # scaffolds of which tables and plots say more than what evaluation.json says


def title_of(scaffold: str) -> str:
    """Return what a scaffold is called in tables and plots."""
    return TITLES.get(scaffold, scaffold.replace("_", " "))


def other_scaffolds(runs: Sequence[Run], splits: Iterable[str]) -> dict[str, dict]:
    """Return the scaffolds beyond KNOWN that evaluations of these splits have, with what the first of them reports."""
    found = {}
    for figures in (run.evaluation[split] for split in splits for run in runs if split in run.evaluation):
        found = {name: entry for name, entry in figures["scaffolds"].items() if name not in KNOWN} | found
    return found


def other_figures(runs: Sequence[Run], splits: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return, by path, the names of the shares that scaffolds beyond KNOWN report over k."""
    return {
        (scaffold, name): f"{title_of(scaffold)}, {name.replace('_', ' ')}"
        for scaffold, entry in other_scaffolds(runs, splits).items()
        for name, value in entry.items()
        if isinstance(value, list) and name != "tokens" and not name.endswith(("_se", "_delta"))
    }


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
