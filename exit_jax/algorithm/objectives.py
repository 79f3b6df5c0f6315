"""What a loss is made of, a table each: the objective of a token, the estimator of its KL term, the average over tokens.

To add one, write its function here and its row: the choices of its setting in ``ExItConfig``, their check and docs/settings.md
follow.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from exit_jax.types import Array


class Terms(NamedTuple):
    """What an objective may be made of, finite everywhere; tokens that do not count have logp 0, and weigh nothing."""

    logp: Array  # float32 [B, G, T], log π_θ in nats, which the gradient is taken of
    log_ratio: Array  # float32 [B, G, T], log ρ in nats: π_θ / π_old of the token, or of its response at ratio_level "sequence"
    ratio: Array  # float32 [B, G, T], ρ
    anchor_logp: Array  # float32 [B, G, T], log π_ref in nats, or log π_old where kl_coef = 0 keeps no reference
    advantage: Array  # float32 [B, G, 1], A; or [B, G, T] where tokens of a response differ
    reward: Array  # float32 [B, G, 1], what the response was paid, in [0, 1]
    right: Array  # bool [B, G, 1], whether it is valid and of a quality of right_at or more
    rate: Array  # float32 [B, 1, 1], share of the group's responses that are right
    low: float  # 1 - ε_low
    high: float  # 1 + ε_high
    reward_temperature: float  # τ
    negative_weight: float  # what a wrong response weighs where right ones weigh 1


def clipped_surrogate(terms: Terms) -> Array:
    """The clipped surrogate of PPO and GRPO, min(ρA, clip(ρ, 1 - ε_low, 1 + ε_high) A) (ExIt §2.2)."""
    clipped = jnp.clip(terms.ratio, terms.low, terms.high)
    return jnp.minimum(terms.ratio * terms.advantage, clipped * terms.advantage)


def cispo(terms: Terms) -> Array:
    """CISPO's sg(min(ρ, 1 + ε_high)) A log π_θ: the weight is clipped, and no token loses its gradient (arXiv 2506.13585)."""
    weight = jax.lax.stop_gradient(jnp.minimum(terms.ratio, terms.high))
    return weight * terms.advantage * terms.logp


# p of a group is held within these, and log ρ below this, as in the authors' code (NVlabs/NFT, dp_actor.py)
NFT_RATES, NFT_LOG_RATIO = (0.02, 0.98), 10.0


def _nft_log_likelihood(terms: Terms, rate: Array) -> Array:
    """Return log ρ for a right response, and log max(1, (1 - pρ) / (1 - p)) for a wrong one, whose gradient passes the bound.

    Of π_old = p π⁺ + (1 - p) π⁻, π_θ stands for π⁺, so that π⁻ is told by it.
    """
    log_ratio = jnp.minimum(terms.log_ratio, NFT_LOG_RATIO)
    implicit = (1.0 - rate * jnp.exp(log_ratio)) / (1.0 - rate)
    bounded = implicit + jax.lax.stop_gradient(jnp.maximum(implicit, 1.0) - implicit)
    return jnp.where(terms.right, log_ratio, terms.negative_weight * jnp.log(bounded))


def nft(terms: Terms) -> Array:
    """NFT, the likelihood of right responses and of wrong ones under an implicit policy, weight 1 - p (arXiv 2505.18116)."""
    rate = jnp.clip(terms.rate, *NFT_RATES)
    return (1.0 - rate) * _nft_log_likelihood(terms, rate)


def nft_std(terms: Terms) -> Array:
    """NFT with weight √((1 - p) / p), which on policy is GRPO with the group's standard deviation (arXiv 2505.18116)."""
    rate = jnp.clip(terms.rate, *NFT_RATES)
    return jnp.sqrt((1.0 - rate) / rate) * _nft_log_likelihood(terms, rate)


