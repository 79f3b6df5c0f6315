"""Runs in a bucket of Google's: gcsfs, orbax and tensorstore as on a TPU VM, against an emulator of its service."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from exit_jax.workdir.metrics import read_jsonl

emulator = pytest.importorskip("gcp_storage_emulator.server")
pytest.importorskip("gcsfs")
pytestmark = pytest.mark.slow

URL = "gs://bucket/runs/mine"
FLAGS = ("checkpoint_every=5", "steps_per_call=5", "trackers=()")


@pytest.fixture
def environment(tmp_path):
    """Serve an empty bucket; yields the environment of a machine that writes to it, by its name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    url = f"http://127.0.0.1:{port}"
    stored = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_DISABLE": "1",
    }
    yield lambda machine: os.environ | stored | {"XDG_CACHE_HOME": str(tmp_path / machine)}
    server.stop()


def start(environment, workdir, log, mode="train"):
    flags = [f"--config.run.{flag}" for flag in FLAGS]
    command = [sys.executable, "-m", "exit_jax.main", "--config", "tests/tiny_sudoku.py", "--workdir", str(workdir)]
    return subprocess.Popen(  # to a file: a pipe that no one reads would stop it
        [*command, "--mode", mode, *flags], env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT
    )


def finish(environment, workdir, log, mode="train"):
    process = start(environment, workdir, log, mode)
    assert process.wait(timeout=500) == 0, log.read_text()
    return log.read_text()


def test_a_run_that_was_killed_goes_on_from_the_bucket(environment, tmp_path):
    plain = tmp_path / "plain"
    log = tmp_path / "log"
    finish(environment("none"), plain, log)

    local = tmp_path / "first" / "exit_jax" / "workdirs" / "gs" / "bucket" / "runs" / "mine"
    process = start(environment("first"), URL, log)
    until = time.monotonic() + 400
    while len(read_jsonl(local / "train.jsonl")) < 10 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, log.read_text()

    said = finish(environment("second"), URL, log)
    assert "train 20/20" in said
    resumed = tmp_path / "second" / local.relative_to(tmp_path / "first")
    report = finish(environment("third"), URL, log, "report")
    third = tmp_path / "third" / local.relative_to(tmp_path / "first")
    assert f"report: {third}/report/report.md" in report
    for folder in (resumed, third):
        for name in ("evaluation.json", "chains.jsonl", "buffer_scores.json"):
            assert (folder / name).read_bytes() == (plain / name).read_bytes()
        rows, expected = (
            [
                {name: value for name, value in row.items() if not name.startswith("time/")}
                for row in read_jsonl(at / "train.jsonl")
            ]
            for at in (folder, plain)
        )
        assert rows == expected
    assert json.loads((third / "config.json").read_text())["config"]["run"]["num_iterations"] == 20
