"""Command line of exit_jax.

    exit-jax --config sudoku:variant=exit,seed=0 [--workdir runs/mine] [--mode train]

``python -m exit_jax.main`` is the same command. A config is the name of one that ships, or a file; any of its fields can be set
on the command line: --config.algorithm.group_size=16.
"""

import atexit
import logging
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from exit_jax import __version__
from exit_jax.errors import ConfigError, exit_status

FLAGS = flags.FLAGS
MODES = {
    "train": "warm start, RL, evaluation and report, going on where the workdir stands",
    "evaluate": "the workdir's newest policy",
    "study": "all variants and seeds of config.study",
    "report": "plots and tables of the workdir, or of --runs",
    "watch": "a page on this machine, at --port, that follows the workdir's run while it goes on",
    "data": "fetch and prepare what the domain's tasks are made of",
    "export": "the workdir's newest policy as a Hugging Face checkpoint, in <workdir>/export",
    "serve": "OpenAI's API over the workdir's newest policy, or config.serve.policy; needs pip install exit_jax[serve]",
    "compile": "what the config would take on the TPU slice --topology; needs libtpu, but no TPU",
    "settings": "every field of the config with its value, its default and its meaning",
}


class ConfigParser(flags.ArgumentParser):
    """Parser of --config: that of files, for names of configs that ship, too."""

    def __init__(self, of_files: flags.ArgumentParser):
        self._of_files = of_files

    def parse(self, argument: str) -> Any:
        """Return the content of the config that ``argument`` names."""
        from exit_jax.config import shipped

        name, colon, arguments = argument.partition(":")
        return self._of_files.parse(f"{shipped.find(name)}{colon}{arguments}")


class VersionFlag(flags.BooleanFlag):
    """--version: prints, and ends the program before anything else is asked for."""

    def parse(self, argument: Any):
        """Print the version."""
        if self._parse(argument):
            print(f"exit_jax {__version__}")
            sys.exit(0)


flags.DEFINE_flag(VersionFlag("version", False, "Print the version."))
_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment to run, as <name or file>[:name=value,...].")
FLAGS["config"].parser = ConfigParser(FLAGS["config"].parser)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, or gs://bucket/folder; by default runs/<name>-<variant>-seed<seed>."
)
_MODE = flags.DEFINE_enum("mode", "train", [*MODES], "; ".join(f"{mode}: {what}" for mode, what in MODES.items()) + ".")
_TOPOLOGY = flags.DEFINE_string("topology", "", "With --mode compile: the TPU slice, as v5e:4x4.")
_PORT = flags.DEFINE_integer("port", 8765, "With --mode watch: the page's port on 127.0.0.1; 0 for any that is free.")
_RUNS = flags.DEFINE_list(
    "runs",
    [],
    "With --mode report: folders of finished runs for one report, or files of rows (config.study.rows) to compare methods by.",
)
_PUSH = flags.DEFINE_string("push", "", "With --mode export: repository of the hub to upload it to, as me/model.")
_PUBLIC = flags.DEFINE_bool("public", False, "With --push: let all see the repository that is made for it.")


def carry_out() -> int:
    """Carry out --mode; returns the exit status. What computes is imported here, so that a misspelt flag is told at once."""
    name, _, arguments = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    content, overrides = _CONFIG.value, config_flags.get_override_values(FLAGS["config"])
    if (_PUSH.value and _MODE.value != "export") or (_PUBLIC.value and not _PUSH.value):
        raise ConfigError("--push is for --mode export, and --public for --push; add these, or leave it out")
    match _MODE.value:
        case "settings":
            from exit_jax.config import listing

            print(listing.text(content.to_dict()))
        case "data":
            from exit_jax import domains
            from exit_jax.config.parse import domain_fields

            print(domains.prepare(*domain_fields(content)))
        case "serve":  # the policy has its own config: of this one, only the group serve counts
            from exit_jax import run

            serve = content.to_dict().get("serve", {})
            run.serve(serve.pop("policy", "") or find_workdir(), **serve)
        case "compile":
            from exit_jax.fit.report import compile_for

            return compile_for(content, _TOPOLOGY.value, _WORKDIR.value)
        case "report":  # reads folders alone, on any machine: neither the run's mesh nor its checkpoint is needed
            print_report(find_workdir(), _RUNS.value)
        case "watch":
            from exit_jax.report.watch import watch

            watch(find_workdir(), _PORT.value)
        case mode:
            from exit_jax.config.start import start

            config = start(content, overrides, trains=mode in ("train", "study"))
            from exit_jax.parallel import hosts
            from exit_jax.study import Experiment  # a fault of the config is told without what this imports

            with hosts.no_waiting_for_lost():
                compute(mode, config, Experiment(name, arguments, overrides))
    return 0


