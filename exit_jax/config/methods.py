"""The field's methods beside ExIt: a word each, which a variant ends with, as in grpo-sec or exit-nft.

A row says which settings a method is made of, where it is from, and how true to it the row is: docs/methods.md is written from
this table. The numbers are the authors' own; what was tuned beside them is in docs/methods.md, by command.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

MECHANISMS = ("curriculum", "buffer", "starts", "admission", "schedule", "objective", "replay", "protocol")


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of the field as settings of this code."""

    mechanism: str  # one of MECHANISMS, by which docs/methods.md is ordered
    name: str  # what its authors call it
    source: str  # arXiv number, or the address of the code that was read
    label: str  # "faithful", "adapted: how it differs" or "in kind: what it has in common"
    fields: Mapping[str, Any]  # dotted settings -> values


METHODS: dict[str, Method] = {}
