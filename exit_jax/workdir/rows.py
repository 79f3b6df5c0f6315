"""The finished runs of a study as JSON lines, small enough for a repository: one that was interrupted goes on anywhere.

    {"variant": "exit", "seed": 0, "run": <hash>, "versions": {...}, "evaluation": <what evaluation.json holds>}

``run`` is a hash of what a finished run's folder is held to: experiment, iterations, settings of the evaluation.
"""

import json
import logging
import pathlib
from typing import Any

from exit_jax.config.schema import Config, EvalConfig
from exit_jax.errors import ConfigError
from exit_jax.workdir import identity

log = logging.getLogger(__name__)


def name_of(config: Config) -> str:
    """Return the hash of a run and its evaluation."""
    asked = identity.without_defaults(EvalConfig, identity.to_dict(config)["eval"])
    return identity.digest([identity.scientific(config), config.run.num_iterations, asked])


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Return evaluations by ``name_of`` their runs, none if there is no file; a damaged line is told and left out.

    Raises:
      ConfigError: if the file cannot be read.
    """
    try:
        lines = path.read_text().split("\n") if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read study.rows = {path}: {error}; name another file") from error
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            if line:
                row = json.loads(line)
                found[row["run"]] = row["evaluation"]
        except (ValueError, KeyError, TypeError) as error:
            log.warning("line %d of %s is damaged (%r): its run will be made again", number, path, error)
    return found


def append(path: pathlib.Path, config: Config, evaluation: dict[str, Any]) -> None:
    """Add a finished run.

    Raises:
      ConfigError: if the file cannot be written.
    """
    about = {"variant": config.variant, "seed": config.seed, "run": name_of(config), "versions": identity.versions()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_cut_off = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        with open(path, "a") as file:
            file.write("\n" * bool(is_cut_off) + json.dumps(about | {"evaluation": evaluation}) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write study.rows = {path}: {error.strerror}; name another file") from error
