"""Good responses that are learnt from again."""

from typing import Any

from exit_jax.config.methods.method import Fields, Method


def _spear(c: Any) -> Fields:
    held = c.algorithm.num_prompts * c.algorithm.group_size
    return {
        "algorithm.replay.size": 2 * held,
        "algorithm.replay.rows": c.algorithm.num_prompts,
        "algorithm.schedules": (f"replay_coef = cosine(0, 1, {max(c.run.num_iterations, 1)})",),
        "algorithm.clip_cov_share": 0.02,
        "algorithm.kl_coef": 0.0,
    }


REPLAY = {
    "spear": Method(
        "replay",
        "SPEAR",
        "2509.22601",
        "adapted: rows are drawn for each update from a ring of two batches, where theirs are learnt from once when there are "
        "enough and forgotten; without the fading bonus for calls of tools",
        _spear,
    ),
}
