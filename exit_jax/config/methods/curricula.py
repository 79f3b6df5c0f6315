"""Curricula over base tasks, by the authors' constants."""

from typing import Any

from exit_jax.config.methods.method import FAITHFUL, Fields, Method


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
