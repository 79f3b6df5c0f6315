"""What is known of a method of the field."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

MECHANISMS = ("curriculum", "buffer", "starts", "admission", "schedule", "objective", "replay", "protocol")
FAITHFUL = "faithful"

Fields = Mapping[str, Any]  # dotted settings -> values


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of the field as settings of this code."""

    mechanism: str  # one of MECHANISMS, by which docs/methods.md is ordered
    name: str  # what its authors call it
    source: str  # arXiv number, or the code that was read
    label: str  # FAITHFUL, "adapted: how it differs" or "in kind: what it has in common"
    fields: Fields | Callable[[Any], Fields]  # what it sets, or that by the ConfigDict
