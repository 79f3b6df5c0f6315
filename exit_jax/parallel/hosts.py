"""Several hosts: who they are, what they agree on, and which rows each of them grades."""

import contextlib
import importlib.metadata
import json
import logging
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from exit_jax.errors import Interrupted, LostProcessError, UserError

log = logging.getLogger(__name__)
_T = TypeVar("_T")
GRACE = 10.0  # seconds
# what errors of collectives say where a process that takes part is gone
SIGNS_OF_LOSS = ("Gloo", "Connection closed", "Connection reset", "Socket closed", "heartbeat", "coordination service")


def skip_absent_tpu(root: pathlib.Path = pathlib.Path("/")) -> None:
    """Keep JAX from asking libtpu for devices on a machine that has none: it says so in lines of noise.

    Call it before anything asks JAX for devices. Where JAX_PLATFORMS is set, where a plug-in brings other devices, or where
    anything looks like a TPU (its device files, or a PCI device of Google's), JAX looks for itself.
    """
    files = (file for pattern in ("accel*", "vfio/[0-9]*") for file in (root / "dev").glob(pattern))
    vendors = (file.read_text().strip() for file in (root / "sys/bus/pci/devices").glob("*/vendor"))
    settings: Any = jax.config  # whose flags the type checker does not know
    if settings.jax_platforms or importlib.metadata.entry_points(group="jax_plugins"):
        return
    if not any(files) and "0x1ae0" not in vendors:
        jax.config.update("jax_platforms", "cpu")


def initialize() -> None:
    """Join the other processes, if there are any and that is yet to be done: call it before anything asks JAX for devices.

    JAX finds its peers by itself on TPU pods, SLURM and Kubernetes, which ``EXIT_JAX_DISTRIBUTED=1`` asks for; elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it, as launch/local_multiprocess.sh does. A process that
    gives no sign of life for EXIT_JAX_HEARTBEAT_SECS, 30 by default, ends all of them.

    Raises:
      ValueError: if one of the three is missing, or one of the numbers is none.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if jax.distributed.is_initialized():
        return
    heartbeat = os.environ.get("EXIT_JAX_HEARTBEAT_SECS", "30")
    if not heartbeat.isdigit() or not int(heartbeat):
        raise ValueError(f"EXIT_JAX_HEARTBEAT_SECS = {heartbeat!r}; give it whole seconds, at least 1")
    if os.environ.get("EXIT_JAX_DISTRIBUTED") == "1":
        jax.distributed.initialize(heartbeat_timeout_seconds=int(heartbeat))
    elif "JAX_COORDINATOR_ADDRESS" in os.environ:
        wrong = [f"{name} = {os.environ.get(name)!r}" for name in names if not os.environ.get(name, "").isdigit()]
        if wrong:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS is set, but {' and '.join(wrong)}; give it a number")
        count, index = (int(os.environ[name]) for name in names)
        address = os.environ["JAX_COORDINATOR_ADDRESS"]
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=int(heartbeat))


def is_lead() -> bool:
    """Say whether this process writes what is written once: logs, metrics, reports."""
    return jax.process_index() == 0


@contextlib.contextmanager
def no_waiting_for_lost() -> Iterator[None]:
    """Of several processes, end this one within GRACE seconds of a fault, whatever waits for the others then, as a save does.

    A fault of one leaves the others in a collective; once its connections are closed, they fault, too.

    Raises:
      LostProcessError: if the fault is that another process is gone.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            raise
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        is_lost = isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in SIGNS_OF_LOSS)
        if is_lost:
            said = (
                f"another process of this run is gone (its own log says why; here: {said}); start all of them again, and the "
                "run goes on from the newest checkpoint"
            )
        timer = threading.Timer(GRACE, _give_up, (said,))
        timer.daemon = True
        timer.start()
        if is_lost:
            raise LostProcessError(said) from error
        raise


def _give_up(said: str) -> None:
    print(f"\nerror: {said}; this process waited for others, and ends now", file=sys.stderr, flush=True)
    os._exit(1)


