"""Self-distillation from feedback (SDPO, arXiv 2601.20802): the policy that has read the feedback teaches the one that has not.

The gradient of KL(π_θ(· | x) ‖ sg π_θ(· | x, f)) at a token that the student sampled has the one-sample estimate of a policy
gradient with A = log π_θ(y | x, f) - log π_θ(y | x). The authors sum over the likeliest tokens, their teacher is an average of
past policies, and it reads a sample solution where the group has one. Ours is the policy as the update begins, asked for the
tokens that were sampled, and what it reads is the improve prompt: the attempt and its feedback.
"""

from collections.abc import Callable

import jax.numpy as jnp

from exit_jax.types import PIECES, Array, History, Metrics, pytree

FEEDBACK = PIECES.index("feedback")
# histories [...] -> their improve prompts, tokens int32 [..., P], and lengths int32 [...], above P where the end was cut off
TeacherPrompt = Callable[[History], tuple[Array, Array]]


@pytree
class Teacher:
    """What the teacher reads before the responses of a batch."""

    prompt: Array  # int32 [B, G, P]
    length: Array  # int32 [B, G]
    informed: Array  # bool [B, G], whether there is feedback, and the prompt holds all of it


def teacher(render: TeacherPrompt, children: History) -> Teacher:
    """Return the teacher of responses that left ``children`` [B, G, U], of which the last is read."""
    last = History(**{name: getattr(children, name)[:, :, -1] for name in vars(children)})
    prompt, length = render(last)
    return Teacher(prompt, length, (last.lengths[..., FEEDBACK] > 0) & (length <= prompt.shape[-1]))


def advantage(informed: Array, teacher_logp: Array, logp: Array, mask: Array) -> Array:
    """Return log π(y | x, f) - log π(y | x) a token, float32 [B, G, T], and 0 where masked or without feedback.

    Args:
      informed: bool [B, G].
      teacher_logp, logp: float32 [B, G, T], nats, anything where masked.
      mask: bool [B, G, T].
    """
    return jnp.where(mask & informed[..., None], teacher_logp - logp, 0.0)


def metrics(informed: Array, advantage: Array, mask: Array) -> Metrics:
    """Return the share of responses with feedback, and the mean of |A| over their tokens, NaN if there are none."""
    count = (mask & informed[..., None]).sum()
    mean = jnp.where(count > 0, jnp.abs(advantage).sum() / jnp.maximum(count, 1), jnp.nan)
    return {"teacher/informed": informed.mean(), "teacher/advantage": mean}
