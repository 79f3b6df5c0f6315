"""Streams of random numbers: one PRNG key for each use of an iteration, all folded from the run's root key."""

import jax

from exit_jax.types import Array

# numbered by place, so a new one is added at the end
STREAMS = (
    "select",
    "sample",
    "expand",
    "epochs",
    "starts",
    "curriculum",
    "clip_cov",
    "start_levels",
    "replay",
    "second",
    "critique",
    "regroup",
    "rounds",
)


def stream(root: Array, name: str, index: Array | int) -> Array:
    """Return the PRNG key of one named stream at one iteration (or epoch); independent of all others."""
    return jax.random.fold_in(jax.random.fold_in(root, index), STREAMS.index(name))
