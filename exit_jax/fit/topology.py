"""Slices of TPU chips that are not there, as libtpu describes them to the compiler."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError
from exit_jax.fit.roofline import CHIPS, Chip
from exit_jax.step.policy import decoder_config

# slices of each family that Cloud TPU offers, smallest first
SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}
# what libtpu would otherwise ask the metadata server of a TPU VM, or complain about on a machine that is none
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPU chips, as the compiler knows it."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]


def find_topology(name: str) -> Topology:
    """Return the slice ``name``, such as v5e:4x4.

    Raises:
      ConfigError: if there is no such slice, or libtpu is not installed.
    """
    family, _, shape = name.partition(":")
    sizes = re.fullmatch(r"\d+(x\d+)*", shape) and [int(size) for size in shape.split("x")]
    if family not in CHIPS or not sizes:
        known = "; ".join(f"{family}:{', '.join(shapes)}" for family, shapes in SLICES.items())
        raise ConfigError(f"--topology={name!r} is not a slice such as v5e:4x4; known are {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f'--topology={name} needs TPU\'s compiler, libtpu, which runs without a TPU: pip install "exit_jax[tpu]"'
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # a host has 4 chips unless we say otherwise, which smaller slices do not have
    bounds = {"chips_per_host_bounds": (*sizes, 1, 1)[:3]} if math.prod(sizes) < 4 else {}
    try:
        devices = topologies.get_topology_desc(name, platform="tpu", **bounds).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--topology={name} is unknown to libtpu ({error}); take one of {', '.join(SLICES[family])}"
        ) from error
    return Topology(name, CHIPS[family], tuple(devices))


def settle(config: Config, topology: Topology) -> Config:
    """Return the config with what is decided by the machine it runs on: the kernel of attention, the vocabulary.

    Raises:
      ConfigError: if the mesh does not take the whole slice.
    """
    mesh, num_devices = config.run.mesh, len(topology.devices)
    if mesh.num_devices != num_devices:
        raise ConfigError(
            f"run.mesh takes {mesh.data} x {mesh.fsdp} x {mesh.tensor} = {mesh.num_devices} chips of the {num_devices} of "
            f"{topology.name}; data = 0 takes those that the other axes leave, if these divide {num_devices}"
        )
    policy = decoder_config(config)
    backend = "splash" if policy.attention == "auto" else policy.attention  # "auto" would ask for this machine's own
    return dataclasses.replace(config, policy=dataclasses.replace(policy, attention=backend))
