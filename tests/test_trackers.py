"""Trackers: what they are given, the real trackio and wandb without a network, and one that fails or is missing."""

import json
import pathlib
import time

import numpy as np
import pytest

from exit_jax import run
from exit_jax.config import schema
from exit_jax.errors import ConfigError
from exit_jax.workdir import trackers
from exit_jax.workdir.metrics import MetricsWriter, read_jsonl

ABOUT = {"name": "toy", "variant": "exit", "seed": 3, "algorithm": {"group_size": 4}}


class Noted:
    """A tracker that notes what it is given, and fails at a step."""

    def __init__(self, of, fails_at=None):
        self.of, self.fails_at, self.rows, self.closed = of, fails_at, [], False

    def write(self, step, values):
        if step == self.fails_at:
            raise OSError("the network is gone")
        self.rows.append((step, dict(values)))

    def close(self):
        self.closed = True


@pytest.fixture
def noted(monkeypatch):
    """Return the trackers opened under the names "good" and "bad", of which the latter fails at step 2."""
    opened = []

    def opens(**how):
        return lambda of: opened.append(Noted(of, **how)) or opened[-1]

    monkeypatch.setattr(trackers, "TRACKERS", {"good": opens(), "bad": opens(fails_at=2)})
    return opened


def write(folder: pathlib.Path, names, first, last, step=None):
    writer = MetricsWriter(folder, "train", first - 1 if step is None else step, names, ABOUT)
    for at in range(first, last + 1):
        writer.write(at, {"loss": np.array([at / 4096])}, {"rate": 2.0, "none": float("nan")})
    writer.close()


def test_the_choices_are_the_table():
    assert tuple(trackers.TRACKERS) == schema.TRACKERS


def test_a_tracker_that_fails_is_told_once_and_stops_nothing(noted, tmp_path, caplog):
    write(tmp_path, ("bad", "good"), 1, 4)
    bad, good = noted
    assert [step for step, _ in good.rows] == [1, 2, 3, 4]
    assert good.rows[1][1] == {"loss": 2 / 4096, "rate": 2.0}, "and no null"
    assert good.closed
    assert [step for step, _ in bad.rows] == [1]
    assert not bad.closed
    assert caplog.text.count("bad failed and is switched off, the run goes on: OSError('the network is gone')") == 1
    assert len(read_jsonl(tmp_path / "train.jsonl")) == 4


def test_a_tracker_that_cannot_be_opened_stops_nothing(noted, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "bad", lambda of: 1 / 0)
    write(tmp_path, ("bad", "good"), 1, 2)
    assert len(noted[0].rows) == 2
    assert caplog.text.count("bad failed") == 1


def test_a_resumed_run_is_the_same_to_its_tracker_and_no_row_comes_twice(noted, tmp_path):
    write(tmp_path, ("good",), 1, 7)
    write(tmp_path, ("good",), 5, 5)  # from the checkpoint of 4; killed soon
    write(tmp_path, ("good",), 5, 9)
    assert [[step for step, _ in one.rows] for one in noted] == [[1, 2, 3, 4, 5, 6, 7], [], [8, 9]]
    assert len({one.of.id for one in noted}) == 1
    assert len({one.of.name for one in noted}) == 1
    other = tmp_path / "other"
    other.mkdir()
    write(other, ("good",), 1, 1)
    assert noted[-1].of.id != noted[0].of.id
    assert noted[-1].of.name != noted[0].of.name


def test_a_tracker_that_is_asked_for_later_gets_the_rows_from_there_on(noted, tmp_path):
    write(tmp_path, (), 1, 7)
    write(tmp_path, ("good",), 5, 8)
    assert [step for step, _ in noted[0].rows] == [5, 6, 7, 8]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"id": 3}', '{"id": "x", "written": 3}', '{"id": "x", "written": {"a": "b"}}']
)
def test_a_damaged_id_costs_a_new_run(noted, tmp_path, content):
    (tmp_path / trackers.ID_FILE).write_text(content)
    write(tmp_path, ("good",), 1, 2)
    assert len(noted[0].rows) == 2
    assert json.loads((tmp_path / trackers.ID_FILE).read_text())["id"] == noted[0].of.id


def test_a_missing_package_is_told_before_anything_compiles(monkeypatch, tmp_path):
    from small import tiny_math

    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("exit_jax.training.train.train", lambda *_: pytest.fail("it trains"))
    config = tiny_math(tmp_path, run__trackers=("tensorboard", "wandb"))
    with pytest.raises(ConfigError, match=r'run.trackers asks for wandb.*pip install "exit_jax\[trackers\]"'):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trackio_keeps_a_run_that_is_resumed_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    for first, last in ((1, 3), (3, 5)):
        write(tmp_path, ("trackio",), first, last)
    (name,) = SQLiteStorage.get_runs("toy")
    assert name.startswith("train-exit-seed3-")
    rows = SQLiteStorage.get_logs("toy", name)
    assert [(row["step"], row["loss"], row["rate"]) for row in rows] == [(at, at / 4096, 2.0) for at in range(1, 6)]
    assert SQLiteStorage.get_run_config("toy", name)["algorithm"] == {"group_size": 4}


def test_wandb_writes_below_the_workdir_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for first, last in ((1, 3), (3, 5)):
        write(tmp_path, ("wandb",), first, last)
    run_id = json.loads((tmp_path / trackers.ID_FILE).read_text())["id"]
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))  # by time
    assert [file.name for file in files] == [f"run-{run_id}-train.wandb"] * 2
    losses = [str(at / 4096).encode() for at in range(1, 6)]
    find = lambda: [[loss in file.read_bytes() for loss in losses] for file in files]
    expected = [[True, True, True, False, False], [False, False, False, True, True]]
    deadline = time.monotonic() + 60
    while find() != expected and time.monotonic() < deadline:  # its own process writes them
        time.sleep(0.2)
    assert find() == expected
    assert b"group_size" in files[0].read_bytes()
