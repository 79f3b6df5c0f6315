"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) as ExIt uses it (§2.2, App. A)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from exit_jax.algorithm import covariance, distillation, importance
from exit_jax.algorithm.learnability import centred
from exit_jax.algorithm.objectives import (
    ADVANTAGE_NORMS,
    AGGREGATIONS,
    KL_ESTIMATORS,
    OBJECTIVES,
    TEACHES,
    Rewards,
    Terms,
    has_advantage,
)
from exit_jax.algorithm.schedules import is_off
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import Array, Instances, Metrics, Params, Rollouts, pytree

# (params, prompt [B, P], prompt_length [B], tokens [B, G, T]) -> log-probs and entropies, nats, float32 [B, G, T]
Logprobs = Callable[[Params, Array, Array, Array], tuple[Array, Array]]


def advantages(reward: Array, norm: str, eps: float, baseline: Array | None = None) -> Array:
    """Return A [B, G] = (r - mean of the group), over what a row of ADVANTAGE_NORMS says, or the reward from a baseline.

    Standard deviations are of the population, plus ``eps``, which may be 0. Equal rewards give zero, but for "ema".

    Args:
      baseline: float32 [B, 1], the running baseline of each prompt; for "ema".
    """
    return ADVANTAGE_NORMS[norm](Rewards(reward, centred(reward), eps, baseline))


def kl(logp: Array, reference_logp: Array, estimator: str) -> Array:
    """Estimate KL(π_θ ‖ π_ref) a token from samples of π_θ (Schulman, "Approximating KL divergence", 2020).

    With x = log π_ref - log π_θ: k1 = -x, k2 = x²/2, k3 = eˣ - x - 1. x is clamped to ±40, as eˣ overflows beyond.
    """
    x = jnp.clip(reference_logp - logp, -40.0, 40.0)
    return KL_ESTIMATORS[estimator](x)


def token_weight(mask: Array, counted: Array, how: str, max_tokens: int) -> Array:
    """Return what each token [B, G, T] weighs in the batch's loss; a part of the batch then adds its part of the loss.

    A row that is counted but has no token kept adds 0, and still weighs where rows are counted: "sequence_mean" and "dr_grpo".
    """
    num_rows = jnp.maximum(counted.sum(), 1)
    weight = AGGREGATIONS[how](mask, num_rows, max_tokens)
    return jnp.where(mask, weight, 0.0)


@pytree
class Batch:
    """What the loss of a batch of rollouts needs, or of a part of one."""

    prompt: Array  # int32 [B, P]
    prompt_length: Array  # int32 [B]
    tokens: Array  # int32 [B, G, T]
    old_logp: Array  # float32 [B, G, T]
    reference_logp: Array | None  # float32 [B, G, T]; None exactly where kl_coef is 0
    advantage: Array  # float32 [B, G, 1], the same for every token of a response, or [B, G, T]
    reward: Any  # float32 [B, G, 1]; this and the next two may be None where the objective asks for none of them
    right: Any  # bool [B, G, 1]
    rate: Any  # float32 [B, 1, 1], share of the group's responses that are right
    mask: Array  # bool [B, G, T], tokens that count
    weight: Array  # float32 [B, G, T], of each token in the loss of the whole batch
    sampled: Array  # bool [B, G, T], all tokens of the policy, whether or not they count
    token_share: Array  # float32 [B, G, T], 1 / sampled tokens of the whole batch, for metrics; NaN if there are none
    left_out: Array | None = None  # bool [B, G, T], tokens that the objective leaves out; None without clip_cov_share
    importance: Array | None = None  # float32 [B, G, T], weights of the objective; None without them


@pytree
class Rows:
    """Responses that are learnt from beside a batch, a prompt each, [n, 1, T] as if they were groups of one."""

    instances: Instances  # prompts alone
    rollouts: Rollouts
    advantage: Array  # float32 [n, 1]
    reward: Array  # float32 [n, 1]
    right: Array  # bool [n, 1]
    admitted: Array  # bool [n]: False for a row that stands for none


class More(NamedTuple):
    """Rows with what they are learnt by."""

    name: str  # of their metrics
    rows: Rows
    config: ExItConfig
    weight: Array | float  # of their loss beside that of the batch


