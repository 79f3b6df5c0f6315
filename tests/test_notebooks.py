"""The notebook runs from top to bottom, on a run cut short."""

import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks/quickstart.ipynb"


@pytest.mark.slow
def test_quickstart(tmp_path, monkeypatch):
    for name, value in {"WARM_STEPS": "60", "ITERATIONS": "20", "WORKDIR": str(tmp_path), "XLA_FLAGS": ""}.items():
        monkeypatch.setitem(os.environ, name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    assert not any(cell.get("outputs") for cell in nbformat.read(NOTEBOOK, as_version=4).cells), "clear outputs first"
