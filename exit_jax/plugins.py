"""Code of a user's own that a config names: ``module:name``, or ``file.py:name`` relative to the working directory."""

import importlib
import importlib.util
import pathlib
import sys
import traceback
import types

from exit_jax.errors import UserError

# what a notebook defines has no file that other processes could import, and that a resumed run could be held to
REMEDY = "write it to a file, in a notebook by %%writefile my_file.py, and name it as my_file.py:function"


class PluginError(UserError):
    """Code that a config names and that cannot be imported; the message says where it fails, or what there is instead."""


def load(setting: str, name: str) -> tuple[types.ModuleType, str]:
    """Return the module that ``name`` says, imported, and what is asked for in it.

    A file's folder ends up on ``sys.path``, which processes that are spawned inherit.

    Args:
      setting: the field of the config, for messages.

    Raises:
      PluginError: if there is no such module, or it cannot be imported.
    """
    where, _, attribute = name.rpartition(":")
    if not (where and attribute):
        raise PluginError(f"{setting} = {name!r} is neither module:name nor file.py:name")
    if where == "__main__":
        raise PluginError(f"{setting} = {name!r} is of the notebook or script itself; {REMEDY}")
    try:
        return _import_file(pathlib.Path(where)) if where.endswith(".py") else importlib.import_module(where), attribute
    except PluginError as error:
        raise PluginError(f"{setting} = {name!r}: {error}") from error
    except ModuleNotFoundError as error:
        if error.name and f"{where}.".startswith(f"{error.name}."):
            remedy = "install it, run from the folder that has it, or name its file as file.py:name"
            raise PluginError(f"{setting} = {name!r}: there is no module {error.name!r}; {remedy}") from error
        raise PluginError(f"{setting} = {name!r}: {what_it_raised(error)}") from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise PluginError(f"{setting} = {name!r}: {what_it_raised(error)}") from error


def _import_file(path: pathlib.Path) -> types.ModuleType:
    """Import a file as the module of its name."""
    path = path.expanduser().absolute()
    if not path.is_file():
        raise PluginError(f"there is no file {path}; a path is relative to the working directory")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # at the end, where it hides nothing
    importlib.invalidate_caches()
    found = importlib.util.find_spec(path.stem) if "." not in path.stem else None
    if found is None or not found.origin or pathlib.Path(found.origin).resolve() != path.resolve():
        other = found.origin if found else "none"
        raise PluginError(
            f"{path} cannot be imported as {path.stem!r}, which is another module ({other}); rename the file"
        )
    return importlib.import_module(path.stem)


def what_it_raised(error: BaseException) -> str:
    """Return what a user's code raised: in one line, with the place."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    at = (isinstance(error, SyntaxError) and (error.filename, error.lineno)) or (frames[-1].filename, frames[-1].lineno)
    return f"{at[0]}, line {at[1]}, raises {type(error).__name__} ({' '.join(str(error).split())}); mend it"
