"""Command line of exit_jax.

    python -m exit_jax.main --config configs/sudoku.py:variant=exit,seed=0 [--workdir runs/mine] [--mode train]

Any field of the config can be set on the command line: --config.algorithm.group_size=16.
"""

import logging
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

MODES = ("train", "evaluate", "study", "report")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment to run, as <file>[:name=value,...].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/<name>-<variant>-seed<seed>.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: warm start, RL, evaluation and report, going on where the workdir stands; evaluate: the workdir's newest "
    "policy; study: all variants and seeds of config.study; report: plots and tables of finished runs.",
)
_RUNS = flags.DEFINE_list("runs", [], "With --mode report: folders of runs to compare.")


def main(_) -> int:
    import jax  # imported here, so that --help and a wrong flag answer at once

    from exit_jax import commands
    from exit_jax.config import ConfigError, validate
    from exit_jax.train import Interrupted

    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        content = _CONFIG.value.copy_and_resolve_references()
        study = content.pop("study", None)
        config = validate(content, jax.device_count())
        default = f"runs/{config.name}" + ("" if _MODE.value == "study" else f"-{config.variant}-seed{config.seed}")
        workdir = pathlib.Path(_WORKDIR.value or default)
        commands.run(_MODE.value, config, study, workdir, _RUNS.value)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        return 128 + stop.signum
    return 0


def entry() -> None:
    """Run the command line."""
    flags.mark_flag_as_required("config")
    app.run(main)


if __name__ == "__main__":
    entry()
