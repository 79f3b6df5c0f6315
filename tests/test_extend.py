"""docs/extend.md: what it adds is added to a copy of the code, where its tests pass and the settings know of it."""

import os
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import pytest
from mutations import ROOT, copy_code

TEXT = (ROOT / "docs/extend.md").read_text()


class Block(NamedTuple):
    """A fenced block, and the paragraph that stands before it."""

    before: str
    language: str
    text: str


def blocks(text: str) -> list[Block]:
    found = re.finditer(r"^```(\w+)\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)
    return [Block(text[: match.start()].strip().rpartition("\n\n")[2], *match.groups()) for match in found]


# A domain stands outside the package: tests/domains/test_own.py trains it
TEXT = TEXT.partition("\n## A domain of your own")[0]
SECTIONS = {title: blocks(text) for title, text in re.findall(r"\n## ([^\n]+)\n(.*?)(?=\n## |\Z)", TEXT, re.DOTALL)}


def target(block: Block) -> str:
    """Return the file that a block changes, or makes: a diff says so itself, of another it is the last one named before."""
    if block.language == "diff":
        return block.text.splitlines()[0].removeprefix("--- ")
    return re.findall(r"`([\w/]+\.py)`", block.before)[-1]


def apply(block: Block, root: pathlib.Path) -> None:
    path = root / target(block)
    if block.language == "python":
        assert not path.exists(), f"{path} is there already"
        path.write_text(block.text + "\n")
        return
    text = path.read_text()
    for hunk in block.text.split("\n@@\n")[1:]:
        lines = hunk.split("\n")
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[:1] != sign) for sign in "+-")
        assert ("\n" + text).count("\n" + old) == 1, f"{path.name} should have once:\n{old}"
        text = ("\n" + text).replace("\n" + old, "\n" + new)[1:]
    path.write_text(text)


def test_all_blocks_are_of_a_kind_that_is_run():
    assert TEXT.count("\n```") == 2 * sum(map(len, SECTIONS.values()))
    assert {block.language for found in SECTIONS.values() for block in found} <= {"diff", "python", "sh"}


@pytest.mark.parametrize("row", re.findall(r"^\| (an? \w+) \| (\d+) \| (\d+) \| `(.+)` \|$", TEXT, re.MULTILINE))
def test_an_addition_costs_what_the_table_says(row):
    title, files, lines, test = row
    diffs = [block for block in SECTIONS[title.capitalize()] if block.language == "diff"]
    assert len({target(block) for block in diffs}) == int(files)
    assert sum(line.startswith("+") for block in diffs for line in block.text.split("\n")) == int(lines)
    assert test in {target(block) for block in SECTIONS[title.capitalize()] if block.language == "python"}


@pytest.mark.slow
def test_what_is_added_works(tmp_path):
    copy_code(tmp_path)
    runnable = [block for found in SECTIONS.values() for block in found if block.language != "sh"]
    for block in runnable:
        apply(block, tmp_path)
    tests = [target(block) for block in runnable if target(block).startswith("tests/")]
    assert len(tests) >= 3

    def run(*words):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout

    no_run_is_orphaned = "tests/test_settings.py::test_a_field_that_the_first_runs_did_not_have_enters_no_hash"
    of_any_score = "tests/algorithm/test_rewards.py::test_any_score_is_blind_to_order_and_zero_for_equal_responses"
    run("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests, of_any_score, no_run_is_orphaned)
    reference = run("-m", "exit_jax.config.listing")
    for words in ("'std' (The standard", "'topr' (TOPR's", "`policy.logits_divisor`"):
        assert words in reference
