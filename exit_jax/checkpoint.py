"""Save and restore all state of a run with orbax; a damaged checkpoint costs the steps since the one before."""

import contextlib
import logging
import pathlib
from typing import Any, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from exit_jax.config import ConfigError

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Checkpoints:
    """The checkpoints of one folder, newest ``keep`` kept, written in the background."""

    def __init__(self, folder: pathlib.Path, keep: int):
        self._folder = folder
        policy: Any = ocp.training.preservation_policies.LatestN(keep)
        always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        self._open = lambda: ocp.training.Checkpointer(
            str(folder), preservation_policy=policy, save_decision_policy=always, cleanup_tmp_directories=True
        )
        self._checkpointer = self._open()

    def steps(self) -> list[int]:
        """Return the steps that can be restored, oldest first."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, step: int, state) -> None:
        """Start to save a pytree as the checkpoint of ``step``, unless there is one; returns once the arrays are copied."""
        if step not in self.steps():
            with self._explain():
                self._checkpointer.save_async(step, state)

    def restore_latest(self, like: _T) -> _T | None:
        """Return the newest checkpoint that can be read, with the structure and shardings of ``like``; None without any.

        One that cannot be read is renamed to ``<step>.damaged`` and reported, and the one before it is tried.

        Raises:
          ConfigError: a checkpoint is of another structure, as one of another version of this code. It stays where it is.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        for step in reversed(self.steps()):
            try:
                return self._checkpointer.load(step, abstract)
            except Exception as error:  # orbax and tensorstore raise many kinds on damaged files
                self._require_same_structure(step, abstract)
                damaged = self._folder / str(step)
                log.warning("checkpoint %s cannot be read and is set aside: %.200s", damaged, error)
                self._checkpointer.close()
                damaged.rename(damaged.with_suffix(".damaged"))
                self._checkpointer = self._open()
        return None

    def _require_same_structure(self, step: int, abstract) -> None:
        """Raise if what a checkpoint says of itself can be read, and is not what is asked for."""
        try:
            held = self._checkpointer.metadata(step).metadata
        except Exception:  # as in restore_latest
            held = None
        if held is None:
            return
        if different := sorted(leaf_names(held) ^ leaf_names(abstract)):
            names = ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
            raise ConfigError(
                f"{self._folder / str(step)} was written by another version of this code: only one of the two has {names}; "
                "go on with the revision that config.json names, or choose another --workdir"
            )

    def close(self) -> None:
        """Wait until everything is on disk."""
        with self._explain():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _explain(self):
        """Turn orbax's report of a failed write, pages of it, into the one line that matters."""
        try:
            yield
        except (OSError, ValueError) as error:
            cause = str(error).splitlines()[0]
            raise ConfigError(
                f"cannot write a checkpoint to {self._folder}: {cause}\n"
                "free some space or mend the folder; the same command then resumes from the last complete checkpoint"
            ) from error


def leaf_names(tree) -> set[str]:
    """Return the names of a tree's leaves, the same for a dataclass and for the dict that orbax makes of it."""
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree))
    return set(names)