def compute(mode: str, config: Any, experiment: Any) -> None:
    """Carry out a mode that computes, on a checked config and the ``study.Experiment`` it is of, and say what came of it."""
    from exit_jax import run, study
    from exit_jax.parallel import hosts
    from exit_jax.workdir import remote

    workdir = find_workdir()
    if mode == "study":
        variants, seeds = config.study.variants, config.study.seeds
        experiment.check(variants, seeds)
        run.study(experiment.config, variants, seeds, workdir, config.study.rows)
        if hosts.is_lead():
            folder = remote.local_folder(workdir)
            print((folder / "study.md").read_text())
            folders = [folder / name / f"seed{seed}" for name in (study.BASE, *variants) for seed in seeds]
            if found := [path for path in folders if path.exists()]:  # of the others there are rows alone
                print_report(workdir, found)
    elif mode == "export":
        folders = run.export(config, workdir, _PUSH.value, not _PUBLIC.value)
        if hosts.is_lead():
            print("exported:", *folders)
            if _PUSH.value:
                print(f"pushed: {_PUSH.value}")
    else:
        results = {"train": run.train, "evaluate": run.evaluate}[mode](config, workdir)
        if hosts.is_lead():
            show(results)
            if mode == "train":
                print_report(workdir, [workdir])


def show(results: Mapping[str, Any]) -> None:
    """Print accuracy by k of every split."""
    from exit_jax.workdir.evaluation import chain_of

    for split, figures in results["splits"].items():
        row = "  ".join(f"k={k} {accuracy:.3f}" for k, accuracy in zip(figures["k"], chain_of(figures)["accuracy"]))
        print(f"{split} accuracy: {row}")


def print_report(workdir: str | pathlib.Path, runs: Sequence[str | pathlib.Path]) -> None:
    """Write the report of runs, else of ``workdir``, into ``workdir``, and print where it is."""
    from exit_jax.report import report
    from exit_jax.workdir import remote

    with remote.visited(workdir) as folder:
        print(f"report: {report(folder, [remote.fetch(run) for run in runs])}")


def find_workdir() -> str | pathlib.Path:
    """Return --workdir, or the folder that the config's name, variant and seed stand for."""
    if _WORKDIR.value:
        return _WORKDIR.value
    from exit_jax.workdir.identity import default_workdir

    return default_workdir(_CONFIG.value, of_study=_MODE.value == "study")


def parse_flags(args: list[str]) -> list[str]:
    """Parse the command line; a config file or an override that it cannot take is one line and exit status 2."""
    try:
        return FLAGS(args)
    except flags.Error as error:  # a config file that raises comes with its whole traceback
        said = re.sub(r"^[A-Za-z_.]+Error: ", "", str(error).strip().splitlines()[-1])
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        said = "--config: " + str(error).strip("\"'").replace("\\n", "\n").replace("\\'", "'")
    print(f"error: {said}", file=sys.stderr)
    sys.exit(2)


def main(_) -> int:
    """Carry out --mode; a fault of the user's making is one clear error and exit status 2."""
    for noisy in ("absl", "jax"):  # they report probes for a TPU, and failed saves by a page of traceback
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    stopped: list[int] = []
    atexit.register(leave, stopped)  # here, before what computes registers its own: the first runs last
    status = exit_status(carry_out)
    if status > 128:
        stopped.append(status)
    elif status and is_among_others():
        leave([status])  # at once: JAX would wait for all processes to end together
    return status


def is_among_others() -> bool:
    """Say whether this is one of several processes of a run, without importing JAX where nothing has."""
    return (
        "jax" in sys.modules
        and sys.modules["jax"].distributed.is_initialized()
        and sys.modules["jax"].process_count() > 1
    )


def leave(stopped: Sequence[int]) -> None:
    """End the process of a run that a signal stopped: threads of libraries that compute on make Python's own end crash."""
    if stopped:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stopped[0])


def repeat_ctrl_c(unraisable: Any) -> None:
    """Let a Ctrl-C that came where Python can raise nothing, as in JAX's callback of the garbage collector, come once more."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(unraisable)


def entry() -> None:
    """Run the command line."""
    sys.unraisablehook = repeat_ctrl_c
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    entry()
