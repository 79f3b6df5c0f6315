"""The examples in docstrings say what comes out."""

import doctest
import importlib

import pytest
from mutations import ROOT

# only these are imported: collecting all modules by pytest's own --doctest-modules would import everything there is
MODULES = [path for path in sorted((ROOT / "exit_jax").rglob("*.py")) if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "exit_jax")))
def test_examples_of_docstrings_hold(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


def test_there_are_some():
    assert len(MODULES) >= 7
