"""A run's folder: config.json says which experiment it belongs to, and what is written there is never half written."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import subprocess
import typing
from collections.abc import Mapping

from ml_collections import ConfigDict

from exit_jax import __version__, domains, settings
from exit_jax.config.parse import field_types
from exit_jax.config.schema import OPERATIONAL, Config, RunConfig
from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts
from exit_jax.policy.shape import no_shape
from exit_jax.workdir import remote


def to_dict(config: Config) -> dict:
    """Return the config as plain nested dicts; tuples become lists, as they do in JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest(content) -> str:
    """Return a short stable hash of JSON-like content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _flatten(content, prefix="") -> dict[str, typing.Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    return {
        key: leaf
        for name, value in content.items()
        for key, leaf in _flatten(value, f"{prefix}.{name}" if prefix else name).items()
    }


def default_workdir(config: Config | ConfigDict, of_study: bool = False) -> pathlib.Path:
    """Return the folder that a config's name, variant and seed stand for, below the working directory.

    Raises:
      ConfigError: if a config file left one of them out.
    """
    absent = [] if isinstance(config, Config) else [name for name in ("name", "variant", "seed") if name not in config]
    if absent:
        raise ConfigError(f"the config has no {', '.join(absent)}, which the run's folder is named by; give --workdir")
    suffix = "study" if of_study else f"{config.variant}-seed{config.seed}"
    return pathlib.Path(f"runs/{config.name}-{suffix}").absolute()


def holds_config(folder: pathlib.Path) -> bool:
    """Return whether a folder is a run's workdir; a Hugging Face checkpoint has a ``config.json`` of its own."""
    file = folder / "config.json"
    return file.is_file() and {"config", "versions"} <= read_object(file).keys()


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """Return the config of a workdir as a config file would give it: the shape of a checkpoint's policy is left to that.

    Raises:
      ConfigError: if it is damaged.
    """
    found = read_object(workdir / "config.json").get("config")
    content = found if isinstance(found, dict) else {}
    groups = content.get("policy"), (content.get("run") or {}).get("mesh")
    if not all(isinstance(group, dict) for group in groups):
        raise ConfigError(f"{workdir / 'config.json'} is damaged; restore it")
    if content.get("checkpoint"):
        content["policy"] |= no_shape()
    return ConfigDict(content)


def open_workdir(workdir: str | os.PathLike, config: Config) -> pathlib.Path:
    """Create the workdir with its ``config.json``, or check that what it holds belongs to this experiment.

    A run that ended before it left a row or a checkpoint, as for want of its weights, holds nothing yet. From then on
    ``config.json`` keeps the versions and the group ``run`` that it began with, and "later" lists what has changed of them.

    Raises:
      ConfigError: if it cannot be written, or holds an experiment with other scientific fields.
    """
    path = remote.local_folder(workdir)
    recorded = path / "config.json"
    ours = to_dict(config)
    content = {"config": ours, "versions": versions()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        if holds_run(path):
            if not recorded.exists():
                raise ConfigError(f"{path} holds a run but no config.json; choose another --workdir")
            held = read_object(recorded)
            _require_same_science(ours, held["config"], path)
            content = _note_changes(content, held)
        if hosts.is_lead():
            write_json(recorded, content)
    except OSError as error:
        raise ConfigError(f"cannot write the workdir {path}: {error.strerror}; choose another --workdir") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{recorded} is damaged ({error!r}); restore it or choose another --workdir") from error
    return path


def holds_run(workdir: pathlib.Path) -> bool:
    """Return whether a run left anything in a workdir: a checkpoint, a row of metrics, an answer, or an evaluation."""
    rows = itertools.chain(workdir.glob("*.jsonl"), workdir.glob("answers/*.jsonl"))
    left = remote.children(workdir / "checkpoints") or (workdir / "evaluation.json").exists()
    return bool(left) or any(file.stat().st_size for file in rows)


def scientific(config: Config | dict) -> dict[str, typing.Any]:
    """Return the fields that determine the experiment, flat, by dotted name; those without effect on it are left out."""
    content = without_defaults(Config, config if isinstance(config, dict) else to_dict(config))
    free = OPERATIONAL
    if not (content.get("warm_start") or {}).get("num_steps"):
        free += tuple(f"warm_start.{name}" for name in ("num_states", "group_size", "optimizer"))
    free = tuple(f"{name}." for name in free)
    if isinstance(name := content.get("domain_name"), str):
        content["domain_name"] = domains.identity(name)
    return {key: value for key, value in _flatten(content).items() if not f"{key}.".startswith(free)}


def without_defaults(cls, content: Mapping) -> dict[str, typing.Any]:
    """Return a group without its younger fields that are at their default: a run of before one existed has that default.

    So a new field with a default changes no hash and orphans no run; a default must never change.
    """
    types, defaults = field_types(cls, content), settings.younger_defaults(cls)
    kept = {}
    for name, value in content.items():
        kind = types.get(name)
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            kept[name] = without_defaults(kind, value)
        elif name not in defaults or json.dumps(value) != json.dumps(defaults[name]):
            kept[name] = value
    return kept


def _require_same_science(ours: dict, theirs: dict, path: pathlib.Path) -> None:
    mine, held = scientific(ours), scientific(theirs)
    different = [
        f"{key}: {held.get(key, 'the default')!r} there, {mine.get(key, 'the default')!r} here"
        for key in sorted(mine.keys() | held.keys())
        if mine.get(key) != held.get(key)
    ]
    if different:
        rows = "\n".join(f"  - {row}" for row in different)
        raise ConfigError(f"{path} holds another experiment; choose another --workdir, or undo these changes:\n{rows}")


def _note_changes(ours: dict, held: dict) -> dict:
    """Return the content of ``config.json`` after a command that would have written ``ours`` over ``held``."""
    # what a run that began before a field existed was carried out with, as JSON has it: tuples are lists
    before = json.loads(json.dumps(settings.tree(RunConfig)))
    mine = _flatten({"versions": ours["versions"], "run": before | ours["config"]["run"]})
    theirs = _flatten({"versions": held["versions"], "run": before | held["config"]["run"]})
    changes = {name: value for name, value in mine.items() if value != theirs.get(name)}
    later = held.get("later", [])
    if changes and changes not in later:
        later = [*later, changes]
    kept = {"config": ours["config"] | {"run": held["config"]["run"]}, "versions": held["versions"]}
    return kept | ({"later": later} if later else {})


def read_object(path: pathlib.Path) -> dict:
    """Return the object in a JSON file of a workdir.

    Raises:
      ConfigError: if it is damaged.
    """
    remedy = "restore it or choose another --workdir"
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged (it holds {content!r:.40}, not an object); {remedy}")
    return content


def write_json(path: pathlib.Path, content) -> None:
    """Write JSON through a temporary file, so that no reader and no crash meets half a file."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def versions() -> dict[str, str]:
    """Return versions of what determines a result, and the git revision of this checkout, or else the version of exit_jax."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    checkout, revision = pathlib.Path(__file__).parents[2], ""
    if (checkout / ".git").exists():  # an environment that lies within another repository is none of ours
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            git = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
            revision = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "exit_jax_revision": revision or __version__, **found}
