"""Good responses that are learnt from again."""

from collections.abc import Callable
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


def _rounds(number: int, kept: int) -> Callable[[Any], Fields]:
    """Return what a method of so many rounds sets, which learns from that many right responses of a group."""
    return lambda c: {
        "algorithm.rounds.iterations": max(c.run.num_iterations // number, 1),
        "algorithm.rounds.restart": "base",
        "algorithm.admission": "right",
        "algorithm.right_kept": kept,
        "algorithm.objective": "rft",
        "algorithm.diversity_bonus": False,
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
    "regroup": Method(
        "replay",
        "GRPO with a replay buffer, TRL",
        "trl/experimental/grpo_with_replay_buffer",
        "adapted: one buffer for all devices; a kept group has the log-probs that it was sampled with, where theirs may take "
        "the present policy's for them; while nothing is kept nothing is replaced, where theirs fails",
        {"algorithm.regroup": 64},
    ),
    "restem": Method(
        "replay",
        "ReST-EM",
        "2312.06585",
        "adapted: three rounds of equally many iterations, with those draws of tasks that fall into each; up to 10 right "
        "responses of a group, where theirs are of a problem; a pass over them, where theirs end by validation; sampled by "
        "this run's settings, without examples in the prompt",
        _rounds(3, 10),
    ),
    "starrounds": Method(
        "replay",
        "STaR's outer loop",
        "2203.14465",
        "adapted: sixteen rounds of equally many iterations, and a pass over each, where theirs take more steps each time; one "
        "right response of a sampled group, where theirs is decoded greedily; without rationalisation, which `star` behind it "
        "adds, as in `grpo-starrounds-star`",
        _rounds(16, 1),
    ),
}
