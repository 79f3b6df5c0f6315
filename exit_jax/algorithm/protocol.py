"""Protocols of two attempts a rollout: the second goes on from the first, or from a critique of it, and all are learnt from.

ExIt's rollouts are single steps, of which its buffer makes longer ones. Here each of the G rollouts of a prompt is followed by
one response to the improve prompt of what it led to, so that a batch samples twice as many responses. Second attempts of a
prompt have different histories: their baseline, the mean over the G pairs, is coarser than that of a group which shares one.
"""

from collections.abc import Callable

import jax.numpy as jnp

from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import Array

SINGLE, CRITIQUE = "single", "critique"


def single(config: ExItConfig, step: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """One attempt."""
    return first, second


def own(config: ExItConfig, step: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Each attempt its own quality (RISE with a window of one attempt, arXiv 2407.18219)."""
    return first, second


def score(config: ExItConfig, step: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Nothing for the first attempt in ``protocol_stage`` iterations, then a bonus for progress (SCoRe, arXiv 2409.12917).

    The second is paid its quality q₂, and from the second stage on α (q₂ - q₁) more.
    """
    early = step < config.protocol_stage
    return jnp.where(early, 0.0, first), second + jnp.where(early, 0.0, config.protocol_alpha * (second - first))


def srpo(config: ExItConfig, step: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Both 1 for wrong→right, .75 right→right, .25 right→wrong, 0 wrong→wrong (SRPO, arXiv 2506.01713; its OpenRLHF code).

    It pays a mended answer more than one that was right at once: watch the quality of first attempts.
    """
    was, is_right = first >= config.right_at, second >= config.right_at
    paid = jnp.where(is_right, jnp.where(was, 0.75, 1.0), jnp.where(was, 0.25, 0.0))
    return paid, paid


def critique(config: ExItConfig, step: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Each attempt its own quality; the critique between them is paid how much the second raised it (attempts.pay)."""
    return first, second


# (settings, iterations done, quality [B, G] of both attempts) -> rewards of both, float32 [B, G]
PROTOCOLS: dict[str, Callable[[ExItConfig, Array, Array, Array], tuple[Array, Array]]] = {
    SINGLE: single,
    "own": own,
    "score": score,
    "srpo": srpo,
    CRITIQUE: critique,
}
