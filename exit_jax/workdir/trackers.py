"""Trackers, which draw a run's figures while it goes on: TensorBoard, trackio and wandb, each imported where it is asked for.

A tracker that fails never stops a run: it is told once and switched off. A run that is resumed goes on as the same run of its
tracker, by an id that lies in the workdir: two machines may give their workdirs one path.
"""

import dataclasses
import importlib
import importlib.util
import json
import logging
import pathlib
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from exit_jax.errors import ConfigError
from exit_jax.workdir.events import EventWriter
from exit_jax.workdir.identity import write_json

log = logging.getLogger(__name__)
ID_FILE = "trackers.json"


class Tracker(Protocol):
    """Where figures go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the figures of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


@dataclasses.dataclass(frozen=True)
class Tracked:
    """What a tracker is told of a run when it is opened."""

    folder: pathlib.Path  # the workdir, or the folder of a warm start
    title: str  # name of the rows: "train" or "warm_start"
    step: int  # of the checkpoint that the run goes on from
    project: str
    group: str
    id: str
    settings: Mapping[str, Any]  # the config, nested

    @property
    def name(self) -> str:
        """What people read in a list of runs, different for each."""
        return f"{self.title}-{self.group}-seed{self.settings.get('seed', 0)}-{self.id[:8]}"


class _Trackio:
    """A run of trackio, in its own database (TRACKIO_DIR) or where its other variables of the environment say."""

    def __init__(self, of: Tracked):
        trackio = importlib.import_module("trackio")
        about = {"group": of.group, "config": dict(of.settings), "resume": "allow", "embed": False}
        self._run = trackio.init(project=of.project, name=of.name, **about)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Wandb:
    """A run of wandb, which takes its own variables of the environment: WANDB_MODE=offline keeps it below the workdir."""

    def __init__(self, of: Tracked):
        wandb = importlib.import_module("wandb")
        about = {"group": of.group, "config": dict(of.settings), "resume": "allow", "dir": str(of.folder)}
        self._run = wandb.init(project=of.project, name=of.name, id=f"{of.id}-{of.title}", **about)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _open_tensorboard(of: Tracked) -> EventWriter:
    """Open TensorBoard's event file; what an earlier one wrote beyond the checkpoint is no longer shown."""
    return EventWriter(of.folder / "tensorboard" / of.title, purge_step=of.step + 1)


TRACKERS: dict[str, Callable[[Tracked], Tracker]] = {
    "tensorboard": _open_tensorboard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}


def require_installed(names: Collection[str]) -> None:
    """Refuse trackers whose package is missing.

    Raises:
      ConfigError: before anything is compiled.
    """
    missing = [name for name in names if name != "tensorboard" and importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f'run.trackers asks for {" and ".join(missing)}, which is not installed: pip install "exit_jax[trackers]", or '
            "leave it out"
        )


class Trackers:
    """All trackers of a run, each until it fails."""

    def __init__(
        self,
        names: Collection[str],
        about: Mapping[str, Any],
        folder: pathlib.Path,
        title: str,
        step: int,
        reached: int,
    ):
        """Open the trackers.

        Args:
          about: the config, nested.
          step: of the checkpoint that the run goes on from.
          reached: step up to which an earlier process may have written. TensorBoard forgets what is beyond the checkpoint;
            the others cannot, so they are not given those steps again, which come to the same.
        """
        self._open: dict[str, Tracker] = {}
        self._from: dict[str, int] = {}
        run_id, written = _remember(folder, [f"{name}/{title}" for name in names], reached) if names else ("", {})
        project, group = str(about.get("name", "exit_jax")), str(about.get("variant", "run"))
        of = Tracked(folder, title, step, project, group, run_id, about)
        for name in names:
            self._from[name] = 0 if name == "tensorboard" else written[f"{name}/{title}"]
            if tracker := self._guard(name, lambda name=name: TRACKERS[name](of)):
                self._open[name] = tracker

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the figures of a step to those trackers that have none of it yet."""
        for name, tracker in list(self._open.items()):
            if step > self._from[name]:
                self._guard(name, lambda tracker=tracker: tracker.write(step, values))

    def close(self) -> None:
        """Close what is still open."""
        for name, tracker in list(self._open.items()):
            self._guard(name, tracker.close)

    def _guard(self, name: str, act: Callable[[], Any]) -> Any:
        """Return what ``act`` returns; if it fails, for whatever reason, say so and switch the tracker off."""
        try:
            return act()
        except Exception as error:
            self._open.pop(name, None)
            log.warning("run.trackers: %s failed and is switched off, the run goes on: %.300r", name, error)


def _remember(folder: pathlib.Path, keys: Collection[str], reached: int) -> tuple[str, dict[str, int]]:
    """Return the id of a folder's runs, and for each of ``keys`` the step up to which it was written; a new one has none."""
    file = folder / ID_FILE
    try:
        held = json.loads(file.read_text())
        run_id, written = str(held["id"]), {key: int(step) for key, step in held["written"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        run_id, written = uuid.uuid4().hex[:16], {}
    steps = {key: max(written[key], reached) if key in written else 0 for key in keys}
    try:
        write_json(file, {"id": run_id, "written": written | steps})
    except OSError as error:
        log.warning("cannot write %s: a run that is resumed would be another one to its trackers: %s", file, error)
    return run_id, steps
