"""Exploratory Iteration (ExIt) in JAX: policies that improve their own answers."""

import importlib

__version__ = "0.2.0"


def __getattr__(name: str):
    """Import ``exit_jax.config``, ``.run`` and ``.report`` when they are asked for: reward processes need none of them."""
    if name in ("config", "report", "run"):
        return importlib.import_module(f"exit_jax.{name}")
    raise AttributeError(f"module 'exit_jax' has no attribute {name!r}")
