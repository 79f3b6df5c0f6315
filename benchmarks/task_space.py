"""The task space of a study's runs (ExIt Figures 3 to 7, Table 2): distinct instances, distances, and the depth of starts.

    python benchmarks/task_space.py runs/sudoku-study

Takes the folder of a study whose runs are finished, <folder>/<variant>/seed<s>. Prints means over seeds with their standard
deviations, and paired differences to the variant before, with 95% intervals. Depth is the ordinal of the response that
training samples, early (iterations 50 to 150) and in the last 100 iterations.
"""

import argparse
import itertools
import json
import pathlib
import sys

import numpy as np

from exit_jax.algorithm.settings import VARIANTS
from exit_jax.report.instances import mean_distances
from exit_jax.study import half_width
from exit_jax.workdir.markdown import table

NAMES = ("distinct instances", "buffer, cosine", "buffer, L2", "starts, cosine", "starts, L2", "depth, early", "late")
EARLY, LATE = slice(50, 150), slice(-100, None)


def measure(folder: pathlib.Path) -> list[float]:
    """Return the figures of a run, in the order of NAMES."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    held = np.load(folder / "instances.npz")
    depth = [float(np.mean([row["start_depth"] for row in rows[part]])) for part in (EARLY, LATE)]
    buffer, starts = mean_distances(held["embedding"]), mean_distances(held["start_embedding"], held["start_task"])
    return [rows[-1]["distinct_instances"], *buffer, *starts, *depth]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="task space of a study's runs")
    parser.add_argument(
        "folder", type=pathlib.Path, nargs="+", help="one folder of a study, or several with other seeds"
    )
    folders = parser.parse_args().folder
    found: dict[str, dict[str, list[float]]] = {}
    for variant in VARIANTS:
        runs = [run for folder in folders for run in sorted((folder / variant).glob("seed*"))]
        known = {run.name: measure(run) for run in runs if (run / "instances.npz").exists()}
        if known:
            found[variant] = known
    if not found:
        sys.exit(f"no finished runs that draw from a buffer below {', '.join(map(str, folders))}")

    def text(mean: float, spread: float) -> str:
        digits = 3 if abs(mean) < 100 and spread < 10 else 0
        return f"{mean:.{digits}f} ± {spread:.{digits}f}" if np.isfinite(mean) else "–"

    rows = []
    for variant, known in found.items():
        values = np.array(list(known.values()))
        rows.append([variant, *map(text, values.mean(0), values.std(0, ddof=1))])
        growth = values[:, -1] - values[:, -2]
        rows[-1].append(text(growth.mean(), float(half_width(growth))))
    print(f"{len(next(iter(found.values())))} seeds, mean ± standard deviation; growth of the depth ± 95%:\n")
    print(table(["", *NAMES, "growth"], rows))
    names, rows = list(found), []
    for before, variant in itertools.pairwise(names):
        shared = [seed for seed in found[variant] if seed in found[before]]
        paired = np.array([np.subtract(found[variant][seed], found[before][seed]) for seed in shared])
        rows.append([f"{variant} - {before}", *(text(d.mean(), float(half_width(d))) for d in paired.T)])
    print("\nPaired, ± 95%:\n")
    print(table(["", *NAMES], rows))


if __name__ == "__main__":
    main()
