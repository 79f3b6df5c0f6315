"""The run of configs/multi_turn.py from end to end on a small random Qwen2: it resumes, also after a server went away."""

import dataclasses
import json
import os
import pathlib
import random
import runpy
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from small import LLAMA, ROOT, random_params

from exit_jax.config.parse import validate
from exit_jax.domains.text import tokenizer
from exit_jax.errors import UserError
from exit_jax.policy.hf.export import export
from exit_jax.report import report
from exit_jax.run import train
from exit_jax.workdir import metric_table
from exit_jax.workdir.metrics import read_jsonl

SETTINGS = {
    "domain.num_train": 16,
    "domain.num_test": 4,
    "domain.num_workers": 1,
    "domain.max_tokens": 6,
    "domain.max_observation_tokens": 24,
    "domain.max_transcript_tokens": 96,
    "domain.max_turns": 4,
    "domain.improve": "Better than {solution}?",
    "domain.diverge": "Other than {solution}?",
    "policy.dtype": "float32",
    "policy.remat": "none",
    "policy.decode_stages": 1,
    "algorithm.num_prompts": 4,
    "algorithm.group_size": 2,
    "algorithm.buffer_size": 32,
    "algorithm.min_buffer_size": 4,
    "algorithm.selection_prob": 1.0,
    "algorithm.num_epochs": 1,
    "eval.from_checkpoint": False,
    "eval.steps": (0, 1),
    "eval.batch_size": 4,
    "run.num_iterations": 4,
    "run.checkpoint_every": 1,
    "run.num_microbatches": 1,
    "run.token_chunk": 64,
    "run.export_dtype": "float32",
    "run.mesh.data": 1,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a Hugging Face folder of a Qwen2 that mostly says a digit or two.

    The first component of every embedding is large, and the output rows of digits and of the stop token read it: so these are
    likely whatever came before, and the rest is random.
    """
    folder = tmp_path_factory.mktemp("qwen") / "checkpoint"
    trained = tokenizer.train(
        ["Guess a number from 0 to 9. more less right no number Better than Other"], 300, folder.parent
    )
    shape = dataclasses.replace(LLAMA, vocab_size=len(trained) + 8, qkv_bias=True, tie_embeddings=False)
    params = jax.tree.map(np.array, random_params(shape))
    params["embedding"][:, 0] = 4.0
    params["final_norm"]["scale"][0] = 1.0
    rows = params["head"]["kernel"].T  # a view
    rows[:] *= 0.1
    rows[[trained.encode(digit)[0] for digit in "0123456789"], 0] = 2.0
    rows[trained.encode(tokenizer.END)[0], 0] = 3.0
    export(params, shape, folder, None, "float32")
    trained.save_pretrained(folder)
    return folder


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


def kept(workdir):
    rows = read_jsonl(workdir / "train.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/") and v == v} for row in rows]


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
@pytest.mark.timeout(1200)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(whole, checkpoint, tmp_path):
    argument, changes = settings(tmp_path, "Copied")
    overrides = [f"--config.{name}={value}" for name, value in changes.items()]
    config = f"{ROOT / 'configs/multi_turn.py'}:{argument},checkpoint={checkpoint}"
    command = [
        sys.executable,
        "-m",
        "exit_jax.main",
        "--config",
        config,
        "--workdir",
        str(tmp_path / "run"),
        *overrides,
    ]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    rng, log = random.Random(0), tmp_path / "train.log"
    for _ in range(3):
        with log.open("w") as file:
            process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=file, stderr=file)
        before = len(read_jsonl(tmp_path / "run/train.jsonl")) if (tmp_path / "run/train.jsonl").exists() else 0
        while process.poll() is None:  # at a random moment after one more iteration
            path = tmp_path / "run/train.jsonl"
            if path.exists() and path.read_bytes().count(b"\n") > before:
                time.sleep(rng.random())
                process.send_signal(signal.SIGKILL)
            time.sleep(0.05)
        process.wait()
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path / "run") == kept(whole / "run"), "and copies change nothing"


def test_faults_are_told_before_anything_is_compiled(checkpoint, tmp_path):
    config = make(checkpoint, tmp_path, "Random")
    with pytest.raises(UserError, match="is not deterministic"):
        train(config, tmp_path / "run")
    assert not pathlib.Path(tmp_path / "run/train.jsonl").exists()
