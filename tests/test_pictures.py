"""The pictures and tables of the documentation show the figures of the studies' rows."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from exit_jax import study

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def drawing():
    """Return docs/draw_accuracy.py as a module."""
    spec = importlib.util.spec_from_file_location("draw_accuracy", DOCS / "draw_accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def studies(drawing):
    return drawing.read_all()


def test_the_lines_are_means_over_the_rows(drawing, studies):
    figure = drawing.draw(studies)
    for setting, ax in zip(studies, figure.axes, strict=True):
        rows = [json.loads(line) for line in (DOCS / "studies" / f"sudoku_{setting}.jsonl").read_text().splitlines()]
        seeds_of = lambda variant, rows=rows: {row["seed"] for row in rows if row["variant"] == variant}
        shared = set.intersection(*(seeds_of(row["variant"]) for row in rows))
        rows = [row for row in rows if row["seed"] in shared]
        assert len(ax.get_lines()) == len({row["variant"] for row in rows} & drawing.NAMES.keys())
        for line in ax.get_lines():
            (variant,) = (name for name, label in drawing.NAMES.items() if label == line.get_label())
            chains = [
                row["evaluation"]["splits"]["test"]["scaffolds"]["chain"] for row in rows if row["variant"] == variant
            ]
            np.testing.assert_allclose(line.get_ydata(), 100 * np.mean([chain["accuracy"] for chain in chains], 0))


def test_each_variant_has_the_same_seeds(studies):
    for results in studies.values():
        assert len({tuple(seeds) for seeds in results.values()}) == 1


def test_the_picture_is_of_the_rows_as_they_are(drawing, studies):
    assert Image.open(DOCS / "accuracy_by_k.png").info["Source"] == drawing.digest(studies), (
        "python docs/draw_accuracy.py"
    )


def test_the_tables_are_those_of_the_rows(studies):
    text = (DOCS / "results.md").read_text()
    for setting, results in studies.items():
        below = text[text.index(f"**{setting}**") :]
        rows = [line for line in study.markdown(study.over_seeds(results)).splitlines() if line.startswith("|")]
        assert len(rows) > 3 * len(results)
        for row in rows:
            assert row in below, f"the row {row!r} is not below **{setting}**; python docs/draw_accuracy.py prints them"
