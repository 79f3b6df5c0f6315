"""What a policy is trained on: tasks, prompts and verifiers behind the one interface of domain.py, named as lookup.py says."""

import functools
import sys
from typing import TYPE_CHECKING, Any

from exit_jax.domains.lookup import NAMES, find, identity, settings_of, source

# a config is read, and its faults are told, before jax is imported
if TYPE_CHECKING:
    from exit_jax.domains.domain import Domain

__all__ = ["NAMES", "identity", "make", "prepare", "settings_of", "source"]


@functools.lru_cache
def make(name: str, fields: Any) -> "Domain":
    """Build the domain ``name`` from its settings; what it returns is held to its contract."""
    from exit_jax.domains.contract import checked, require_traits

    domain = find(name)(fields)
    require_traits(name, fields, domain)
    return checked(domain)


def prepare(name: str, fields: Any) -> str:
    """Fetch and prepare the data of the domain ``name`` by its module's ``prepare``; returns an account for people."""
    own = getattr(sys.modules[find(name).__module__], "prepare", None)
    return own(fields) if own else f"the domain {name} needs no data: its tasks are made on the spot"
