"""Settings of the sets of reasoning-gym."""

import dataclasses

from exit_jax.domains.gym import sets
from exit_jax.domains.text.settings import SPAN, TextConfig
from exit_jax.settings import setting

ANSWERS = ("tagged", "any")
MAX_SEED = 1000  # three splits' seeds for each, 2^20 apart, stay below 2^32, which is NumPy's limit
# settings that demonstrations do not depend on
NOT_TAUGHT = ("data_dir", "num_workers", "timeout_secs", "make_secs")


@dataclasses.dataclass(frozen=True)
class GymConfig(TextConfig):
    """Which sets there are, how their tasks are put to the policy, and how its answers are scored."""

    sets: tuple[str, ...] = setting((), "sets of reasoning-gym, by name; their tasks are mixed")
    weights: tuple[float, ...] = setting((), "share of each set among the tasks; () for equal ones", within="(0, inf)")
    levels: tuple[int, ...] = setting(
        (), "levels of the sets' curricula, each for as many tasks; () for the sets as they are", within="[0, inf)"
    )
    data_dir: str = setting("data/gym", "folder of the tasks that were made, and of what could not be scored")
    data_seed: int = setting(0, "seed that the tasks are made with", within=f"[0, {MAX_SEED})")
    num_train: int = setting(2048, "training tasks of all sets together", within="[1, inf)")
    num_validation: int = setting(128, "validation tasks", within="[1, inf)")
    num_test: int = setting(256, "test tasks", within="[1, inf)")
    brief: bool = setting(
        False, "whether prompts have a set's name in place of what all its questions begin and end with"
    )
    answers: str = setting(
        "tagged",
        'where an answer stands: within the last <answer>...</answer>, or with "any" in all of a response without one',
        choices=ANSWERS,
    )
    feedback: bool = setting(True, "whether improve prompts are told what can be checked without the gold answer")
    demo_noise: float = setting(
        0.0,
        "share of a demonstration's letters and digits that are wrong; above 0, half of them improve on a faulty answer",
        within="[0, 1)",
    )
    num_workers: int = setting(0, "processes that make tasks and score; 0 for one a core", within="[0, inf)")
    timeout_secs: float = setting(
        5.0, "processor time for one answer's score; by the clock four times that", unit="s", within="(0, inf)"
    )
    make_secs: float = setting(60.0, "processor time for one task's making", unit="s", within="(0, inf)")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are; of several sets, each one's part of "test" is one, too."""
        return ("train", "validation", "test", *(self.sets if len(self.sets) > 1 else ()))

    def faults(self) -> list[str]:
        """Return a sentence for each contradiction."""
        wrong = sets.faults(self.sets, self.levels)
        if self.weights and len(self.weights) != len(self.sets):
            wrong.append(
                f"domain.weights = {self.weights} are {len(self.weights)} for {len(self.sets)} domain.sets; give one each, or "
                "() for equal shares"
            )

        for name in ("num_train", "num_validation", "num_test"):
            count = getattr(self, name)
            if not len(self.sets) <= count <= SPAN:
                wrong.append(f"domain.{name} = {count} is not between the number of domain.sets and {SPAN}")
        return wrong
