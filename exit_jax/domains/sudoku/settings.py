"""Settings of sudoku."""

import dataclasses
import math
from typing import ClassVar

from exit_jax.settings import setting

Box = int | tuple[int, int]


def sides(box: Box) -> tuple[int, int]:
    """Return the rows and columns of a box."""
    return (box, box) if isinstance(box, int) else box


def num_digits(box: Box) -> int:
    """Return n: the digits of a puzzle, its rows, its columns and its boxes."""
    return math.prod(sides(box))


@dataclasses.dataclass(frozen=True)
class SudokuConfig:
    """The family of puzzles and of the warm start's demonstrations."""

    splits: ClassVar = ("train", "validation", "test")
    box: int = setting(2, "2 for 4x4 puzzles, 3 for 9x9", choices=(2, 3))
    num_clues: tuple[int, int] = setting((4, 7), "fewest and most clues of training tasks")
    num_train: int = setting(2048, "training tasks", within="[1, inf)")
    eval_clues: tuple[int, int] = setting((4, 7), "fewest and most clues of validation and test tasks")
    num_eval: int = setting(512, "tasks of each held-out split", within="[1, inf)")
    max_edits: int = setting(3, "pairs (cell, digit) a response", within="[1, inf)")
    data_seed: int = setting(0, "seed that the puzzles are made with")
    feedback: bool = setting(True, 'whether the feedback token tells of the grid; if not it is always "open"')
    graded_by: str = setting(
        "rules",
        'which own digits are right: with "solution" those of the puzzle\'s only solution, with "rules" all without a clash',
        choices=("rules", "solution"),
        younger=True,
    )
    grid_copies: int = setting(
        1,
        "times that a prompt holds the grid; a cell of the second copy has seen all others, one of the first the earlier ones",
        choices=(1, 2),
        younger=True,
    )
    box_columns: int = setting(
        0,
        "columns of a box, where it is not square: 3 for 6x6 puzzles, whose boxes have 2 rows",
        choices=(0, 2, 3),
        younger=True,
    )
    pencil_marks: str = setting(
        "none",
        "prompts that show which digits fit each blank, as a player notes them, and which own digits clash; by the rules alone",
        choices=("none", "improve", "all"),
        younger=True,
    )
    wrong_cost: float = setting(
        0.0,
        "what a wrong digit takes off, in right ones; at 0 a guess costs nothing, so a policy is paid for guessing",
        within="[0, inf)",
        younger=True,
    )
    erase: bool = setting(
        False,
        "whether an edit may make a cell blank again, as demonstrations then do with digits that clash",
        younger=True,
    )
    on_host: bool = setting(False, "grade between compiled programs, as other domains must; slower")
    demo_clues: tuple[int, int] = setting((4, 7), "fewest and most clues of the puzzles that the warm start is shown")
    demo_noise: float = setting(0.2, "share of demonstrated digits that are random instead of legal", within="[0, 1]")
    demo_wrong: float = setting(0.3, "share of own digits in a demonstration's grid that are random", within="[0, 1]")
    demo_deduce: float = setting(
        0.0, "share of demonstrations that edit only what follows from the rules", within="[0, 1]", younger=True
    )

    @property
    def shape(self) -> Box:
        """Rows and columns of a box, one number where they are equal."""
        return self.box if self.box_columns in (0, self.box) else (self.box, self.box_columns)

    def faults(self) -> list[str]:
        """Return a sentence for each contradiction."""
        if self.box not in (2, 3) or self.box_columns not in (0, 2, 3):
            return []  # their choices are checked elsewhere
        cells = num_digits(self.shape) ** 2
        wrong = [
            f"domain.{name} = {value} is not a range of clues within 1 and {cells - 1}"
            for name, value in (
                ("num_clues", self.num_clues),
                ("eval_clues", self.eval_clues),
                ("demo_clues", self.demo_clues),
            )
            if not 1 <= value[0] <= value[1] < cells
        ]
        if self.max_edits > cells:
            wrong.append(f"domain.max_edits = {self.max_edits} is above {cells}, the cells that a script can edit")
        return wrong