def make_batch(
    config: ExItConfig,
    instances: Instances,
    rollouts: Rollouts,
    advantage: Array,
    reference_logp: Array | None,
    max_tokens: int,
    reward: Any = None,
    right: Any = None,
    key: Array | None = None,
    admitted: Array | None = None,
) -> Batch:
    """Decide which of the tokens count, and what each weighs; a response could have had ``max_tokens``.

    Args:
      advantage: float32 [B, G], or [B, G, T].
      reward, right: float32 and bool [B, G]; both None for an objective that asks for neither.
      key: what tokens are left out by; for clip_cov_share.
      admitted: bool [B], groups that may be learnt from; None for all.
    """
    mask = rollouts.mask
    advantage = advantage if advantage.ndim == 3 else advantage[..., None]
    rate = None
    if reward is not None:
        reward, right = reward[..., None], right[..., None]
        rate = right.astype(reward.dtype).mean(axis=1, keepdims=True)
    if config.mask_overlong:
        mask = mask & (rollouts.finished[..., None] if rollouts.ended is None else rollouts.ended)
    counted = jnp.ones_like(rollouts.finished)
    if config.zero_variance == "drop":
        teaches_B = TEACHES.get(config.objective, has_advantage)(advantage, right)
        counted = jnp.broadcast_to(teaches_B[:, None], counted.shape)
    if admitted is not None:
        counted = counted & admitted[:, None]
    mask = mask & counted[..., None]
    num_sampled = jnp.where(rollouts.mask.any(), rollouts.mask.sum(), jnp.nan)
    left_out = None
    if config.clip_cov_share:
        assert key is not None, "clip_cov_share draws tokens"
        share, band = config.clip_cov_share, config.clip_cov_band
        left_out = covariance.left_out(advantage, rollouts.logp, mask, share, band, key)
    return Batch(
        prompt=instances.prompt,
        prompt_length=instances.prompt_length,
        tokens=rollouts.tokens,
        old_logp=rollouts.logp,
        reference_logp=reference_logp,
        advantage=advantage,
        reward=reward,
        right=right,
        rate=rate,
        mask=mask,
        weight=token_weight(mask, counted, config.aggregation, max_tokens),
        sampled=rollouts.mask,
        token_share=jnp.broadcast_to(1.0 / num_sampled, mask.shape),
        left_out=left_out,
    )


def loss(config: ExItConfig, logp: Array, entropy: Array, batch: Batch) -> tuple[Array, Metrics]:
    """Return the GRPO loss, to be minimised, and its metrics; all of them are sums over the tokens of the batch.

    Metrics are means over all sampled tokens, those of dropped groups and masked responses among them.

    -[objective - β KL(π_θ ‖ π_ref)] - c · entropy, aggregated over the policy's own tokens. The objective is a row of
    OBJECTIVES, by default min(ρA, clip(ρ, 1 - ε_low, 1 + ε_high) A). ρ = π_θ / π_old a token, or its geometric mean over the
    response at ratio_level "sequence" (GSPO, arXiv 2507.18071).

    Args:
      logp, entropy: float32 [B, G, T], of the policy that is trained.
    """
    mask = batch.mask
    # what is masked may be anything, NaN too: it must not reach an exp, nor its gradient
    keep = lambda value: jnp.where(mask, value, 0.0)
    sampled_logp, sampled_entropy = logp, entropy
    logp, entropy, old_logp = keep(logp), keep(entropy), keep(batch.old_logp)
    log_ratio = logp - old_logp
    if config.ratio_level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdims=True) / jnp.maximum(mask.sum(-1, keepdims=True), 1)
        log_ratio = jnp.broadcast_to(log_ratio, mask.shape)
    ratio, low, high = jnp.exp(log_ratio), 1.0 - config.clip_low, 1.0 + config.clip_high
    terms = Terms(
        logp=logp,
        log_ratio=log_ratio,
        ratio=ratio,
        anchor_logp=old_logp if batch.reference_logp is None else keep(batch.reference_logp),
        advantage=batch.advantage,
        reward=batch.reward,
        right=batch.right,
        rate=batch.rate,
        low=low,
        high=high,
        reward_temperature=config.reward_temperature,
        negative_weight=config.negative_weight,
    )
    objective = OBJECTIVES[config.objective](terms)
    if batch.left_out is not None:
        objective = jnp.where(batch.left_out, 0.0, objective)
    if batch.importance is not None:
        objective = objective * batch.importance

    weighted = lambda value: (value * batch.weight).sum()
    token_mean = lambda value: (jnp.where(batch.sampled, value, 0.0) * batch.token_share).sum()
    total = -weighted(objective)
    if not is_off(config.entropy_coef):  # else its gradient would be computed, and multiplied by zero
        total = total - config.entropy_coef * weighted(entropy)
    is_clipped = ((ratio < low) & (batch.advantage < 0)) | ((ratio > high) & (batch.advantage > 0))
    metrics = {
        "entropy": token_mean(sampled_entropy),
        "clip_fraction": token_mean((is_clipped & mask).astype(jnp.float32)),
        "approx_kl_old": token_mean(kl(batch.old_logp, sampled_logp, "k3")),
    }
    if batch.left_out is not None:
        metrics["clip_cov_fraction"] = token_mean(batch.left_out.astype(jnp.float32))
    if batch.reference_logp is not None:
        divergence = kl(logp, keep(batch.reference_logp), config.kl_estimator)
        total = total + config.kl_coef * weighted(divergence)
        metrics["kl_reference"] = token_mean(kl(sampled_logp, batch.reference_logp, config.kl_estimator))
    return total, metrics | {"loss": total}


