"""Settings of a run: schema.py has all fields, shipped.py finds configs, parse.py reads them, checks.py has contradictions."""

from exit_jax.config.parse import arguments, default, validate
from exit_jax.config.schema import Config
from exit_jax.config.shipped import load
from exit_jax.errors import ConfigError

__all__ = ["Config", "ConfigError", "arguments", "default", "load", "validate"]
