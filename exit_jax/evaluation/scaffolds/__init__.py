"""Scaffolds: the ways to spend K + 1 responses a chain that are compared at equal numbers of responses (ExIt §5).

A scaffold is a row: one function that chooses which node of a chain's ``Archive`` the next response starts from, and what is
reported. One of your own is a row in a file of yours, which ``eval.scaffolds`` names as ``file.py:ROW`` or ``module:ROW``;
nothing else knows which rows there are.
"""

import difflib
import functools

from exit_jax import plugins
from exit_jax.config.schema import EvalConfig
from exit_jax.errors import ConfigError
from exit_jax.evaluation.scaffolds.aide import AIDE, AIRA_GREEDY
from exit_jax.evaluation.scaffolds.archive import Archive
from exit_jax.evaluation.scaffolds.beam import BEAM
from exit_jax.evaluation.scaffolds.evolution import SHINKA, SHINKA_POWER_LAW
from exit_jax.evaluation.scaffolds.map_elites import MAP_ELITES
from exit_jax.evaluation.scaffolds.plain import BEST_OF_N, CHAIN, GREEDY, RESTARTS, SELF_REFINE
from exit_jax.evaluation.scaffolds.scaffold import Scaffold
from exit_jax.evaluation.scaffolds.tree_search import MCTS_AIRA, UCT

__all__ = ["BEST_OF_N", "CHAIN", "GREEDY", "RESTARTS", "SCAFFOLDS", "Archive", "Scaffold", "chosen", "find"]

# streams number them: append, never insert
_ROWS = (
    CHAIN,
    RESTARTS,
    GREEDY,
    BEST_OF_N,
    BEAM,
    UCT,
    MCTS_AIRA,
    AIDE,
    AIRA_GREEDY,
    SHINKA,
    SHINKA_POWER_LAW,
    MAP_ELITES,
    SELF_REFINE,
)
SCAFFOLDS = {row.name: row for row in _ROWS}


def chosen(settings: EvalConfig) -> tuple[Scaffold, ...]:
    """Return the scaffolds that an evaluation runs: the plain chain first, then its rivals.

    Raises:
      UserError: if ``eval.scaffolds`` names one that there is not, or two that would share a name or their keys.
    """
    rivals = [RESTARTS] * (settings.restart_every > 0) + [GREEDY] * settings.greedy
    rows = [CHAIN, *rivals, *map(find, settings.scaffolds)]
    for field in ("name", "stream"):
        values = [getattr(row, field) for row in rows]
        if twice := [value for value in values if values.count(value) > 1]:
            raise ConfigError(
                f"eval.scaffolds = {settings.scaffolds}: {values.count(twice[0])} scaffolds have {field} = {twice[0]!r}; "
                "give each its own"
            )
    return tuple(rows)


@functools.cache
def find(name: str) -> Scaffold:
    """Return the scaffold of a name, or the row of ``file.py:ROW`` or ``module:ROW``.

    Raises:
      ConfigError: if there is none.
      PluginError: if its module cannot be imported.
    """
    further = [known for known in SCAFFOLDS if known not in ("chain", "restarts", "greedy")]
    if name in further:
        return SCAFFOLDS[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, further, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if name in SCAFFOLDS:
            hint = (
                "; the plain chain always runs, and eval.restart_every and eval.greedy ask for restarts and the search"
            )
        raise ConfigError(
            f"eval.scaffolds: {name!r} is none of {', '.join(further)}, nor a row of your own, named file.py:ROW or "
            f"module:ROW{hint}"
        )
    module, row = plugins.load("eval.scaffolds", name)
    held = vars(module)
    if not isinstance(held.get(row), Scaffold):
        rows = ", ".join(key for key, value in held.items() if isinstance(value, Scaffold)) or "none"
        raise ConfigError(f"eval.scaffolds = {name!r}: {module.__file__} has no Scaffold named {row}; its rows: {rows}")
    return held[row]
