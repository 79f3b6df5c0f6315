"""AIDE's search, and AIRA's greedy variant of it."""

import jax
import jax.numpy as jnp

from exit_jax.config.schema import EvalConfig
from exit_jax.evaluation.scaffolds.archive import Archive, best, draw
from exit_jax.evaluation.scaffolds.reports import report_search
from exit_jax.evaluation.scaffolds.scaffold import Scaffold
from exit_jax.types import Array

NUM_DRAFTS = 5  # num_drafts of both
AIDE_DEBUG_PROB, AIDE_DEBUG_DEPTH = 0.5, 3  # debug_prob and max_debug_depth of aideml's utils/config.yaml
AIRA_DEBUG_PROB, AIRA_DEBUG_DEPTH = 1.0, 20  # those of AIRA's solver/mlebench/greedy.yaml
LABEL = "adapted: draft, improve and debug are the prompts of the domain, without memory; failing is invalid or of quality 0"


def draft_debug_or_improve(archive: Archive, key: Array, debug_prob: float, debug_depth: int) -> Array:
    """Draft, then with a probability debug some failing leaf, else improve the best, or draft while all fail."""
    whether, which = jax.random.split(key)
    to_debug = archive.failing & (archive.children == 0) & (archive.debug_depth <= debug_depth)
    debugs = (jax.random.uniform(whether) < debug_prob) & to_debug.any()
    node = jnp.where(debugs, draw(which, to_debug), best(archive, archive.good))
    return jnp.where(archive.children[0] < NUM_DRAFTS, 0, node)


def aide(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Choose as AIDE's ``search_policy`` does."""
    return draft_debug_or_improve(archive, key, AIDE_DEBUG_PROB, AIDE_DEBUG_DEPTH)


def aira_greedy(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Choose as AIRA's greedy solver does."""
    return draft_debug_or_improve(archive, key, AIRA_DEBUG_PROB, AIRA_DEBUG_DEPTH)


AIDE = Scaffold(
    name="aide",
    about="AIDE: 5 drafts, then at even odds a failing leaf is debugged, else the best so far is improved",
    stream=7,
    choose=aide,
    reported=report_search,
    looks_at_grader=True,
    source="Jiang et al. 2025, arXiv 2502.13138; WecoAI/aideml, agent.py",
    label=LABEL,
    saved=True,
)
AIRA_GREEDY = Scaffold(
    name="aira_greedy",
    about="AIRA's greedy search: 5 drafts, then a failing leaf is debugged while there is one, else the best is improved",
    stream=8,
    choose=aira_greedy,
    reported=report_search,
    looks_at_grader=True,
    source="Toledo et al. 2025, arXiv 2507.02554; facebookresearch/aira-dojo, solvers/greedy",
    label=LABEL,
    saved=True,
)
