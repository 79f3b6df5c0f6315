"""What configs/smoke.py shows people first: something moves."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from exit_jax.workdir.metrics import read_jsonl

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_a_first_look_shows_something_move(tmp_path):
    command = [sys.executable, "-m", "exit_jax.main", "--config", "configs/smoke.py", "--workdir", str(tmp_path)]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}  # as people start it
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for split in ("validation", "test"):
        (line,) = re.findall(f"^{split} accuracy: (.*)$", done.stdout, re.MULTILINE)
        accuracy = [float(value) for value in re.findall(r"k=\d+ (\S+)", line)]
        assert accuracy[0] == 0.0, "2 blanks at least, one edit a response"
        assert accuracy[-1] > 0.1
        assert accuracy == sorted(accuracy)
    rows = read_jsonl(tmp_path / "train.jsonl")
    for name in ("reward", "quality/base"):
        values = [row[name] for row in rows]
        assert np.mean(values[-10:]) > 1.1 * np.mean(values[:10]), name
