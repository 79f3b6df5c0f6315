"""The finished runs of a study as JSON lines, small enough for a repository: one that was interrupted goes on anywhere.

    {"variant": "exit", "seed": 0, "run": <hash>, "versions": {...}, "training": {"iterations": 600, "responses": 307200,
     "tokens": 1.6e6}, "evaluation": <what evaluation.json holds>}

``run`` is a hash of what a finished run's folder is held to: experiment, iterations, settings of the evaluation. ``training``
counts what was sampled, whatever became of it; rows of older versions have none.
"""

import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from exit_jax.config.schema import Config, EvalConfig
from exit_jax.errors import ConfigError
from exit_jax.workdir import identity
from exit_jax.workdir.metrics import read_jsonl

log = logging.getLogger(__name__)

BASE = "base"  # the policy before RL, among the variants


def name_of(config: Config) -> str:
    """Return the hash of a run and its evaluation."""
    asked = identity.without_defaults(EvalConfig, identity.to_dict(config)["eval"])
    return identity.digest([identity.scientific(config), config.run.num_iterations, asked])


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Return evaluations by ``name_of`` their runs, none if there is no file; a damaged line is told and left out.

    Raises:
      ConfigError: if the file cannot be read.
    """
    return {row["run"]: row["evaluation"] for row in read_all(path)}


def read_all(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, none if there is none; a damaged line is told and left out.

    Raises:
      ConfigError: if the file cannot be read.
    """
    try:
        lines = path.read_text().split("\n") if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read study.rows = {path}: {error}; name another file") from error
    for number, line in enumerate(lines, 1):
        try:
            if line:
                row = json.loads(line)
                if missing := {"run", "variant", "seed", "evaluation"} - row.keys():
                    raise KeyError(*missing)
                yield row
        except (ValueError, KeyError, AttributeError) as error:
            log.warning("line %d of %s is damaged (%r): its run will be made again", number, path, error)


def training_of(config: Config, folder: pathlib.Path) -> dict[str, float]:
    """Return iterations, and the responses and tokens that they sampled; tokens of second attempts as many as of first ones."""
    lengths = [row.get("response_length") or 0.0 for row in read_jsonl(folder / "train.jsonl", "step")]
    responses = config.algorithm.responses
    return {"iterations": len(lengths), "responses": len(lengths) * responses, "tokens": responses * sum(lengths)}


def append(path: pathlib.Path, config: Config, evaluation: dict[str, Any], training: dict[str, float]) -> None:
    """Add a finished run, of which ``training_of`` says what it sampled.

    Raises:
      ConfigError: if the file cannot be written.
    """
    about = {"variant": config.variant, "seed": config.seed, "run": name_of(config), "versions": identity.versions()}
    content = about | {"training": training, "evaluation": evaluation}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_cut_off = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        with open(path, "a") as file:
            file.write("\n" * bool(is_cut_off) + json.dumps(content) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write study.rows = {path}: {error.strerror}; name another file") from error