def update(
    config: ExItConfig,
    logprobs: Logprobs,
    optimizer: optax.GradientTransformation,
    *,
    num_microbatches: int,
    max_tokens: int,
    params: Params,
    reference: Params,
    opt_state: optax.OptState,
    instances: Instances,
    rollouts: Rollouts,
    advantage: Array,
    reward: Array | None = None,
    right: Array | None = None,
    teacher: distillation.Teacher | None = None,
    key: Array | None = None,
    admitted: Array | None = None,
    more: Sequence[More] = (),
) -> tuple[Params, optax.OptState, Metrics]:
    """Take ``num_epochs`` optimiser steps on one batch of rollouts; metrics are means over the epochs.

    The batch is cut into ``num_microbatches`` parts of equally many prompts, whose gradients add up to the very gradient of the
    whole, since each token brings its weight along.

    Args:
      advantage: float32 [B, G].
      reward, right: float32 and bool [B, G], for the objectives that ask for them.
      teacher: for self_distillation; its log-probs are the policy's as the update begins.
      key: for clip_cov_share.
      admitted: bool [B], groups that may be learnt from; None for all.
      more: further responses, whose gradients are added to those of the batch.
    """
    parts = num_microbatches

    def evaluate(params, instances=instances, rollouts=rollouts):
        each = lambda part: logprobs(params, *part)[0]
        return _join(jax.lax.map(each, _split((instances.prompt, instances.prompt_length, rollouts.tokens), parts)))

    def evaluate_teacher(teacher):
        def each(part):  # a prompt for each response, so that rows are [b · G, 1, T]
            prompt, length, tokens = (x.reshape(-1, *x.shape[2:]) for x in part)
            return logprobs(params, prompt, length, tokens[:, None])[0].reshape(part[2].shape)

        return _join(jax.lax.map(each, _split((teacher.prompt, teacher.length, rollouts.tokens), parts)))

    weights = None
    if config.recompute_logp:
        learner_logp = evaluate(params)
        gap = sampler_gap(config, learner_logp, rollouts)
        if config.importance != "none":
            weights, weighed = importance.weights(config, learner_logp, rollouts)
            gap |= weighed
        rollouts = dataclasses.replace(rollouts, logp=learner_logp)
    reference_logp = None if reference is None else evaluate(reference)
    taught = {}
    if config.self_distillation:
        assert teacher is not None, "self_distillation needs a teacher"
        told = distillation.advantage(teacher.informed, evaluate_teacher(teacher), rollouts.logp, rollouts.mask)
        advantage = (1.0 - config.self_distillation) * advantage[..., None] + config.self_distillation * told
        taught = distillation.metrics(teacher.informed, told, rollouts.mask)
    batch = make_batch(config, instances, rollouts, advantage, reference_logp, max_tokens, reward, right, key, admitted)
    batch = dataclasses.replace(batch, importance=weights)

    def batch_of(config: ExItConfig, rows: Rows) -> Batch:
        known = (
            None if reference is None or is_off(config.kl_coef) else evaluate(reference, rows.instances, rows.rollouts)
        )
        outcome = rows.reward, rows.right, key, rows.admitted
        return make_batch(config, rows.instances, rows.rollouts, rows.advantage, known, max_tokens, *outcome)

    further = [(one, batch_of(one.config, one.rows)) for one in more]

    def gradient(config: ExItConfig, params, batch: Batch):
        """Add up the parts' gradients and metrics; the log-probs come back for the whole batch."""

        def objective(params, part: Batch):
            logp, entropy = logprobs(params, part.prompt, part.prompt_length, part.tokens)
            value, metrics = loss(config, logp, entropy, part)
            return value, (metrics, jax.lax.stop_gradient(logp))

        def add(total, part):
            grads, (metrics, logp) = jax.grad(objective, has_aux=True)(params, part)
            return jax.tree.map(jnp.add, total, (grads, metrics)), logp

        split = _split(batch, parts)
        first = jax.tree.map(lambda x: x[0], split)
        shapes = jax.eval_shape(lambda: jax.grad(objective, has_aux=True)(params, first))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))
        (grads, metrics), logp = jax.lax.scan(add, zeros, split)
        return grads, metrics, _join(logp)

    def epoch(carry, _):
        params, opt_state = carry
        grads, metrics, logp = gradient(config, params, batch)
        for one, rows in further:
            own, told, _ = gradient(one.config, params, rows)
            grads = jax.tree.map(lambda g, more, weight=one.weight: g + weight * more, grads, own)
            metrics |= {f"{one.name}/{figure}": told[figure] for figure in ("loss", "clip_fraction", "approx_kl_old")}
        updates, opt_state = optimizer.update(grads, opt_state, params)
        moved = optax.apply_updates(params, updates)
        metrics |= {"grad_norm": optax.tree.norm(grads), "params_moved": moved_share(params, moved)}
        return (moved, opt_state), (metrics, logp)

    (params, opt_state), (metrics, logp) = jax.lax.scan(epoch, (params, opt_state), length=config.num_epochs)
    if not config.recompute_logp:
        gap = sampler_gap(config, logp[0], rollouts)  # the first epoch's, before anything is learnt from the batch
    return params, opt_state, jax.tree.map(jnp.mean, metrics) | gap | taught


