"""The notebooks run from top to bottom, on runs cut short."""

import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"
SHORT = {  # notebook -> what cuts its run short, and the pictures that it shows
    "quickstart": ({"WARM_STEPS": "60", "ITERATIONS": "20"}, 3),
    "your_own_task": ({"WARM_STEPS": "5", "ITERATIONS": "4"}, 1),
}


def outputs(notebook, kind):
    """Return the outputs of a kind, such as image/png."""
    return [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if kind in output.get("data", {}) or output["output_type"] == kind
    ]


def execute(name, folder, monkeypatch, environment):
    """Return the notebook, executed from where it lies."""
    for variable, value in {"WORKDIR": str(folder), "XLA_FLAGS": "", **environment}.items():
        monkeypatch.setitem(os.environ, variable, value)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    return notebook


def test_every_notebook_is_tested():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SHORT)


@pytest.mark.parametrize("name", SHORT)
def test_a_notebook_is_kept_without_outputs(name):
    assert not any(cell.get("outputs") for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_notebook(name, tmp_path, monkeypatch):
    environment, pictures = SHORT[name]
    notebook = execute(name, tmp_path, monkeypatch, environment)
    assert len(outputs(notebook, "image/png")) == pictures
    if name == "your_own_task":
        printed = "".join(output["text"] for output in outputs(notebook, "stream") if output["name"] == "stdout")
        assert printed.count("score 0.") + printed.count("score 1.") == 5, "a line for each k"
        assert "Which number has Leo?\n  k=0  " in printed
