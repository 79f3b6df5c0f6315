"""Speed of an ExIt iteration on one's own rows and reward, beside the same tasks and the same grader in the math domain.

    python benchmarks/own_task.py

Both run the policy, prompts and batch of configs/arithmetic_cpu.py on the same exercises. The math domain grades them itself;
the domain ``task`` reads them from a file of JSON lines and calls a reward of a Python file, which calls the same grader. The
two run in turns, so that both meet the same load. Prints a Markdown table of medians and ranges, and the median ratio.
"""

import argparse
import json
import pathlib
import runpy
import statistics
import tempfile
import time
from typing import Any

import jax

from exit_jax import domains
from exit_jax.config import default
from exit_jax.config.parse import validate
from exit_jax.domains import math
from exit_jax.step.device import Constants
from exit_jax.step.program import make_program
from exit_jax.training import train

CONFIG = pathlib.Path(__file__).parents[1] / "configs/arithmetic_cpu.py"
GRADING = pathlib.Path(math.__file__).parent / "grading"
REWARD = f"""
import sys

sys.path.insert(0, {str(GRADING)!r})
from worker import grade

from exit_jax.domains.math.grader import extract_answer


def score(completion, answer):
    found = extract_answer(completion)
    return float(bool(found) and grade(found, answer)[0])
"""


def settings(folder: pathlib.Path) -> dict[str, Any]:
    """Return the config of each domain, which agree in all but where rows and grades come from."""
    built_in = runpy.run_path(str(CONFIG))["get_config"]()
    built_in.domain.data_dir = str(folder / "math")
    built_in.warm_start.num_steps, built_in.run.mesh.data, built_in.run.steps_per_call = 0, 1, 1
    made = domains.make("math", validate(built_in, jax.device_count()).domain)
    for split in ("train", "test"):
        rows = [{"prompt": row["request"], "answer": row["gold"]} for row in made.about_tasks(split)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)

    own = default("task", name="own", seed=0)
    for group in ("policy", "algorithm", "optimizer", "warm_start", "run"):
        own[group] = built_in[group]
    for field in ("improve", "diverge", "prompt_width", "max_request_tokens", "max_solution_tokens", "max_tokens"):
        own.domain[field] = built_in.domain[field]
    own.domain.tasks, own.domain.test_tasks = (str(folder / "train.jsonl"),), (str(folder / "test.jsonl"),)
    own.domain.reward = (f"{folder / 'reward.py'}:score",)
    own.domain.data_dir = str(folder / "own")
    (tokenizer,) = (folder / "math").glob("tokenizer-*")
    own.domain.tokenizer = str(tokenizer)
    return {"math": built_in, "one's own": own}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="speed of an iteration on one's own task")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    secs: dict[str, list[float]] = {}
    grading: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for name, content in settings(pathlib.Path(folder)).items():
            config = validate(content, jax.device_count())
            program = make_program(config)
            runs[name] = [
                program,
                Constants(train.base_tasks(config, "train"), None),
                program.init(program.init_params(0), 0),
            ]
        for index in range(rounds + 2):  # the first two compile and start workers, and are not counted
            for name, run in runs.items():
                program, constants, state = run
                started = time.perf_counter()
                run[2], metrics = jax.block_until_ready(program.train(constants, state))
                if index > 1:
                    secs.setdefault(name, []).append(time.perf_counter() - started)
                    grading.setdefault(name, []).append(float(metrics["time/grading_secs"][0]))
    print("| domain | iteration, ms (min-max) | grading, ms |\n|---|---|---|")
    for name, values in secs.items():
        spread = f"{1e3 * statistics.median(values):.0f} ({1e3 * min(values):.0f}-{1e3 * max(values):.0f})"
        print(f"| {name} | {spread} | {1e3 * statistics.median(grading[name]):.0f} |")
    ratios = [own / built_in for built_in, own in zip(secs["math"], secs["one's own"])]
    print(f"\none's own takes {statistics.median(ratios):.3f} times as long (median of {rounds} pairs)")


if __name__ == "__main__":
    main()
