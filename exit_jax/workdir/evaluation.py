"""The file ``evaluation.json``: its format, and its one reader, which takes the files of older versions, too.

    {"format": 2,
     "settings": <config.eval>,
     "splits": {<split>: {"k": [0, 1, 2], "num_tasks": 8, "num_too_long": 0, "samples_per_task": 4,
                          "scaffolds": {<scaffold>: {"about": <one sentence>, <figure>: <a value at each k>, ...}}}}}

The split "mean" is the unweighted mean of the domain's test splits, where several were evaluated. Format 1 had the splits at
the top, the plain chain's figures directly below each, and those of its rivals as ``restarts`` and ``greedy`` among them.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exit_jax.errors import ConfigError
from exit_jax.workdir import identity

NAME = "evaluation.json"
FORMAT = 2
MEAN = "mean"  # the split that is the unweighted mean of the test splits
# numbers over all tasks of the split, each task's a mean over its samples
COUNTS = ("net_corrections", "corrected", "broken")
TOTALS = ("net_corrections_sum",)  # numbers over all samples of all tasks
OF_SPLIT = ("k", "num_tasks", "num_too_long", "samples_per_task")  # figures of the split, whatever the scaffold
# figures that a scaffold may stand for among others; the first that it reports counts
ACCURACIES = ("accuracy", "pass_at_k", "best_so_far")
SCORES = ("quality", "best_quality")


_BY_TASK = {  # scaffold -> what a task's series was called in format 1 -> what it is called
    "chain": {"quality": "quality", "best_quality": "best_quality"},
    "restarts": {"restarts": "best_quality"},
    "greedy": {"greedy": "quality"},
}


def read(path: pathlib.Path) -> dict[str, Any]:
    """Return what ``evaluation.json`` holds, in today's format whichever version wrote it.

    Raises:
      ConfigError: if it is damaged, or of a later version.
    """
    content = identity.read_object(path)
    version = content.get("format", 1)
    if version == 1:
        return _from_format_1(content)
    if version != FORMAT or not isinstance(content.get("splits"), dict):
        raise ConfigError(
            f"{path} is of format {version!r}, and this version reads {FORMAT} and 1; "
            "evaluate again, with --mode evaluate, or take the version that wrote it"
        )
    return content


def _from_format_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evaluation in today's format; what is no split is left to the reader's own checks, without settings."""
    told = [figures.get("settings") if isinstance(figures, dict) else None for figures in content.values()]
    return {
        "format": FORMAT,
        "settings": told[0] if told and all(one == told[0] for one in told) else None,
        "splits": {
            split: _split_from_format_1(split, figures) if isinstance(figures, dict) else figures
            for split, figures in content.items()
        },
    }


def _split_from_format_1(split: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a split by scaffold.

    ``by_task`` had one series of each rival by the rival's name. The sums of net corrections are added where they are missing.
    """
    own = (*OF_SPLIT, "settings", "restarts", "greedy", "by_task")
    scaffolds = {"chain": {name: value for name, value in figures.items() if name not in own}}
    scaffolds |= {name: dict(figures[name]) for name in ("restarts", "greedy") if isinstance(figures.get(name), dict)}
    by_task = figures.get("by_task")
    if isinstance(by_task, dict):
        series = {task: told for task, told in by_task.items() if isinstance(told, dict)}
        for name, entry in scaffolds.items():
            entry["by_task"] = {
                task: {new: told[old] for old, new in _BY_TASK[name].items() if old in told}
                for task, told in series.items()
            }
    chain, samples = scaffolds["chain"], figures.get("samples_per_task")
    net = chain.get("net_corrections")
    if split != MEAN and isinstance(samples, int) and isinstance(net, list):
        if all(isinstance(value, int | float) for value in net):
            chain.setdefault("net_corrections_sum", [round(value * samples) for value in net])
    return {name: figures[name] for name in OF_SPLIT if name in figures} | {"scaffolds": scaffolds}


def chain_of(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a split's plain chain."""
    return figures["scaffolds"]["chain"]


def stands_for(entry: Mapping[str, Any], figures: tuple[str, ...]) -> str:
    """Return the figure that a scaffold stands for, the first of ``figures`` that it reports; "" for none."""
    return next((name for name in figures if isinstance(entry.get(name), list)), "")


def to_lists(values: np.ndarray) -> list:
    """Return values [...] as nested lists with null for NaN, which JSON does not know."""
    listed = values.astype(object)
    listed[~np.isfinite(values)] = None
    return listed.tolist()


def is_scored(quality: Sequence[float], accuracy: Sequence[float]) -> bool:
    """Return whether answers are scored, not only right or wrong: mean qualities at each k then differ from the accuracy."""
    return any(abs(score - right) > 1e-5 for score, right in zip(quality, accuracy))
