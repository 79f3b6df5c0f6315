"""What goes from one iteration to the next, and into checkpoints: the state, and batches that were sampled ahead."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from exit_jax.algorithm import curricula
from exit_jax.algorithm.curricula.core import Units
from exit_jax.types import Array, Instances, Rollouts, State, pytree, younger

Batch = tuple[Instances, Rollouts]


@pytree
class InFlight:
    """The state of a run that samples ``rollout_lag`` batches ahead; these are part of what a checkpoint holds."""

    state: State
    instances: Instances  # of the batch that is learnt from next
    rollouts: Rollouts
    # the batches after it, a tuple in the order in which they were sampled; None where there is none
    later: Any = younger()

    @classmethod
    def of(cls, state: State, batches: Sequence[Batch]) -> "InFlight":
        """Return a state with batches, one at least, in the order in which they were sampled."""
        first, *later = batches
        return cls(state, *first, tuple(later) or None)

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The batches, in the order in which they were sampled."""
        return (self.instances, self.rollouts), *(self.later or ())

    @property
    def step(self) -> Array:
        """Training iterations done."""
        return self.state.step


Carry = State | InFlight  # what goes from one iteration to the next


def state_of(carry: Carry) -> State:
    """Return the state without a batch that is in flight."""
    return carry.state if isinstance(carry, InFlight) else carry


def state_for_next_selection(state: State, in_flight: Sequence[Instances], units: Units | None = None) -> State:
    """Return what selection sees of a state while batches are in flight: the next step, the next base tasks.

    A curriculum knows which tasks are in flight, and not yet what they will tell: it is as many batches late.
    """
    for instances in in_flight:
        num_drawn = (~instances.from_buffer).sum(dtype=state.cursor.dtype)
        curriculum = curricula.count_draws(units, state.curriculum, instances) if units else None
        state = dataclasses.replace(state, step=state.step + 1, cursor=state.cursor + num_drawn, curriculum=curriculum)
    return state
