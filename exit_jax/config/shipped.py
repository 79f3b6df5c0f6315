"""Config files by name: those that ship are found wherever the package is installed, beside files of a user's own.

In a checkout they are the folder configs/ beside the package; a wheel has that folder within the package (setup.py).
"""

import difflib
import pathlib
import runpy

import ml_collections

from exit_jax.errors import ConfigError

_PACKAGE = pathlib.Path(__file__).parents[1]
FOLDER = next((path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()), _PACKAGE)


def names() -> list[str]:
    """Return the names of the configs that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def find(name: str) -> pathlib.Path:
    """Return the file that a name stands for: one relative to the working directory, or else the config that ships so called.

    Raises:
      ConfigError: if there is neither.
    """
    if pathlib.Path(name).is_file():
        return pathlib.Path(name)
    if name in names():
        return FOLDER / f"{name}.py"
    near = difflib.get_close_matches(pathlib.Path(name).stem, names(), n=1)
    raise ConfigError(
        f"there is no file {name!r}, and no config of that name ships"
        + (f"; did you mean {near[0]!r}? Those that do: " if near else "; those that do: ")
        + ", ".join(names())
    )


def load(experiment: str) -> ml_collections.ConfigDict:
    """Return the config that ``--config`` stands for, without overrides: ``<name or file>[:name=value,...]``.

    Raises:
      ConfigError: if there is no such config.
      ValueError: for arguments that it does not take.
    """
    name, _, arguments = experiment.partition(":")
    return runpy.run_path(str(find(name)))["get_config"](arguments)
