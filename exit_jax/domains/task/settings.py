"""Settings of your own prompts and rewards."""

import dataclasses

from exit_jax.domains.text.scored import TextConfig
from exit_jax.sandbox import ISOLATIONS
from exit_jax.settings import setting

REWARD_RUNS = ("workers", "inline", "sandbox")


@dataclasses.dataclass(frozen=True)
class TaskConfig(TextConfig):
    """Where prompts come from, and what a response earns."""

    # rewards
    reward: tuple[str, ...] = setting((), "functions that score a completion, each module:name or file.py:name")
    reward_weights: tuple[float, ...] = setting((), "their weights in the mean; () for equal ones", within="[0, inf)")
    reward_range: tuple[float, ...] = setting(
        (0.0, 1.0), "what the worst and the best completion earn: two numbers for all functions, or two for each"
    )
    figures: tuple[str, ...] = setting((), "figures that functions return in a dictionary and that are reported")
    reward_runs: str = setting(
        "workers",
        "where: in processes with limits, inline in the trainer's own, or in processes with a sandbox for a completion's code",
        choices=REWARD_RUNS,
    )
    reward_workers: int = setting(0, "processes that score; 0 for one a core", within="[0, inf)")
    reward_secs: float = setting(
        5.0, "processor time of one call of a function; by the clock four times that", unit="s", within="(0, inf)"
    )
    reward_memory_mb: int = setting(
        2048, "memory that a process may take beyond what its imports do", unit="MiB", within="[1, inf)"
    )
    max_in_flight: int = setting(32, "calls of async functions under way at a time, in all", within="[1, inf)")
    retries: int = setting(2, "further tries of a call that raised", within="[0, inf)")
    isolation: str = setting("auto", "sandbox level; none is for code that you trust", choices=ISOLATIONS)
    run_secs: float = setting(
        10.0, "a run of code in the sandbox, by the clock and of processor time", unit="s", within="(0, inf)"
    )
    run_memory_mb: int = setting(1024, "memory of a run", unit="MiB", within="[1, inf)")

    def faults(self) -> list[str]:
        """Return a sentence for each contradiction."""
        return self._faults_of_rewards()

    def _faults_of_rewards(self) -> list[str]:
        wrong, number = [], len(self.reward)
        if not number:
            wrong.append("domain.reward = () scores nothing; name a function, as my_reward.py:score")
        if len(set(self.reward)) < number:
            wrong.append(f"domain.reward = {self.reward} names one twice; give it more weight instead")
        if self.reward_weights and len(self.reward_weights) != number:
            wrong.append(
                f"domain.reward_weights = {self.reward_weights} has {len(self.reward_weights)} weights for the {number} "
                "functions of domain.reward; give one each, or () for equal ones"
            )
        elif self.reward_weights and not any(self.reward_weights):
            wrong.append(f"domain.reward_weights = {self.reward_weights} are all 0; one must be above")
        bounds = self.reward_range
        if len(bounds) not in (2, 2 * number):
            wrong.append(
                f"domain.reward_range = {bounds} has {len(bounds)} numbers; give the worst and the best reward, two for all "
                "functions or two for each"
            )
        elif any(worst == best for worst, best in zip(bounds[::2], bounds[1::2])):
            wrong.append(f"domain.reward_range = {bounds} has a worst reward that equals the best")
        return wrong
