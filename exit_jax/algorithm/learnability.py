"""Rewards of a response, and the learnability score S that orders the buffer (ExIt §4, §4.1, App. A).

To add a score, write its function here and its row in SCORES, or a reward in REWARDS: the choices of the setting, their check
and docs/settings.md follow.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from exit_jax.types import IMPROVE, Array


def improvement(quality: Array, before: Array) -> Array:
    """Return the share of the possible gain that was made: max(0, (q - q₀) / (1 - q₀)), and 0 where q₀ = 1 (ExIt App. A)."""
    headroom = 1.0 - before
    return jnp.where(headroom > 0, jnp.maximum(quality - before, 0.0) / jnp.where(headroom > 0, headroom, 1.0), 0.0)


# what an improve step is paid, by its quality [B, G], the gain [B, G] by ``improvement`` and the quality before [B, 1]
REWARDS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "quality": lambda quality, gain, before: quality,
    "improvement": lambda quality, gain, before: gain,
    "improve_or_keep": lambda quality, gain, before: jnp.where(before < 1.0, gain, quality),
}


def reward(kind: str, quality: Array, valid: Array, before: Array, mode: Array) -> Array:
    """Pay rollouts of B prompts: float32 [B, G] in [0, 1].

    Base and diverge steps are paid the plain quality. Improve steps are paid by ``kind``: "quality"; "improvement", which
    stops paying an answer for staying right; "improve_or_keep", which is the improvement while the answer is wrong
    and the plain quality once it is right, so that a wrong try costs no more than no try, but breaking a right answer
    costs all. A response that is not valid is paid 0.

    Args:
      quality, valid: [B, G], after the response.
      before: [B], the quality of what the instance held.
      mode: [B].
    """
    before_B1, improve_B1 = before[:, None], (mode == IMPROVE)[:, None]
    gain = improvement(quality, before_B1)
    paid = REWARDS[kind](quality, gain, before_B1)
    return jnp.where(valid, jnp.where(improve_B1, paid, quality), 0.0)


def length_reward(length: Array, budget: Array | float) -> Array:
    """Pay lengths [...] by a triangle: 0 at no token, 1 at the budget, 0 again at twice it (Train Long, Think Short, §3)."""
    return jnp.maximum(1.0 - jnp.abs(length / jnp.maximum(budget, 1.0) - 1.0), 0.0)


class Group(NamedTuple):
    """What a score may be made of: figures of the G rollouts of each of B prompts, float32 [B, G]."""

    quality: Array  # quality in [0, 1]
    reward: Array  # pay in [0, 1]
    advantage: Array  # advantage by advantage_norm, before the diversity bonus


def variance(outcome: Array) -> Array:
    """Return the (population) variance of outcomes [B, G] in [0, 1] within each group: from 0, of equal ones, to 1/4."""
    # the mean of equal outcomes may be off by an ulp, which would rank them in the buffer
    equal = outcome.max(axis=1) == outcome.min(axis=1)
    return jnp.where(equal, 0.0, jnp.var(outcome, axis=1))


def quality_variance(group: Group) -> Array:
    """The variance of the quality, as ExIt §4.1 describes it."""
    return variance(group.quality)


def reward_variance(group: Group) -> Array:
    """The variance of the reward, as ExIt §4.1 writes it; another one only where improvement is paid."""
    return variance(group.reward)


def mean_advantage(group: Group) -> Array:
    """The mean of |A|, as SEC and DUMP value their units by (arXiv 2505.14970); of 0/1 rewards 2√(p(1 - p)), standardised."""
    return jnp.abs(group.advantage).mean(axis=1)


def mean_deviation(group: Group) -> Array:
    """The mean of |r - mean r|, whatever advantages are divided by; of 0/1 rewards twice the variance."""
    return jnp.abs(centred(group.reward)).mean(axis=1)


def positive_value_loss(group: Group) -> Array:
    """The mean of max(r - mean r, 0): PLR's positive value loss with the mean for a critic (arXiv 2110.02439)."""
    return jnp.maximum(centred(group.reward), 0.0).mean(axis=1)


def gap(group: Group) -> Array:
    """The highest reward less the mean, as eva weighs its prompts by (arXiv 2411.00062): it prefers rare successes."""
    return centred(group.reward).max(axis=1)


def centred(reward: Array) -> Array:
    """Return rewards [B, G] less their group's mean; exactly 0 where they are equal, whose mean may be off by an ulp."""
    equal = reward.max(axis=1, keepdims=True) == reward.min(axis=1, keepdims=True)
    return jnp.where(equal, 0.0, reward - reward.mean(axis=1, keepdims=True))


# S, float32 [B]; not negative, and 0 for a group that has nothing to teach
SCORES: dict[str, Callable[[Group], Array]] = {
    "quality": quality_variance,
    "reward": reward_variance,
    "advantage": mean_advantage,
    "deviation": mean_deviation,
    "pvl": positive_value_loss,
    "gap": gap,
}
