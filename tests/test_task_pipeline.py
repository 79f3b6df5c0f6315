"""The run of configs/task.py from end to end on a small random Qwen2.5: rows, rewards, kills, evaluation, report, export."""

import json
import os
import random
import subprocess
import sys
import time

import checkpoints
import pytest
from small import ROOT

from exit_jax.workdir.metrics import read_jsonl

SETTINGS = {
    "domain.tasks": "('sums.jsonl','words.jsonl')",
    "domain.reward": "('my_reward.py:score','my_reward.py:brevity')",
    "domain.reward_weights": "(3.0,1.0)",
    "domain.figures": "('digits',)",
    "domain.test_tasks": "('test_sums.jsonl','test_words.jsonl')",
    "domain.votes": True,
    "domain.max_tokens": 12,
    "domain.max_request_tokens": 32,
    "domain.reward_workers": 1,
    "policy.dtype": "float32",
    "policy.remat": "none",
    "algorithm.num_prompts": 4,
    "algorithm.group_size": 2,
    "algorithm.buffer_size": 16,
    "algorithm.min_buffer_size": 4,
    "eval.steps": "(0,1,2)",
    "eval.samples_per_task": 2,
    "eval.batch_size": 4,
    "run.num_iterations": 6,
    "run.checkpoint_every": 2,
    "run.mesh.data": 1,
    "run.num_microbatches": 2,
    "run.token_chunk": 4,
    "run.export_dtype": "float32",
}
MALFORMED = range(100, 10_000, 199)  # lines of sums.jsonl
REWARD = '''
"""Rewards of both forms; one completion in a few crashes the process that scores it."""

import hashlib
import os


def score(prompt, completion, answer):
    if hashlib.sha256(completion.encode()).digest()[0] < 16:
        os.abort()
    digits = sum(letter.isdigit() for letter in completion)
    feedback = f"{digits} digits" if digits else ""
    found = {"quality": len(set(completion) & set(answer)) / len(set(answer)), "feedback": feedback, "digits": digits}
    return found | {"answer": completion[:1]}


async def brevity(completions, **columns):
    return [1.0 / (1 + len(completion)) for completion in completions]
'''


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoints.random_qwen2(tmp_path_factory.mktemp("qwen") / "checkpoint")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a user's reward and rows: 10,000 lines of JSON, of which 50 are malformed or too
    long and three are tested on, and few-shot chats.
    """
    sums = [json.dumps({"prompt": f"What is {i} + {i * i}?", "answer": str(i + i * i)}) for i in range(10_000)]
    for place, line in enumerate(MALFORMED):
        too_long = json.dumps({"prompt": f"{line}, word for word: {'word ' * 99}", "answer": "1"})
        sums[line - 1] = ("{", "[1]", '{"answer": "7"}', "\udcff", too_long)[place % 5]
    few_shot = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say a"}]
    turns = [*few_shot, {"role": "assistant", "content": "a"}]
    words = [{"prompt": [*turns, {"role": "user", "content": f"Say {w}"}], "answer": w} for w in "bcdefghijklm"]
    (tmp_path / "sums.jsonl").write_text("\n".join(sums), errors="surrogateescape")
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, words[3:])))
    (tmp_path / "test_words.jsonl").write_text("\n".join(map(json.dumps, words[:3])))
    (tmp_path / "test_sums.jsonl").write_text("\n".join(sums[:3]))
    (tmp_path / "my_reward.py").write_text(REWARD)
    return tmp_path


def command(checkpoint, workdir, *args, **changes):
    overrides = [f"--config.{name}={value}" for name, value in (SETTINGS | changes).items()]
    config = f"{ROOT / 'configs/task.py'}:checkpoint={checkpoint}"
    return [
        *(sys.executable, "-m", "exit_jax.main", "--config", config, "--workdir", str(workdir)),
        *(*args, *overrides),
    ]


def environment(folder):
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return os.environ | cache | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def run(checkpoint, folder, *args, workdir="run", **changes):
    made = command(checkpoint, folder / workdir, *args, **changes)
    return subprocess.run(made, capture_output=True, text=True, env=environment(folder), cwd=folder)


def rows_of(workdir):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_jsonl(workdir / "train.jsonl")]


@pytest.mark.slow
def test_from_rows_to_an_exported_checkpoint(checkpoint, folder):
    whole = run(checkpoint, folder)
    assert whole.returncode == 0, whole.stderr
    assert "left out: 43 rows (3 in train and in test; 10 not JSON" in whole.stderr
    assert "of train are longer than domain.max_request_tokens = 32 and are left out" in whole.stderr
    left_out = read_jsonl(folder / "data/task/left_out.jsonl")
    assert sorted(row["place"] for row in left_out) == sorted(f"sums.jsonl:{line}" for line in (1, 2, 3, *MALFORMED))
    rows = rows_of(folder / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["finite_logits"] == 1.0
    assert any(row["grade/reward_faults"] > 0.0 for row in rows), "some completions crash the process that scores them"
    assert {row["kind"] for row in read_jsonl(folder / "data/task/ungraded.jsonl")} == {"died"}
    assert all(row["grade/ungraded"] < 1.0 and row["quality"] > 0.0 for row in rows)
    evaluation = json.loads((folder / "run/evaluation.json").read_text())
    by_source = evaluation["splits"]["test"]["scaffolds"]["chain"]["by_category"]["source"]
    assert {name: row["num_tasks"] for name, row in by_source.items()} == {"test_sums": 3, "test_words": 3}
    assert (folder / "run/report/chains.html").exists()
    assert (folder / "run/report/accuracy_by_k.png").exists()

    again = run(checkpoint, folder, "--mode", "evaluate")
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "run/evaluation.json").read_text()) == evaluation

    exported = run(checkpoint, folder, "--mode", "export")
    assert exported.returncode == 0, exported.stderr
    assert (folder / "run/export/model.safetensors").exists()

    (folder / "my_reward.py").write_text(REWARD + "\n")
    edited = run(checkpoint, folder)
    assert edited.returncode == 2
    assert "my_reward.py" in edited.stderr


@pytest.mark.slow
def test_killed_runs_end_where_one_run_ends(checkpoint, folder):
    """SIGKILL at random moments while a reward of the user's scores, then to the end: all equals a single run's."""
    whole = run(checkpoint, folder)
    assert whole.returncode == 0, whole.stderr
    (folder / "data/task/ungraded.jsonl").unlink()  # what died is found out anew
    rng, broken = random.Random(0), folder / "broken"
    for _ in range(3):
        process = subprocess.Popen(
            command(checkpoint, broken), env=environment(folder), cwd=folder, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (broken / "train.jsonl").exists():
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 4.0))
        process.kill()
        process.wait()
    last = run(checkpoint, folder, workdir="broken")
    assert last.returncode == 0, last.stderr
    assert rows_of(broken) == rows_of(folder / "run")
    for file in ("evaluation.json", "answers/test.jsonl"):
        assert (broken / file).read_text() == (folder / "run" / file).read_text()


FAULTS = {
    "no such file": ({"domain.tasks": "('sum.jsonl','words.jsonl')"}, "sum.jsonl"),
    "no such column": ({"domain.prompt_column": "promt"}, "promt"),
    "no such function": ({"domain.reward": "('my_reward.py:scor',)"}, "scor"),
    "a reward that raises at import": ({"domain.reward": "('raises.py:score',)"}, "ZeroDivisionError"),
    "a wrong signature": ({"domain.reward": "('wrong.py:score',)"}, "anwser"),
    "NaN": ({"domain.reward": "('returns.py:nan',)"}, "the reward returns.py:nan fails on all of 4 completions"),
    "a word": ({"domain.reward": "('returns.py:word',)"}, "'good'"),
    "a prompt that never fits": ({"domain.max_request_tokens": 2}, "domain.max_request_tokens = 2; raise it"),
    "an empty file": ({"domain.tasks": "('empty.jsonl',)"}, "empty.jsonl"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_one_clear_error_before_compile(checkpoint, folder, name):
    changes, said = FAULTS[name]
    (folder / "raises.py").write_text("1 / 0\n")
    (folder / "wrong.py").write_text("def score(prompt, completion, anwser):\n    return 0.0\n")
    (folder / "returns.py").write_text(
        "def nan(completion):\n    return float('nan')\n\n\ndef word(completion):\n    return 'good'\n"
    )
    (folder / "empty.jsonl").write_text("")
    if "domain.reward" in changes:
        changes = changes | {"domain.reward_weights": "()"}
    done = run(checkpoint, folder, **changes)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "xla").exists(), "nothing is compiled"
