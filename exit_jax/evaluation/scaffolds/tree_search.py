"""Monte Carlo tree search: standard UCT, and the variant of AIRA's agents."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from exit_jax.config.schema import EvalConfig
from exit_jax.evaluation.scaffolds.archive import Archive
from exit_jax.evaluation.scaffolds.reports import report_search
from exit_jax.evaluation.scaffolds.scaffold import Scaffold
from exit_jax.types import Array

UCT_C = 2**0.5  # 2 C_p for rewards in [0, 1], C_p = 1 / √2 (Kocsis and Szepesvári 2006)
AIRA_C = 0.25  # uct_c of AIRA's solver/mlebench/mcts.yaml, as the next two
AIRA_CHILDREN = 5  # num_children
AIRA_DEBUG_DEPTH = 20  # max_debug_depth
UNVISITED_LAST = -1e8  # value of a child without visits there


def descend(archive: Archive, value: Array, goes_on: Callable[[Array], Array]) -> Array:
    """Return where the way from the base task ends that takes the child of the highest ``value`` [N] while ``goes_on``."""

    def best_child(node: Array) -> Array:
        return jnp.argmax(jnp.where(archive.parent == node, value, -jnp.inf))

    return jax.lax.while_loop(goes_on, best_child, jnp.int32(0))


def bounds(visits: Array, parent: Array) -> Array:
    """Return the confidence bound of UCB1 without its constant, √(ln N / n) of n visits among the parent's N, float32 [N]."""
    return jnp.sqrt(jnp.log(jnp.maximum(visits[parent], 1)) / jnp.maximum(visits, 1))


def uct(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Respond to the first node on the way down that has fewer than AIRA_CHILDREN children: unvisited children come first.

    Each response is worth its score to itself and to all that it goes back to.
    """
    visits = archive.sum_below(archive.responses.astype(jnp.float32))
    total = archive.sum_below(jnp.where(archive.responses, archive.score, 0.0))
    value = total / jnp.maximum(visits, 1) + UCT_C * bounds(visits, archive.parent)
    children = archive.children
    return descend(archive, value, lambda node: children[node] >= AIRA_CHILDREN)


def mcts_aira(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Debug the newest response while it fails, give a leaf AIRA_CHILDREN children, then choose the next leaf.

    Failing responses are no visits, and unvisited children come last. Values are between the worst and the best score so far.
    """
    good, debug_depth = archive.good, archive.debug_depth
    score = jnp.where(good, archive.score, 0.0)
    low = jnp.where(good, archive.score, jnp.inf).min()
    high = jnp.where(good, archive.score, -jnp.inf).max()
    visits = archive.sum_below(good.astype(jnp.float32))
    mean = archive.sum_below(score) / jnp.maximum(visits, 1)
    value = jnp.where(high > low, (mean - low) / (high - low), 0.5) + AIRA_C * bounds(visits, archive.parent)
    value = jnp.where(visits > 0, value, UNVISITED_LAST)
    children = archive.children
    leaf = descend(archive, value, lambda node: children[node] > 0)

    # the child of the leaf that was expanded last: the newest response, or what it is a debugged version of
    is_child = archive.responses & ((debug_depth == 0) | (debug_depth > AIRA_DEBUG_DEPTH))
    child = jnp.argmax(jnp.where(archive.lineage[k] & is_child, archive.depth, -1))
    expanded = jnp.maximum(archive.parent[child], 0)
    node = jnp.where(children[expanded] < AIRA_CHILDREN, expanded, leaf)
    return jnp.where(archive.failing[k] & (debug_depth[k] < AIRA_DEBUG_DEPTH), k, node)


UCT = Scaffold(
    name="uct",
    about="Monte Carlo tree search by UCT: unvisited children first, then the child with the highest confidence bound",
    stream=5,
    choose=uct,
    reported=report_search,
    looks_at_grader=True,
    source="Kocsis and Szepesvári 2006, doi 10.1007/11871842_29",
    label="adapted: a response is expansion and simulation at once, and a node has at most 5 children, as AIRA's",
    saved=True,
)
MCTS_AIRA = Scaffold(
    name="mcts_aira",
    about="AIRA's tree search: 5 children a leaf, failing responses debugged at once, then the leaf of the best bounds",
    stream=6,
    choose=mcts_aira,
    reported=report_search,
    looks_at_grader=True,
    source="Toledo et al. 2025, arXiv 2507.02554; facebookresearch/aira-dojo, solvers/mcts",
    label="adapted: draft, improve and debug are the prompts of the domain, without memory; failing is invalid or of quality 0",
    saved=True,
)
