"""The one interface of a domain: token pieces in, grades out."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from exit_jax.algorithm.prompts import Template
from exit_jax.algorithm.types import Array, Grades, History, Instances, Rollouts


class DomainError(ValueError):
    """Tasks that cannot be had as they were asked for; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Domain:
    """A task family, as pure functions and static shapes."""

    name: str
    vocab_size: int
    history_width: int  # W: tokens of a packed history
    prompt_width: int  # P: tokens of the longest prompt
    max_tokens: int  # T: tokens of the longest response
    stop_token: int
    templates: Mapping[str, Template]  # by mode
    tasks: Callable[[str], History]  # split -> base tasks [M]
    difficulty: Callable[[str], Mapping[str, np.ndarray]]  # split -> int [M] by name, what results are broken down by
    grade: Callable[[Instances, Rollouts], Grades]  # in jnp
    complete: Callable[[History], Array]  # the policy's own sign that it is done, bool [...]; asks no oracle
    # (key, K, G) -> histories [K], modes [K], tokens [K, G, T], mask [K, G, T] for the supervised warm start
    demonstrations: Callable[[Array, int, int], tuple[History, Array, Array, Array]]
    demonstrations_id: str  # names all that demonstrations depend on
    describe: Callable[[History], list[str]]  # what each history holds, as text for people
