"""Draws the figures of docs/method.md: one training iteration, and how the task space grows.

python docs/draw_method.py
"""

import pathlib
import statistics

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

DOCS = pathlib.Path(__file__).parent
STYLE = {"font.size": 9, "svg.hashsalt": "exit_jax"}  # the salt keeps the names within a file the same each time
BLUE, ORANGE, GREEN, GREY = "#d4e6f4", "#fbdcc4", "#cfeadd", "#ececec"


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """Draw a box around its centre (x, y), with a text in it."""
    outline = {"boxstyle": "round,pad=0,rounding_size=1.2", "facecolor": colour, "edgecolor": "#555555"}
    ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **outline))
    ax.text(x, y, text, ha="center", va="center", linespacing=1.35)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: str = "arc3") -> None:
    """Draw an arrow."""
    look = {"arrowstyle": "-|>", "color": "#555555", "shrinkA": 0, "shrinkB": 0, "connectionstyle": bend}
    ax.annotate("", end, start, arrowprops=look)


def canvas(height: float) -> tuple[Figure, Axes]:
    """Return a figure as wide as a phone shows it well, and its axes: 100 wide, in the same unit high."""
    fig = Figure(figsize=(4.6, 4.6 * height / 100))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 100), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def iteration() -> Figure:
    """Draw one training iteration (ExIt, Algorithm 1)."""
    fig, ax = canvas(106)
    box(ax, 20, 96, 36, 15, "base tasks", GREY)
    box(ax, 71, 96, 54, 15, "buffer: N partial histories,\neach with its score S", GREY)
    selection = "Selection: B instances, each\nwith probability p from the buffer,\nP(i) ∝ exp(κ S_i), else a base task"
    box(ax, 34, 71, 64, 17, selection, BLUE)
    box(ax, 34, 47, 64, 14, "Expansion: a group of\nG responses to each instance", BLUE)
    box(ax, 34, 26, 64, 11, "Grading: quality in [0, 1]", ORANGE)
    box(ax, 34, 7, 64, 12, "Learning: rewards, advantages,\na step of GRPO", GREEN)
    arrow(ax, (20, 88.5), (20, 79.5))
    arrow(ax, (55, 88.5), (55, 79.5))
    for above, below in ((62.5, 54), (40, 31.5), (20.5, 13)):
        arrow(ax, (34, above), (34, below))
    ax.plot([66, 72], [26, 26], color="#555555", linewidth=1)
    ax.plot([72, 72], [26, 88], color="#555555", linewidth=1)
    arrow(ax, (72, 86), (72, 88.5))
    said = "S: variance of\nthe group's\nquality\n\nchildren: the\nhistories that\nthe responses\nlead to"
    ax.text(75, 51, said, ha="left", va="center", fontsize=8)
    return fig


def group(ax: Axes, y: float, held: str, values: tuple[float, ...], chosen: int | None, colour: str) -> None:
    """Draw an instance at the left and the qualities of its group at the right; one that is drawn later has a ring."""
    box(ax, 17, y, 31, 15, held, GREY)
    arrow(ax, (32.5, y), (41, y))
    for i, value in enumerate(values):
        x = 46 + 13 * i
        edge = {"edgecolor": "black", "linewidth": 1.8} if i == chosen else {"edgecolor": "#555555", "linewidth": 0.8}
        ax.text(
            x,
            y,
            f"{value:.1f}",
            ha="center",
            va="center",
            bbox={"boxstyle": "circle,pad=0.35", "facecolor": colour, **edge},
        )
    ax.text(65.5, y - 9.5, f"S = {statistics.pvariance(values):.2f}", ha="center", va="center", fontsize=8)


def growth() -> Figure:
    """Draw how groups of responses become instances to train on."""
    fig, ax = canvas(88)
    ax.text(17, 84, "instance", ha="center", weight="bold")
    ax.text(65.5, 84, "quality of G = 4 responses", ha="center", weight="bold")
    group(ax, 70, "base task\n(k = −1)", (0.2, 0.4, 0.4, 0.6), 1, BLUE)
    group(ax, 42, "task + response\n(k = 0): improve", (0.4, 0.6, 1.0, 0.6), 0, ORANGE)
    group(ax, 14, "task + response\n(k = 1): diverge", (0.0, 0.2, 0.8, 1.0), None, GREEN)
    for top, x in ((70, 59), (42, 46)):
        arrow(ax, (x, top - 4.5), (17, top - 20.5), "arc3,rad=-0.12")
    return fig


def main() -> None:
    """Draw all figures."""
    with rc_context(STYLE):
        for draw in (iteration, growth):
            draw().savefig(DOCS / f"method_{draw.__name__}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
