"""A study: the base policy and all variants over seeds, in one table like the paper's Table 1.

Each run has a workdir of its own below the study's, so a study that is stopped goes on where it was, what is done is
skipped, and several processes may share the work by taking different seeds. A finished run is evaluated anew where the
settings of ``eval`` are others; one of another experiment is an error. Seeds share one warm start a seed. A file of rows
(workdir/rows.py) stands for the folders of runs that were made elsewhere.
"""

import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from exit_jax.algorithm.settings import VARIANTS
from exit_jax.config.parse import validate
from exit_jax.config.schema import Config, EvalConfig
from exit_jax.config.shipped import load
from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts
from exit_jax.workdir import evaluation, identity, rows
from exit_jax.workdir.evaluation import to_lists
from exit_jax.workdir.markdown import table
from exit_jax.workdir.metrics import trained_iterations
from exit_jax.workdir.rows import BASE

log = logging.getLogger(__name__)

# accuracy = found x kept: an answer counts at the last iterate if a chain was ever right and stayed so
MEASURES = {  # name -> a scaffold and its figure, but for ``kept``, the ratio of the first two
    "accuracy": ("chain", "accuracy"),
    "found": ("chain", "best_so_far"),
    "kept": ("chain", "kept"),
    "stopped": ("chain", "stopped"),
    "restarted": ("restarts", "best_so_far"),
    "quality": ("chain", "quality"),
    "frozen": ("chain", "unchanged_wrong"),
    "greedy": ("greedy", "quality"),
    "restarted_quality": ("restarts", "best_quality"),
}
GAINS = {  # gains since k = 0, which need not be among the k that are shown
    "delta": ("chain", "delta"),
    "quality_delta": ("chain", "quality_delta"),
    "greedy_delta": ("greedy", "quality_delta"),
    "restarted_quality_delta": ("restarts", "best_quality_delta"),
}
SCORES = {"quality": "plain chain", "greedy": "greedy search", "restarted_quality": "restarts, best so far"}
OF_RIGHT = ("accuracy", "found", "kept", "stopped", "restarted")
LEGEND = """By the last k; accuracy = found x kept. *Found*: ever right, *kept*: still right at the end; *stopped*: right when
the policy's own sign said it was done; *restarted*: found by chains that start over, at equal responses; *frozen*: share of
wrong answers that a response left as they were; *greedy*, *restarted_quality*: quality of the best so far, of a search
that goes on from it and of restarts."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config under its arguments and overrides, read anew for each variant and seed."""

    name: str  # of a config that ships, or its file
    arguments: str  # name=value,... of the command line
    overrides: Mapping[str, Any]  # dotted field -> value

    def read(self, variant: str, seed: int) -> ConfigDict:
        """Return what the config says of another variant and seed, without the overrides."""
        items = [
            item for item in self.arguments.split(",") if item and item.partition("=")[0] not in ("variant", "seed")
        ]
        return load(f"{self.name}:" + ",".join([*items, f"variant={variant}", f"seed={seed}"]))

    def config(self, variant: str, seed: int) -> Config:
        """Return the experiment for another variant and seed, under the overrides."""
        content = self.read(variant, seed)
        content.update_from_flattened_dict(self.overrides)
        return validate(content, jax.device_count())

    def check(self, variants: Sequence[str], seeds: Sequence[int]) -> None:
        """Refuse a study whose overrides would make its runs alike in what they are to differ in.

        Raises:
          ConfigError: naming the overrides, or a variant that the config does not have; or if there is no run at all.
        """
        if not variants or not seeds:
            raise ConfigError(f"config.study has variants = {variants} and seeds = {seeds}; name at least one of each")
        try:
            plain, *others = [identity.scientific(self.read(variant, seeds[0]).to_dict()) for variant in variants]
        except ValueError as error:
            raise ConfigError(f"config.study.variants: {error}") from error
        names = set(plain).union(*others)  # a younger field at its default is not there
        own = {"variant", "seed", *(name for name in names if any(o.get(name) != plain.get(name) for o in others))}
        if lost := sorted(own & self.overrides.keys()):
            names = ", ".join(f"--config.{name}" for name in lost)
            raise ConfigError(
                f"{names} would be the same in all runs of the study, which differ in it; leave it out: "
                "--config.study.variants and --config.study.seeds say which runs there are"
            )


