"""The field's methods beside ExIt: a word each, which a variant ends with, as in grpo-sec or exit-nft.

A row says which settings a method is made of, where it is from, and how true to it the row is: docs/methods.md is written from
this table. The numbers are the authors' own; what was tuned beside them is in docs/methods.md, by command.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

MECHANISMS = ("curriculum", "buffer", "starts", "admission", "schedule", "objective", "replay", "protocol")
FAITHFUL = "faithful"

Fields = Mapping[str, Any]  # dotted settings -> values


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of the field as settings of this code."""

    mechanism: str  # one of MECHANISMS, by which docs/methods.md is ordered
    name: str  # what its authors call it
    source: str  # arXiv number, or the code that was read
    label: str  # FAITHFUL, "adapted: how it differs" or "in kind: what it has in common"
    fields: Fields | Callable[[Any], Fields]  # what it sets, or that by the ConfigDict


def fields_of(word: str, c: Any) -> Fields:
    """Return the settings of a method in a config."""
    fields = METHODS[word].fields
    return fields(c) if callable(fields) else fields


def _curriculum(name: str, source: str, label: str, **settings: Any) -> Method:
    return Method(
        "curriculum", name, source, label, {f"algorithm.curriculum.{key}": to for key, to in settings.items()}
    )


def _order(name: str, label: str, **settings: Any) -> Method:
    def fields(c: Any) -> Fields:
        own = {"method": "order", "over": c.run.num_iterations} | settings
        return {f"algorithm.curriculum.{key}": to for key, to in own.items()}

    return Method("curriculum", name, "curriculum learning, Bengio et al. 2009", label, fields)


BY_GROUPS = "adapted: by the groups of training alone, without rollouts that are not learnt from"
CURRICULA = {
    "sec": _curriculum("SEC", "2505.14970", FAITHFUL, method="sec", rate=0.5, temperature=0.4),
    "dump": _curriculum(
        "DUMP",
        "2504.09710",
        "adapted: without the validation rewards that its code mixes in",
        method="dump",
        temperature=0.1,
    ),
    "sitp": _curriculum("SITP", "2301.00691", "adapted: rewards in place of successes", method="sitp", window=25),
    "tscl": _curriculum("TSCL", "1707.00183", FAITHFUL, method="tscl"),
    "alp": _curriculum("ALP-GMM", "1910.07224", "adapted: units in place of Gaussians", method="alp"),
    "eva": _curriculum(
        "eva",
        "2411.00062",
        "in kind: its weights of prompts, without the creator of new ones",
        method="proportional",
        unit="task",
        score="gap",
        rate=1.0,
    ),
    "learnable": _curriculum(
        "draws by learnability",
        "2408.15099",
        "in kind: p(1 - p) of units, averaged",
        method="proportional",
        score="reward",
    ),
    "sfl": _curriculum("SFL", "2408.15099", BY_GROUPS, method="sfl", unit="task", score="reward"),
    "plr": _curriculum("PLR", "2010.03934", "adapted: the group's mean for a critic", method="plr", unit="task"),
    "pvl": _curriculum(
        "PLR, positive value loss",
        "2110.02439",
        "adapted: the group's mean for a critic",
        method="plr",
        unit="task",
        score="pvl",
    ),
    "maxmc": _curriculum(
        "PLR, MaxMC", "2110.02439", "adapted: the group's mean for a critic", method="plr_maxmc", unit="task"
    ),
    "thompson": _curriculum("Thompson sampling", "PrimeIntellect prime-rl", FAITHFUL, method="thompson"),
    "easyfirst": _order("easy to hard", FAITHFUL),
    "hardfirst": _order("hard to easy", FAITHFUL, reverse=True),
    "stages": _curriculum(
        "stages of CRAFT-GUI and MaskSearch",
        "2508.11360, 2505.20285",
        "in kind: stages by a difficulty",
        method="stages",
    ),
    "cycle": _curriculum(
        "CCL",
        "2202.05531",
        "adapted: easiness by training's rewards, draws with replacement",
        method="cycle",
        unit="task",
    ),
}


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
    "edits": _starts(
        "ACCEL", "2203.01302", "in kind: neighbours of base tasks, without its replay by regret", variant="edit"
    ),
}


def _schedule(name: str, source: str, label: str, fields: Fields | Callable[[Any], Fields]) -> Method:
    return Method("schedule", name, source, label, fields)


SCHEDULES = {
    "turns": _schedule(
        "TTI's growing turn limit",
        "2506.07976",
        "in kind: its limits of 10, 20 and 30 as thirds of the environment's, without its filtered cloning",
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
METHODS: dict[str, Method] = CURRICULA | STARTS | SCHEDULES
