"""Command line of exit_jax.

    python -m exit_jax.main --config configs/sudoku.py:variant=exit,seed=0 [--workdir runs/mine] [--mode train]

Any field of the config can be set on the command line: --config.algorithm.group_size=16.
"""

import functools
import logging
import pathlib
import re
import runpy
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from exit_jax.errors import ConfigError, Interrupted, UserError

# jax and all that computes is imported after the flags have been read, so that a misspelt one is told at once
if TYPE_CHECKING:
    from exit_jax.config.schema import Config

FLAGS = flags.FLAGS
MODES = ("train", "evaluate", "study", "report", "data", "export", "compile", "settings")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment to run, as <file>[:name=value,...].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/<name>-<variant>-seed<seed>.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: warm start, RL, evaluation and report, going on where the workdir stands; evaluate: the workdir's newest "
    "policy; study: all variants and seeds of config.study; report: plots and tables of the workdir, or of --runs; "
    "data: fetch and prepare what the domain's tasks are made of; "
    "export: the workdir's newest policy as a Hugging Face checkpoint, in <workdir>/export; "
    "compile: what the config would take on the TPU slice --topology; needs libtpu, but no TPU; "
    "settings: every field of the config with its value, its default and its meaning.",
)
_TOPOLOGY = flags.DEFINE_string("topology", "", "With --mode compile: the TPU slice, as v5e:4x4.")
_RUNS = flags.DEFINE_list("runs", [], "With --mode report: folders of finished runs to compare in one report.")


def run_experiment(config: "Config", workdir: pathlib.Path) -> dict:
    """Train, or go on training, and evaluate; returns the evaluation."""
    from exit_jax.config import learning
    from exit_jax.evaluation.evaluate import evaluate
    from exit_jax.parallel import hosts
    from exit_jax.training.train import record_buffer, train
    from exit_jax.workdir import inputs
    from exit_jax.workdir.identity import holds_run, open_workdir, write_json
    from exit_jax.workdir.metrics import Timing, trained_iterations

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
    write_json(workdir / "timing.json", timing.summary())
    return results


@functools.cache
def warn(line: str) -> None:
    """Say a line, once a process: the runs of a study share most of what there is to say."""
    logging.getLogger(__name__).warning("%s", line)


def reopen_workdir(config: "Config", workdir: pathlib.Path) -> pathlib.Path:
    """Open the workdir of a run that has begun."""
    from exit_jax.workdir import inputs
    from exit_jax.workdir.identity import holds_run, open_workdir

    if not (workdir / "config.json").exists():
        raise ConfigError(f"{workdir} holds no run; train first, or name the right --workdir")
    workdir = open_workdir(workdir, config)
    inputs.check(config, workdir, holds_run(workdir), "--workdir")
    return workdir


def check_tasks(config: "Config", workdir: pathlib.Path, splits: Collection[str]) -> None:
    """Check that the tasks of a run are still those of its ``tasks.json``, which is made where it does not name them.

    Raises:
      ConfigError: if they are others, as where data were prepared anew: histories name their task by its number.
    """
    from exit_jax.parallel import hosts
    from exit_jax.step.programs import tasks_digest
    from exit_jax.workdir.identity import holds_run, read_object, write_json

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


def evaluate_workdir(config: "Config", workdir: pathlib.Path) -> dict:
    """Evaluate the newest policy of a workdir."""
    workdir = reopen_workdir(config, workdir)
    from exit_jax.evaluation.evaluate import evaluate
    from exit_jax.training.train import restore_params

    check_tasks(config, workdir, set(config.eval.splits))
    params = restore_params(config, workdir)
    if params is None:
        raise ConfigError(f"{workdir} holds no checkpoint; train first, or name the right --workdir")
    return evaluate(config, params, workdir)


def read_config(variant: str, seed: int) -> ConfigDict:
    """Return what the config file says of another variant and seed, without the command-line overrides."""
    path, _, arg = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    kept = [item for item in arg.split(",") if item and item.partition("=")[0] not in ("variant", "seed")]
    return runpy.run_path(path)["get_config"](",".join([*kept, f"variant={variant}", f"seed={seed}"]))


def make_study_config(variant: str, seed: int) -> "Config":
    """Return the config file's experiment for another variant and seed, under the same command-line overrides."""
    import jax

    from exit_jax.config.parse import validate

    content = read_config(variant, seed)
    content.update_from_flattened_dict(config_flags.get_override_values(FLAGS["config"]))
    return validate(content, jax.device_count())


def check_overrides(variants: Sequence[str], seeds: Sequence[int]) -> None:
    """Refuse a study whose overrides would make its runs alike in what they are to differ in.

    Raises:
      ConfigError: naming the overrides, or a variant that the config file does not have; or if there is no run at all.
    """
    from exit_jax.workdir.identity import scientific

    if not variants or not seeds:
        raise ConfigError(f"config.study has variants = {variants} and seeds = {seeds}; name at least one of each")
    try:
        plain, *others = [scientific(read_config(variant, seeds[0]).to_dict()) for variant in variants]
    except ValueError as error:
        raise ConfigError(f"config.study.variants: {error}") from error
    own = {"variant", "seed", *(name for name in plain if any(other.get(name) != plain[name] for other in others))}
    if lost := sorted(own & config_flags.get_override_values(FLAGS["config"]).keys()):
        names = ", ".join(f"--config.{name}" for name in lost)
        raise ConfigError(
            f"{names} would be the same in all runs of the study, which differ in it; leave it out: "
            "--config.study.variants and --config.study.seeds say which runs there are"
        )