def moved_share(before: Params, after: Params) -> Array:
    """Return the share of the parameters' entries that differ, float32 []; an update below an entry's precision moves nothing.

    0.5 of two entries where 1 became 1 + 1e-9, and 0 became 1e-9: float32 has no number between 1 and 1 + 1.2e-7.
    """

    def count(old, new):  # whole numbers within rows, since float32 counts to 2^24 only, and int32 to 2^31
        return (old != new).sum(-1, dtype=jnp.int32).astype(jnp.float32).sum()

    size = sum(leaf.size for leaf in jax.tree.leaves(before))
    return jnp.stack(jax.tree.leaves(jax.tree.map(count, before, after))).sum() / size


def sampler_gap(config: ExItConfig, learner_logp: Array, rollouts: Rollouts) -> Metrics:
    """Measure how far the learner's log-probs are from the sampler's under equal parameters, and what that does to ρ.

    NaN if nothing was sampled.
    """
    gap = jnp.where(rollouts.mask, learner_logp - rollouts.logp, 0.0)
    ratio = jnp.exp(gap)
    count = jnp.maximum(rollouts.mask.sum(), 1)
    outside = (ratio < 1.0 - config.clip_low) | (ratio > 1.0 + config.clip_high)
    metrics = {
        "gap/mean": jnp.abs(gap).sum() / count,
        "gap/max": jnp.abs(gap).max(),
        "gap/ratio_max": ratio.max(),
        "gap/clipped": outside.sum() / count,
    }
    return {name: jnp.where(rollouts.mask.any(), value, jnp.nan) for name, value in metrics.items()}


def _split(tree, parts: int):
    """Deal the rows of every array [B, ...] out to [parts, B / parts, ...]: each part has rows of every device.

    Four rows in two parts: 0 and 2, 1 and 3.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def _join(tree):
    """Undo ``_split``."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def mix_reference(reference: Params, params: Params, step: Array, every: int, mix: float) -> Params:
    """Return θ_ref ← α θ + (1 - α) θ_ref after every M-th iteration, else θ_ref (ExIt App. A); ``step`` counts from 1."""
    if reference is None:
        return None
    due = step % every == 0
    return jax.tree.map(lambda ref, new: jnp.where(due, mix * new + (1.0 - mix) * ref, ref), reference, params)
