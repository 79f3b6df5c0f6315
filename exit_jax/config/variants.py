"""The runs that a study compares: the ablations of ExIt §5, each of them also with one change."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from exit_jax.algorithm.settings import VARIANTS

# one change at a time, by the fields that it sets, as in exit-uniform; "fresh" keeps a quarter of the buffer, "late" fills it
# before it is drawn from
CHANGES: Mapping[str, Callable[[ml_collections.ConfigDict], Mapping[str, Any]]] = {
    "uniform": lambda c: {"algorithm.selection": "uniform"},
    "sharp": lambda c: {"algorithm.score_temperature": 200.0},
    "shallow": lambda c: {"algorithm.max_depth": 4},
    "best": lambda c: {"algorithm.children": "best"},
    "one": lambda c: {"algorithm.children": "one"},
    "all": lambda c: {"algorithm.children": "all"},
    "improved": lambda c: {"algorithm.children": "improved"},
    "fresh": lambda c: {"algorithm.buffer_size": c.algorithm.buffer_size // 4},
    "late": lambda c: {"algorithm.min_buffer_size": c.algorithm.buffer_size},
    "seldom": lambda c: {"algorithm.selection_prob": 0.25},
    "often": lambda c: {"algorithm.selection_prob": 0.9},
    "gain": lambda c: {"algorithm.reward": "improve_or_keep", "algorithm.learnability_of": "reward"},
    "blind": lambda c: {"domain.feedback": False},
}


def apply(c: ml_collections.ConfigDict, variant: str, **drawing: Any) -> None:
    """Set a variant's fields: grpo, curriculum, improve, diverge or exit, or one of them with a change, as in exit-uniform.

    Args:
      drawing: fields of ``algorithm`` that a config has for all variants that draw from the buffer, all but grpo.

    Raises:
      ValueError: for another name, or a change of a field that the domain does not have.
    """
    base, _, change = variant.partition("-")
    if base not in VARIANTS or (change and change not in CHANGES):
        raise ValueError(
            f"variant={variant} is not one of {tuple(VARIANTS)}, or one of them, a hyphen and one of {tuple(CHANGES)}"
        )
    c.variant = variant
    c.algorithm.update(VARIANTS[base] | (drawing if base != "grpo" else {}))
    if change:
        try:
            c.update_from_flattened_dict(CHANGES[change](c))
        except KeyError as error:
            raise ValueError(f"variant={variant}: {error.args[0]}") from error