def study(
    make_config: Callable[[str, int], Config],
    variants: Sequence[str],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    run: Callable[[Config, pathlib.Path], dict],
    recorded: pathlib.Path | None = None,
) -> dict:
    """Run every (variant, seed) that is not done, then write ``study.json`` and ``study.md``.

    Args:
      make_config: (variant, seed) -> the config of that run.
      run: trains, or goes on training, and evaluates one config in a workdir and returns its evaluation.
      recorded: the file of ``config.study.rows``: runs that it has are not made, and others are added when they end.

    Raises:
      ConfigError: if a finished run below ``workdir`` is of another experiment.
    """
    warn_of_unequal_cost({variant: make_config(variant, seeds[0]) for variant in variants})
    results: dict[str, dict[int, dict]] = {}
    known = rows.read(recorded) if recorded else {}
    # one without a change, such as exit-blind's, which the base policy would be evaluated with
    plain = next((variant for variant in variants if "-" not in variant), variants[0])
    for seed in seeds:
        for variant in (BASE, *variants):
            config = make_config(plain if variant == BASE else variant, seed)
            changed: dict[str, str | int] = {"warm_start_dir": config.run.warm_start_dir or str(workdir / "warm_start")}
            if variant == BASE:
                changed["num_iterations"] = 0
                algorithm = dataclasses.replace(config.algorithm, **VARIANTS["grpo"])  # whichever plain one it was
                config = dataclasses.replace(config, variant=BASE, algorithm=algorithm)
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, **changed))
            folder = workdir / variant / f"seed{seed}"
            name = rows.name_of(config)
            found = known.get(name) or finished(config, folder) or run(config, folder)
            results.setdefault(variant, {})[seed] = found
            if recorded and name not in known and hosts.is_lead():
                rows.append(recorded, config, found, rows.training_of(config, folder))
    summary = over_seeds(results)
    if hosts.is_lead():
        workdir.mkdir(parents=True, exist_ok=True)  # of rows alone
        identity.write_json(workdir / "study.json", summary)
        (workdir / "study.md").write_text(markdown(summary))
    return summary


