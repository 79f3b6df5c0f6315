"""From a command line to the checked config of this process, before anything that computes is imported."""

from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from exit_jax.config.parse import validate
from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts


def start(content: ConfigDict, overrides: Mapping[str, object], trains: bool = True) -> Config:
    """Join the other processes, if there are any, and return the config that a command line asks for.

    Raises:
      ConfigError: listing its faults.
    """
    hosts.skip_absent_tpu()
    try:
        hosts.initialize()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot join the other processes: {error}") from error
    if "variant" in overrides:
        raise ConfigError("--config.variant changes the name alone; say --config <file>:variant=<variant>")
    return validate(content, jax.device_count(), trains=trains)
