"""Beam search over whole responses."""

import jax.numpy as jnp

from exit_jax.config.schema import EvalConfig
from exit_jax.evaluation.scaffolds.archive import Archive
from exit_jax.evaluation.scaffolds.reports import report_search
from exit_jax.evaluation.scaffolds.scaffold import Scaffold
from exit_jax.types import Array

EXPANSIONS = (
    2  # responses to each of the eval.beam_width nodes that a layer keeps; our choice, as no source has whole responses
)


def choose(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Respond to the best of the last whole layer in turn, the oldest first of those that tie.

    A layer has w · EXPANSIONS responses for w = ``eval.beam_width``, of which the w best are gone on from; those of the first
    layer are to the base task.
    """
    layer_size = settings.beam_width * EXPANSIONS
    layer, place = k // layer_size, k % layer_size
    node = jnp.arange(archive.score.size)
    of_last_layer = (node > (layer - 1) * layer_size) & (node <= layer * layer_size)
    best_first = jnp.argsort(-jnp.where(of_last_layer, archive.score, -jnp.inf))  # stable
    return jnp.where(layer == 0, 0, best_first[place % settings.beam_width])


BEAM = Scaffold(
    name="beam",
    about="beam search: layers of 2 · eval.beam_width responses, to the eval.beam_width best of the layer before",
    stream=4,
    choose=choose,
    reported=report_search,
    looks_at_grader=True,
    source="Snell et al. 2024, arXiv 2408.03314",
    label="adapted: whole responses take the place of steps of a solution, and the grader that of a process reward model",
    recipe=lambda settings: {"scaffold": "beam", "width": settings.beam_width},
    saved=True,
)
