"""What held-out chains came to, and what figures ask about the tasks that they were sampled for."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from exit_jax import domains
from exit_jax.config.schema import Config, EvalConfig
from exit_jax.domains.domain import Domain
from exit_jax.types import Array, History, pytree

Table = Array | np.ndarray  # NumPy once the chains are over


@pytree
class Chains:
    """What the K + 1 responses of each of R chains came to."""

    quality: Table  # float32 [K + 1, R]
    unchanged: Table  # bool [K + 1, R]: the response left the answer as it was
    valid: Table  # bool [K + 1, R]
    complete: Table  # bool [K + 1, R]: the policy's own sign that it is done; False where the domain has none
    tokens: Table  # int32 [K + 1, R]: sampled
    mode: Table  # int32 [K + 1, R]
    notes: dict[str, Table]  # float32 [K + 1, R] by name: what else the domain's grading says
    history: History | None  # [K + 1, R]; None where the host has made texts of it already
    # int32 [K + 1, R]: ordinal of the response that each one started from, -1 for the base task; None: the one before
    parent: Table | None = None
    # bool [K + 1], False: the row stands for a k that is not evaluated and repeats the one before; None: all were sampled
    sampled: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The chains of a split; of tasks of several turns, what episodes came to after k self-iterations on each turn."""

    chains: Chains  # chains without their histories
    describe: Callable[[int], list[str]]  # number of a chain -> its K + 1 responses
    answers: list[list[str]] | None  # [K + 1][R]; None where the domain tells none
    feedback: Callable[[int], list[str]] | None = None  # number of a chain -> what was said of each response
    figures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # name -> [K + 1, R], of episodes


def read_column(table: Sequence[Sequence[str]]) -> Callable[[int], list[str]]:
    """Return the function from the number of a chain to its entries in the K + 1 rows of a table, each of R chains."""
    return lambda c: [row[c] for row in table]


def tell_column(tell: Callable[[History], list[str]], history: History) -> Callable[[int], list[str]]:
    """Return the function from the number of a chain to what ``tell`` says of its histories, of all [K + 1, R]."""
    return lambda c: tell(jax.tree.map(lambda leaf: leaf[:, c], history))


@dataclasses.dataclass(frozen=True)
class Split:
    """What the figures of a split are made with: n chains of each of M tasks, all tasks of a sample together."""

    settings: EvalConfig
    domain: Domain
    difficulty: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # int or float [M] by name
    names: Sequence[str] = ()  # [M]: what the domain calls its tasks; () where it does not name them all
    num_too_long: int = 0  # tasks that do not fit into a prompt, and count as wrong
    category: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)  # [M] by kind, as Domain.category

    @property
    def steps(self) -> list[int]:
        """The k that are reported, ascending and each once, whatever the order of ``eval.steps``."""
        return sorted(set(self.settings.steps))


def describe_split(config: Config, split: str) -> Split:
    """Return what figures ask about the tasks of a split."""
    domain = domains.make(config.domain_name, config.domain)
    about = domain.about_tasks(split)
    names = [row["name"] for row in about if "name" in row]
    return Split(
        settings=config.eval,
        domain=domain,
        difficulty=domain.difficulty(split),
        category=domain.category(split),
        names=names if len(names) == len(about) else (),
        num_too_long=count_too_long(domain, split),
    )


def count_too_long(domain: Domain, split: str) -> int:
    """Return how many tasks of a split do not fit into a prompt, and count as wrong."""
    return int(domain.too_long(split).sum()) if domain.too_long else 0
