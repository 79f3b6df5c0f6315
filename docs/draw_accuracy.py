"""Draws docs/accuracy_by_k.png from the tables of docs/results.md, so that picture and tables show the same figures.

    python docs/draw_accuracy.py

The picture carries a hash of the figures, by which a test tells a picture of an older table.
"""

import hashlib
import json
import pathlib
import re

from matplotlib import rc_context
from matplotlib.figure import Figure

from exit_jax.report.plots import STEP, STYLE, WIDTH, style

DOCS = pathlib.Path(__file__).parent
SETTINGS = {"paper": {}, "control": {"markerfacecolor": "none"}}
NAMES = {"grpo": "GRPO", "improve": "ExIt, improve", "exit": "ExIt"}  # variant -> its row of the table by k
VARIANTS = ("base", "grpo", "curriculum", "improve", "diverge", "exit")


def tables(text: str) -> list[list[list[str]]]:
    """Return the Markdown tables of a text as rows of cells, without the rules below their headers."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = lambda block: [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return [[row for row in rows(block) if set(row[0]) != {"-"}] for block in blocks]


def read(text: str) -> dict:
    """Return the figures of a text like docs/results.md, in %.

    "last": setting -> variant -> mean and standard deviation at k = 16 over the seeds; "k"; "by_k": variant -> its means there.
    """
    found: dict = {"last": {}}
    for setting in SETTINGS:
        table = tables(text[text.index(f"**{setting}**") :])[0]
        column = table[0].index("last")
        cells = {row[0]: row[column].split(" ± ") for row in table[1:]}
        found["last"][setting] = {name: [round(100 * float(value), 3) for value in cells[name]] for name in VARIANTS}
    header, *rows = tables(text[text.index("### Past the training depth") :])[0]
    found["k"] = [int(k) for k in header[1:]]
    values = {row[0]: [round(100 * float(cell.split()[0]), 3) for cell in row[1:]] for row in rows}
    found["by_k"] = {name: values[row] for name, row in NAMES.items()}
    return found


def digest(figures: dict) -> str:
    """Return a hash of the figures."""
    return hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()


def draw(figures: dict) -> Figure:
    """Draw the accuracy of all variants at k = 16, and of three of them by k."""
    fig = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True)
    for offset, (setting, fill) in zip((-0.12, 0.12), SETTINGS.items()):
        for i, name in enumerate(VARIANTS):
            mean, spread = figures["last"][setting][name]
            left.errorbar(i + offset, mean, spread, capsize=2, elinewidth=0.8, linestyle="none", **style(i), **fill)
        left.plot([], [], "o", color="black", label=setting, **fill)
    left.set_xticks(range(len(VARIANTS)), VARIANTS)
    left.set(title="k = 16, both settings", ylabel="accuracy (%)", ylim=(0, None))
    left.legend(loc="lower right", title="setting")
    places = range(len(figures["k"]))
    for name, values in figures["by_k"].items():
        right.plot(places, values, label=NAMES[name], **style(VARIANTS.index(name)))
    right.set_xticks(places, [str(k) for k in figures["k"]])
    right.set(title="past the training depth, setting paper", xlabel=STEP)
    right.legend(loc="lower right")
    return fig


def main() -> None:
    """Draw the picture of the tables as they are."""
    figures = read((DOCS / "results.md").read_text())
    with rc_context(STYLE):
        draw(figures).savefig(DOCS / "accuracy_by_k.png", metadata={"Source": digest(figures)})


if __name__ == "__main__":
    main()
