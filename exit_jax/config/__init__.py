"""Settings of a run: schema.py has all fields, parse.py reads config files, checks.py finds contradictions."""

from exit_jax.config.parse import arguments, default, validate
from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError

__all__ = ["Config", "ConfigError", "arguments", "default", "validate"]
