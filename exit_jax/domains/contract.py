"""The border of a domain: what it returns is held to what ``Domain`` promises, in words that name the field and the rule.

Shapes, dtypes and names are checked of whatever is graded, also where a program is traced, at no cost in it. Values are checked
of what is graded on the host, and where ``run.check_grades`` asks for it of what is graded on the device.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from exit_jax.algorithm.gold import Variant
from exit_jax.domains.domain import Domain, DomainError
from exit_jax.domains.traits import Traits
from exit_jax.types import Array, Grades, History, Instances, Rollouts

Due = dict[str, tuple[Any, tuple[int, ...], str]]  # name -> array, the shape and the kind of dtype that it should have


class ContractError(DomainError):
    """A domain that does not do what it promises; its code is to be mended, so a run ends at once."""


def require_traits(name: str, config: Any, domain: Any) -> None:
    """Raise unless what a function made is a domain with the traits that its settings promise.

    Raises:
      ContractError: naming the traits that differ.
    """
    if not isinstance(domain, Domain):
        raise ContractError(f"{name} returns {type(domain).__name__}; it should return a domains.domain.Domain")
    made = Traits(
        splits=domain.splits,
        on_host=domain.on_host,
        num_children=domain.num_children,
        plays_episodes=domain.environment is not None,
        has_demonstrations=domain.demonstrations is not None,
    )
    promised = vars(Traits.of(config))
    # one of them may turn out to have no task, where a column says which split a row is of
    promised["splits"] = tuple(split for split in promised["splits"] if split in domain.splits)
    _raise(
        domain,
        [
            f"it has {trait} = {value!r}, but its settings say {promised[trait]!r}: a config is checked by these; give "
            f"{type(config).__name__} a class attribute or property {trait}"
            for trait, value in vars(made).items()
            if promised[trait] not in (None, value)
        ],
    )


def checked(domain: Domain) -> Domain:
    """Return the domain with a ``grade`` that is held to the contract: shapes always, values of what is no tracer.

    So are the shapes of what its ``variants`` return.
    """
    grade = domain.grade

    def checked_grade(instances: Instances, rollouts: Rollouts, *episodes: Any) -> Grades:
        grades = grade(instances, rollouts, *episodes)
        _raise(domain, faults_of_shapes(domain, rollouts.finished.shape, grades))
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(grades)):
            _raise(domain, faults_of_values(domain, jax.device_get(grades)))
        return grades

    def checked_variant(name: str, variant: Variant) -> Variant:
        def start(gold: Any, history: History, level: Array, key: Array) -> tuple[History, Array]:
            started, ok = variant(gold, history, level, key)
            due = _history_due(domain, level.shape, started) | {"ok": (ok, level.shape, "b")}
            _raise(domain, _unlike(f"variants[{name!r}] returns: ", due))
            return started, ok

        return start

    return dataclasses.replace(
        domain,
        grade=checked_grade,
        variants={name: checked_variant(name, variant) for name, variant in domain.variants.items()},
    )


def with_values_checked(domain: Domain) -> Domain:
    """Return the domain with a ``grade`` whose values are looked at on the device, too; each batch waits for the host."""
    grade = domain.grade

    def watched_grade(*given: Any) -> Grades:
        grades = grade(*given)
        jax.debug.callback(lambda held: _raise(domain, faults_of_values(domain, jax.device_get(held))), grades)
        return grades

    return dataclasses.replace(domain, grade=watched_grade)


def _raise(domain: Domain, faults: list[str]) -> None:
    if faults:
        raise ContractError(
            f"the domain {domain.name!r} breaks its contract:\n" + "\n".join(f"  - {f}" for f in faults)
        )


def faults_of_shapes(domain: Domain, group: tuple[int, ...], grades: Grades) -> list[str]:
    """Return a sentence for each array of ``grades`` of another shape or dtype than is due.

    Args:
      domain: which has the widths.
      group: B, G.
      grades: arrays, tracers or shapes.
    """
    children = (*group, domain.num_children)
    due: Due = {
        "quality": (grades.quality, group, "f"),
        "valid": (grades.valid, group, "b"),
        "embedding": (grades.embedding, (*group, domain.embedding_width), "f"),
        "insertable": (grades.insertable, children, "b"),
    }
    if grades.lost is not None:
        due["lost"] = (grades.lost, group[:1], "b")
    due |= {f"children.{name}": held for name, held in _history_due(domain, children, grades.children).items()}
    if set(grades.notes) != set(domain.notes):
        undeclared, absent = (
            sorted(set(grades.notes) - set(domain.notes)),
            sorted(set(domain.notes) - set(grades.notes)),
        )
        return [
            f"Grades.notes has {sorted(grades.notes)}, but Domain.notes declares {sorted(domain.notes)}: "
            f"declare {undeclared} and return {absent}"
        ]
    due |= {f"notes[{name!r}]": (value, group, "f") for name, value in grades.notes.items()}
    return _unlike("Grades.", due)


def _history_due(domain: Domain, shape: tuple[int, ...], history: History) -> Due:
    """Return each array of histories, with the shape and kind that are due to it."""
    due: Due = {}
    for field in dataclasses.fields(History):
        width = {"tokens": (domain.history_width,), "lengths": (4,)}.get(field.name, ())
        due[field.name] = (getattr(history, field.name), (*shape, *width), "f" if field.name == "quality" else "i")
    return due


def _unlike(whose: str, due: Due) -> list[str]:
    kinds = {"f": "float", "b": "bool", "i": "integer"}
    return [
        f"{whose}{name} has shape {tuple(np.shape(array))} and dtype {np.dtype(array.dtype)}; "
        f"it should be {kinds[kind]} of shape {shape}"
        for name, (array, shape, kind) in due.items()
        if tuple(np.shape(array)) != shape or _kind(array) != kind
    ]


def _kind(array: Any) -> str:
    kind = np.dtype(array.dtype).kind
    return {"u": "i", "V": "f"}.get(kind, kind)  # bfloat16 is a void to NumPy


def faults_of_values(domain: Domain, grades: Grades) -> list[str]:
    """Return a sentence for each array of ``grades`` with a value that is not allowed; NumPy arrays."""
    kept = np.asarray(grades.insertable)
    children: Any = jax.tree.map(lambda leaf: np.asarray(leaf)[kept], grades.children)
    total = children.lengths.sum(-1)
    tokens = children.tokens[np.arange(domain.history_width) < total[:, None]]
    share = lambda array: f"{np.asarray(array).min():g} to {np.asarray(array).max():g}"
    rules: list[tuple[str, Callable[[], Any], str, Any]] = [
        ("quality", lambda: _within(grades.quality, 0.0, 1.0), "finite and in [0, 1]", grades.quality),
        ("embedding", lambda: np.isfinite(grades.embedding).all(), "finite", grades.embedding),
        ("children.quality", lambda: _within(children.quality, 0.0, 1.0), "finite and in [0, 1]", children.quality),
        ("children.lengths", lambda: (children.lengths >= 0).all(), "no piece below 0 tokens", children.lengths),
        (
            "children.lengths",
            lambda: (total <= domain.history_width).all(),
            f"pieces of up to {domain.history_width} tokens together (Domain.history_width)",
            total,
        ),
        (
            "children.tokens",
            lambda: ((tokens >= 0) & (tokens < domain.vocab_size)).all(),
            f"ids in [0, {domain.vocab_size}) (Domain.vocab_size)",
            tokens,
        ),
    ]
    return [
        f"Grades.{name} holds {share(array)}; it should be {rule}" for name, holds, rule, array in rules if not holds()
    ]


def _within(array: Any, low: float, high: float) -> bool:
    values = np.asarray(array, np.float32)
    return bool(((values >= low) & (values <= high)).all())
