"""From the name of a domain to the function that makes it: one that ships, or a user's own in a module or a file.

``domain_name`` is a short name of SHIPPED, ``module:function``, or ``file.py:function`` with a path relative to the working
directory, as all paths of a config are. The function takes the domain's settings, a frozen dataclass that its annotation
names, and returns a ``Domain``. Its module is imported when a config names it.
"""

import dataclasses
import importlib
import inspect
import pathlib
import types
import typing
from collections.abc import Callable
from typing import Any

from exit_jax import plugins
from exit_jax.errors import DomainError

SHIPPED = {
    "sudoku": "exit_jax.domains.sudoku.domain:make_domain",
    "math": "exit_jax.domains.math.domain:make_domain",
    "tool_use": "exit_jax.domains.tool_use.domain:make_domain",
    "ml_engineering": "exit_jax.domains.ml_engineering.domain:make_domain",
    "task": "exit_jax.domains.task.domain:make_domain",
    "gym": "exit_jax.domains.gym.domain:make_domain",
    "multi_turn": "exit_jax.domains.multi_turn.domain:make_domain",
    "shapes": "exit_jax.domains.shapes:make_domain",
}
# the same that their annotations say: a config is read, and its faults are told, before jax is imported
SETTINGS = {
    "sudoku": "exit_jax.domains.sudoku.settings:SudokuConfig",
    "math": "exit_jax.domains.math.settings:MathConfig",
    "tool_use": "exit_jax.domains.tool_use.settings:ToolsConfig",
    "ml_engineering": "exit_jax.domains.ml_engineering.settings:MleConfig",
    "task": "exit_jax.domains.task.settings:TaskConfig",
    "gym": "exit_jax.domains.gym.settings:GymConfig",
    "multi_turn": "exit_jax.domains.multi_turn.settings:MultiTurnConfig",
}
NAMES = tuple(SHIPPED)


def find(name: str) -> Callable[[Any], Any]:
    """Return the function that makes the domain ``name``.

    Raises:
      DomainError: if there is none.
      PluginError: if its module cannot be imported.
    """
    module, attribute = _module(name), SHIPPED.get(name, name).rpartition(":")[2]
    function = getattr(module, attribute, None)
    if callable(function):
        return function
    own = [
        key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    raise DomainError(
        f"domain_name = {name!r}: there is no function {attribute!r}; {module.__file__} has {', '.join(own) or 'none'}"
    )


def settings_of(name: str) -> type:
    """Return the type of ``config.domain``'s fields where ``config.domain_name`` is ``name``.

    Raises:
      UserError: as ``find`` and ``annotated_settings``.
    """
    if isinstance(name, str) and name in SETTINGS:
        module, _, attribute = SETTINGS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    return annotated_settings(name, find(name))


def annotated_settings(name: str, function: Callable[[Any], Any]) -> type:
    """Return the type of the settings that a domain's function is annotated to take.

    Raises:
      DomainError: if it does not say so by a frozen dataclass.
    """
    try:
        hints = typing.get_type_hints(function)
        kind = hints.get(next(iter(inspect.signature(function).parameters), ""))
    except (NameError, TypeError, ValueError) as error:
        raise DomainError(f"domain_name = {name!r}: its annotations cannot be read ({error}); mend them") from error
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return kind
    called = name.rpartition(":")[2]
    raise DomainError(
        f"domain_name = {name!r}: the settings of {called} are annotated as {kind!r}, which is no frozen dataclass; write "
        f"def {called}(config: Settings) with @dataclasses.dataclass(frozen=True) class Settings"
    )


def source(name: str) -> pathlib.Path | None:
    """Return the file with a user's own domain, None for those that ship."""
    if identity(name) in SHIPPED:
        return None
    file = _module(name).__file__
    return pathlib.Path(file) if file else None


def identity(name: str) -> str:
    """Return which domain a name means, however it is spelt: of a file, the folder counts for nothing.

    >>> identity("/home/me/words.py:make_domain"), identity("exit_jax.domains.math.domain:make_domain")
    ('words.py:make_domain', 'math')
    """
    where, colon, function = name.rpartition(":")
    if where.endswith(".py"):
        return f"{pathlib.Path(where).name}{colon}{function}"
    return next((short for short, full in SHIPPED.items() if full == name), name)


def _module(name: Any) -> types.ModuleType:
    where, _, function = SHIPPED.get(name, name).rpartition(":") if isinstance(name, str) else ("", "", "")
    if not (where and function):
        raise DomainError(
            f"domain_name = {name!r} is not one of {NAMES}, nor a domain of your own, module:function or file.py:function"
        )
    return plugins.load("domain_name", SHIPPED.get(name, name))[0]
