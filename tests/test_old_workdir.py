"""A workdir of an older revision goes on, is evaluated, reported on and exported, also under a schema with a further field.

``old_workdir.tar.gz`` holds a run of 4 iterations (revision 5c99823, before settings had defaults), and as ``expected.jsonl``
what that revision logged of the 4 that follow.
"""

import json
import os
import pathlib
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from mutations import copy_code

from exit_jax import run
from exit_jax.config.parse import validate
from exit_jax.errors import ConfigError
from exit_jax.report import report
from exit_jax.workdir import evaluation
from exit_jax.workdir.metrics import read_jsonl

ARCHIVE = pathlib.Path(__file__).with_name("old_workdir.tar.gz")
CONFIG = """
import json
import pathlib

from ml_collections import ConfigDict


def get_config(arg=""):
    return ConfigDict(json.loads(pathlib.Path(__file__).with_name("config.json").read_text())["config"])
"""


@pytest.fixture
def workdir(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def config_of(workdir, **changes):
    content = json.loads((workdir / "config.json").read_text())["config"]
    content["run"] |= changes
    return validate(ConfigDict(content), jax.device_count())


def test_goes_on_as_it_would_have(workdir):
    expected = read_jsonl(workdir.parent / "expected.jsonl", "step")
    run.train(config_of(workdir, num_iterations=8), workdir)
    rows = read_jsonl(workdir / "train.jsonl", "step")
    assert [row["step"] for row in rows] == list(range(1, 9))
    for ours, theirs in zip(rows[4:], expected, strict=True):
        for name in (name for name in theirs if not name.startswith("time/")):
            value, wanted = (np.nan if row[name] is None else row[name] for row in (ours, theirs))
            np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-5, err_msg=name)
    exported = run.export(config_of(workdir, num_iterations=8), workdir)
    assert all(path.exists() for path in exported)


def test_is_evaluated_and_reported_on(workdir):
    before = evaluation.read(workdir / "evaluation.json")
    assert evaluation.chain_of(before["splits"]["test"])["accuracy"], "a file of the first format is read"
    assert report(workdir, [workdir]).exists()
    after = run.evaluate(config_of(workdir), workdir)
    for split, figures in before["splits"].items():
        chain, again = evaluation.chain_of(figures), evaluation.chain_of(after["splits"][split])
        np.testing.assert_allclose(again["quality"], chain["quality"], rtol=1e-5)
        np.testing.assert_allclose(again["accuracy"], chain["accuracy"], rtol=1e-5)


@pytest.mark.slow
def test_goes_on_under_a_schema_with_a_further_field(workdir, tmp_path):
    """The field is in no hash while it has its default; with another value, it is another experiment."""
    copy_code(tmp_path / "code")
    settings = tmp_path / "code/exit_jax/algorithm/settings.py"
    line = "    rollout_lag: int = setting("
    text = settings.read_text()
    assert text.count(line) == 1
    settings.write_text(text.replace(line, f'    novelty: float = setting(0.0, "a weight", younger=True)\n{line}'))
    (workdir / "config.py").write_text(CONFIG)

    def main(*flags):
        command = [sys.executable, "-m", "exit_jax.main", f"--config={workdir / 'config.py'}", f"--workdir={workdir}"]
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "code")}
        return subprocess.run(
            [*command, *flags], cwd=tmp_path / "code", env=environment, capture_output=True, text=True
        )

    settled = main("--mode", "settings")
    assert "algorithm.novelty" in settled.stdout, settled.stderr
    exported = main("--mode", "export")
    assert exported.returncode == 0, exported.stderr
    content = json.loads((workdir / "config.json").read_text())["config"]
    content["algorithm"]["novelty"] = 0.5
    (workdir / "config.py").write_text(CONFIG.replace("config.json", "other.json"))
    (workdir / "other.json").write_text(json.dumps({"config": content}))
    refused = main("--mode", "export")
    assert refused.returncode == 2
    assert "algorithm.novelty" in refused.stderr


def test_another_experiment_is_refused(workdir):
    content = json.loads((workdir / "config.json").read_text())["config"]
    content["algorithm"]["group_size"] += 4
    with pytest.raises(ConfigError, match=r"algorithm\.group_size"):
        run.export(validate(ConfigDict(content), jax.device_count()), workdir)
