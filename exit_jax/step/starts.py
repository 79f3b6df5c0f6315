"""What base tasks are started with, bound to a domain: some of a gold solution, or a neighbouring task."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.algorithm import start_levels
from exit_jax.algorithm.method_settings import StartsConfig
from exit_jax.algorithm.prompts import Template
from exit_jax.algorithm.selection import Start
from exit_jax.domains.domain import Domain
from exit_jax.errors import ConfigError
from exit_jax.types import StartLevel


def gold_of(config: StartsConfig, domain: Domain) -> Any:
    """Return what the starts of the training split look up, arrays on the host; None without starts."""
    return domain.gold("train") if config.variant and domain.gold else None


def require_start(config: StartsConfig, domain: Domain) -> None:
    """Raise ConfigError if the domain does not have the start that is asked for."""
    if config.variant and config.variant not in domain.variants:
        offers = ", ".join(domain.variants) or "nothing: it has no gold solutions"
        raise ConfigError(
            f"algorithm.starts.variant = {config.variant!r}: the domain {domain.name} offers {offers}; take one of these, or "
            '"" for plain starts'
        )


def make_start(config: StartsConfig, domain: Domain, gold: Any) -> Start | None:
    """Return the function that starts histories; None without one."""
    if not config.variant:
        return None
    return functools.partial(domain.variants[config.variant], jax.tree.map(jnp.asarray, gold))


def templates_of(config: StartsConfig, domain: Domain) -> Mapping[str, Template]:
    """Return the prompts by mode, which show what tasks are started with where they are."""
    return (config.variant and domain.start_templates) or domain.templates


def first_levels(config: StartsConfig, domain: Domain) -> StartLevel | None:
    """Return the levels before the first iteration; None without starts."""
    if not config.variant:
        return None
    task = train_tasks(domain)
    return start_levels.create(config, task.size, int(task[0]))


def train_tasks(domain: Domain) -> np.ndarray:
    """Return the numbers of the training split's tasks, int32 [M], also within a program that is being traced."""
    with jax.ensure_compile_time_eval():
        return np.asarray(domain.tasks("train").task)
