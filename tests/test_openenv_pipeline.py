"""A run on a real server of OpenEnv goes on to the same bits after the server was killed, and with one session for all."""

import json
import pathlib
import runpy
import sys
import threading
import time

import jax
import pytest
from small import ROOT
from test_multi_turn_pipeline import SETTINGS, checkpoint, kept  # noqa: F401  # a fixture

from exit_jax.config.parse import validate
from exit_jax.errors import UserError
from exit_jax.run import run_experiment

sys.path.append(str(pathlib.Path(__file__).parent / "domains"))
from test_openenv import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def packages(require_parity):
    require_parity("websockets", "openenv", "fastapi", "fastmcp", "uvicorn")


def make(checkpoint, folder, server, name="guess"):  # noqa: F811
    changes = {
        "domain.data_dir": str(folder / "data"),
        "domain.environment_args": ("wait_secs=1",),
        "domain.max_instances": 4,
        "domain.reward_range": (-0.4, 1.0),
    }
    argument = f"environment=openenv:{server.url(name)},checkpoint={checkpoint}"
    found = runpy.run_path(str(ROOT / "configs/multi_turn.py"))["get_config"](argument)
    found.update_from_flattened_dict(SETTINGS | changes)
    return validate(found, jax.device_count())


def evaluation(folder):
    return json.loads((folder / "run/evaluation.json").read_text())["splits"]


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):  # noqa: F811
    """Return the folder of a run that nothing has disturbed."""
    folder, server = tmp_path_factory.mktemp("whole"), Server()
    run_experiment(make(checkpoint, folder, server), folder / "run")
    server.kill()
    return folder


def test_a_run_plays_on_the_server(whole):
    rows = kept(whole / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert max(row["grade/return"] for row in rows) > 0
    assert sum(row["grading_faults"] + row["grade/crashed"] for row in rows) == 0


def test_a_run_goes_on_after_its_server_was_killed(whole, checkpoint, tmp_path):  # noqa: F811
    server = Server()
    config = make(checkpoint, tmp_path, server)
    path = tmp_path / "run/train.jsonl"

    def kill():
        while not path.exists() or path.read_bytes().count(b"\n") < 2:
            time.sleep(0.05)
        server.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(UserError, match=rf"is not available \({server.url('guess')}: the server is not there"):
        run_experiment(config, tmp_path / "run")
    thread.join()
    again = Server(server.port)
    run_experiment(config, tmp_path / "run")
    again.kill()
    assert kept(tmp_path / "run") == kept(whole / "run")
    assert evaluation(tmp_path) == evaluation(whole)


def test_a_server_of_one_session_plays_the_same(whole, checkpoint, tmp_path):  # noqa: F811
    server = Server()
    run_experiment(make(checkpoint, tmp_path, server, "alone"), tmp_path / "run")
    server.kill()
    assert kept(tmp_path / "run") == kept(whole / "run")
    assert evaluation(tmp_path) == evaluation(whole)
