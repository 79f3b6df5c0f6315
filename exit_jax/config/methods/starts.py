"""Starts of base tasks from gold solutions or neighbours."""

from typing import Any

from exit_jax.config.methods.method import Method


def _starts(name: str, source: str, label: str, **settings: Any) -> Method:
    return Method("starts", name, source, label, {f"algorithm.starts.{key}": to for key, to in settings.items()})


STARTS = {
    "ghpo": _starts(
        "GHPO",
        "2507.10628",
        "adapted: a hint at the failed task's next visit, at no further rollouts",
        variant="hint",
        level_by="failed",
        level=0.75,
    ),
    "r3": _starts(
        "R3, mixed", "2402.05808", "adapted: GRPO in place of PPO", variant="prefix", level_by="uniform", level=1.0
    ),
    "r3staged": _starts(
        "R3, staged",
        "2402.05808",
        "adapted: GRPO in place of PPO, a stage for each task",
        variant="prefix",
        level_by="reverse",
        level=0.75,
    ),
    "qweb": _starts(
        "QWeb's subsets of instructions",
        "1812.09195",
        "in kind: fewer requests of a task, more once it succeeds",
        variant="fewer",
        level_by="reverse",
        level=0.75,
    ),
    "star": Method(
        "starts",
        "STaR's rationalisation",
        "2203.14465",
        "adapted: a failed task is asked again with its answer at its next visit, and what comes out right is learnt from at "
        "once, on from the last parameters, where theirs go in rounds from the first",
        {
            "algorithm.starts.variant": "answer",
            "algorithm.starts.level_by": "failed",
            "algorithm.starts.level": 1.0,
            "algorithm.starts.stride": 1.0,
            "algorithm.starts.forget": True,
            "algorithm.objective": "rft",
            "algorithm.diversity_bonus": False,
            "algorithm.kl_coef": 0.0,
        },
    ),
    "edits": _starts(
        "ACCEL", "2203.01302", "in kind: neighbours of base tasks, without its replay by regret", variant="edit"
    ),
}
