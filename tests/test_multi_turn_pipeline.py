"""The run of configs/multi_turn.py from end to end on a small random Qwen2: it resumes, also after a server went away."""

import json
import pathlib
import runpy

import jax
import pytest
from multi_turn_runs import SETTINGS, kept, kill_and_finish, says_digits
from small import ROOT

from exit_jax.config.parse import validate
from exit_jax.errors import UserError
from exit_jax.report import report
from exit_jax.run import train
from exit_jax.workdir import metric_table


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return says_digits(tmp_path_factory.mktemp("qwen") / "checkpoint")


def settings(folder, game):
    arguments = (f"log={folder / 'log'}",)
    folder.mkdir(exist_ok=True)
    argument = f"environment={ROOT / 'tests/games.py'}:{game}"
    return argument, SETTINGS | {"domain.data_dir": str(folder / "data"), "domain.environment_args": arguments}


def make(checkpoint, folder, game="Guess"):
    argument, changes = settings(folder, game)
    found = runpy.run_path(str(ROOT / "configs/multi_turn.py"))["get_config"](f"{argument},checkpoint={checkpoint}")
    found.update_from_flattened_dict(changes)
    return validate(found, jax.device_count())


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """Return the folder of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train(make(checkpoint, folder), folder / "run")
    report(folder / "run", [folder / "run"])
    return folder


@pytest.mark.slow
def test_a_run_plays_partial_histories_and_is_evaluated(whole):
    rows = kept(whole / "run")
    assert not [name for name in rows[-1] if not metric_table.find(metric_table.TRAIN, name)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert sum(row["buffer/inserted"] for row in rows) > 8
    assert max(row["start_turn"] for row in rows) > 1, "some start in the midst of an episode"
    assert max(row["turns"] for row in rows) > 1
    assert sum(row["buffer/lost"] + row["grading_faults"] + row["grade/crashed"] for row in rows) == 0
    assert max(row["grade/return"] for row in rows) > 0
    evaluation = json.loads((whole / "run/evaluation.json").read_text())["splits"]["test"]
    assert evaluation["k"] == [0, 1]
    chain = evaluation["scaffolds"]["chain"]
    assert set(chain["figures"]) == {"return", "turns", "done", "crashed", "out_of_range", "truncated"}
    assert "Guess a number" in (whole / "run/report/chains.html").read_text()


@pytest.mark.slow
def test_a_run_goes_on_after_its_environment_went_away(whole, checkpoint, tmp_path):
    """Twice, at steps that the undisturbed run has made."""
    steps = [line for line in (whole / "log").read_text().splitlines() if line.startswith("step")]
    config = make(checkpoint, tmp_path, "Gone")
    for after in (len(steps) // 2, len(steps) // 3):
        (tmp_path / "after").write_text(str(after))
        with pytest.raises(UserError, match=r"is not available \(no answer from port 1\); bring it back"):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run/evaluation.json").exists()
    train(config, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(whole / "run")
    read = lambda folder: json.loads((folder / "run/evaluation.json").read_text())["splits"]
    assert read(tmp_path) == read(whole)


@pytest.mark.slow
@pytest.mark.long  # test_openenv_pipeline.py kills one, too
@pytest.mark.timeout(1200)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(whole, checkpoint, tmp_path):
    argument, changes = settings(tmp_path, "Copied")
    kill_and_finish(f"{ROOT / 'configs/multi_turn.py'}:{argument},checkpoint={checkpoint}", changes, tmp_path)
    assert kept(tmp_path / "run") == kept(whole / "run"), "and copies change nothing"


def test_faults_are_told_before_anything_is_compiled(checkpoint, tmp_path):
    config = make(checkpoint, tmp_path, "Random")
    with pytest.raises(UserError, match="is not deterministic"):
        train(config, tmp_path / "run")
    assert not pathlib.Path(tmp_path / "run/train.jsonl").exists()
