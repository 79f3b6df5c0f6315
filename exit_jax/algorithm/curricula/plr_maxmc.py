"""PLR by MaxMC: the highest reward that a unit ever had, less its mean reward now (arXiv 2110.02439; code: dcd, minimax)."""

from exit_jax.algorithm.curricula import plr
from exit_jax.algorithm.curricula.core import Told, Units, by_unit
from exit_jax.algorithm.curricula.plr import Levels, create, weights
from exit_jax.algorithm.method_settings import CurriculumConfig

READS = ("staleness", "rank_exponent", "replay_prob")
__all__ = ["READS", "create", "observe", "weights"]


def observe(config: CurriculumConfig, units: Units, state: Levels, told: Told) -> Levels:
    """Note max - mean of the units that were drawn, the maximum over the whole run."""
    mean, _ = by_unit(told.group.reward.mean(1), told, units.count)
    best = state.best.at[told.unit].max(told.group.reward.max(1), mode="drop")
    return plr.observe_score(units, state, told, best - mean)
