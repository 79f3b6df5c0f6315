"""Test that the benchmarks run, at sizes that measure nothing."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(script: str, *command: str) -> list[list[str]]:
    """Return the cells of the last table's rows, without its head."""
    arguments = [sys.executable, str(ROOT / "benchmarks" / script), *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return cells(done.stdout.rpartition("---|\n")[2])


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("| ").split("|")] for row in text.splitlines() if row.startswith("|")]


def tables(script: str, *command: str) -> list[list[list[str]]]:
    """Return the cells of each table's rows, without their heads."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [cells(text)[2:] for text in done.stdout.split("\n\n") if text.startswith("|")]


ROWS = {"prefill": 3, "bound": 3, "stages": 4, "int8": 2, "lora": 4, "update": 2, "skew": 7, "load": 1, "turns": 2}
FAST = ("prefill", "load")


@pytest.mark.parametrize(
    "command", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]
)
def test_benchmarks_of_the_sampler(command):
    rows = run("policy.py", command, "--small")
    assert len(rows) == ROWS[command]
    assert all(any(character.isdigit() for character in row[-1]) for row in rows)


@pytest.mark.slow
def test_benchmark_of_the_methods():
    rows = run("methods.py", "--config", "smoke", "--words", "sec", "turns", "--rounds", "1")
    assert [row[0] for row in rows] == ["sec", "turns"]
    assert float(rows[0][1].split()[0]) > 0
    assert rows[1][1].startswith("not on this domain")


def test_the_task_space_of_a_study(tmp_path):
    """Three unit vectors at right angles are √2 apart, by cosine 1; a seed more has twice the instances and a deeper end."""
    for variant, factor in (("improve", 1), ("exit", 3)):
        for seed in (0, 1):
            folder = tmp_path / variant / f"seed{seed}"
            folder.mkdir(parents=True)
            deep = lambda step, seed=seed: 2.0 + (seed + 1 if step >= 200 else 0)
            rows = [
                {"step": n, "start_depth": deep(n), "distinct_instances": 10 * factor * (seed + 1)} for n in range(300)
            ]
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            embedding = np.eye(3)
            np.savez(
                folder / "instances.npz",
                embedding=embedding,
                start_embedding=2 * embedding,
                start_task=np.array([0, 0, 1]),
            )
    (improve, full), (paired,) = tables("task_space.py", str(tmp_path))
    assert improve[:2] == ["improve", "15.000 ± 7.071"]
    assert improve[2:6] == ["1.000 ± 0.000", "1.414 ± 0.000", "1.000 ± 0.000", "2.828 ± 0.000"]
    assert [improve[6], improve[7]] == ["2.000 ± 0.000", "3.500 ± 0.707"]
    assert full[0] == "exit"
    assert paired[:2] == ["exit - improve", "30 ± 127"]  # 20 and 40; t of one degree of freedom, 12.7 times 14.1 / √2


def test_benchmark_of_the_grader():
    names = [row[0] for row in run("grader.py", "--pairs", "8", "--workers", "1")]
    assert names


@pytest.mark.parametrize("function", ["score", "batch"])
def test_benchmark_of_rewards(function):
    rows = dict(run("rewards.py", "--items", "100", "--call", "0.001", "--limit", "0.3", "--function", function))
    assert rows["lost items"] == rows["accidents"] == "2"


@pytest.mark.slow
def test_benchmark_of_the_competitions(tmp_path):
    (row,) = run("competitions.py", "--data_dir", str(tmp_path), "--only", "sepals")
    constant, *models = [float(cell.split(": ")[1]) for cell in row[4:-1]]
    assert constant < 0.01
    assert len(models) == 5
    assert 0.6 < max(models) < 0.9


@pytest.mark.parity
def test_benchmark_of_the_environments(require_parity):
    require_parity("bfcl_eval")
    fulfilled = run("environments.py", "--small")[-1]
    assert fulfilled[0].startswith("requests fulfilled")


def test_benchmark_of_the_sandbox():
    if shutil.which("bwrap") is None and os.environ.get("EXIT_JAX_REQUIRE_SANDBOX") != "1":
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    rows = run("sandbox.py", "--small")
    assert [row[0] for row in rows][-1] == "cached runs a second"
    assert all(any(character.isdigit() for character in row[1]) for row in rows)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("command", ["generate", "learn"])
def test_benchmarks_against_torch(require_parity, command):
    require_parity("torch", "transformers")
    names = [row[0] for row in run("policy_torch.py", command, "--small")]
    assert any(name.startswith("exit_jax") for name in names)
    assert any(name.startswith("torch") for name in names)


@pytest.mark.slow
@pytest.mark.parity
def test_benchmark_against_trl(require_parity):
    require_parity("torch", "transformers", "tokenizers", "datasets", "trl.trainer.grpo_trainer")
    rows = run("trl_step.py", "--small")
    assert [row[0] for row in rows] == ["exit_jax", "TRL, sdpa", "TRL, eager"]
    assert all(float(cell.split()[0]) > 0 for row in rows for cell in row[1:])


def test_benchmark_of_sudoku_edits(tmp_path):
    """A chain by hand: 2 is forced, 3 is then, 1 is a wrong guess; edits of the wrong grid after it do not count."""
    puzzle = " 1  . | .  . \n .  . | 3  . \n------+------\n .  4 | .  . \n .  . | .  2 "
    first = " 1 (3)| .  . \n . (2)| 3  . \n------+------\n .  4 | .  . \n .  . |(1) 2 "
    second = " 1 (3)|(4) . \n . (2)| 3  . \n------+------\n .  4 | .  . \n .  . |(1) 2 "
    (tmp_path / "chains.jsonl").write_text(json.dumps({"responses": [puzzle, first, second]}) + "\n")
    ((_, *cells),) = run("sudoku_edits.py", "edits", str(tmp_path / "chains.jsonl"))
    assert cells == ["3", "0.33, 1.00", "0.33, 1.00", "0.33, 0.00", "0"]
    assert run("sudoku_edits.py", "singles", "--count", "4") == [[clues, "1.00"] for clues in "4567"]


@pytest.mark.slow
def test_benchmark_of_a_gpu(require_parity, tmp_path):
    """Every section of the script for an accelerator, at toy size on this CPU."""
    require_parity("torch", "trl")
    run("gpu.py", "--small", "--out", str(tmp_path / "gpu.json"))
    found = json.loads((tmp_path / "gpu.json").read_text())
    sections = ("decode", "learn", "copy", "iteration", "transformers", "trl", "vllm")
    assert set(sections) < set(found)
    notes = [row.get("note", "") for name in sections for row in found[name]]
    assert set(notes) <= {"", "not installed"}
    figures = [value for name in sections for row in found[name] for value in row.values() if isinstance(value, float)]
    assert len(figures) > 15
    assert all(value >= 0 for value in figures)
