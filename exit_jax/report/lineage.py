"""The lineage of one answer: a chain's responses as boxes of text, what changed in colour. It knows text only."""

import itertools
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from exit_jax.report.plots import GREEN, GREY, VERMILLION, WIDTH, Plot
from exit_jax.report.runs import Groups, all_runs

MAX_BOXES = 24  # boxes in all
MAX_LONG = 8  # boxes, where some are cropped
MAX_LINES, WRAP = 16, 30  # lines of a box, characters of a line


def lineage(groups: Groups) -> Plot:
    """Draw a chain as boxes of text, best a solved one of the test split with many changes."""

    def rank(item):
        chain = item[1]
        changes = sum(a != b for a, b in itertools.pairwise(chain["responses"]))
        lines = max(sum(len(line) // WRAP + 1 for line in text.split("\n")) for text in chain["responses"])
        limit = MAX_BOXES if lines <= MAX_LINES else MAX_LONG
        mended = chain["quality"][0] < chain["quality"][-1]
        return chain["quality"][-1], chain["split"] == "test", mended, changes if changes < limit else -changes

    chains = ((run, chain) for run in all_runs(groups) for chain in run.chains)
    best = max(chains, key=rank, default=None)
    if best is None:
        return None
    run, chain = best
    who = f"{run.config.get('variant', run.path.name)}, seed {run.config.get('seed', '?')}"
    end = "solved" if chain["quality"][-1] >= 1 else "not solved, but the best chain"
    fig = draw_boxes(f"{who}, {chain['split']} task {chain['task']}: {end}", collapse(chain))
    return fig, "The responses of one chain; what changed is coloured, and ×n counts equal responses."


def collapse(chain: dict) -> list[tuple[str, float, list[tuple[str, str]]]]:
    """Return a title, the quality and the lines of each response that differs from the one before."""
    boxes, before, k = [], None, 0
    for text, same in itertools.groupby(printable(text) for text in chain["responses"]):
        count, quality = len(list(same)), chain["quality"][k]
        span = f"k={k}" if count == 1 else f"k={k}–{k + count - 1} (×{count})"
        boxes.append((f"{span}\nquality {quality:.2f}", quality, lines_of(text, changes(before, text))))
        before, k = text, k + count
    return boxes


def printable(text: str) -> str:
    """Return a text with its tabs as spaces and a sign in the place of each control character, which fonts lack."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text.expandtabs(4))


def changes(before: str | None, after: str) -> list[bool]:
    """Return which characters differ: by position if the lines are as long as before, else by a diff of words."""
    if before is None:
        return [False] * len(after)
    if [len(line) for line in before.split("\n")] == [len(line) for line in after.split("\n")]:
        return [a != b for a, b in zip(before, after)]
    old, new = (re.findall(r"\w+|\s+|.", text) for text in (before, after))
    steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [tag != "equal" for tag, _, _, start, stop in steps for word in new[start:stop] for _ in word]


def lines_of(text: str, marks: Sequence[bool]) -> list[tuple[str, str]]:
    """Return at most MAX_LINES lines of WRAP characters around the first change, kept and changed characters apart."""
    lines, start = [], 0
    for line in text.split("\n"):
        for at in range(start, start + max(len(line), 1), WRAP):
            pairs = list(zip(text, marks))[at : min(at + WRAP, start + len(line))]
            kept, new = ("".join(c if mark == want else " " for c, mark in pairs) for want in (False, True))
            lines.append((kept, new))
        start += len(line) + 1
    first = next((i for i, (_, new) in enumerate(lines) if new.strip()), 0)
    first = max(0, min(first - 2, len(lines) - MAX_LINES))
    dots = [("…", "")]
    return dots * (first > 0) + lines[first : first + MAX_LINES] + dots * (first + MAX_LINES < len(lines))


def draw_boxes(title: str, boxes) -> Figure:
    """Draw boxes of monospaced text in rows, an arrow before each but the first; lengths are in points."""
    size, leading, pad, gap, head = 7, 8.8, 5, 20, 24
    width = max(max(len(kept) for *_, lines in boxes for kept, _ in lines) * 0.59 * size, 44) + 2 * pad
    columns = min(len(boxes), max(1, int((72 * WIDTH - gap) // (width + gap))))
    rows = [boxes[i : i + columns] for i in range(0, len(boxes), columns)]
    heights = [max(len(lines) for *_, lines in row) * leading + 2 * pad for row in rows]
    page = max(gap + columns * (width + gap), 250), 20 + sum(heights) + len(rows) * (head + 8)
    fig = Figure(figsize=(page[0] / 72, page[1] / 72))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, page[0]), ylim=(page[1], 0))
    ax.set_axis_off()
    ax.text(gap, 6, title, va="top", parse_math=False)
    arrow = {"arrowstyle": "-|>", "color": GREY, "mutation_scale": 8}
    mono = {"fontsize": size, "family": "monospace"}
    looks = mono | {"color": "#404040"}, mono | {"color": VERMILLION, "weight": "bold"}
    for i, (name, quality, lines) in enumerate(boxes):
        row, column = divmod(i, columns)
        x, y, height = gap + column * (width + gap), 20 + head + sum(heights[:row]) + row * (head + 8), heights[row]
        edge, ink = (GREEN, GREEN) if quality >= 1 else (GREY, "black")
        ax.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=3", fc="white", ec=edge))
        ax.text(x + 1, y - 2, name, va="bottom", fontsize=size, color=ink)
        for n, pair in enumerate(lines):
            for text, look in zip(pair, looks):  # equally wide, one over the other
                at = y + pad + (n + 0.5) * leading
                ax.text(x + pad, at, text, look, va="center_baseline", parse_math=False)
        if i:
            ax.annotate("", (x - 2, y + height / 2), (x - gap + 3, y + height / 2), arrowprops=arrow)
    return fig
