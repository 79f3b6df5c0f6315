"""What the edits of sudoku chains are, and how far puzzles are solved by single digits alone (docs/results.md).

python benchmarks/sudoku_edits.py edits <workdir>/chains.jsonl ...
python benchmarks/sudoku_edits.py singles --columns 3 --clues 9 10 12
"""

import argparse
import collections
import json
import re
from collections.abc import Iterable

from exit_jax.domains.sudoku import puzzles
from exit_jax.domains.sudoku.settings import Box, num_digits

CELL = re.compile(r"\((\d)\)| (\d) | (\.) ")  # own digit, clue, blank


def fitting(box: Box, grid: list[int], cell: int) -> set[int]:
    """Return the digits that no peer of a cell has."""
    return set(range(1, num_digits(box) + 1)) - {grid[peer] for peer in puzzles.peers(box)[cell]}


def parse(drawing: str) -> tuple[list[int], list[int]]:
    """Return clues and grid of a drawing as chains.jsonl has them."""
    cells = CELL.findall(drawing)
    return [int(clue or 0) for _, clue, _ in cells], [int(own or clue or 0) for own, clue, _ in cells]


def edits(box: Box, lines: Iterable[str]) -> tuple[collections.Counter, collections.Counter]:
    """Count what responses put into blanks of grids without a mistake: edits by kind, and those of them that are right.

    An edit is of a "single" where one digit fits the blank, "then single" where one does with the response's other
    edits in place, else a "guess". Grids at which nothing but a guess is left are counted as "no single".
    """
    made, right = collections.Counter(), collections.Counter()
    for line in lines:
        drawn = [parse(text) for text in json.loads(line)["responses"]]
        given = drawn[0][0]
        (solution,) = puzzles.solutions(given, box, limit=2)
        for before, after in zip([given, *(grid for _, grid in drawn)], (grid for _, grid in drawn)):
            blanks = [cell for cell, digit in enumerate(before) if not digit]
            if not blanks or any(digit not in (0, answer) for digit, answer in zip(before, solution)):
                continue
            made["no single"] += all(len(fitting(box, before, cell)) > 1 for cell in blanks)
            for cell in (cell for cell in blanks if after[cell]):
                sure = [len(fitting(box, grid, cell)) == 1 for grid in (before, after)]
                kind = "single" if sure[0] else "then single" if sure[1] else "guess"
                made[kind] += 1
                right[kind] += after[cell] == solution[cell]
    return made, right


def solved_by_singles(box: Box, puzzle: list[int]) -> bool:
    """Return whether filling blanks that a single digit fits, again and again, solves a puzzle."""
    grid = list(puzzle)
    while (
        single := next((c for c, d in enumerate(grid) if not d and len(fitting(box, grid, c)) == 1), None)
    ) is not None:
        (grid[single],) = fitting(box, grid, single)
    return 0 not in grid


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("edits", "singles"))
    parser.add_argument("chains", nargs="*")
    parser.add_argument("--rows", type=int, default=2, help="rows of a box")
    parser.add_argument("--columns", type=int, default=2, help="columns of a box")
    parser.add_argument("--clues", type=int, nargs="+", default=[4, 5, 6, 7])
    parser.add_argument("--count", type=int, default=128, help="puzzles of each number of clues")
    args = parser.parse_args()
    box = args.rows if args.rows == args.columns else (args.rows, args.columns)
    if bool(args.chains) != (args.what == "edits"):
        parser.error("edits takes files chains.jsonl, and singles takes none")
    if args.what == "singles":
        print("| clues | solved by single digits |\n|---|---|")
        for clues in args.clues:
            made = puzzles.generate("validation", box, (clues, clues), args.count, 0)[0].tolist()
            print(f"| {clues} | {sum(solved_by_singles(box, puzzle) for puzzle in made) / len(made):.2f} |")
        return
    print("| chains | edits | single, right | then single, right | guess, right | grids without a single |")
    print("|---|---|---|---|---|---|")
    for path in args.chains:
        with open(path) as lines:
            made, right = edits(box, lines)
        kinds = ("single", "then single", "guess")
        total = sum(made[kind] for kind in kinds)
        shares = (f"{made[kind] / total:.2f}, {right[kind] / max(made[kind], 1):.2f}" for kind in kinds)
        print(f"| {path} | {total} | {' | '.join(shares)} | {made['no single']} |")


if __name__ == "__main__":
    main()
