"""Settings that speak for themselves: a field of a frozen dataclass with its default, its bounds and its meaning.

    @dataclasses.dataclass(frozen=True)
    class OptimizerConfig:
        learning_rate: float = setting(1e-6, "peak of the schedule (ExIt Table 4)", within="[0, inf)")

``faults`` checks the values of a tree of such dataclasses; one whose fields may contradict each other has a method ``faults``
that returns a sentence each. A default never changes its meaning: a config that was written before a field existed reads as
the default of that field.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any


class Table(Mapping[str, Any]):
    """A table of functions by ``module:name``, imported when it is asked for: a config is read before jax is imported."""

    def __init__(self, path: str):
        self._path = path

    @functools.cached_property
    def _held(self) -> Mapping[str, Any]:
        module, _, name = self._path.partition(":")
        return getattr(importlib.import_module(module), name)

    def __getitem__(self, key: str) -> Any:
        return self._held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field is for, and which values it takes."""

    meaning: str
    unit: str = ""
    # the values allowed, of a tuple its items; () for any. A table of functions stands for its names, told by their docstrings
    choices: Collection[Any] = ()
    within: str = ""  # the interval allowed, as "(0, 1]" or "[1, inf)", of a tuple for each item; "" for any
    remedy: str = ""  # what to do about a value that is out of bounds
    # a field that is younger than the first runs: at its default it enters no hash, so no run of before it is orphaned
    younger: bool = False

    def fault(self, name: str, value: Any) -> str:
        """Return what is wrong with the value of a field, "" if nothing is."""
        items = value if isinstance(value, tuple) else (value,)
        if self.choices and not all(item in self.choices for item in items):
            wrong = next(item for item in items if item not in self.choices)
            return f"{name} = {wrong!r} is not one of {tuple(self.choices)}"
        if not self.within or all(map(self._holds, items)):
            return ""
        low, high = self._bounds()
        rule = f"not in {self.within}"
        if math.isinf(high):
            rule = f"below {low:g}" if self.within[0] == "[" else f"not above {low:g}"
        return f"{name} = {value} is {rule}" + (f"; {self.remedy}" if self.remedy else "")

    def _bounds(self) -> tuple[float, float]:
        low, high = self.within[1:-1].split(",")
        return float(low), float(high)

    def _holds(self, item: float) -> bool:
        low, high = self._bounds()
        above = item > low or (item == low and self.within[0] == "[")
        return above and (item < high or (item == high and (self.within[-1] == "]" or math.isinf(high))))


def setting(default: Any, meaning: str, **about: Any) -> Any:
    """Return a field with a default; ``about`` are further fields of ``Setting``."""
    return dataclasses.field(default=default, metadata={"setting": Setting(meaning, **about)})


def group(cls: type, meaning: str, **defaults: Any) -> Any:
    """Return a field that holds a dataclass of settings, with other defaults than its own where they are given."""
    return dataclasses.field(default_factory=lambda: cls(**defaults), metadata={"setting": Setting(meaning)})


def setting_of(field: dataclasses.Field) -> Setting:
    """Return what is known of a field; one of a user's own dataclass may say nothing, and then is a younger one."""
    return field.metadata.get("setting", Setting("", younger=True))


def defaults(cls: Any) -> dict[str, Any]:
    """Return the defaults of a dataclass by name, of those fields that have one."""
    missing = dataclasses.MISSING
    plain = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not missing}
    return plain | {f.name: f.default_factory() for f in dataclasses.fields(cls) if f.default_factory is not missing}


def younger_defaults(cls: Any) -> dict[str, Any]:
    """Return the defaults of the fields that enter no hash while they have them."""
    found = defaults(cls)
    return {f.name: found[f.name] for f in dataclasses.fields(cls) if f.name in found and setting_of(f).younger}


def faults(values: Any, path: str = "") -> list[str]:
    """Return a sentence for each value that is out of its bounds, and what the ``faults()`` of groups that have one add."""
    found = []
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            found += faults(value, f"{path}{field.name}.")
        elif fault := setting_of(field).fault(f"{path}{field.name}", value):
            found.append(fault)
    return found + (values.faults() if hasattr(values, "faults") else [])


def plain(values: Any) -> dict[str, Any]:
    """Return a tree of dataclasses as nested dicts; tuples stay tuples."""
    return {
        field.name: plain(value) if dataclasses.is_dataclass(value := getattr(values, field.name)) else value
        for field in dataclasses.fields(values)
    }


def tree(cls: Any) -> dict[str, Any]:
    """Return the defaults of a dataclass and of the groups below it, as nested dicts."""
    return {name: plain(value) if dataclasses.is_dataclass(value) else value for name, value in defaults(cls).items()}
