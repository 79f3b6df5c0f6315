"""Settings of the field's methods that come in groups: curricula, starts, replay and rounds."""

import dataclasses

from exit_jax.settings import Table, setting, younger_defaults

SCORES = Table("exit_jax.algorithm.learnability:SCORES")
LEVELS = Table("exit_jax.algorithm.start_levels:LEVELS")
CURRICULA = Table("exit_jax.algorithm.curricula:CURRICULA")


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Which base tasks are drawn; the numbers below ``permuted`` are read by the methods that say so, and mean nothing else."""

    method: str = setting("uniform", "how base tasks are chosen", choices=CURRICULA, younger=True)
    unit: str = setting(
        "difficulty",
        'what is chosen among: "task" for single tasks, the name of a difficulty or category of the domain, or "difficulty" '
        "for the first one that it tells, tasks if it tells none",
        younger=True,
    )
    permuted: bool = setting(
        False, "deal units out to tasks by chance: a control, equal to no curriculum", younger=True
    )
    score: str = setting("advantage", "what a group of rollouts is worth", choices=SCORES, younger=True)
    rate: float = setting(0.1, "share of the newest value in a moving average, α", within="(0, 1]", younger=True)
    temperature: float = setting(1.0, "of the softmax over units, τ", within="(0, inf)", younger=True)
    forget_undrawn: bool = setting(True, "count units that were not drawn as 0, as SEC's code does", younger=True)
    window: int = setting(300, "rollouts of a unit that an average is over", within="[1, inf)", younger=True)
    cap: float = setting(0.9, "success rate above which a unit counts as mastered", within="[0, inf)", younger=True)
    floor: float = setting(0.2, "share of the draws that is uniform", within="[0, 1]", younger=True)
    top: int = setting(100, "units that are chosen, K", within="[1, inf)", younger=True)
    every: int = setting(10, "iterations between choices, or of a stage", within="[1, inf)", younger=True)
    staleness: float = setting(0.1, "weight of the time since the last draw, ρ", within="[0, 1]", younger=True)
    rank_exponent: float = setting(0.1, "P ∝ rank^(-1/β), β", within="(0, inf)", younger=True)
    replay_prob: float = setting(
        0.5, "share of units that were drawn before, while others are left", within="[0, 1]", younger=True
    )
    discount: float = setting(0.9, "factor on what was counted, an iteration, γ", within="(0, 1]", younger=True)
    target: float = setting(0.5, "success rate that is aimed at", within="[0, 1]", younger=True)
    over: int = setting(
        0, "iterations that an order takes from its first unit to its last", within="[0, inf)", younger=True
    )
    reverse: bool = setting(False, "from the hardest unit to the easiest", younger=True)
    replay: str = setting("", "workdir of the finished run whose weights are used again", younger=True)

    def faults(self) -> list[str]:
        """Return what contradicts: fields that the method does not read, or an order without a length."""
        if self.method not in CURRICULA:
            return []
        given = [name for name, value in younger_defaults(type(self)).items() if getattr(self, name) != value]
        read = {"method", "unit", "permuted", *CURRICULA[self.method].READS}
        found = [
            f"algorithm.curriculum.{name} = {getattr(self, name)!r} is not read by the method {self.method!r}, which reads "
            f"{', '.join(sorted(read))}; leave it out"
            for name in given
            if name not in read
        ]
        if self.method == "order" and not self.over:
            found.append(
                "algorithm.curriculum.over = 0: say how many iterations the order takes, as run.num_iterations"
            )
        if self.method == "replay" and not self.replay:
            found.append('algorithm.curriculum.replay = "": name the workdir of a finished run with a curriculum')
        return found


@dataclasses.dataclass(frozen=True)
class StartsConfig:
    """Base tasks that start with some of their gold solution, where the domain has it, or from another task."""

    variant: str = setting(
        "",
        'what is given: "hint", "prefix" or "answer" of the gold solution, "edit" for a neighbouring task, or what else the '
        'domain offers; "" for nothing',
        younger=True,
    )
    level_by: str = setting("constant", "what decides how much", choices=LEVELS, younger=True)
    level: float = setting(0.5, "how much at most, a share of the solution", within="[0, 1]", younger=True)
    stride: float = setting(0.25, "change of a task's level", within="(0, 1]", younger=True)
    target: float = setting(1.0, "mean reward of a group that succeeded", within="[0, 1]", younger=True)
    over: int = setting(0, "iterations that annealing takes", within="[0, inf)", younger=True)
    forget: bool = setting(
        False, "learn from a response as if the task had been asked plainly, without what was given", younger=True
    )

    def faults(self) -> list[str]:
        """Return what contradicts."""
        found = []
        if self.level_by == "anneal" and not self.over:
            found.append("algorithm.starts.over = 0: say how many iterations annealing takes, as run.num_iterations")
        if self.forget and self.variant not in ("hint", "answer"):
            found.append(
                f"algorithm.starts.forget = True with variant = {self.variant!r}: only a hint or an answer can be left out of "
                "the prompt that is learnt from; a prefix is part of the response"
            )
        return found


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """A ring of the policy's own good responses, which it learns from again."""

    size: int = setting(0, "responses kept; 0 for no replay", within="[0, inf)", younger=True)
    rows: int = setting(64, "of these, how many an update learns from", within="[1, inf)", younger=True)
    max_age: int = setting(
        10, "iterations after which a response is not learnt from again", within="[0, inf)", younger=True
    )
    window: int = setting(10240, "newest groups whose mean rewards give the baseline", within="[1, inf)", younger=True)


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """Rounds of sampling without an update, each of which is then learnt from as a whole."""

    iterations: int = setting(
        0,
        "iterations of a round; at its end what was admitted is learnt from, num_prompts groups an update, num_epochs times. "
        "All its groups are held meanwhile. 0 for no rounds",
        within="[0, inf)",
        younger=True,
    )
    restart: str = setting(
        "last",
        'what a round learns on from: the "last" parameters, or those before RL, "base", with a fresh state of the optimiser, '
        "whose warm-up and decay begin anew; that is one more copy of the parameters that are trained",
        choices=("last", "base"),
        younger=True,
    )

    def faults(self) -> list[str]:
        """Return what contradicts."""
        if self.restart == "last" or self.iterations:
            return []
        return [
            f"algorithm.rounds.restart = {self.restart!r} with algorithm.rounds.iterations = 0: without rounds nothing begins "
            'anew; say how many iterations a round has, or set restart to "last"'
        ]
