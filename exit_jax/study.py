"""A study: the base policy and all variants over seeds, in one table like the paper's Table 1.

Each run has a workdir of its own below the study's, so a study that is stopped goes on where it was, what is done is
skipped, and several processes may share the work by taking different seeds. Seeds share one warm start a seed.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from exit_jax import config as configs
from exit_jax.config import Config

MEASURES = ("accuracy", "best_so_far", "stopped", "quality")
BASE = "base"  # the policy before RL


def study(
    make_config: Callable[[str, int], Config],
    variants: Sequence[str],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    run: Callable[[Config, pathlib.Path], dict],
) -> dict:
    """Run every (variant, seed) that is not done, then write ``study.json`` and ``study.md``.

    Args:
      make_config: (variant, seed) -> the config of that run.
      run: trains and evaluates one config in a workdir and returns its evaluation.
    """
    results: dict[str, dict[int, dict]] = {}
    for seed in seeds:
        for variant in (BASE, *variants):
            config = make_config(variants[0] if variant == BASE else variant, seed)
            changed: dict[str, str | int] = {"warm_start_dir": config.run.warm_start_dir or str(workdir / "warm_start")}
            if variant == BASE:
                changed["num_iterations"] = 0
                config = dataclasses.replace(config, variant=BASE)
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, **changed))
            folder = workdir / variant / f"seed{seed}"
            done = folder / "evaluation.json"
            results.setdefault(variant, {})[seed] = (
                json.loads(done.read_text()) if done.exists() else run(config, folder)
            )
    summary = summarise(results)
    configs.write_json(workdir / "study.json", summary)
    (workdir / "study.md").write_text(table(summary))
    return summary


def summarise(results: dict[str, dict[int, dict]]) -> dict:
    """Reduce evaluations, variant -> seed -> split -> figures, to mean, spread and paired differences to GRPO.

    For each split, variant and measure: per-seed values at each k, their mean and standard deviation over seeds, and the
    mean difference to GRPO of the same seed with the half width of its 95% interval (Student's t over seeds).
    """
    first = next(iter(next(iter(results.values())).values()))
    summary = {}
    for split, figures in first.items():
        rows = {}
        for variant, by_seed in results.items():
            row = {}
            for measure in MEASURES:
                values = np.array([evaluation[split][measure] for evaluation in by_seed.values()])  # [seeds, k]
                row[measure] = {
                    "values": values.tolist(),
                    "mean": values.mean(0).tolist(),
                    "std": _std(values).tolist(),
                }
                if "grpo" in results and variant != "grpo":
                    paired = values - np.array([results["grpo"][seed][split][measure] for seed in by_seed])
                    row[measure]["minus_grpo"] = paired.mean(0).tolist()
                    row[measure]["minus_grpo_ci95"] = half_width(paired).tolist()
            gain = values_gain(by_seed, split)
            row["delta"] = {"mean": float(gain.mean()), "std": float(_std(gain[:, None])[0])}
            rows[variant] = row
        seeds = sorted(next(iter(results.values())))
        summary[split] = {"k": figures["k"], "num_tasks": figures["num_tasks"], "seeds": seeds, "variants": rows}
    return summary


def values_gain(by_seed: dict[int, dict], split: str) -> np.ndarray:
    """Return Δ_K [seeds]: accuracy at the last k minus accuracy at k = 0."""
    return np.array(
        [evaluation[split]["accuracy"][-1] - evaluation[split]["accuracy"][0] for evaluation in by_seed.values()]
    )


def _std(values: np.ndarray) -> np.ndarray:
    """Return the sample standard deviation over seeds; 0 for a single one."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])


def half_width(paired: np.ndarray) -> np.ndarray:
    """Return half the width of the 95% interval of the mean over rows [seeds, ...]; NaN for a single seed."""
    count = len(paired)
    if count < 2:
        return np.full(paired.shape[1:], np.nan)
    return stats.t.ppf(0.975, count - 1) * _std(paired) / math.sqrt(count)


def table(summary: dict) -> str:
    """Return the study as Markdown: per split, accuracy by k, Δ_K, and differences to GRPO at the last k."""
    lines = []
    for split, content in summary.items():
        ks = content["k"]
        seeds = len(content["seeds"])
        lines += [f"## {split}: {content['num_tasks']} tasks, {seeds} seeds, mean ± std over seeds", ""]
        lines += ["| variant | " + " | ".join(f"k={k}" for k in ks) + f" | Δ_{ks[-1]} | best so far | stopped |"]
        lines += ["|---" * (len(ks) + 4) + "|"]
        for variant, row in content["variants"].items():
            cells = [_cell(row["accuracy"]["mean"][i], row["accuracy"]["std"][i]) for i in range(len(ks))]
            cells += [_cell(row["delta"]["mean"], row["delta"]["std"])]
            cells += [_cell(row[m]["mean"][-1], row[m]["std"][-1]) for m in ("best_so_far", "stopped")]
            lines += [f"| {variant} | " + " | ".join(cells) + " |"]
        compared = {v: row for v, row in content["variants"].items() if "minus_grpo" in row["accuracy"]}
        if compared:
            lines += ["", f"Paired difference to GRPO at k={ks[-1]}, with its 95% interval over seeds:", ""]
            lines += ["| variant | last iterate | best so far | stopped | quality |", "|---|---|---|---|---|"]
            for variant, row in compared.items():
                cells = [f"{row[m]['minus_grpo'][-1]:+.3f} ± {row[m]['minus_grpo_ci95'][-1]:.3f}" for m in MEASURES]
                lines += [f"| {variant} | " + " | ".join(cells) + " |"]
        lines += [""]
    return "\n".join(lines)


def _cell(mean: float, std: float) -> str:
    return f"{mean:.3f} ± {std:.3f}"
