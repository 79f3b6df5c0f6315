"""Coefficients that change over a run."""

from collections.abc import Callable
from typing import Any

from exit_jax.config.methods.method import Fields, Method


def _schedule(name: str, source: str, label: str, fields: Fields | Callable[[Any], Fields]) -> Method:
    return Method("schedule", name, source, label, fields)


SCHEDULES = {
    "turns": _schedule(
        "TTI's growing turn limit",
        "2506.07976",
        "in kind: its limits of 10, 20 and 30 as thirds of the environment's; with its filtered cloning, the likelihood of "
        "right episodes alone, it is `turns-rft`, as in `grpo-turns-rft`",
        lambda c: {
            "algorithm.schedules": (
                f"turn_limit = linear({c.domain.max_turns / 3:g}, {c.domain.max_turns}, "
                f"{max(c.run.num_iterations * 2 // 3, 1)})",
            )
        },
    ),
    "short": _schedule(
        "Train Long, Think Short",
        "2508.08940",
        "adapted: budgets as shares of a response's room, from all of it down by .7 four times; no reward for format",
        lambda c: {
            "algorithm.length_weight": 0.6,
            "algorithm.schedules": (
                f"length_budget = stairs({c.domain.max_tokens}, 0.7, {max(c.run.num_iterations // 4, 1)})",
            ),
        },
    ),
    "cooling": _schedule(
        "SPEAR's cosine, for the entropy bonus",
        "2509.22601",
        "in kind: the schedule alone",
        lambda c: {
            "algorithm.schedules": (
                f"entropy_coef = cosine({c.algorithm.entropy_coef}, 0, {max(c.run.num_iterations, 1)})",
            )
        },
    ),
}