def warn_of_unequal_cost(configs: Mapping[str, Config]) -> None:
    """Tell which variants sample another number of responses in training than the others do."""
    counts = {variant: config.run.num_iterations * config.algorithm.responses for variant, config in configs.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{variant} {count:,}" for variant, count in counts.items())
        log.warning(
            "the variants do not sample equally many responses in training, so their results cost different amounts: %s",
            listed,
        )


def finished(config: Config, folder: pathlib.Path) -> dict | None:
    """Return the evaluation that a run left; None where there is something to do.

    That is without one, if it was made by other settings than ``config.eval``, or of a run that was not trained to its end.

    Raises:
      ConfigError: if the run is of another experiment, or of more iterations.
    """
    done = folder / evaluation.NAME
    if not done.exists():
        return None
    try:
        held = json.loads((folder / "config.json").read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        held = None
    held = held if isinstance(held, dict) else {}  # if damaged, open_workdir says so
    if identity.scientific(held) != identity.scientific(config):
        identity.open_workdir(folder, config)  # raises; else it would record today's versions for a run of yesterday's
    trained, wanted = trained_iterations(folder), config.run.num_iterations
    if trained < wanted:
        return None
    if trained > wanted:
        raise ConfigError(
            f"{folder} holds a finished run of run.num_iterations = {trained}, not {wanted}; "
            f"choose another --workdir, or --config.run.num_iterations={trained}"
        )
    told = lambda settings: identity.without_defaults(EvalConfig, settings)
    settings = told(identity.to_dict(config)["eval"])
    try:
        results = evaluation.read(done)
        # its own settings, since config.json has those of the last evaluation that was begun
        same = told(results["settings"]) == settings
    except (ConfigError, AttributeError, KeyError, TypeError):  # damaged: it is made anew
        return None
    return results if results["splits"] and same else None


def over_seeds(results: dict[str, dict[int, dict]]) -> dict:
    """Reduce evaluations, variant -> seed -> what evaluation.json holds, to mean, spread and paired differences to GRPO.

    For each split, variant and measure: values at each k, a row for each of ``seeds``, their mean and standard deviation over
    seeds, and the mean difference to GRPO of the same seed with the half width of its 95% interval (Student's t over seeds).
    ``delta`` is Δ_K, the accuracy at each k minus that at k = 0, and ``<measure>_delta`` the same of what SCORES names. What
    is undefined, such as the share kept of nothing found, is null.
    """
    evaluations = [found["splits"] for by_seed in results.values() for found in by_seed.values()]
    summary = {}
    for split, figures in evaluations[0].items():
        measures = MEASURES | _other_measures([found[split] for found in evaluations])
        variants = {}
        for variant, by_seed in results.items():
            row = {}
            for measure, of in measures.items():
                values = _per_seed(by_seed, split, *of)
                row[measure] = {
                    "values": to_lists(values),
                    "mean": to_lists(values.mean(0)),
                    "std": to_lists(_std(values)),
                }
                if "grpo" in results and variant != "grpo":
                    paired = values - _per_seed({seed: results["grpo"][seed] for seed in by_seed}, split, *of)
                    row[measure]["minus_grpo"] = to_lists(paired.mean(0))
                    row[measure]["minus_grpo_ci95"] = to_lists(half_width(paired))
            for name, of in GAINS.items():
                gain = _per_seed(by_seed, split, *of)
                row[name] = {"mean": to_lists(gain.mean(0)), "std": to_lists(_std(gain))}
            variants[variant] = row
        seeds = list(next(iter(results.values())))
        summary[split] = {"k": figures["k"], "num_tasks": figures["num_tasks"], "seeds": seeds, "variants": variants}
    return summary


def _other_measures(splits: Sequence[dict]) -> dict[str, tuple[str, str]]:
    """Return the accuracy that each further scaffold stands for by its name, and the score as ``<name>_quality``."""
    known, found = {scaffold for scaffold, _ in MEASURES.values()}, {}
    for name, entry in (item for figures in splits for item in figures["scaffolds"].items()):
        stands = {name: evaluation.ACCURACIES, f"{name}_quality": evaluation.SCORES} if name not in known else {}
        for measure, figures in stands.items():
            if of := evaluation.stands_for(entry, figures):
                found[measure] = (name, of)
    return found


def _per_seed(by_seed: dict[int, dict], split: str, scaffold: str, name: str) -> np.ndarray:
    """Return a scaffold's figure as [seeds, k]; null is NaN, and so is what a split does not have."""

    def series(figures: dict) -> list:
        entry = figures["scaffolds"].get(scaffold, {})
        if name == "kept":
            return [a / b if b else None for a, b in zip(entry["accuracy"], entry["best_so_far"])]
        return entry.get(name) or [None] * len(figures["k"])

    return np.array([series(found["splits"][split]) for found in by_seed.values()], float)


def _std(values: np.ndarray) -> np.ndarray:
    """Return the sample standard deviation over seeds; NaN for a single one."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)


def half_width(paired: np.ndarray) -> np.ndarray:
    """Return half the width of the 95% interval of the mean over rows [seeds, ...]; NaN for a single seed."""
    count = len(paired)
    if count < 2:
        return np.full(paired.shape[1:], np.nan)
    from scipy import stats  # a second of import

    return stats.t.ppf(0.975, count - 1) * _std(paired) / math.sqrt(count)


def markdown(summary: dict) -> str:
    """Return the study as Markdown: per split, accuracy by k, what happened by the last k, and differences to GRPO there.

    Where quality is a score and not only right or wrong, its table by k follows, one for each way to spend the responses; and
    where nothing was ever right, what counts right answers is left out.
    """
    lines = []
    for split, content in summary.items():
        ks, variants, count = content["k"], content["variants"], len(content["seeds"])
        means = [(row["quality"]["mean"], row["accuracy"]["mean"]) for row in variants.values()]
        scored = any(evaluation.is_scored(*pair) for pair in means)
        some_right = any(value for row in variants.values() for value in row["found"]["mean"])
        measures = [m for m, figures in next(iter(variants.values())).items() if "values" in figures]
        shown = [m for m in measures if any(value is not None for row in variants.values() for value in row[m]["mean"])]
        shown = [m for m in shown if some_right or not scored or m not in OF_RIGHT]
        lines += [f"## {split}: {content['num_tasks']} tasks, {count} seeds, mean ± standard deviation over seeds", ""]
        titles = {"accuracy": ("accuracy", "delta")}
        titles |= {m: (f"score, {name}", f"{m}_delta") for m, name in SCORES.items()} if scored else {}
        for measure, (title, gain) in titles.items():
            if measure in shown:
                header = [title, *(f"k={k}" for k in ks), f"Δ_{ks[-1]}"]
                rows = [
                    [variant, *(_cell(row[measure], i) for i in range(len(ks))), _cell(row[gain], -1)]
                    for variant, row in variants.items()
                ]
                lines += [table(header, rows), ""]
        lines += [LEGEND, ""]
        others = [measure for measure in shown if measure != "accuracy"]
        rows = [[variant, *(_cell(row[m], -1) for m in others)] for variant, row in variants.items()]
        lines += [table([f"k={ks[-1]}", *others], rows)]
        compared = {v: row for v, row in variants.items() if "minus_grpo" in row["quality"]}
        if compared:
            lines += ["", f"Paired difference to GRPO at k={ks[-1]}, with its 95% interval over seeds:", ""]
            rows = [[v, *(_cell(row[m], -1, "minus_grpo", "+") for m in shown)] for v, row in compared.items()]
            lines += [table(["minus GRPO", *shown], rows)]
        lines += [""]
    return "\n".join(lines)


def _cell(figures: dict, index: int, value: str = "mean", sign: str = "") -> str:
    """Return "mean ± spread" at one k; a dash where there is no value."""
    mean = figures[value][index]
    spread = figures["std" if value == "mean" else f"{value}_ci95"][index]
    if mean is None:
        return "–"
    return f"{mean:{sign}.3f}" + ("" if spread is None else f" ± {spread:.3f}")
