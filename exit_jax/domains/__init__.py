"""What a policy is trained on: tasks, prompts and verifiers behind the one interface of domain.py.

A domain's module is imported when a config names it, so that a config's faults do not wait for all of them.
"""

import importlib
from typing import Any

from exit_jax.domains.domain import Domain

# name -> (module with make_domain, the type of config.domain's fields in it)
_MODULES = {
    "sudoku": ("exit_jax.domains.sudoku.domain", "SudokuConfig"),
    "math": ("exit_jax.domains.math.domain", "MathConfig"),
    "tool_use": ("exit_jax.domains.tool_use.domain", "ToolsConfig"),
    "ml_engineering": ("exit_jax.domains.ml_engineering.domain", "MleConfig"),
    "shapes": ("exit_jax.domains.shapes", "ShapesConfig"),
}
NAMES = tuple(_MODULES)


def settings_of(name: str) -> type:
    """Return the type of ``config.domain``'s fields where ``config.domain_name`` is ``name``."""
    module, settings = _MODULES[name]
    return getattr(importlib.import_module(module), settings)


def make(name: str, fields: Any) -> Domain:
    """Build the domain ``name`` from its settings."""
    return importlib.import_module(_MODULES[name][0]).make_domain(fields)


def prepare(name: str, fields: Any) -> str:
    """Fetch and prepare the data of the domain ``name``; returns an account for people."""
    module = importlib.import_module(_MODULES[name][0])
    if not hasattr(module, "prepare"):
        return f"the domain {name} needs no data: its tasks are made on the spot"
    return module.prepare(fields)
