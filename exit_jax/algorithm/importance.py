"""Importance weights of what was sampled by another policy than the one that learns: older, or of other numerics.

With ``recompute_logp`` the ratio ρ of the objective is taken against the learner's own log-probs as the update begins. The
weight w = π_learner / π_sampler, of each token or each response, then stands for how far the sampler was from it. Truncated
importance sampling bounds it (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; with
older samples AReaL's decoupled objective, arXiv 2505.24298), masked importance sampling learns nothing where it is out of
bounds (IcePop, arXiv 2510.18855). Names and the default bounds are TRL's.
"""

import jax.numpy as jnp

from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import Array, Metrics, Rollouts


def weights(config: ExItConfig, learner_logp: Array, rollouts: Rollouts) -> tuple[Array, Metrics]:
    """Return w, float32 [B, G, T], bounded or masked by ``importance``, and what came of it, a mean over sampled tokens.

    Args:
      learner_logp: float32 [B, G, T], nats, under the parameters that the update begins with.
    """
    level, _, kind = config.importance.partition("_")
    gap = jnp.where(rollouts.mask, learner_logp - rollouts.logp, 0.0)
    if level == "sequence":
        gap = jnp.broadcast_to(gap.sum(-1, keepdims=True), gap.shape)
    weight = jnp.exp(gap)
    low, high = config.importance_min, config.importance_max
    outside = (weight < low) | (weight > high)
    bounded = jnp.where(outside, 0.0, weight) if kind == "mask" else jnp.clip(weight, low, high)
    count = jnp.maximum(rollouts.mask.sum(), 1)
    mean = lambda value: jnp.where(rollouts.mask, value, 0.0).sum() / count
    return bounded, {"importance/weight": mean(bounded), "importance/bounded": mean(outside.astype(jnp.float32))}
