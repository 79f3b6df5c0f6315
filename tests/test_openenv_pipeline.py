"""A run on a real server of OpenEnv goes on to the same bits after the server was killed, and with one session for all."""

import json
import runpy
import threading
import time

import jax
import pytest
from multi_turn_runs import SETTINGS, kept, kill_and_finish, says_digits
from openenv_process import Server
from small import ROOT

from exit_jax.config.parse import validate
from exit_jax.errors import UserError
from exit_jax.run import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def packages(require_parity):
    require_parity("websockets", "openenv", "fastapi", "fastmcp", "uvicorn")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return says_digits(tmp_path_factory.mktemp("qwen") / "checkpoint")


def settings(checkpoint, folder, server, name="guess"):
    changes = {
        "domain.data_dir": str(folder / "data"),
        "domain.environment_args": ("wait_secs=1",),
        "domain.max_instances": 4,
        "domain.reward_range": (-0.4, 1.0),
    }
    return f"environment=openenv:{server.url(name)},checkpoint={checkpoint}", SETTINGS | changes


def make(checkpoint, folder, server, name="guess"):
    argument, changes = settings(checkpoint, folder, server, name)
    found = runpy.run_path(str(ROOT / "configs/multi_turn.py"))["get_config"](argument)
    found.update_from_flattened_dict(changes)
    return validate(found, jax.device_count())


def evaluation(folder):
    return json.loads((folder / "run/evaluation.json").read_text())["splits"]


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """Return the folder of a run that nothing has disturbed."""
    folder, server = tmp_path_factory.mktemp("whole"), Server()
    train(make(checkpoint, folder, server), folder / "run")
    server.kill()
    return folder


def test_a_run_plays_on_the_server(whole):
    rows = kept(whole / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert max(row["grade/return"] for row in rows) > 0
    assert sum(row["grading_faults"] + row["grade/crashed"] for row in rows) == 0


def test_a_run_goes_on_after_its_server_was_killed(whole, checkpoint, tmp_path):
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
        train(config, tmp_path / "run")
    thread.join()
    again = Server(server.port)
    train(config, tmp_path / "run")
    again.kill()
    assert kept(tmp_path / "run") == kept(whole / "run")
    assert evaluation(tmp_path) == evaluation(whole)


@pytest.mark.timeout(1200)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(whole, checkpoint, tmp_path):
    server = Server()
    argument, changes = settings(checkpoint, tmp_path, server)
    kill_and_finish(f"{ROOT / 'configs/multi_turn.py'}:{argument}", changes, tmp_path)
    server.kill()
    assert kept(tmp_path / "run") == kept(whole / "run")
    assert evaluation(tmp_path) == evaluation(whole)


def test_a_server_of_one_session_plays_the_same(whole, checkpoint, tmp_path):
    server = Server()
    train(make(checkpoint, tmp_path, server, "alone"), tmp_path / "run")
    server.kill()
    assert kept(tmp_path / "run") == kept(whole / "run")
    assert evaluation(tmp_path) == evaluation(whole)
