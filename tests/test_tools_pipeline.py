"""The run of configs/tools_qwen7b.py from end to end, on BFCL's own tasks and back-ends and a small random Qwen2."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from small import LLAMA, random_params

from exit_jax.domains.text import tokenizer
from exit_jax.domains.tool_use import bfcl
from exit_jax.domains.tool_use.episode import system_prompt
from exit_jax.policy.hf.export import export
from exit_jax.workdir import metric_table
from exit_jax.workdir.metrics import read_jsonl

ROOT = pathlib.Path(__file__).parents[1]
CALLS = ("pwd", "ls", "displayCarStatus")
SETTINGS = {
    "domain.train_split": "tuning",  # to evaluate on "validation", which "train" contains
    "domain.observation_role": "user",
    "domain.prompt_width": 4608,
    "domain.max_context_tokens": 4160,
    "domain.max_request_tokens": 192,
    "domain.max_solution_tokens": 32,
    "domain.max_tokens": 8,
    "domain.max_observation_tokens": 96,
    "domain.max_transcript_tokens": 256,
    "domain.max_turns": 4,
    "domain.test_max_transcript_tokens": 320,
    "domain.test_max_turns": 3,
    "domain.num_workers": 2,
    "policy.dtype": "float32",
    "policy.remat": "none",
    "algorithm.num_prompts": 4,
    "algorithm.group_size": 2,
    "algorithm.buffer_size": 32,
    "algorithm.min_buffer_size": 4,
    "algorithm.selection_prob": 1.0,
    "algorithm.num_epochs": 1,
    "eval.from_checkpoint": False,
    "eval.splits": "('validation',)",
    "eval.steps": "(0,1)",
    "eval.samples_per_task": 1,
    "eval.batch_size": 4,
    "run.num_iterations": 4,
    "run.checkpoint_every": 2,
    "run.mesh.data": 1,
    "run.mesh.fsdp": 1,
    "run.mesh.tensor": 1,
    "run.num_microbatches": 2,
    "run.prompt_buckets": "()",
    "run.response_buckets": "()",
    "run.token_chunk": 64,
    "run.export_dtype": "float32",
}

pytest.importorskip("bfcl_eval", reason=bfcl.INSTALL)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a Hugging Face folder of a Qwen2 that mostly makes calls without arguments, or says that it is finished.

    The first component of every embedding is large, and the output rows of a few tokens read it: so these are likely whatever
    came before, and the rest is random.
    """
    folder = tmp_path_factory.mktemp("qwen") / "checkpoint"
    tasks = list(bfcl.load_tasks().values())
    endings = [f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>' for name in CALLS] + ["<finished>"]
    texts = [system_prompt(task) for task in tasks[::4]]
    trained = tokenizer.train([*endings * 500, *texts], 4000, folder.parent)
    assert [len(trained.encode(text)) for text in endings] == [1] * 4, "a token each"
    # a few more than there are tokens, as Qwen2 has: transformers adds <|endoftext|> of its own
    shape = dataclasses.replace(LLAMA, vocab_size=len(trained) + 8, qkv_bias=True, tie_embeddings=False)
    params = jax.tree.map(np.array, random_params(shape))
    params["embedding"][:, 0] = 4.0
    params["final_norm"]["scale"][0] = 1.0
    rows = params["head"]["kernel"].T  # a view
    rows[:] *= 0.1
    rows[[trained.encode(text)[0] for text in endings], 0] = 3.0
    rows[trained.encode(tokenizer.END)[0], 0] = 3.75  # most responses end within their 8 tokens
    export(params, shape, folder, None, "float32")
    trained.save_pretrained(folder)
    return folder


def run(checkpoint, data_dir, *args, **changes):
    settings = SETTINGS | {"domain.data_dir": data_dir} | changes
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    config = f"{ROOT / 'configs/tools_qwen7b.py'}:variant=exit,checkpoint={checkpoint}"
    command = [sys.executable, "-m", "exit_jax.main", "--config", config, *map(str, args), *overrides]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=data_dir.parent)


@pytest.mark.slow
@pytest.mark.timeout(3000)  # the prompts are as long as BFCL's documents, which takes a CPU a quarter of an hour
def test_partial_histories_resume_k_steps_and_report(checkpoint, tmp_path):
    data_dir, workdir = tmp_path / "data", tmp_path / "run"
    launch = lambda *args, **changes: run(checkpoint, data_dir, *args, **changes)
    first = launch("--workdir", workdir, **{"run.num_iterations": 2, "eval.steps": "(0,)"})
    assert first.returncode == 0, first.stderr
    whole = launch("--workdir", workdir)
    assert whole.returncode == 0, whole.stderr
    rows = read_jsonl(workdir / "train.jsonl")
    assert not [name for name in rows[-1] if not metric_table.find(metric_table.TRAIN, name)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert sum(row["buffer/inserted"] for row in rows) > 8
    assert max(row["start_turn"] for row in rows) > 1, "some start in the midst of an episode"
    assert max(row["turns"] for row in rows) > 1
    assert sum(row["buffer/lost"] + row["grading_faults"] + row["grade/crashed"] for row in rows) == 0
    evaluation = json.loads((workdir / "evaluation.json").read_text())["splits"]["validation"]
    assert evaluation["k"] == [0, 1]
    chain = evaluation["scaffolds"]["chain"]
    assert chain["tokens"][1] > chain["tokens"][0]
    assert set(chain["by_difficulty"]) > {"requests", "GorillaFileSystem"}
    assert "request 1: " in (workdir / "report/chains.html").read_text()
    report = (workdir / "report/report.md").read_text()
    assert "| requests fulfilled |" in report

    refused = launch("--workdir", tmp_path / "other", **{"domain.max_context_tokens": 50})
    assert refused.returncode == 2, refused.stderr
    assert "no task of the split" in refused.stderr
