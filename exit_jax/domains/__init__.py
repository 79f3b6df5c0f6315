"""What a policy is trained on: tasks, prompts and verifiers behind the one interface of domain.py.

A domain's module is imported when a config names it, so that a config's faults do not wait for all of them.
"""

import functools
import importlib
from typing import TYPE_CHECKING, Any

# a config is read, and its faults are told, before jax is imported
if TYPE_CHECKING:
    from exit_jax.domains.domain import Domain

# name -> (the type of config.domain's fields, the function that makes a domain of them), as module:name
_MODULES = {
    "sudoku": ("exit_jax.domains.sudoku.settings:SudokuConfig", "exit_jax.domains.sudoku.domain:make_domain"),
    "math": ("exit_jax.domains.math.settings:MathConfig", "exit_jax.domains.math.domain:make_domain"),
    "tool_use": ("exit_jax.domains.tool_use.settings:ToolsConfig", "exit_jax.domains.tool_use.domain:make_domain"),
    "ml_engineering": (
        "exit_jax.domains.ml_engineering.settings:MleConfig",
        "exit_jax.domains.ml_engineering.domain:make_domain",
    ),
    "shapes": ("exit_jax.domains.shapes:ShapesConfig", "exit_jax.domains.shapes:make_domain"),
}
NAMES = tuple(_MODULES)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def settings_of(name: str) -> type:
    """Return the type of ``config.domain``'s fields where ``config.domain_name`` is ``name``."""
    return _load(_MODULES[name][0])


@functools.lru_cache
def make(name: str, fields: Any) -> "Domain":
    """Build the domain ``name`` from its settings; what it returns is held to its contract."""
    from exit_jax.domains.contract import checked

    return checked(_load(_MODULES[name][1])(fields))


def prepare(name: str, fields: Any) -> str:
    """Fetch and prepare the data of the domain ``name``; returns an account for people."""
    module = importlib.import_module(_MODULES[name][1].partition(":")[0])
    if not hasattr(module, "prepare"):
        return f"the domain {name} needs no data: its tasks are made on the spot"
    return module.prepare(fields)