def compile_config() -> int:
    """Compile for --topology on this machine's CPU; returns exit status 1 where the config does not fit."""
    import jax

    from exit_jax.config.parse import validate
    from exit_jax.fit.compile import find_topology, fit

    jax.config.update("jax_platforms", "cpu")
    topology = find_topology(_TOPOLOGY.value)
    config = validate(_CONFIG.value, len(topology.devices))
    name = f"runs/{config.name}-{topology.name.replace(':', '-')}"
    text, fits = fit(config, topology, pathlib.Path(_WORKDIR.value or name).expanduser().absolute())
    print(f"\n{text}")
    return 0 if fits else 1


def read_flags() -> "Config":
    """Return the config of the flags, checked.

    Raises:
      ConfigError: listing its faults.
    """
    import jax

    from exit_jax.config.parse import validate

    if "variant" in config_flags.get_override_values(FLAGS["config"]):
        raise ConfigError("--config.variant changes the name alone; say --config <file>:variant=<variant>")
    return validate(_CONFIG.value, jax.device_count(), trains=_MODE.value in ("train", "study"))


def find_workdir() -> pathlib.Path:
    """Return --workdir, or the folder that the config's name, variant and seed stand for."""
    c = _CONFIG.value
    if not _WORKDIR.value and (absent := [name for name in ("name", "variant", "seed") if name not in c]):
        raise ConfigError(f"the config has no {', '.join(absent)}, which the run's folder is named by; give --workdir")
    suffix = "" if _WORKDIR.value else "-study" if _MODE.value == "study" else f"-{c.variant}-seed{c.seed}"
    return pathlib.Path(_WORKDIR.value or f"runs/{c.name}{suffix}").expanduser().absolute()


def carry_out() -> int:
    """Carry out --mode; returns the exit status."""
    from exit_jax.parallel import hosts

    file, *_ = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    if not pathlib.Path(file).is_file():
        raise ConfigError(f"--config: there is no file {file}; name one such as configs/sudoku.py")
    if _MODE.value == "settings":
        from exit_jax.config import listing

        print(listing.text(_CONFIG.value.to_dict()))
        return 0
    if _MODE.value == "compile":
        return compile_config()
    if _MODE.value == "data":
        from exit_jax import domains
        from exit_jax.config.parse import domain_fields

        print(domains.prepare(*domain_fields(_CONFIG.value)))
        return 0
    if _MODE.value == "report":  # of folders alone, on any machine: neither the run's mesh nor its checkpoint is needed
        print_report(find_workdir(), [pathlib.Path(run) for run in _RUNS.value])
        return 0
    hosts.skip_absent_tpu()
    try:
        hosts.initialize()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot join the other processes: {error}") from error
    config, workdir = read_flags(), find_workdir()
    if _MODE.value == "evaluate":
        show(evaluate_workdir(config, workdir))
    elif _MODE.value == "export":
        from exit_jax.training.export import export_policy

        print("exported:", *export_policy(config, reopen_workdir(config, workdir)))
    elif _MODE.value == "train":
        results = run_experiment(config, workdir)
        if hosts.is_lead():
            show(results)
            print_report(workdir, [workdir])
    else:
        from exit_jax.study import BASE, study

        variants, seeds = config.study.variants, config.study.seeds
        check_overrides(variants, seeds)
        study(make_study_config, variants, seeds, workdir, run_experiment)
        print((workdir / "study.md").read_text())
        print_report(workdir, [workdir / variant / f"seed{seed}" for variant in (BASE, *variants) for seed in seeds])
    return 0


def print_report(workdir: pathlib.Path, runs: Sequence[pathlib.Path]) -> None:
    """Write the report of runs into ``workdir``, and say where it is."""
    from exit_jax.report import report

    print(f"report: {report(workdir, runs)}")


def main(_) -> int:
    """Carry out --mode; a fault of the user's making is one clear error and exit status 2."""
    from exit_jax.domains.domain import GradingError

    for noisy in ("absl", "jax"):  # they report probes for a TPU, and failed saves by a page of traceback
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        return carry_out()
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    except GradingError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that went away
        print(f"\nerror: {error}; mend it, and the same command resumes", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        return 128 + stop.signum


def show(results: dict) -> None:
    """Print accuracy by k of every split."""
    for split, figures in results.items():
        row = "  ".join(f"k={k} {accuracy:.3f}" for k, accuracy in zip(figures["k"], figures["accuracy"]))
        print(f"{split} accuracy: {row}")


def parse_flags(args: list[str]) -> list[str]:
    """Parse the command line; a config file or an override that it cannot take is one line and exit status 2."""
    try:
        return FLAGS(args)
    except flags.Error as error:  # of a config file that raises, its whole traceback
        said = str(error).strip().splitlines()[-1]
        print(f"error: {re.sub(r'^[A-Za-z_.]+Error: ', '', said)}", file=sys.stderr)
        sys.exit(2)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        lines = str(error).strip("\"'").replace("\\n", "\n").replace("\\'", "'")
        print(f"error: --config: {lines}", file=sys.stderr)
        sys.exit(2)


def entry() -> None:
    """Run the command line."""
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    entry()
