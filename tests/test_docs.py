"""What the documentation names is there: modules, functions and classes of the code, and the files that it links to."""

import ast
import pathlib
import re

import pytest
from mutations import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("launch/*.md")])
PAGES = [path for path in PAGES if path.name != "CHANGELOG.md"]  # tells of what was
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
# `exit_jax/room/module.py:name`, of a module's own names; `exit_jax/room:name` for one of some module below a folder
REFERENCE = re.compile(r"`((?:exit_jax|tests|configs|benchmarks|launch)(?:/[\w.]+)*)(?::([\w.]+))?`")
# files that the examples of docs/extend.md make
EXAMPLES = set(re.findall(r"Its test, `(.+?)`", (ROOT / "docs/extend.md").read_text()))


def names(path: pathlib.Path) -> set[str]:
    """Return the functions, classes, methods (``Class.method``) and constants of a module."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            found |= {target.id} if isinstance(target, ast.Name) else set()
    return found


def fault(place: str, name: str) -> str:
    """Return what is wrong with a reference, "" if nothing is."""
    path = ROOT / place
    if not path.exists():
        return f"{place} is not there"
    modules = path.rglob("*.py") if path.is_dir() else [path]
    return "" if not name or any(name in names(module) for module in modules) else f"{place} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    text = FENCED.sub("", page.read_text())
    found = [match.groups(default="") for match in REFERENCE.finditer(text)]
    faults = [fault(place, name) for place, name in found if place not in EXAMPLES]
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    faults += [f"link to {link}, which is not there" for link in links if not (page.parent / link).exists()]
    assert not list(filter(None, faults))


def test_a_reference_that_went_stale_is_found():
    assert fault("exit_jax/algorithm/grpo.py", "loss") == ""
    assert fault("exit_jax/algorithm/grpo.py", "Batch") == ""
    assert fault("exit_jax/algorithm/objectives.py", "OBJECTIVES") == ""
    assert fault("exit_jax/config/checks.py", "Faults.require") == ""
    assert fault("exit_jax/algorithm", "loss") == ""
    assert fault("exit_jax/algorithm/grpo.py", "loss_of") == "exit_jax/algorithm/grpo.py has no loss_of"
    assert fault("exit_jax/algorithm", "play") == "exit_jax/algorithm has no play"
    assert fault("exit_jax/algorithm/gone.py", "") == "exit_jax/algorithm/gone.py is not there"


def test_the_method_is_told_by_names_of_the_code():
    rows = [line for line in (ROOT / "docs/algorithm.md").read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in rows if not line.startswith(("| Algorithm 1", "| formula"))]
    assert len(rows) >= 30
    assert all(REFERENCE.search(line) for line in rows)
