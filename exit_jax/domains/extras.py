"""Packages that a domain needs and the base install does not have: extras of setup.py."""

import importlib.util

from exit_jax.errors import DomainError


def require(domain: str, extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed, without importing them.

    Raises:
      DomainError: naming those that are missing, and the command that installs them.
    """
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise DomainError(f'the domain {domain} needs {", ".join(missing)}: pip install "exit_jax[{extra}]"')
