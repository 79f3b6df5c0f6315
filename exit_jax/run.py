"""What is done with a run: its workdir is trained, evaluated, exported. Notebooks import this."""

import functools
import logging
import pathlib
from collections.abc import Collection, Sequence

from exit_jax.config import learning
from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError
from exit_jax.evaluation import scaffolds
from exit_jax.evaluation.evaluate import evaluate
from exit_jax.parallel import hosts
from exit_jax.step.tasks import tasks_digest
from exit_jax.study import BASE, Experiment, study
from exit_jax.training.export import export_policy
from exit_jax.training.record import record_buffer
from exit_jax.training.train import restore_params, train
from exit_jax.workdir import inputs
from exit_jax.workdir.evaluation import chain_of
from exit_jax.workdir.identity import holds_run, open_workdir, read_object, write_json
from exit_jax.workdir.metrics import Timing, trained_iterations


def run_experiment(config: Config, workdir: pathlib.Path) -> dict:
    """Train, or go on training, and evaluate; returns the evaluation."""
    scaffolds.chosen(config.eval)  # raises before anything is trained
    for line in learning.warnings_of(config) if hosts.is_lead() else ():
        warn(line)
    workdir = open_workdir(workdir, config)
    inputs.check(config, workdir, holds_run(workdir), "--workdir")
    check_tasks(config, workdir, {"train", *config.eval.splits})
    old, trained = workdir / "evaluation.json", trained_iterations(workdir)
    if hosts.is_lead() and old.exists() and trained < config.run.num_iterations:
        # it is of the policy so far, not of what training will leave
        old.rename(old.with_stem(f"evaluation-{trained}"))
    timing = Timing()
    with timing.phase("train"):
        state, params = train(config, workdir)
        record_buffer(config, state, params, workdir)
    with timing.phase("evaluate"):
        results = evaluate(config, params, workdir)
    if hosts.is_lead():
        write_json(workdir / "timing.json", timing.summary())
    return results


def evaluate_workdir(config: Config, workdir: pathlib.Path) -> dict:
    """Evaluate the newest policy of a workdir."""
    workdir = reopen_workdir(config, workdir)
    check_tasks(config, workdir, set(config.eval.splits))
    params = restore_params(config, workdir)
    if params is None:
        raise ConfigError(f"{workdir} holds no checkpoint; train first, or name the right --workdir")
    return evaluate(config, params, workdir)


def export_workdir(config: Config, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Export the newest policy of a workdir as a Hugging Face checkpoint; returns what was written."""
    return export_policy(config, reopen_workdir(config, workdir))


def reopen_workdir(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Open the workdir of a run that has begun."""
    if not (workdir / "config.json").exists():
        raise ConfigError(f"{workdir} holds no run; train first, or name the right --workdir")
    workdir = open_workdir(workdir, config)
    inputs.check(config, workdir, holds_run(workdir), "--workdir")
    return workdir


def check_tasks(config: Config, workdir: pathlib.Path, splits: Collection[str]) -> None:
    """Check that the tasks of a run are still those of its ``tasks.json``, which is made where it does not name them.

    Raises:
      ConfigError: if they are others, as where data were prepared anew: histories name their task by its number.
    """
    file = workdir / "tasks.json"
    held = read_object(file) if holds_run(workdir) and file.exists() else {}
    found = {split: tasks_digest(config, split) for split in sorted(splits)}
    changed = [split for split in found if held.get(split, found[split]) != found[split]]
    if changed:
        raise ConfigError(
            f"{workdir} was begun with other tasks of {', '.join(changed)}: its data or tokenizer were made anew, or another "
            "folder is named; restore them, or choose another --workdir"
        )
    if hosts.is_lead():
        write_json(file, held | found)


@functools.cache
def warn(line: str) -> None:
    """Say a line, once a process: the runs of a study share most of what there is to say."""
    logging.getLogger(__name__).warning("%s", line)


def train_and_report(config: Config, workdir: pathlib.Path) -> None:
    """Train, evaluate, and print accuracies and where the report is."""
    results = run_experiment(config, workdir)
    if hosts.is_lead():
        show(results)
        print_report(workdir, [workdir])


def evaluate_and_show(config: Config, workdir: pathlib.Path) -> None:
    """Evaluate the newest policy of a workdir, and print accuracies."""
    results = evaluate_workdir(config, workdir)
    if hosts.is_lead():
        show(results)


def export_and_show(config: Config, workdir: pathlib.Path) -> None:
    """Export the newest policy of a workdir, and print what was written."""
    folders = export_workdir(config, workdir)
    if hosts.is_lead():
        print("exported:", *folders)


def run_study(experiment: Experiment, config: Config, workdir: pathlib.Path) -> None:
    """Run all variants and seeds of ``config.study``, and print their table and where the report is."""
    variants, seeds = config.study.variants, config.study.seeds
    experiment.check(variants, seeds)
    study(experiment.config, variants, seeds, workdir, run_experiment)
    if hosts.is_lead():
        print((workdir / "study.md").read_text())
        print_report(workdir, [workdir / variant / f"seed{seed}" for variant in (BASE, *variants) for seed in seeds])


def show(results: dict) -> None:
    """Print accuracy by k of every split."""
    for split, figures in results["splits"].items():
        row = "  ".join(f"k={k} {accuracy:.3f}" for k, accuracy in zip(figures["k"], chain_of(figures)["accuracy"]))
        print(f"{split} accuracy: {row}")


def print_report(workdir: pathlib.Path, runs: Sequence[pathlib.Path]) -> None:
    """Write the report of runs into ``workdir``, and print where it is."""
    from exit_jax.report import report  # imports matplotlib, which takes a second

    print(f"report: {report(workdir, runs)}")


MODES = {"train": train_and_report, "evaluate": evaluate_and_show, "export": export_and_show}
