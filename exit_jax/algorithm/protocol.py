"""Protocols of two attempts a rollout: the second goes on from the first, and both are learnt from.

ExIt's rollouts are single steps, of which its buffer makes longer ones. Here each of the G rollouts of a prompt is followed by
one response to the improve prompt of what it led to, so that a batch samples twice as many responses. Second attempts of a
prompt have different histories: their baseline, the mean over the G pairs, is coarser than that of a group which shares one.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from exit_jax.algorithm import grpo
from exit_jax.algorithm.prompts import Template, render_by_mode
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import IMPROVE, Array, Grades, Instances, Metrics, Rollouts, pytree

SINGLE = "single"
Pay = Callable[[ExItConfig, Array, Array, Array], tuple[Array, Array]]


@pytree
class Second:
    """Second attempts, n = B · G of them as groups of one; None in place of it where a rollout is one attempt."""

    instances: Instances  # [n]
    rollouts: Rollouts  # [n, 1, T]
    grades: Grades  # [n, 1]
    made: Array  # bool [n]: False where the first attempt left nothing to go on from


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


# (settings, iterations done, quality [B, G] of both attempts) -> rewards of both, float32 [B, G]
PROTOCOLS: dict[str, Pay] = {SINGLE: single, "own": own, "score": score, "srpo": srpo}


def follow(
    templates: Mapping[str, Template], width: int, rollouts: Rollouts, grades: Grades
) -> tuple[Instances, Array]:
    """Return what second attempts go on from, instances [B · G], and where there is something, bool [B · G]."""
    flat = lambda leaf: leaf[:, :, -1].reshape(-1, *leaf.shape[3:])
    history = jax.tree.map(flat, grades.children)
    made = flat(grades.insertable) & rollouts.finished.reshape(-1)
    mode, none = jnp.full(made.shape, IMPROVE), jnp.zeros(made.shape, bool)
    prompt, length = render_by_mode(templates, history, mode, width)
    return Instances(history, mode, none, none, prompt, length), made


def pay(
    config: ExItConfig, step: Array, quality: Array, valid: Array, second: Second
) -> tuple[Array, grpo.More, Metrics]:
    """Return the rewards [B, G] of first attempts, what is learnt from second ones, and how the second changed the first.

    A second attempt that was not made, or cannot be used, leaves the quality as it was, and what is not valid is paid 0.
    """
    group = lambda leaf: leaf.reshape(quality.shape)
    made, usable = group(second.made), group(second.grades.valid)
    later = jnp.where(made & usable, group(second.grades.quality), quality)
    first_reward, reward = PROTOCOLS[config.protocol](config, step, quality, later)
    first_reward, reward = jnp.where(valid, first_reward, 0.0), jnp.where(usable, reward, 0.0)
    advantage = grpo.advantages(reward, config.advantage_norm, config.advantage_eps)
    each = lambda leaf: leaf.reshape(-1, 1)
    rows = grpo.Rows(
        instances=second.instances,
        rollouts=second.rollouts,
        advantage=each(advantage),
        reward=each(reward),
        right=each(later >= config.right_at),
        admitted=second.made,
    )
    count = jnp.maximum(made.sum(), 1)
    share = lambda change: (change & made).sum() / count
    metrics = {
        "second/made": made.mean(),
        "second/quality": jnp.where(made, later, 0.0).sum() / count,
        "second/better": share(later > quality),
        "second/worse": share(later < quality),
    }
    return first_reward, grpo.More("second", rows, config, 1.0), metrics
