"""What all curricula share: units of base tasks, and what a batch tells of them.

A unit is what a curriculum chooses among: a level of a difficulty, a category, or a single task. Within a unit, tasks come in
shuffled epochs, as all tasks do where there is no curriculum: a curriculum of one unit draws just what none would.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.algorithm.learnability import Group
from exit_jax.algorithm.method_settings import CurriculumConfig
from exit_jax.algorithm.streams import stream
from exit_jax.types import Array, Instances, pytree


class Units(NamedTuple):
    """X units of M base tasks."""

    of_task: Any  # int32 [M]: unit of each task
    members: Any  # int32 [X, n]: tasks of each unit, -1 after its last
    size: Any  # int32 [X]: tasks of each unit
    order: Any  # int32 [X]: units from the easiest to the hardest
    names: tuple[str, ...] = ()  # [X], for metrics; () where a unit is a task
    first_task: int = 0  # number of the first of the M tasks
    recorded: Any = None  # float32 [T, X]: weights of a finished run, for a replay

    @property
    def count(self) -> int:
        """X."""
        return self.members.shape[0]

    def place(self) -> Array:
        """Return the place of each unit in the order, int32 [X], 0 for the easiest."""
        return jnp.argsort(jnp.asarray(self.order))


@pytree
class CurriculumState:
    """What a curriculum has learnt; part of the run's state."""

    drawn: Array  # int32 [X]: base tasks drawn of each unit, its position in its shuffled epochs
    method: Any  # the method's own arrays


class Told(NamedTuple):
    """What a batch of B groups tells of its units."""

    unit: Array  # int32 [B]; X for an instance that says nothing of one: drawn from the buffer, or lost
    group: Group  # float32 [B, G] each
    step: Array  # int32 []: iterations done before this one
    key: Array  # for methods that sample when they are told


class Method(Protocol):
    """A curriculum: a module of these functions; one that draws otherwise than by weights has a function ``choose``, too."""

    @property
    def READS(self) -> tuple[str, ...]:
        """The fields of CurriculumConfig that it uses."""
        ...

    def create(self, config: CurriculumConfig, units: Units) -> Any:
        """Return the state before anything was told."""

    def observe(self, config: CurriculumConfig, units: Units, state: Any, told: Told) -> Any:
        """Return the state after a batch."""

    def weights(self, config: CurriculumConfig, units: Units, state: Any, step: Array) -> Array:
        """Return how often each unit is to be drawn, float32 [X], up to a factor."""
        ...


def make_units(labels: np.ndarray, easy_first: bool = True, column: str = "", permuted: bool = False) -> Units:
    """Return the units of tasks that are labelled [M]; equal labels are one unit, ordered by the labels.

    Args:
      easy_first: whether low labels are easy ones.
      column: what the labels are, for the names of metrics; "" for none.
      permuted: deal the labels out to the tasks by chance, so that a unit says nothing of its tasks: a control.
    """
    values, of_task = np.unique(labels, return_inverse=True)
    if permuted:
        of_task = np.random.default_rng(0).permutation(of_task)
    size = np.bincount(of_task, minlength=values.size)
    members = np.full((values.size, size.max()), -1, np.int32)
    for unit, number in enumerate(size):
        members[unit, :number] = np.flatnonzero(of_task == unit)
    order = np.arange(values.size)[:: 1 if easy_first else -1]
    names = tuple(f"{column}={value}" for value in values.tolist()) if column else ()
    return Units(of_task.astype(np.int32), members, size.astype(np.int32), order.astype(np.int32), names)


def units_of(units: Units, instances: Instances) -> Array:
    """Return the unit that each instance was drawn of, int32 [B]; X for one from the buffer."""
    row, num_tasks = instances.history.task - units.first_task, units.of_task.size
    known = ~instances.from_buffer & (row < num_tasks)  # a task that was made on the way is in no unit
    return jnp.where(known, jnp.asarray(units.of_task)[jnp.minimum(row, num_tasks - 1)], units.count)


def next_tasks(units: Units, drawn: Array, root: Array, unit: Array) -> tuple[Array, Array]:
    """Return the next tasks of these units [B], int32 [B], and which were never drawn before, bool [B].

    Args:
      drawn: int32 [X], tasks drawn of each unit before this batch.
      root: key of the run.
    """
    nth = jnp.tril(unit[:, None] == unit[None], -1).sum(1, dtype=jnp.int32)  # draws of the unit before, in this batch
    epoch, place = jnp.divmod(drawn[unit] + nth, jnp.asarray(units.size)[unit])

    def pick(unit: Array, epoch: Array, place: Array) -> Array:
        members = jnp.asarray(units.members)[unit]
        mixed = members[jax.random.permutation(stream(root, "epochs", epoch), members.size)]
        return mixed[jnp.argsort(mixed < 0, stable=True)][place]  # its tasks first

    return jax.vmap(pick)(unit, epoch, place), epoch == 0


def by_unit(value_B: Array, told: Told, num_units: int) -> tuple[Array, Array]:
    """Return the mean of a value over the groups of each unit, float32 [X], 0 without any, and their number int32 [X]."""
    number = jnp.zeros(num_units, jnp.int32).at[told.unit].add(1, mode="drop")
    total = jnp.zeros(num_units, jnp.float32).at[told.unit].add(value_B, mode="drop")
    return total / jnp.maximum(number, 1), number


def softmax(value: Array, temperature: float) -> Array:
    """Return exp(value / τ) over the largest of them, float32 [X]."""
    return jnp.exp((value - value.max()) / temperature)


def normal(weight: Array) -> Array:
    """Return weights float32 [X] over their sum; 0 where all are."""
    return weight / jnp.maximum(weight.sum(), jnp.finfo(jnp.float32).tiny)


def uniform(units: Units) -> Array:
    """Return the share of a unit in a draw of tasks that are all alike, float32 [X]."""
    return jnp.asarray(units.size, jnp.float32) / units.of_task.size


def with_floor(weight: Array, units: Units, share: float) -> Array:
    """Return weights of which a share is drawn uniformly; all of it where no unit weighs anything."""
    own = jnp.where(weight.sum() > 0, normal(weight), uniform(units))
    return (1.0 - share) * own + share * uniform(units)