def right_likelihood(terms: Terms) -> Array:
    """The likelihood of right responses, log π_θ: rejection-sampling fine-tuning, expert iteration (arXiv 2308.01825)."""
    return jnp.where(terms.right, terms.logp, 0.0)


def reward_weighted(terms: Terms) -> Array:
    """The likelihood of responses weighted by their reward, exp(r / τ) log π_θ, as RISE learns (arXiv 2407.18219)."""
    return jnp.exp(terms.reward / terms.reward_temperature) * terms.logp


def adversarial_imitation(terms: Terms) -> Array:
    """The clipped surrogate for right responses, w log σ(log π_ref / π_θ) for wrong ones, as SEAgent (arXiv 2508.04700)."""
    against = terms.negative_weight * jax.nn.log_sigmoid(terms.anchor_logp - terms.logp)
    return jnp.where(terms.right, clipped_surrogate(terms), against)


# float32 [B, G, T], to be maximised
OBJECTIVES: dict[str, Callable[[Terms], Array]] = {
    "clip": clipped_surrogate,
    "cispo": cispo,
    "nft": nft,
    "nft_std": nft_std,
    "rft": right_likelihood,
    "rwr": reward_weighted,
    "ail": adversarial_imitation,
}


def has_advantage(advantage: Array, right: Array) -> Array:
    """Groups with an advantage."""
    return (advantage != 0).any(axis=(1, 2))


def has_both(advantage: Array, right: Array) -> Array:
    """Groups with right responses and wrong ones."""
    return right.any(axis=(1, 2)) & ~right.all(axis=(1, 2))


# which groups have something to teach, where those that have not are dropped (zero_variance); by advantage [B, G, 1 or T]
# and right [B, G, 1], bool [B]. Objectives that are not named go by the advantage
TEACHES: dict[str, Callable[[Array, Array], Array]] = {
    "nft": has_both,
    "nft_std": has_both,
    "rft": lambda advantage, right: right.any(axis=(1, 2)),
    "rwr": lambda advantage, right: jnp.ones(right.shape[0], bool),
    "ail": lambda advantage, right: has_advantage(advantage, right) | ~right.all(axis=(1, 2)),
}


class Rewards(NamedTuple):
    """What advantages are made of."""

    reward: Array  # float32 [B, G]
    centred: Array  # float32 [B, G], minus the group's mean; exactly 0 where a group's are equal
    eps: float  # added to standard deviations
    baseline: Array | None  # float32 [B, 1], the running baseline of each prompt; None where none is kept


def _over(centred: Array, scale: Array) -> Array:
    return centred / jnp.where(scale > 0, scale, 1.0)


def by_group(rewards: Rewards) -> Array:
    """Over the group's standard deviation, as GRPO (ExIt §2.2)."""
    return _over(rewards.centred, rewards.reward.std(axis=1, keepdims=True) + rewards.eps)


def by_batch(rewards: Rewards) -> Array:
    """Over the batch's standard deviation."""
    return _over(rewards.centred, rewards.reward.std() + rewards.eps)


def undivided(rewards: Rewards) -> Array:
    """Not divided, as Dr. GRPO (arXiv 2503.20783)."""
    return rewards.centred


def by_mean(rewards: Rewards) -> Array:
    """Over the group's mean, 0 where that is 0, as MaxRL (arXiv 2602.02710)."""
    return _over(rewards.centred, rewards.reward.mean(axis=1, keepdims=True))


def from_baseline(rewards: Rewards) -> Array:
    """From the running baseline of the instance's mode, in place of the group's mean, as SPIRAL (arXiv 2506.24119)."""
    assert rewards.baseline is not None, "the running baseline is kept where algorithm.baseline_decay is above 0"
    return rewards.reward - rewards.baseline


# A, float32 [B, G]
ADVANTAGE_NORMS: dict[str, Callable[[Rewards], Array]] = {
    "group": by_group,
    "batch": by_batch,
    "none": undivided,
    "mean": by_mean,
    "ema": from_baseline,
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
