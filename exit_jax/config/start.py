"""From a command line, or a notebook, to the checked config of this process, before anything that computes is imported."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
from ml_collections import ConfigDict

from exit_jax.config.parse import validate
from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts


def join() -> None:
    """Join the other processes, if there are any and that is yet to be done; before anything asks JAX for devices.

    Raises:
      ConfigError: if they cannot be joined.
    """
    hosts.skip_absent_tpu()
    try:
        hosts.initialize()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot join the other processes: {error}") from error


def start(content: ConfigDict, overrides: Mapping[str, object] = MappingProxyType({}), trains: bool = True) -> Config:
    """Join the other processes and return the config that is asked for.

    Args:
      overrides: what of ``content`` the command line has set, by dotted name.
      trains: as of ``validate``.

    Raises:
      ConfigError: listing its faults.
    """
    join()
    if "variant" in overrides:
        raise ConfigError("--config.variant changes the name alone; say --config <file>:variant=<variant>")
    return validate(content, jax.device_count(), trains=trains)
