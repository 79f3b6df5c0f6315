"""The units that a curriculum chooses among: a domain's tasks by a difficulty, a category, or one by one."""

import pathlib

import numpy as np

from exit_jax.algorithm.curricula.core import Units, make_units
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.domains.domain import Domain
from exit_jax.errors import ConfigError
from exit_jax.step.starts import train_tasks
from exit_jax.workdir.metrics import read_jsonl

MAX_UNITS, NUM_BINS = 64, 10  # a difficulty of more levels is cut into this many bins, of about as many tasks each
TASK, DIFFICULTY = "task", "difficulty"  # what algorithm.curriculum.unit may be besides a column's name


def curriculum_units(config: CurriculumConfig, domain: Domain) -> Units | None:
    """Return the units of the training split; None where base tasks come in shuffled epochs.

    Raises:
      ConfigError: if the domain does not tell the column, or the run to replay had other units.
    """
    if config.method == "uniform":
        return None
    task = train_tasks(domain)
    first, count = int(task[0]), task.size
    difficulty, category = domain.difficulty("train"), domain.category("train")
    column = next(iter(difficulty), TASK) if config.unit == DIFFICULTY else config.unit
    if column == TASK:
        units = make_units(np.arange(count), permuted=config.permuted)
    elif column in difficulty:
        units = make_units(_binned(difficulty[column]), column not in domain.easier_by, column, config.permuted)
    elif column in category:
        units = make_units(np.asarray(category[column]), True, column, config.permuted)
    else:
        known = [TASK, *difficulty, *category]
        raise ConfigError(
            f"algorithm.curriculum.unit = {config.unit!r} is nothing that the domain {domain.name} tells of its tasks; "
            f"it tells {', '.join(known)}"
        )
    recorded = _recorded(config.replay, units) if config.replay else None
    return units._replace(first_task=first, recorded=recorded)


def _binned(level: np.ndarray) -> np.ndarray:
    """Return levels [M], or the lowest level of their bin where there are too many."""
    if np.unique(level).size <= MAX_UNITS:
        return level
    edges = np.unique(np.quantile(level, np.arange(NUM_BINS) / NUM_BINS, method="lower"))
    return edges[np.searchsorted(edges, level, side="right") - 1]


def _recorded(workdir: str, units: Units) -> np.ndarray:
    """Return the weights that a finished run's units had, float32 [T, X].

    Raises:
      ConfigError: if it had others, or none.
    """
    path = pathlib.Path(workdir).expanduser() / "train.jsonl"
    rows, names = read_jsonl(path, "step"), [f"curriculum/{name}" for name in units.names]
    if not rows or not names or any(row.get(name) is None for row in rows for name in names):
        raise ConfigError(
            f"algorithm.curriculum.replay = {workdir!r}: {path} does not have the weights of the units "
            f"{', '.join(units.names) or 'of single tasks'} in every row; name the workdir of a run with a curriculum over the "
            "same units, of a difficulty or a category"
        )
    return np.array([[row[name] for name in names] for row in rows], np.float32)
