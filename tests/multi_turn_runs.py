"""Runs of configs/multi_turn.py that are small enough for tests: their settings, a checkpoint, a run that is killed."""

import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from small import LLAMA, ROOT, random_params

from exit_jax.domains.text import tokenizer
from exit_jax.policy.hf.export import export
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


def says_digits(folder: pathlib.Path) -> pathlib.Path:
    """Return a Hugging Face folder of a Qwen2 that mostly says a digit or two.

    The first component of every embedding is large, and the output rows of digits and of the stop token read it: so these are
    likely whatever came before, and the rest is random.
    """
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


def kept(workdir):
    rows = read_jsonl(workdir / "train.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/") and v == v} for row in rows]


def kill_and_finish(config: str, changes: dict, folder: pathlib.Path) -> None:
    """Run a config in ``folder``/run, kill it three times at random moments after one more iteration, then let it end."""
    overrides = [f"--config.{name}={value}" for name, value in changes.items()]
    workdir = folder / "run"
    command = [sys.executable, "-m", "exit_jax.main", "--config", config, "--workdir", str(workdir), *overrides]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    count = lambda: (workdir / "train.jsonl").read_bytes().count(b"\n") if (workdir / "train.jsonl").exists() else 0
    rng, log = random.Random(0), folder / "train.log"
    for _ in range(3):
        before = count()
        with log.open("w") as file:
            process = subprocess.Popen(command, env=env, cwd=folder, stdout=file, stderr=file)
        while process.poll() is None:
            if count() > before:
                time.sleep(rng.random())
                process.send_signal(signal.SIGKILL)
            time.sleep(0.05)
        process.wait()
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
