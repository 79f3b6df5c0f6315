"""Save and restore all state of a run with orbax; a damaged checkpoint costs the steps since the one before."""

import contextlib
import dataclasses
import itertools
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts
from exit_jax.workdir import remote
from exit_jax.workdir.lock import try_lock

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Checkpoints:
    """The checkpoints of one folder, or of the URL that it stands for, newest ``keep`` kept, written in the background.

    One run at a time has a folder; another one waits until it is closed, or its process is gone. With ``keep`` None the folder
    is only read: that waits for no one, and changes nothing under a run that may be saving.
    """

    def __init__(self, folder: pathlib.Path, keep: int | None):
        self._folder, self._writes = remote.place(folder), keep is not None
        self._lock = contextlib.ExitStack()
        if self._writes:
            _wait_for_lock(folder, self._lock)
        policy: Any = ocp.training.preservation_policies.LatestN(keep)
        always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        self._open = lambda: ocp.training.Checkpointer(
            str(self._folder),
            preservation_policy=policy,
            save_decision_policy=always,
            cleanup_tmp_directories=self._writes,  # a reader would delete what a run is saving
        )
        self._checkpointer = self._open()

    def steps(self) -> list[int]:
        """Return the steps that can be restored, oldest first."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, step: int, state) -> None:
        """Start to save a pytree as the checkpoint of ``step``, unless there is one; returns once the arrays are copied."""
        if step not in self.steps():
            with self._explain():
                self._checkpointer.save_async(step, named(state))

    def restore_latest(self, like: _T) -> _T | None:
        """Return the newest checkpoint that can be read, with the structure and shardings of ``like``; None without any.

        Newer ones, which could not be read, are then renamed to ``<step>.damaged``, unless the folder is only read.

        Raises:
          ConfigError: there are checkpoints, but none can be read; or one has other leaves, shapes or dtypes, as of another
            version of this code. All of them stay where they are.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        unreadable, fault = [], ""
        for step in reversed(self.steps()):
            self._require_same_structure(step, abstract)
            state, error = None, None
            try:
                state = renamed(self._checkpointer.load(step, named(abstract)), abstract)
            except Exception as raised:  # orbax and tensorstore raise many kinds, orbax about its handlers
                error = raised
            if not hosts.agree(error is not None):
                self._set_aside(unreadable)
                return state
            fault = f"{error.__cause__ or error!s:.300}" if error else "another process could not read it"
            log.warning("checkpoint %s cannot be read: %s", self._folder / str(step), fault)
            unreadable.append(step)
        if unreadable:
            raise ConfigError(
                f"none of the checkpoints {', '.join(map(str, reversed(unreadable)))} in {self._folder} can be read: {fault}\n"
                "where that passes, as with a disk that was away, the same command then resumes; where the files are damaged, "
                "move the folder away to begin anew"
            )
        return None

    def _require_same_structure(self, step: int, abstract) -> None:
        """Raise if what a checkpoint says of itself can be read, and is not what is asked for."""
        try:
            found = self._checkpointer.metadata(step).metadata
        except Exception:  # as in restore_latest
            found = None
        held, asked = leaf_types(found), leaf_types(abstract)
        names = [] if found is None else sorted(name for name in held | asked if held.get(name) != asked.get(name))
        if not hosts.agree(bool(names)):
            return
        rows = [f"{name}: {held.get(name, 'absent')} there, {asked.get(name, 'absent')} here" for name in names]
        more = f"; and {len(rows) - 3} more" if len(rows) > 3 else ""
        raise ConfigError(
            f"{self._folder / str(step)} was written by another version of this code ({'; '.join(rows[:3])}{more}); "
            "go on with the revision that config.json names, or choose another --workdir"
        )

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Rename what cannot be read to a free name, so that these steps can be saved again."""
        if not steps or not self._writes:
            return
        self._checkpointer.close()
        if hosts.is_lead():
            for step in steps:
                names = (self._folder / f"{step}.damaged{again or ''}" for again in itertools.count())
                (self._folder / str(step)).rename(next(name for name in names if not name.exists()))
        hosts.agree(0)  # the others list the folder once it is done
        self._checkpointer = self._open()

    def close(self) -> None:
        """Wait until everything is on disk, and let other runs have the folder; may be called again."""
        with contextlib.closing(self._lock), self._explain():
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


def _wait_for_lock(folder: pathlib.Path, held: contextlib.ExitStack) -> None:
    """Lock a folder until ``held`` is closed; of the processes of a run the lead does, and the others wait with it.

    The kernel drops the lock of a process that dies, so none is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = None
    if hosts.is_lead():
        with contextlib.suppress(OSError):  # a folder that may only be read, as another's finished warm start
            file = held.enter_context(folder.with_name(f"{folder.name}.lock").open("w"))
    told = False
    while hosts.agree(file is not None and not try_lock(file)):
        if file and not told:
            log.warning("waiting for another process, which is writing to %s", folder)
            told = True
        time.sleep(1.0)


def named(tree: Any) -> Any:
    """Return dataclasses as the dicts that orbax makes of them, without younger fields that are None (``types.younger``)."""
    if not dataclasses.is_dataclass(tree):
        return tree
    held = {field: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    return {f.name: named(value) for f, value in held.items() if value is not None or not f.metadata.get("younger")}


def renamed(held: Any, like: _T) -> _T:
    """Return what ``named`` made of a tree as the dataclasses of ``like``."""
    if not dataclasses.is_dataclass(like):
        return held
    fields: Any = {name: renamed(value, getattr(like, name)) for name, value in held.items()}
    return type(like)(**fields)


def leaf_types(tree) -> dict[str, str]:
    """Return name -> "float32[3, 4]" of a tree's leaves, the same for a dataclass and for the dict that orbax makes of it."""

    def describe(leaf) -> str:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # saved as the numbers that it consists of
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return f"{leaf.dtype}{list(leaf.shape)}"

    named = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): describe(leaf) for path, leaf in named}
