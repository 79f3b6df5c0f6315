"""The mesh, and the two tables that say where a policy lives on it: one for the learner, one for the sampler.

Programs are compiled with ``jax.jit`` and NamedSharding over an Auto mesh, which is what pjit has become.

    data    prompts and their rollouts are split; parameters are copies
    fsdp    as data, and the learner's parameters and optimiser state are split too, gathered layer by layer
    tensor  heads, the MLP and the vocabulary are split, in both phases

Parameters split over fsdp would be gathered again for every token that is decoded, so the sampler has its own copy,
split over tensor only; it is made once an iteration.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from exit_jax.parallel.settings import MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that rows are split over

# logical axis of a parameter -> axis of the mesh
LEARNER: Mapping[str, str] = {
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}
SAMPLER: Mapping[str, str] = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh over the first devices, or over ``devices``, those of a topology that is only compiled for."""
    shape = (config.data, config.fsdp, config.tensor)
    auto = (AxisType.Auto,) * len(AXES)
    if devices is not None:
        return Mesh(np.asarray(devices[: config.num_devices]).reshape(shape), AXES, axis_types=auto)
    return jax.make_mesh(shape, AXES, auto, devices=jax.devices()[: config.num_devices])


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the leading dimension over the rows' axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def shard_batch(mesh: Mesh, tree):
    """Split the leading dimension of every array over the rows' axes; use inside jit."""
    return jax.lax.with_sharding_constraint(tree, by_row(mesh))


def use(mesh: Mesh):
    """Return the context in which kernels that XLA does not partition find the mesh; use inside jit."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def shardings(mesh: Mesh, logical_axes, shapes, rules: Mapping[str, str]):
    """Map tuples of logical axis names, one name a dimension, to shardings of ``shapes``, a tree like it.

    A name without a rule is not split, nor is a dimension that its axis does not divide, as a small vocabulary.
    """

    def sharding(leaf, names):
        axes = [rules.get(name) for name in names]
        fits = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, leaf.shape)]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree.map(sharding, shapes, logical_axes)
