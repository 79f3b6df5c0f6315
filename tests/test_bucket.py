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


def start(environment, workdir, mode="train"):
    flags = [f"--config.run.{flag}" for flag in FLAGS]
    command = [sys.executable, "-m", "exit_jax.main", "--config", "tests/tiny_sudoku.py", "--workdir", str(workdir)]
    return subprocess.Popen(
        [*command, "--mode", mode, *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return said


def test_a_run_that_was_killed_goes_on_from_the_bucket(environment, tmp_path):
    plain = tmp_path / "plain"
    finish(start(environment("none"), plain))

    local = tmp_path / "first" / "exit_jax" / "workdirs" / "gs" / "bucket" / "runs" / "mine"
    process = start(environment("first"), URL)
    until = time.monotonic() + 400
    while len(read_jsonl(local / "train.jsonl")) < 10 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    said = finish(start(environment("second"), URL))
    assert "train 20/20" in said
    resumed = tmp_path / "second" / local.relative_to(tmp_path / "first")
    report = finish(start(environment("third"), URL, "report"))
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
