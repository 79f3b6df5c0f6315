"""The runs that a study compares: the ablations of ExIt §5, each of them also with changes, or with methods of the field."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from exit_jax.algorithm.settings import VARIANTS
from exit_jax.config.methods import METHODS, fields_of

# ablations of ExIt, by the fields that it sets, as in exit-uniform; "fresh" keeps a quarter of the buffer, "late" fills it
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
    "permuted": lambda c: {"algorithm.curriculum.permuted": True},
    "blind": lambda c: {"domain.feedback": False},
}


def apply(c: ml_collections.ConfigDict, variant: str, **drawing: Any) -> None:
    """Set a variant's fields: one of ExIt §5, with any changes and methods after hyphens, as in exit-uniform or grpo-sec-nft.

    Args:
      drawing: fields of ``algorithm`` that a config has for all variants that draw from the buffer, all but grpo.

    Raises:
      ValueError: for another name, or a change of a field that the domain does not have.
    """
    base, *changes = variant.split("-")
    unknown = [word for word in changes if word not in CHANGES and word not in METHODS]
    if base not in VARIANTS or unknown:
        raise ValueError(
            f"variant={variant} is not one of {tuple(VARIANTS)}, or one of them followed by any of {(*CHANGES, *METHODS)}, "
            "each after a hyphen"
        )
    c.variant = variant
    c.algorithm.update(VARIANTS[base] | (drawing if base != "grpo" else {}))
    for word in changes:
        try:
            c.update_from_flattened_dict(CHANGES[word](c) if word in CHANGES else fields_of(word, c))
        except (AttributeError, KeyError) as error:  # a config's or a domain's
            raise ValueError(f"variant={variant}: {error.args[0]}") from error
