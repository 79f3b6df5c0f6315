"""The field's methods beside ExIt: a word each, which a variant ends with, as in grpo-sec or exit-nft.

A row says which settings a method is made of, where it is from, and how true to it the row is: docs/methods.md is written from
this table. The numbers are the authors' own; what was tuned beside them is in docs/methods.md, by command.
"""

from typing import Any

from exit_jax.config.methods.admission import ADMISSION
from exit_jax.config.methods.buffer import BUFFER
from exit_jax.config.methods.curricula import CURRICULA
from exit_jax.config.methods.method import Fields, Method
from exit_jax.config.methods.objectives import OBJECTIVES
from exit_jax.config.methods.protocols import PROTOCOLS
from exit_jax.config.methods.replay import REPLAY
from exit_jax.config.methods.schedules import SCHEDULES
from exit_jax.config.methods.starts import STARTS

METHODS: dict[str, Method] = CURRICULA | BUFFER | STARTS | ADMISSION | SCHEDULES | OBJECTIVES | REPLAY | PROTOCOLS


def fields_of(word: str, c: Any) -> Fields:
    """Return the settings of a method in a config."""
    fields = METHODS[word].fields
    return fields(c) if callable(fields) else fields
