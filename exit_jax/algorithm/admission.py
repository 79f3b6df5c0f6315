"""Admission: which groups may be learnt from.

Every group that was sampled is a cost and goes into ExIt's buffer, whether or not it is learnt from. To add a rule, write its
function here and its row: the choices of ``algorithm.admission``, their check and docs/settings.md follow.
"""

from collections.abc import Callable

import jax.numpy as jnp

from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import Array


def all_groups(config: ExItConfig, reward: Array) -> Array:
    """All of them."""
    return jnp.ones(reward.shape[0], bool)


def spread(config: ExItConfig, reward: Array) -> Array:
    """Groups whose rewards differ (DAPO's dynamic sampling, arXiv 2503.14476)."""
    return reward.max(axis=1) > reward.min(axis=1)


def band(config: ExItConfig, reward: Array) -> Array:
    """Groups whose mean reward lies within ``admission_band``, its ends included (TraceRL, arXiv 2509.06949)."""
    low, high = config.admission_band
    mean = reward.mean(axis=1)
    return (mean >= low) & (mean <= high)


def right(config: ExItConfig, reward: Array) -> Array:
    """Groups of which a response is paid ``right_at`` or more."""
    return (reward >= config.right_at).any(axis=1)


# (settings, reward float32 [B, G]) -> bool [B]
ADMISSIONS: dict[str, Callable[[ExItConfig, Array], Array]] = {
    "all": all_groups,
    "spread": spread,
    "band": band,
    "right": right,
}
