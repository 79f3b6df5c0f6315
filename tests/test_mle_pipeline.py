"""The run of configs/mle_r1_qwen7b.py from end to end, on the embedded competitions and a small random Qwen2."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from small import LLAMA, random_params

from exit_jax.domains.ml_engineering import fragments, prompts
from exit_jax.domains.text import tokenizer
from exit_jax.policy.hf.export import export
from exit_jax.workdir import metric_table
from exit_jax.workdir.metrics import read_jsonl

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = (
    "import os, shutil; shutil.copyfile(os.environ['DATA_DIR'] + '/sample_submission.csv', 'submission.csv')",
    "import numpy as np; print(sample)",
)
SETTINGS = {
    "domain.source": "embedded",
    "domain.preview_chars": 600,
    "domain.prompt_width": 1536,
    "domain.max_goal_tokens": 64,
    "domain.max_request_tokens": 896,
    "domain.max_solution_tokens": 64,
    "domain.max_feedback_tokens": 64,
    "domain.max_tokens": 12,
    "domain.num_workers": 2,
    "policy.dtype": "float32",
    "policy.remat": "none",
    "algorithm.group_size": 2,
    "eval.from_checkpoint": False,
    "eval.splits": "('test',)",
    "eval.steps": "(0,1)",
    "eval.samples_per_task": 1,
    "eval.batch_size": 3,
    "eval.restart_every": 0,
    "run.num_iterations": 4,
    "run.checkpoint_every": 2,
    "run.mesh.data": 1,
    "run.mesh.fsdp": 1,
    "run.mesh.tensor": 1,
    "run.num_microbatches": 2,
    "run.prompt_buckets": "()",
    "run.response_buckets": "()",
    "run.token_chunk": 4,
    "run.export_dtype": "float32",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a Hugging Face folder of a Qwen2 that mostly writes one of two scripts; see tests/test_tools_pipeline.py."""
    if shutil.which("bwrap") is None:
        assert os.environ.get("EXIT_JAX_REQUIRE_SANDBOX") != "1", "bubblewrap is required here, and not installed"
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    folder = tmp_path_factory.mktemp("qwen") / "checkpoint"
    blocks = [f"{fragments.FENCE}{script}\n{fragments.END_FENCE}" for script in SCRIPTS]
    trained = tokenizer.train([*blocks * 50, prompts.BASE, prompts.IMPROVE, prompts.DIVERGE], 1000, folder.parent)
    assert [len(trained.encode(block)) for block in blocks] == [1, 1], "a token each"
    shape = dataclasses.replace(LLAMA, vocab_size=len(trained) + 8, qkv_bias=True, tie_embeddings=False)
    params = jax.tree.map(np.array, random_params(shape))
    params["embedding"][:, 0] = 4.0
    params["final_norm"]["scale"][0] = 1.0
    likely = [trained.encode(text)[0] for text in (*blocks, tokenizer.END)]
    rows = params["head"]["kernel"].T  # a view
    rows[:] *= 0.1
    rows[likely, 0] = 3.0
    export(params, shape, folder, None, "float32")
    trained.save_pretrained(folder)
    return folder


def run(checkpoint, data_dir, *args, **changes):
    settings = SETTINGS | {"domain.data_dir": data_dir, "domain.cache_dir": data_dir / "runs"} | changes
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    config = f"{ROOT / 'configs/mle_r1_qwen7b.py'}:variant=exit,checkpoint={checkpoint}"
    command = [sys.executable, "-m", "exit_jax.main", "--config", config, *map(str, args), *overrides]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=data_dir.parent)


@pytest.mark.slow
def test_scripts_run_resume_and_report(checkpoint, tmp_path):
    data_dir, workdir = tmp_path / "data", tmp_path / "run"
    launch = lambda *args, **changes: run(checkpoint, data_dir, *args, **changes)
    prepared = launch("--mode", "data")
    assert prepared.returncode == 0, prepared.stderr
    assert "cultivars (train): 148 rows to predict, by macro_f1" in prepared.stdout
    first = launch("--workdir", workdir, **{"run.num_iterations": 2})
    assert first.returncode == 0, first.stderr
    whole = launch("--workdir", workdir)
    assert whole.returncode == 0, whole.stderr
    rows = read_jsonl(workdir / "train.jsonl")
    assert not [name for name in rows[-1] if not metric_table.find(metric_table.TRAIN, name)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    total = {name: sum(row[f"grade/{name}"] for row in rows) for name in ("crashed", "cached", "faults", "run_secs")}
    assert total["crashed"] > 0
    assert total["cached"] > 0, "there are but two scripts and three competitions"
    assert total["run_secs"] > 0
    assert total["faults"] + sum(row["grading_faults"] for row in rows) == 0
    assert sum(row["buffer/inserted"] for row in rows) > 3
    evaluation = json.loads((workdir / "evaluation.json").read_text())["splits"]["test"]
    assert evaluation["k"] == [0, 1]
    chain = evaluation["scaffolds"]["chain"]
    assert set(chain["by_task"]) == {"numerals", "sepals", "torn_scans"}
    assert {"cached", "run_secs"}.isdisjoint(chain["notes"]), "a repeated evaluation may differ in them"
    timing = json.loads((workdir / "evaluation_timing.json").read_text())["notes"]["test"]
    assert {kind: set(said) for kind, said in timing.items()} == {kind: {"cached", "run_secs"} for kind in timing}
    chains = (workdir / "report/chains.html").read_text()
    assert "NameError" in chains
    again = launch("--mode", "evaluate", "--workdir", workdir)
    assert again.returncode == 0, again.stderr
    assert json.loads((workdir / "evaluation.json").read_text())["splits"]["test"] == evaluation

    refused = launch("--workdir", tmp_path / "other", **{"domain.max_request_tokens": 50})
    assert refused.returncode == 2, refused.stderr
    assert "has no room for" in refused.stderr
