"""Other scores of, and other draws from, ExIt's own buffer."""

from typing import Any

from exit_jax.config.methods.method import Method


def _buffer(name: str, source: str, label: str, **settings: Any) -> Method:
    return Method("buffer", name, source, label, {f"algorithm.{key}": to for key, to in settings.items()})


BUFFER = {
    "ranked": _buffer("draws by rank", "2010.03934", "in kind: PLR's ranks over ExIt's buffer", selection="rank"),
    "stale": _buffer(
        "draws with staleness",
        "2010.03934",
        "in kind: PLR's mixture, ρ .3, over ExIt's buffer",
        selection_staleness=0.3,
    ),
    "puct": _buffer(
        "PUCT of TTT-Discover",
        "2601.16175",
        "adapted: value and visits of an entry's children in place of all descendants, without its entropic objective",
        selection="puct",
    ),
    "bygap": _buffer(
        "eva's score for the buffer",
        "2411.00062",
        "in kind: max - mean in place of the variance",
        learnability_of="gap",
    ),
    "byadvantage": _buffer(
        "SEC's score for the buffer",
        "2505.14970",
        "in kind: mean |A| in place of the variance",
        learnability_of="advantage",
    ),
}
