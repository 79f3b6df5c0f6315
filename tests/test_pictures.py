"""The pictures of the documentation show the figures that it tabulates."""

import importlib.util
import pathlib

import pytest
from PIL import Image

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


def test_the_accuracies_are_those_of_the_tables(drawing):
    text = (DOCS / "results.md").read_text()
    left, right = drawing.draw(drawing.read(text)).axes
    for setting, bars in (("paper", left.containers[:6]), ("control", left.containers[6:])):
        below = text[text.index(f"**{setting}**") :]
        for variant, bar in zip(("base", "grpo", "curriculum", "improve", "diverge", "exit"), bars, strict=True):
            points, _, (spread,) = bar.lines
            (low, high) = spread.get_segments()[0][:, 1]
            mean, deviation = points.get_ydata()[0] / 100, (high - low) / 200
            first = next(line for line in below.splitlines() if line.startswith(f"| {variant} |"))
            assert first.startswith(f"| {variant} | {mean:.3f} ± {deviation:.3f} |".replace(" 0.", " ."))
    for line in right.get_lines():
        cells = [f"{value / 100:.2f}".lstrip("0") for value in line.get_ydata()]
        row = next(row for row in text.splitlines() if row.startswith(f"| {line.get_label()} | .2"))
        assert [cell.split()[0] for cell in row.split("|")[2:-1]] == cells


def test_the_picture_is_of_the_tables_as_they_are(drawing):
    figures = drawing.read((DOCS / "results.md").read_text())
    assert Image.open(DOCS / "accuracy_by_k.png").info["Source"] == drawing.digest(figures), (
        "python docs/draw_accuracy.py"
    )
