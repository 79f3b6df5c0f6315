"""The run of configs/gym.py from end to end on a small random Qwen2: tasks, train, resume, evaluate, report, export."""

import json
import os
import subprocess
import sys

import checkpoints
import pytest
from small import ROOT

from exit_jax.workdir.metrics import read_jsonl

if os.environ.get("EXIT_JAX_REQUIRE_PARITY") != "1":
    pytest.importorskip("reasoning_gym", reason='needs pip install -e ".[gym]"')
SETTINGS = {
    "domain.max_request_tokens": 160,
    "domain.max_tokens": 16,
    "domain.max_feedback_tokens": 16,
    "domain.num_train": 12,
    "domain.num_validation": 4,
    "domain.num_test": 6,
    "domain.num_workers": 1,
    "policy.dtype": "float32",
    "policy.remat": "none",
    "algorithm.num_prompts": 4,
    "algorithm.group_size": 2,
    "algorithm.buffer_size": 16,
    "algorithm.min_buffer_size": 4,
    "eval.steps": "(0,1)",
    "eval.samples_per_task": 1,
    "eval.batch_size": 3,
    "run.num_iterations": 4,
    "run.checkpoint_every": 2,
    "run.mesh.data": 1,
    "run.num_microbatches": 2,
    "run.prompt_buckets": "()",
    "run.token_chunk": 8,
    "run.export_dtype": "float32",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoints.random_qwen2(tmp_path_factory.mktemp("qwen") / "checkpoint")


def run(checkpoint, folder, task, *args, **changes):
    settings = SETTINGS | {"domain.data_dir": folder / "data"} | changes
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    config = f"{ROOT / 'configs/gym.py'}:task={task},level=0+1,checkpoint={checkpoint}"
    command = [sys.executable, "-m", "exit_jax.main", "--config", config, *map(str, args), *overrides]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)


def test_a_set_that_there_is_not_is_told_before_anything_is_loaded(checkpoint, tmp_path):
    done = run(checkpoint, tmp_path, "countdwn+gcd", "--workdir", tmp_path / "run")
    assert done.returncode == 2
    assert "'countdwn' is no set of reasoning-gym 0.1.25; did you mean 'countdown'?" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_from_tasks_to_an_exported_checkpoint(checkpoint, tmp_path):
    workdir = tmp_path / "run"
    launch = lambda *args, **changes: run(
        checkpoint, tmp_path, "gcd+spell_backward", "--workdir", workdir, *args, **changes
    )
    first = launch(**{"run.num_iterations": 2})
    assert first.returncode == 0, first.stderr
    made = {path.name: path.read_bytes() for path in (tmp_path / "data").glob("*-*.jsonl")}
    assert {name.split("-")[0] for name in made} == {"gcd", "spell_backward"}
    for name in made:
        (tmp_path / "data" / name).unlink()

    whole = launch()  # one batch is in flight in the checkpoint that it resumes from
    assert whole.returncode == 0, whole.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").glob("*-*.jsonl")} == made
    rows = read_jsonl(workdir / "train.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["finite_logits"] == 1.0
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert set(evaluation["splits"]) == {"gcd", "spell_backward", "mean"}
    by_level = evaluation["splits"]["gcd"]["scaffolds"]["chain"]["by_difficulty"]["level"]
    assert {level: row["num_tasks"] for level, row in by_level.items()} == {"0": 2, "1": 1}
    assert (workdir / "report/chains.html").exists()

    again = launch("--mode", "evaluate")
    assert again.returncode == 0, again.stderr
    assert json.loads((workdir / "evaluation.json").read_text()) == evaluation

    exported = launch("--mode", "export")
    assert exported.returncode == 0, exported.stderr
    assert (workdir / "export/model.safetensors").exists()
