"""The row that a scaffold is."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.config.schema import EvalConfig
from exit_jax.errors import UserError
from exit_jax.evaluation.outcome import Outcome, Split
from exit_jax.evaluation.scaffolds.archive import CHOICES, Archive
from exit_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Scaffold:
    """What each response starts from, and what is reported."""

    name: str  # key in evaluation.json; responses are stored in answers/<split>-<name>.jsonl
    about: str  # one sentence for those who read evaluation.json
    stream: int  # number folded into the evaluation's key: no other scaffold has it, so that each samples independently
    # (settings, archive of one chain, its key for this choice, ordinal k of the response from 0) -> node that the response
    # starts from, int32 [], from 0 to k; traced, for a domain that is graded on the host, too
    choose: Callable[[EvalConfig, Archive, Array, Array], Array]
    # figures by name: lists over k of eval.steps, or what goes with them
    reported: Callable[[Split, Outcome], dict[str, Any]]
    looks_at_grader: bool  # whether the grades of earlier responses decide what later ones start from
    source: str = ""  # paper or code that it is from
    label: str = ""  # "faithful", "adapted: how", or "in kind: what it shares with its source"
    # settings -> what tells stored responses from those of another recipe; None: the name, which you change with the row
    recipe: Callable[[EvalConfig], dict[str, Any]] | None = None
    # whether every other response is a critique of the one before, which the next then reads (domain.critique)
    critiques: bool = False
    saved: bool = False  # whether chains.jsonl has some of its chains, for people to read


def chooser(settings: EvalConfig, scaffold: Scaffold) -> Callable[[Archive, Array, Array], Array]:
    """Return (archives [R], key of their batch, k) -> the nodes that the k-th responses start from, int32 [R]."""

    def choose_one(archive: Archive, key: Array, k: Array) -> Array:
        node = jnp.asarray(scaffold.choose(settings, archive, key, k))
        if node.shape or not jnp.issubdtype(node.dtype, jnp.integer):
            raise UserError(
                f"the choose of the scaffold {scaffold.name!r} returns {node.dtype}{list(node.shape)}; have it return "
                "one node, an integer of shape []: it is called for one chain at a time"
            )
        return node.astype(jnp.int32)

    def choose_all(archive: Archive, key: Array, k: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(key, CHOICES), k)
        keys = jax.random.split(key, archive.parent.shape[0])
        return jax.vmap(choose_one, in_axes=(0, 0, None))(archive, keys, k)

    return choose_all


def require_known(scaffold: Scaffold, node: np.ndarray, k: int) -> None:
    """Raise UserError if the k-th responses were to start from nodes ``node`` [R] that there are not."""
    for wrong in node[(node < 0) | (node > k)][:1]:
        raise UserError(
            f"the scaffold {scaffold.name!r} chose node {wrong} for response {k}, when there were the nodes 0 to {k}; have its "
            "choose return one of them, 0 for the base task and k for the newest response"
        )
