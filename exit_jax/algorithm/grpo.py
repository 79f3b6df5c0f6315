"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) as ExIt uses it (§2.2, App. A)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from exit_jax.algorithm.types import Array, ExItConfig, Instances, Metrics, Params, Rollouts

# (params, prompt [B, P], prompt_length [B], tokens [B, G, T]) -> log-probs and entropies, nats, float32 [B, G, T]
Logprobs = Callable[[Params, Array, Array, Array], tuple[Array, Array]]


def advantages(reward: Array, norm: str, eps: float) -> Array:
    """Return A [B, G] = (r - mean of the group), over the standard deviation of the ``norm``: "group", "batch" or "none".

    Standard deviations are of the population. Equal rewards give zero. "none" is Dr. GRPO's (arXiv 2503.20783).
    """
    equal = reward.max(axis=1, keepdims=True) == reward.min(axis=1, keepdims=True)
    centred = jnp.where(equal, 0.0, reward - reward.mean(axis=1, keepdims=True))  # their mean may be off by an ulp
    if norm == "none":
        return centred
    std = reward.std(axis=1, keepdims=True) if norm == "group" else reward.std()
    return centred / (std + eps)


def kl(logp: Array, reference_logp: Array, estimator: str) -> Array:
    """Estimate KL(π_θ ‖ π_ref) a token from samples of π_θ (Schulman, "Approximating KL divergence", 2020).

    With x = log π_ref - log π_θ: k1 = -x, k2 = x²/2, k3 = eˣ - x - 1. x is clamped to ±40, as eˣ overflows beyond.
    """
    x = jnp.clip(reference_logp - logp, -40.0, 40.0)
    return {"k1": -x, "k2": 0.5 * x**2, "k3": jnp.exp(x) - x - 1.0}[estimator]


def aggregate(value: Array, mask: Array, counted: Array, how: str) -> Array:
    """Reduce token values [B, G, T] to a scalar over the tokens kept by ``mask`` and the rows ``counted`` [B, G].

    "sequence_mean": mean over rows of each row's token mean (GRPO); "token_mean": mean over all tokens; "dr_grpo": sum over
    tokens / (rows · T). A row that is counted but has no token kept adds 0 and still weighs in the first and the last.
    """
    total_BG = jnp.where(mask, value, 0.0).sum(-1)
    length_BG = mask.sum(-1)
    num_rows = jnp.maximum(counted.sum(), 1)
    if how == "token_mean":
        return total_BG.sum() / jnp.maximum(length_BG.sum(), 1)
    if how == "dr_grpo":
        return total_BG.sum() / (num_rows * mask.shape[-1])
    return jnp.where(counted, total_BG / jnp.maximum(length_BG, 1), 0.0).sum() / num_rows


def loss(
    config: ExItConfig, logp: Array, entropy: Array, reference_logp: Array | None, advantage: Array, rollouts: Rollouts
) -> tuple[Array, Metrics]:
    """Return the GRPO loss, to be minimised, and its metrics.

    -[min(ρA, clip(ρ, 1 - ε_low, 1 + ε_high) A) - β KL(π_θ ‖ π_ref)] - c · entropy, aggregated over the policy's own tokens.
    ρ = π_θ / π_old a token, or its geometric mean over the response at ratio_level "sequence" (GSPO, arXiv 2507.18071).

    Args:
      logp, entropy, reference_logp: float32 [B, G, T]; the reference is None exactly where kl_coef is 0.
      advantage: float32 [B, G], the same for every token of a response.
    """
    mask = rollouts.mask
    if config.mask_overlong:
        mask = mask & rollouts.finished[..., None]
    counted = jnp.ones_like(rollouts.finished)
    if config.zero_variance == "drop":
        counted = jnp.broadcast_to((advantage != 0).any(axis=1, keepdims=True), advantage.shape)
        mask = mask & counted[..., None]

    # what is masked may be anything, NaN too: it must not reach an exp, nor its gradient
    keep = lambda value: jnp.where(mask, value, 0.0)
    logp, entropy, old_logp = keep(logp), keep(entropy), keep(rollouts.logp)
    log_ratio = logp - old_logp
    if config.ratio_level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdims=True) / jnp.maximum(mask.sum(-1, keepdims=True), 1)
        log_ratio = jnp.broadcast_to(log_ratio, mask.shape)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    advantage_BG1 = advantage[..., None]
    objective = jnp.minimum(ratio * advantage_BG1, clipped * advantage_BG1)

    def mean(value):
        return aggregate(value, mask, counted, config.aggregation)

    total = -mean(objective) - config.entropy_coef * mean(entropy)
    is_clipped = ((ratio < 1.0 - config.clip_low) & (advantage_BG1 < 0)) | (
        (ratio > 1.0 + config.clip_high) & (advantage_BG1 > 0)
    )
    token_mean = lambda value: aggregate(value, mask, counted, "token_mean")
    metrics = {
        "entropy": token_mean(entropy),
        "clip_fraction": token_mean(is_clipped.astype(jnp.float32)),
        "approx_kl_old": token_mean(kl(old_logp, logp, "k3")),
    }
    if reference_logp is not None:
        divergence = kl(logp, keep(reference_logp), config.kl_estimator)
        total = total + config.kl_coef * mean(divergence)
        metrics["kl_reference"] = token_mean(divergence)
    return total, metrics | {"loss": total}


def update(
    config: ExItConfig,
    logprobs: Logprobs,
    optimizer: optax.GradientTransformation,
    params: Params,
    reference: Params,
    opt_state: optax.OptState,
    instances: Instances,
    rollouts: Rollouts,
    advantage: Array,
) -> tuple[Params, optax.OptState, Metrics]:
    """Take ``num_epochs`` optimiser steps on one batch of rollouts; metrics are means over the epochs."""

    def evaluate(params):
        return logprobs(params, instances.prompt, instances.prompt_length, rollouts.tokens)

    reference_logp = evaluate(reference)[0] if config.kl_coef else None

    def objective(params):
        logp, entropy = evaluate(params)
        return loss(config, logp, entropy, reference_logp, advantage, rollouts)

    def epoch(carry, _):
        params, opt_state = carry
        grads, metrics = jax.grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics["grad_norm"] = optax.tree.norm(grads)
        return (optax.apply_updates(params, updates), opt_state), metrics

    (params, opt_state), metrics = jax.lax.scan(epoch, (params, opt_state), length=config.num_epochs)
    return params, opt_state, jax.tree.map(jnp.mean, metrics)


def mix_reference(reference: Params, params: Params, step: Array, every: int, mix: float) -> Params:
    """Return θ_ref ← α θ + (1 - α) θ_ref after every M-th iteration, else θ_ref (ExIt App. A); ``step`` counts from 1."""
    if reference is None:
        return None
    due = step % every == 0
    return jax.tree.map(lambda ref, new: jnp.where(due, mix * new + (1.0 - mix) * ref, ref), reference, params)
