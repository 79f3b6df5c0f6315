"""What is worth knowing of a batch and of the buffer, as metrics and for people to read."""

from typing import Any

import jax
import jax.numpy as jnp

from exit_jax.algorithm import buffer as buffers
from exit_jax.types import MODES, Array, Grades, Instances, Metrics, Rollouts, TaskBuffer


def first_groups(count: int, instances: Instances, rollouts: Rollouts, grades: Grades) -> dict[str, Any]:
    """Return what the first groups of a batch were asked and said, arrays [count, ...]; of a rollout's children the last."""
    names = ("history", "mode", "prompt", "prompt_length")
    shown = {name: getattr(instances, name) for name in names}
    shown |= {"tokens": rollouts.tokens, "mask": rollouts.mask, "finished": rollouts.finished}
    shown |= {"quality": grades.quality, "valid": grades.valid}
    return first(count, shown | {"children": jax.tree.map(lambda leaf: leaf[:, :, -1], grades.children)})


def first(count: int, tree: Any) -> Any:
    """Return the first rows of all arrays."""
    return jax.tree.map(lambda leaf: leaf[:count], tree)


def batch_metrics(
    instances: Instances, rollouts: Rollouts, grades: Grades, reward_BG: Array, score_B: Array, step: Array
) -> Metrics:
    """Return what is worth knowing of one batch; a mean over nothing is NaN."""
    history, drawn = instances.history, instances.from_buffer

    def mean_where(value, keep):
        count = keep.sum()
        return jnp.where(count > 0, jnp.where(keep, value, 0.0).sum() / jnp.maximum(count, 1), jnp.nan)

    metrics = {
        "reward": reward_BG.mean(),
        "quality": grades.quality.mean(),
        "exact": (grades.quality >= 1.0).mean(),
        "invalid": 1.0 - grades.valid.mean(),
        "unfinished": 1.0 - rollouts.finished.mean(),
        "response_length": rollouts.mask.sum(-1).mean(),
        "learnability": score_B.mean(),
        "zero_variance_groups": (reward_BG.max(1) == reward_BG.min(1)).mean(),
        "from_buffer": drawn.mean(),
        "start_depth": (history.step + 2).mean(),  # ordinal of the response that is made, 1 for the first
        "start_turn": (history.turn + 1).mean(),
        "sampled_from_iteration": mean_where(history.born, drawn),
        "sampled_age": mean_where(step - history.born, drawn),
        "prompt_truncated": (instances.prompt_length > instances.prompt.shape[1]).sum(),
    }
    metrics |= {f"grade/{name}": value.mean() for name, value in grades.notes.items()}
    for index, mode in enumerate(MODES):
        chosen = instances.mode == index
        metrics[f"quality/{mode}"] = mean_where(grades.quality.mean(1), chosen)
        metrics[f"learnability/{mode}"] = mean_where(score_B, chosen)
        metrics[f"share/{mode}"] = chosen.mean()
    return metrics


def buffer_metrics(buffer: TaskBuffer, step: Array) -> Metrics:
    """Return fill, score quantiles, age and depth of the buffer; NaN while it is empty."""
    held = buffers.filled(buffer)
    score = jnp.where(held, buffer.score, jnp.nan)
    quantiles = jnp.nanquantile(score, jnp.array([0.0, 0.5, 1.0]))

    def mean(value):
        return jnp.nanmean(jnp.where(held, value, jnp.nan))

    return {
        "buffer/fill": held.mean(),
        "buffer/score_min": quantiles[0],
        "buffer/score_median": quantiles[1],
        "buffer/score_max": quantiles[2],
        "buffer/age": mean(step - buffer.history.born),
        "buffer/depth": mean(buffer.history.step + 1),
        "buffer/never_drawn": mean(buffer.num_draws == 0),
    }
