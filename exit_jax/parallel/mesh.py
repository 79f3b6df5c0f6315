"""The mesh and where things live on it: state replicated, prompts and their rollouts over the data axis.

Programs are compiled with ``jax.jit`` and NamedSharding over an Auto mesh, which is what pjit has become.
"""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def make_mesh(num_devices: int) -> jax.sharding.Mesh:
    """Return a mesh of one axis, data, over the first ``num_devices`` devices."""
    return jax.make_mesh((num_devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:num_devices])


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Return the sharding that keeps a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(mesh: jax.sharding.Mesh, tree):
    """Split the leading dimension of every array over the data axis; use inside jit."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec("data")))
