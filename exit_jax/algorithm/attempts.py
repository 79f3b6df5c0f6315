"""Second attempts of a rollout: what they go on from, and what is learnt from them (algorithm/protocol.py)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.algorithm import grpo
from exit_jax.algorithm.prompts import Template, render_by_mode
from exit_jax.algorithm.protocol import PROTOCOLS
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import IMPROVE, Array, Grades, Instances, Metrics, Rollouts, pytree


@pytree
class Second:
    """Second attempts, n = B · G of them as groups of one; None in place of it where a rollout is one attempt."""

    instances: Instances  # [n]
    rollouts: Rollouts  # [n, 1, T]
    grades: Grades  # [n, 1]
    made: Array  # bool [n]: False where the first attempt left nothing to go on from
    critique: Any = None  # the Second that criticised first attempts; None where second ones go on from these alone


def follow(
    templates: Mapping[str, Template], width: int, rollouts: Rollouts, grades: Grades, next_mode: int = IMPROVE
) -> tuple[Instances, Array]:
    """Return what is asked after rollouts [B, G] in a mode: instances [B · G], and where there is something, bool [B · G]."""
    flat = lambda leaf: leaf[:, :, -1].reshape(-1, *leaf.shape[3:])
    history = jax.tree.map(flat, grades.children)
    made = flat(grades.insertable) & rollouts.finished.reshape(-1)
    mode, none = jnp.full(made.shape, next_mode), jnp.zeros(made.shape, bool)
    prompt, length = render_by_mode(templates, history, mode, width)
    return Instances(history, mode, none, none, prompt, length), made


def pay(
    config: ExItConfig, step: Array, quality: Array, valid: Array, second: Second
) -> tuple[Array, list[grpo.More], Metrics]:
    """Return the rewards [B, G] of first attempts, what is learnt from later responses, and how the second changed the first.

    A second attempt that was not made, or cannot be used, leaves the quality as it was, and what is not valid is paid 0. A
    critique is paid what the attempt after it gained.
    """
    group = lambda leaf: leaf.reshape(quality.shape)
    made, usable = group(second.made), group(second.grades.valid)
    later = jnp.where(made & usable, group(second.grades.quality), quality)
    first_reward, reward = PROTOCOLS[config.protocol](config, step, quality, later)
    first_reward, reward = jnp.where(valid, first_reward, 0.0), jnp.where(usable, reward, 0.0)
    each = lambda leaf: leaf.reshape(-1, 1)

    def rows(name: str, made: Second, reward: Array) -> grpo.More:
        advantage = grpo.advantages(reward, config.advantage_norm, config.advantage_eps)
        right = each(later >= config.right_at)
        own = grpo.Rows(made.instances, made.rollouts, each(advantage), each(reward), right, made.made)
        return grpo.More(name, own, config, 1.0)

    more = [rows("second", second, reward)]
    if second.critique is not None:
        more.append(rows("critique", second.critique, later - quality))
    count = jnp.maximum(made.sum(), 1)
    share = lambda change: (change & made).sum() / count
    metrics = {
        "second/made": made.mean(),
        "second/quality": jnp.where(made, later, 0.0).sum() / count,
        "second/better": share(later > quality),
        "second/worse": share(later < quality),
    }
    return first_reward, more, metrics
