"""Parents as ShinkaEvolve samples them: by score and novelty, or by a power law of ranks."""

import jax
import jax.numpy as jnp

from exit_jax.config.schema import EvalConfig
from exit_jax.evaluation.scaffolds.archive import Archive, draw
from exit_jax.evaluation.scaffolds.reports import report_search
from exit_jax.evaluation.scaffolds.scaffold import Scaffold
from exit_jax.types import Array

ARCHIVE_SIZE = 40  # archive_size of the authors' configs; the next two are those of DatabaseConfig
SHARPNESS = 10.0  # parent_selection_lambda
POWER = 1.0  # exploitation_alpha
SMALLEST_MAD = 1e-6
SOURCE = "Lange, Imajuku, Cetin 2025, arXiv 2509.19349; SakanaAI/ShinkaEvolve, database/parents.py"
LABEL = (
    "adapted: one island, whose first program is the first response; no crossover, inspirations or rejection of copies"
)


def ranks(archive: Archive) -> Array:
    """Return the rank of each good response, from 0 for the best and the oldest first of those that tie, int32 [N]."""
    best_first = jnp.argsort(-jnp.where(archive.good, archive.score, -jnp.inf))  # stable
    return jnp.argsort(best_first)


def median(values: Array, among: Array) -> Array:
    """Return the median of the values [N] that ``among`` has, float32 []; inf if it has none."""
    ordered, count = jnp.sort(jnp.where(among, values, jnp.inf)), among.sum()
    return (ordered[jnp.maximum(count - 1, 0) // 2] + ordered[count // 2]) / 2


def log_weights(archive: Archive) -> Array:
    """Return log(σ(λ (s - median) / MAD) / (1 + children)) of the responses in the archive, -inf elsewhere, float32 [N]."""
    kept = archive.good & (ranks(archive) < ARCHIVE_SIZE)
    score = jnp.where(kept, archive.score, 0.0)
    middle = median(score, kept)
    spread = jnp.maximum(median(jnp.abs(score - middle), kept), SMALLEST_MAD)
    weight = jax.nn.log_sigmoid(SHARPNESS * (score - middle) / spread) - jnp.log1p(archive.children)
    return jnp.where(kept, weight, -jnp.inf)


def log_powers(archive: Archive) -> Array:
    """Return log(rank^-α), ranks from 1, of the responses in the archive, -inf elsewhere, float32 [N]."""
    rank = ranks(archive)
    return jnp.where(archive.good & (rank < ARCHIVE_SIZE), -POWER * jnp.log1p(rank), -jnp.inf)


def draw_or_fix(archive: Archive, key: Array, log_weight: Array) -> Array:
    """Return a response by its weight [N], any failing one while all fail, and the base task before the first."""
    node = jnp.where(archive.good.any(), jax.random.categorical(key, log_weight), draw(key, archive.failing))
    return jnp.where(archive.responses.any(), node, 0)


def weighted(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Choose as Shinka's ``WeightedSamplingStrategy`` does."""
    return draw_or_fix(archive, key, log_weights(archive))


def power_law(settings: EvalConfig, archive: Archive, key: Array, k: Array) -> Array:
    """Choose as Shinka's ``PowerLawSamplingStrategy`` does."""
    return draw_or_fix(archive, key, log_powers(archive))


SHINKA = Scaffold(
    name="shinka",
    about="evolution: parents drawn by score, relative to the median, and by how few responses started from them yet",
    stream=9,
    choose=weighted,
    reported=report_search,
    looks_at_grader=True,
    source=SOURCE,
    label=LABEL,
    saved=True,
)
SHINKA_POWER_LAW = Scaffold(
    name="shinka_power_law",
    about="evolution: parents drawn with odds of 1 over their rank by score",
    stream=10,
    choose=power_law,
    reported=report_search,
    looks_at_grader=True,
    source=SOURCE,
    label=LABEL,
    saved=True,
)
