"""Parents by MAP-Elites, with the shares of OpenEvolve."""

import jax
import jax.numpy as jnp

from exit_jax.config.schema import EvalConfig
from exit_jax.evaluation.scaffolds.archive import Archive, draw
from exit_jax.evaluation.scaffolds.reports import report_search
from exit_jax.evaluation.scaffolds.scaffold import Scaffold
from exit_jax.types import Array

EXPLOITATION = (
    0.7  # exploitation_ratio of OpenEvolve's DatabaseConfig; .2 explores, .1 is random: the same on one island
)
BINS = 10  # feature_bins


def bins(values: Array, among: Array) -> Array:
    """Return which of BINS equal parts of their range the whole numbers [N] of ``among`` are in, int32 [N]."""
    low = jnp.where(among, values, jnp.iinfo(jnp.int32).max).min()
    high = jnp.where(among, values, 0).max()
    # in whole numbers, so that none is off by a rounding at the edge of its bin
    part = jnp.where(high > low, BINS * (values - low) // jnp.maximum(high - low, 1), BINS // 2)
    return jnp.clip(part, 0, BINS - 1)


def elites(archive: Archive) -> Array:
    """Return which responses are the best of their cell, the oldest where some tie, bool [N]."""
    there, node = archive.responses, jnp.arange(archive.score.size)
    cell = BINS * bins(archive.tokens, there) + bins(archive.depth, there)
    older = node[None, :] < node[:, None]
    score = archive.score
    beaten = (score[None, :] > score[:, None]) | (older & (score[None, :] == score[:, None]))
    rivals = there[None, :] & (cell[None, :] == cell[:, None])
    return there & ~(rivals & beaten).any(1)


def choose(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Go on from some elite with probability .7, else from some response; the first response is to the base task."""
    whether, which = jax.random.split(key)
    among = jnp.where(jax.random.uniform(whether) < EXPLOITATION, elites(archive), archive.responses)
    return jnp.where(k == 0, 0, draw(which, among))


MAP_ELITES = Scaffold(
    name="map_elites",
    about="MAP-Elites: parents drawn from the best of each cell of length and depth, .3 of them from all responses",
    stream=11,
    choose=choose,
    reported=report_search,
    looks_at_grader=True,
    source="Mouret and Clune 2015, arXiv 1504.04909; shares and bins of codelion/openevolve, database.py",
    label="adapted: cells of a response's tokens and depth, not of code's length and diversity; one island, no inspirations",
    saved=True,
)
