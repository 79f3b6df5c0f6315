"""Policy-gradient objectives of a token, by name: what ``algorithm.objective`` chooses from.

To add one, write its function here and its row in OBJECTIVES: the setting's choices, its check and docs/settings.md follow.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from exit_jax.types import Array


class Terms(NamedTuple):
    """What an objective may be made of, finite everywhere; tokens that do not count have logp 0, and weigh nothing."""

    logp: Array  # float32 [B, G, T], log π_θ in nats, which the gradient is taken of
    ratio: Array  # float32 [B, G, T], ρ = π_θ / π_old of the token, or of its response at ratio_level "sequence"
    advantage: Array  # float32 [B, G, 1], A
    low: float  # 1 - ε_low
    high: float  # 1 + ε_high


def clipped_surrogate(terms: Terms) -> Array:
    """The clipped surrogate of PPO and GRPO, min(ρA, clip(ρ, 1 - ε_low, 1 + ε_high) A) (ExIt §2.2)."""
    clipped = jnp.clip(terms.ratio, terms.low, terms.high)
    return jnp.minimum(terms.ratio * terms.advantage, clipped * terms.advantage)


# float32 [B, G, T], to be maximised
OBJECTIVES: dict[str, Callable[[Terms], Array]] = {"clip": clipped_surrogate}
