"""The site: every page is in its navigation, every config on its page, every quoted message in the code."""

import ast
import functools
import re

import pytest
from mutations import ROOT

DOCS = ROOT / "docs"
QUOTED = re.compile(r"^```output\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHORTEST = 10  # characters of a fragment that is looked for


def navigation() -> list[str]:
    """Return the pages of mkdocs.yml's navigation; a line of it ends in one. No YAML: mkdocs.yml has tags of its own."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    return re.findall(r"(\S+\.(?:md|ipynb))$", nav, re.MULTILINE)


@functools.cache
def messages() -> list[str]:
    """Return the texts of the code between the values that are put into them."""
    found = []
    for path in (ROOT / "exit_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [" ".join(part.split()) for part in re.split(r"%[.\d]*[sdrgf]", node.value)]
    return found


def missing(message: str) -> list[str]:
    """Return the fragments of a quoted message that the code does not have."""
    fragments = [" ".join(part.split()).strip() for part in message.replace("'...'", "...").split("...")]
    return [part for part in fragments if len(part) >= SHORTEST and not any(part in text for text in messages())]


def test_every_page_is_in_the_navigation_once():
    outside = re.findall(r'^    "(.+)",$', (DOCS / "hooks.py").read_text(), re.MULTILINE)
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(navigation()) == sorted([*pages, *outside])
    assert all((ROOT / path).exists() for path in outside)
    assert {f"notebooks/{path.name}" for path in ROOT.glob("notebooks/*.ipynb")} <= set(outside)


def test_every_config_is_on_its_page():
    headings = re.findall(r"^### (\w+)$", (DOCS / "configs.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(path.stem for path in ROOT.glob("configs/*.py"))


@pytest.mark.parametrize("message", QUOTED.findall((DOCS / "troubleshooting.md").read_text()))
def test_a_quoted_message_is_one_of_the_code(message):
    assert any(len(part.strip()) >= SHORTEST for part in message.split("..."))
    assert missing(message) == []


def test_a_message_that_the_code_does_not_have_is_found():
    assert missing("the responses of each group were all paid alike, so ... differs from 0") == []
    assert missing("the responses of each group were paid alike") == ["the responses of each group were paid alike"]


def test_every_module_of_the_reference_is_there():
    named = re.findall(r"^::: ([\w.]+)$", "\n".join(path.read_text() for path in DOCS.glob("api/*.md")), re.MULTILINE)
    assert len(named) > 20
    for name in named:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), name


@pytest.mark.parametrize("page", [*DOCS.rglob("*.md"), ROOT / "launch/README.md"], ids=lambda page: page.name)
def test_no_placeholder_is_taken_for_html(page):
    prose = re.sub(r"^```.*?^```$|^(?:    | {8}).*?$|(`+).*?\1", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"<(?!/?sup>)/?[a-z][^>\n]*>", prose) == [], "write it as code, or &lt;"
