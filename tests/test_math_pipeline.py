"""The run of configs/math_llama3b.py from end to end on a small random Llama: data, train, resume, evaluate, report, export."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
from small import LLAMA, random_params

from exit_jax.domains.math.sources import SOURCES, TEST_SPLITS
from exit_jax.domains.text import tokenizer
from exit_jax.policy.hf.export import export
from exit_jax.workdir.metrics import read_jsonl

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = {
    "domain.max_request_tokens": 48,
    "domain.max_solution_tokens": 12,
    "domain.max_tokens": 12,
    "domain.prompt_width": 512,
    "domain.num_train": 16,
    "domain.num_validation": 4,
    "domain.num_workers": 1,
    "policy.dtype": "float32",
    "policy.remat": "none",
    "algorithm.num_prompts": 4,
    "algorithm.group_size": 2,
    "algorithm.buffer_size": 16,
    "algorithm.min_buffer_size": 4,
    "eval.steps": "(0,1,2)",
    "eval.splits": "('math500','aime_2024')",
    "eval.samples_per_task": 2,
    "eval.batch_size": 8,
    "run.num_iterations": 4,
    "run.checkpoint_every": 2,
    "run.mesh.data": 1,
    "run.mesh.fsdp": 1,
    "run.mesh.tensor": 1,
    "run.num_microbatches": 2,
    "run.prompt_buckets": "(256,384)",
    "run.token_chunk": 4,
    "run.export_dtype": "float32",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a Hugging Face folder: random weights, a tokenizer with a chat template, a generation config."""
    folder = tmp_path_factory.mktemp("llama") / "checkpoint"
    trained = tokenizer.train(["What is 1 + 2? Improve the response.\n\n# Request\n"] * 3, 300, folder.parent)
    shape = dataclasses.replace(LLAMA, vocab_size=len(trained))
    export(random_params(shape), shape, folder, None, "float32")
    trained.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "do_sample": True}))
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with the user's own files of every source, a malformed row in one and a test problem in another."""
    folder = tmp_path_factory.mktemp("files")
    for number, source in enumerate(SOURCES):
        rows = [
            {
                "problem": f"What is {7 * number + i} + {i}?",
                "answer": str(7 * number + 2 * i),
                "solution": "We add.\nDone.",
            }
            for i in range(30)
        ]
        if source.name == "math500":
            rows.append({"problem": "no answer", "answer": ""})
        (folder / f"{source.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(checkpoint, files, data_dir, *args, **changes):
    settings = SETTINGS | {"domain.data_dir": data_dir, "domain.files_dir": files} | changes
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    config = f"{ROOT / 'configs/math_llama3b.py'}:variant=exit,checkpoint={checkpoint}"
    command = [sys.executable, "-m", "exit_jax.main", "--config", config, *map(str, args), *overrides]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=data_dir.parent)


@pytest.mark.slow
def test_from_data_to_an_exported_checkpoint(checkpoint, files, tmp_path):
    data_dir, workdir = tmp_path / "data", tmp_path / "run"
    launch = lambda *args, **changes: run(checkpoint, files, data_dir, *args, **changes)
    early = launch("--workdir", workdir)
    assert early.returncode == 2, early.stderr
    assert "--mode data" in early.stderr

    prepared = launch("--mode", "data")
    assert prepared.returncode == 0, prepared.stderr
    assert "math500" in prepared.stdout

    first = launch("--workdir", workdir, **{"run.num_iterations": 2})
    assert first.returncode == 0, first.stderr
    whole = launch("--workdir", workdir)  # one batch is in flight in the checkpoint that it resumes from
    assert whole.returncode == 0, whole.stderr
    steps = [row["step"] for row in read_jsonl(workdir / "train.jsonl")]
    assert steps == [1, 2, 3, 4]
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert set(evaluation["splits"]) == {"math500", "aime_2024", "mean"}
    assert evaluation["settings"]["temperature"] == 0.6, "that of the checkpoint's generation config"
    assert (workdir / "report/chains.html").exists()
    assert (workdir / "report/accuracy_by_k.png").exists()

    again = launch("--mode", "evaluate", "--workdir", workdir)
    assert again.returncode == 0, again.stderr
    assert json.loads((workdir / "evaluation.json").read_text()) == evaluation

    exported = launch("--mode", "export", "--workdir", workdir)
    assert exported.returncode == 0, exported.stderr
    assert (workdir / "export/model.safetensors").exists()
    assert (workdir / "export/tokenizer.json").exists()


def test_splits_that_are_tested_are_the_papers():
    assert len(TEST_SPLITS) == 7
