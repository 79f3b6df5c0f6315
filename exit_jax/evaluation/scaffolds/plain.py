"""The plain chain, and the rivals that ExIt compares it to (ExIt §5)."""

import jax.numpy as jnp

from exit_jax.config.schema import EvalConfig
from exit_jax.evaluation.scaffolds.archive import Archive
from exit_jax.evaluation.scaffolds.reports import report_best_of_n, report_chain, report_restarts, report_search
from exit_jax.evaluation.scaffolds.scaffold import Scaffold
from exit_jax.types import Array

EXIT = "Jiang, Lupu, Bachrach 2025, arXiv 2509.04575"


def newest(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Go on from the newest response, whatever it is worth."""
    return k


def base_task(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Begin with the base task every time."""
    return jnp.int32(0)


def newest_or_base_task(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Go on from the newest response, and begin with the base task after every ``eval.restart_every`` responses."""
    return jnp.where(k % settings.restart_every == 0, 0, k)


def newest_of_best(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Go on from the best response so far, the newest where some tie.

    Which solution a step of the search starts from is this project's choice (ExIt §5 names the scaffold only).
    """
    node = jnp.arange(archive.score.size)
    return jnp.where((node <= k) & (archive.score == archive.score.max()), node, 0).max()


CHAIN = Scaffold(
    name="chain",
    about="each step sees the request and the newest response only; the last response counts",
    stream=0,
    choose=newest,
    reported=report_chain,
    looks_at_grader=False,
    source=EXIT,
    label="faithful",
    recipe=lambda settings: {"every": max(settings.steps) + 1},
    saved=True,
)
RESTARTS = Scaffold(
    name="restarts",
    about="chains that begin anew after every eval.restart_every responses; an oracle picks the best response so far",
    stream=1,
    choose=newest_or_base_task,
    reported=report_restarts,
    looks_at_grader=False,
    recipe=lambda settings: {"every": settings.restart_every},
)
GREEDY = Scaffold(
    name="greedy",
    about="a search: each step goes on from the best response so far, by the score that is reported",
    stream=2,
    choose=newest_of_best,
    reported=report_search,
    looks_at_grader=True,
    source=EXIT,
    label="in kind: the paper names the search only; that the newest of the best is gone on from is our choice",
    recipe=lambda settings: {"greedy": True},
    saved=True,
)
SELF_REFINE = Scaffold(
    name="self_refine",
    about="a chain in which every other response is the policy's own critique of the one before, which the next one reads",
    stream=12,
    choose=newest,
    reported=report_chain,
    looks_at_grader=False,
    source="Madaan et al. 2023, arXiv 2303.17651",
    label="adapted: a critique sees its response alone, without the attempts and critiques before, and nothing stops the chain",
    critiques=True,
    saved=True,
)
BEST_OF_N = Scaffold(
    name="best_of_n",
    about="independent responses to the base task: k + 1 of them, the best by an oracle or the answer that most of them give",
    stream=3,
    choose=base_task,
    reported=report_best_of_n,
    looks_at_grader=False,
    source="pass@k: Chen et al. 2021, arXiv 2107.03374, eq. 1; majority: Wang et al. 2022, arXiv 2203.11171",
    label="faithful",
)