def agree(value: int) -> int:
    """Return the largest of the processes' values, such as a signal that one of them caught; all must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def local_rows(tree: _T) -> tuple[_T, np.ndarray]:
    """Return the rows of arrays [B, ...] that this process owns, in NumPy, and their numbers.

    Where copies of a row lie on several processes, the one that holds copy 0 owns it, so that each row has one owner.
    """
    first = jax.tree.leaves(tree)[0]
    if jax.process_count() == 1:
        return jax.device_get(tree), np.arange(first.shape[0])

    def rows(array):
        parts = [
            (shard.index[0].start or 0, np.asarray(shard.data))
            for shard in array.addressable_shards
            if not shard.replica_id
        ]
        parts.sort(key=lambda part: part[0])
        return parts

    numbers = np.concatenate([start + np.arange(len(data)) for start, data in rows(first)] or [np.zeros(0, int)])
    take = lambda array: np.concatenate(
        [data for _, data in rows(array)] or [np.zeros((0, *array.shape[1:]), array.dtype)]
    )
    return jax.tree.map(take, tree), numbers


def exchange_rows(tree: _T, numbers: np.ndarray, num_rows: int) -> _T:
    """Put rows that the processes own together: every process gets all rows, in NumPy."""
    if jax.process_count() == 1:
        return tree

    def combine(rows):
        whole = np.zeros((num_rows, *rows.shape[1:]), np.uint8 if rows.dtype == bool else rows.dtype)
        whole[numbers] = rows  # one process sets a row, it is zero in the others
        return multihost_utils.process_allgather(whole).sum(0).astype(rows.dtype)

    return jax.tree.map(combine, tree)


def all_rows(tree: _T) -> _T:
    """Return arrays [B, ...] that are split over processes in NumPy, whole, on each of them."""
    local, numbers = local_rows(tree)
    return exchange_rows(local, numbers, jax.tree.leaves(tree)[0].shape[0])


def share_rows(values: list, numbers: np.ndarray, num_rows: int) -> list:
    """Put JSON values of the rows that the processes own together: every process gets all of them, in order."""
    if jax.process_count() == 1:
        return values
    text = np.frombuffer(json.dumps(values).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([text.size, numbers.size]))
    padded = np.zeros(sizes[:, 0].max(), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded)
    padded_numbers = np.zeros(sizes[:, 1].max(), np.int64)
    padded_numbers[: numbers.size] = numbers
    whole: list = [None] * num_rows
    for (size, count), row, owned in zip(sizes, texts, multihost_utils.process_allgather(padded_numbers)):
        for number, value in zip(owned[:count], json.loads(row[:size].tobytes())):
            whole[number] = value
    return whole


def on_own_rows(function: Callable[..., _T], blank: Callable[..., _T], *args) -> tuple[_T, bool]:
    """Apply a host function to the rows [B, ...] that this process owns, and share the outcome with all processes.

    A fault becomes the value ``blank`` of the same rows, so that no process leaves the others waiting in a collective.

    Returns:
      The function's value for all rows, and whether it failed here.
    """
    local, numbers = local_rows(args)
    return on_rows(function, blank, local, numbers, jax.tree.leaves(args)[0].shape[0])


def on_rows(
    function: Callable[..., _T], blank: Callable[..., _T], local: tuple, numbers: np.ndarray, num_rows: int
) -> tuple[_T, bool]:
    """Do as ``on_own_rows``, of rows that are at hand: ``local`` are those with the given numbers, of ``num_rows``."""
    value, failed = on_local_rows(function, blank, local, numbers)
    return exchange_rows(value, numbers, num_rows), failed


def on_local_rows(
    function: Callable[..., _T], blank: Callable[..., _T], local: tuple, numbers: np.ndarray
) -> tuple[_T, bool]:
    """Do the part of ``on_rows`` that needs no other process: return this one's rows in NumPy, and whether it failed."""
    failed = False
    try:
        value = jax.device_get(function(*local)) if numbers.size else blank(*local)
    except UserError:  # a fault of the domain itself, of which no other batch would be free
        raise
    except Exception:  # whatever a domain's verifier may raise
        log.exception("grading failed for %d prompts, which count as invalid", numbers.size)
        value, failed = blank(*local), True
    return jax.tree.map(np.asarray, value), failed
