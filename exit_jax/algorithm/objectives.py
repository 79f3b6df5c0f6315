"""What a loss is made of, a table each: the objective of a token, the estimator of its KL term, the average over tokens.

To add one, write its function here and its row: the choices of its setting in ``ExItConfig``, their check and docs/settings.md
follow.
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
OBJECTIVES: dict[str, Callable[[Terms], Array]] = {
    "clip": clipped_surrogate,
}

# an estimate a token of KL(π_θ ‖ π_ref) by x = log π_ref - log π_θ
KL_ESTIMATORS: dict[str, Callable[[Array], Array]] = {
    "k1": lambda x: -x,
    "k2": lambda x: 0.5 * x**2,
    "k3": lambda x: jnp.exp(x) - x - 1.0,
}


def sequence_mean(mask: Array, num_rows: Array, max_tokens: int) -> Array:
    """Mean over rows of each row's token mean, as in GRPO."""
    return 1.0 / (num_rows * jnp.maximum(mask.sum(-1, keepdims=True), 1))


def token_mean(mask: Array, num_rows: Array, max_tokens: int) -> Array:
    """Mean over all tokens, as in DAPO."""
    return 1.0 / jnp.maximum(mask.sum(), 1)


def dr_grpo(mask: Array, num_rows: Array, max_tokens: int) -> Array:
    """Sum over tokens / (rows · tokens that a response could have had), as in Dr. GRPO."""
    return 1.0 / (num_rows * max_tokens)


# (bool [B, G, T], tokens that count; int32 [], rows that count; most tokens of a response) -> weight of a token that counts;
# its shape broadcasts to [B, G, T]
AGGREGATIONS: dict[str, Callable[[Array, Array, int], Array]] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "dr_grpo": dr_grpo,
}
