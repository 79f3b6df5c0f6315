"""Workdirs of made-up but lifelike finished runs of competition math and ML engineering, for tests and to look at reports."""

import json
import pathlib

import numpy as np

KS = [0, 1, 2, 4, 8, 16]
SPLITS = {  # tasks, and the base policy's accuracy
    "math500": (500, 0.42),
    "amc12_2022": (25, 0.14),
    "amc12_2023": (25, 0.12),
    "aime_2024": (30, 0.05),
    "aime_2025": (30, 0.02),
    "minerva": (272, 0.15),
    "olympiadbench_text": (674, 0.13),
}
COMPETITIONS = {  # by split: name, and the score of the base policy
    "train": {"tumours": 0.45, "cultivars": 0.3, "progression": 0.2},
    "test": {"numerals": 0.35, "sepals": 0.15, "torn_scans": 0.1},
}
VARIANTS = {  # what training adds to accuracy, what 16 steps add, the spread of instances
    "base": (0.0, -0.02, 0.0),
    "grpo": (0.05, 0.01, 0.5),
    "curriculum": (0.05, 0.015, 0.6),
    "improve": (0.055, 0.04, 0.8),
    "diverge": (0.055, 0.035, 0.9),
    "exit": (0.06, 0.05, 1.0),
}


def write_run(
    path: pathlib.Path, variant="exit", seed=0, num_rows=120, splits=tuple(SPLITS), num_chains=6
) -> pathlib.Path:
    """Write all files that a finished run leaves in its workdir."""
    rng = np.random.default_rng([seed, *variant.encode()])
    path.mkdir(parents=True)
    config = {"name": "math_llama3b", "variant": variant, "seed": seed, "run": {"num_iterations": num_rows}}
    (path / "config.json").write_text(json.dumps({"config": config, "versions": {"jax": "0.10.2"}}))
    found = {split: evaluation(rng, variant, split) for split in splits}
    if len(found) > 1:
        found["mean"] = mean_of(list(found.values()))
    write_evaluation(path, found)
    with (path / "train.jsonl").open("w") as file:
        file.writelines(json.dumps(row(rng, variant, step)) + "\n" for step in range(1, num_rows + 1))
    with (path / "chains.jsonl").open("w") as file:
        for split in splits:
            file.writelines(json.dumps(chain(seed, split, n)) + "\n" for n in range(num_chains))
    if num_rows:
        (path / "buffer_scores.json").write_text(json.dumps({"score": rng.exponential(0.05, 64).tolist()}))
        np.savez(path / "instances.npz", **instances(rng, VARIANTS[variant][2], num_rows))
    return path


def write_evaluation(path: pathlib.Path, splits: dict[str, dict]) -> None:
    """Write evaluation.json."""
    settings = {"steps": KS, "samples_per_task": 8}
    (path / "evaluation.json").write_text(json.dumps({"format": 2, "settings": settings, "splits": splits}))


def evaluation(rng, variant: str, split: str) -> dict:
    """Return a split's figures as an evaluation gives them for a domain without a sign of being done."""
    num_tasks, start = SPLITS[split]
    gain, climb, _ = VARIANTS[variant]
    noise = np.sqrt(start * (1 - start) / num_tasks / 8)
    rise = 1 - np.exp(-np.array(KS) / 4)
    accuracy = np.clip(start + gain + climb * rise + noise * rng.normal(size=len(KS)), 0.001, 1)
    broken = 0.06 * rise * num_tasks
    net = (accuracy - accuracy[0]) * num_tasks
    rival = np.clip(accuracy[0] + 0.2 * rise, 0, 1)
    chain = {
        "accuracy": accuracy.tolist(),
        "accuracy_se": (np.sqrt(accuracy * (1 - accuracy) / num_tasks)).tolist(),
        "quality": accuracy.tolist(),
        "delta": (accuracy - accuracy[0]).tolist(),
        "net_corrections": net.tolist(),
        "net_corrections_sum": np.round(8 * net).tolist(),
        "corrected": (net + broken).tolist(),
        "broken": broken.tolist(),
        "best_so_far": (accuracy + 0.12 * rise).tolist(),
        "stopped": [None] * len(KS),
        "unchanged_right": [None, *[0.9] * (len(KS) - 1)],
        "unchanged_wrong": [None, *[0.6] * (len(KS) - 1)],
        "by_difficulty": {},
    }
    restarts = {
        "every": 1,
        "best_so_far": rival.tolist(),
        "stopped": [None] * len(KS),
        "majority": (accuracy[0] + 0.06 * rise).tolist(),
    }
    about = {"k": KS, "num_tasks": num_tasks, "samples_per_task": 8}
    return about | {"scaffolds": {"chain": chain, "restarts": restarts}}


def mean_of(splits: list[dict]) -> dict:
    """Return the unweighted mean of splits."""
    sizes, chains = [one["num_tasks"] for one in splits], [one["scaffolds"]["chain"] for one in splits]
    mean: dict = {"stopped": [None] * len(KS)}
    for name in ("accuracy", "quality", "delta", "best_so_far"):
        mean[name] = np.mean([one[name] for one in chains], 0).tolist()
    for name in ("net_corrections", "corrected", "broken"):
        shares = [np.array(one[name]) / size for one, size in zip(chains, sizes)]
        mean[name] = (np.mean(shares, 0) * sum(sizes)).tolist()
    mean["net_corrections_sum"] = np.sum([one["net_corrections_sum"] for one in chains], 0).tolist()
    errors = np.array([one["accuracy_se"] for one in chains])
    mean["accuracy_se"] = (np.sqrt((errors**2).sum(0)) / len(splits)).tolist()
    return {"k": KS, "num_tasks": sum(sizes), "samples_per_task": 8, "scaffolds": {"chain": mean}}


def row(rng, variant: str, step: int) -> dict:
    """Return a row of train.jsonl."""
    plain, done = variant == "grpo", 1 - np.exp(-step / 50)
    noisy = lambda value, spread: float(value + spread * rng.normal())
    return {
        "step": step,
        "reward": noisy(0.3 + 0.2 * done, 0.03),
        "quality/base": noisy(0.3 + 0.15 * done, 0.03),
        "quality/improve": None if plain else noisy(0.35 + 0.2 * done, 0.03),
        "entropy": noisy(0.6 - 0.3 * done, 0.02),
        "response_length": noisy(500 + 100 * done, 20),
        "grad_norm": abs(noisy(0.4, 0.1)),
        "clip_fraction": abs(noisy(0.01, 0.003)),
        "invalid": abs(noisy(0.05 * (1 - done), 0.01)),
        "time/device_wait_share": abs(noisy(0.08, 0.02)),
        "grade/ungraded": 0.0,
        "grade/truncated": abs(noisy(0.02, 0.005)),
        "start_depth": 1.0 if plain else noisy(1 + 2 * done, 0.1),
        "sampled_from_iteration": None if plain else noisy(0.8 * step, 1.0),
        "distinct_instances": 64 * step if plain else 110 * step,
        "share/improve": 0.0 if plain else noisy(0.4 * done, 0.02),
        "task/gold_steps": noisy(6 if plain else 6 + 3 * done, 0.3),
        "buffer/fill": min(1.0, step / 40),
        "buffer/score_median": noisy(0.05, 0.004),
    }


def instances(rng, spread: float, num_rows: int, width: int = 32) -> dict[str, np.ndarray]:
    """Return instances.npz: a cloud around eight themes that widens as training goes on."""
    iteration = np.repeat(np.arange(1, num_rows + 1), 8).astype(np.int32)
    themes = np.random.default_rng(0).normal(size=(8, width))
    cloud = spread * (0.5 + iteration[:, None] / num_rows) * rng.normal(size=(iteration.size, width))
    embedding = themes[rng.integers(0, 8, iteration.size)] + cloud
    zeros = np.zeros_like(iteration)
    return {"iteration": iteration, "step": zeros, "mode": zeros, "embedding": embedding.astype(np.float16)}


def chain(seed: int, split: str, number: int, num_steps: int = 16, lines: int = 8) -> dict:
    """Return a row of chains.jsonl: a solution in LaTeX of which each step rewrites a line, and maybe the answer."""
    rng = np.random.default_rng([seed, number, *split.encode()])
    task = np.random.default_rng([number // 2, *split.encode()])  # two samples of each problem
    a, b, gold = (int(value) for value in task.integers(2, 90, 3))
    request = f"Let $x$ and $y$ be positive integers with $x^2 - {a}y^2 = {b}$ and $\\gcd(x, y) = 1$. "
    request += f"Find the remainder when $x + y$ is divided by {gold + 1}."
    right = rng.random() < 0.3
    steps = [
        f"Step {i + 1}. We substitute $x = {rng.integers(99)}t + {i}$, so that $\\frac{{{a}}}{{{b}}} \\le {rng.integers(99)}$."
        for i in range(lines)
    ]
    quality, answers, responses = [], [], []
    for k in range(num_steps + 1):
        if k and rng.random() < 0.6:
            steps[rng.integers(lines)] = (
                f"But wait: with $t = {k}$ the term $\\sqrt{{{rng.integers(99)}}}$ is no integer, so this case is ruled out."
            )
            right = bool(rng.random() < (0.9 if right else 0.12))
        answer = gold if right else gold + 1 + k % 3
        responses.append("\n".join([*steps, f"Hence the answer is $\\boxed{{{answer}}}$."]))
        quality.append(float(right))
        answers.append(str(answer))
    modes = ["base"] + ["diverge" if number % 3 == 2 and k % 5 == 4 else "improve" for k in range(num_steps)]
    about = {"split": split, "task": number // 2, "sample": number % 2, "request": request, "gold": str(gold)}
    return about | {"quality": quality, "modes": modes, "answers": answers, "responses": responses}


def write_mle_run(path: pathlib.Path, variant="exit", seed=0, num_rows=60, num_chains=4) -> pathlib.Path:
    """Write all files that a finished run of ML engineering leaves: scores within 0 and 1, greedy searches, code."""
    write_run(path, variant, seed, num_rows, splits=("aime_2024",), num_chains=0)
    rng = np.random.default_rng([seed, *variant.encode()])
    config = json.loads((path / "config.json").read_text())
    config["config"]["name"] = "mle_tiny"
    (path / "config.json").write_text(json.dumps(config))
    write_evaluation(path, {split: scored_evaluation(rng, variant, split) for split in COMPETITIONS})
    secs = {split: {"chain": 41.5, "restarts": 38.0, "greedy": 44.5} for split in COMPETITIONS}
    notes = {split: {kind: {"cached": 0.25, "run_secs": 1.5} for kind in kinds} for split, kinds in secs.items()}
    (path / "evaluation_timing.json").write_text(json.dumps({"secs": secs, "notes": notes}))
    with (path / "chains.jsonl").open("w") as file:
        for split in ("train", "test", "test-greedy"):
            file.writelines(json.dumps(script_chain(seed, split, n)) + "\n" for n in range(num_chains))
    if num_rows:
        held = instances(rng, VARIANTS[variant][2], num_rows)
        started = rng.integers(0, 3, held["step"].size).astype(np.int32)
        np.savez(path / "instances.npz", **held, start_task=started, start_embedding=held["embedding"])
    return path


def scored_evaluation(rng, variant: str, split: str) -> dict:
    """Return a split's figures as an evaluation gives them for 16 chains a competition by each of three scaffolds."""
    gain, climb, _ = VARIANTS[variant]
    names, rise = COMPETITIONS[split], 1 - np.exp(-np.array(KS) / 4)
    noise = lambda: 0.01 * rng.normal(size=len(KS))
    by_task: dict[str, dict] = {"chain": {}, "restarts": {}, "greedy": {}}
    for name, start in names.items():
        first = start + 4 * gain + 0.02 * rng.normal()
        search = first + (0.12 + 3 * climb) * rise
        by_task["chain"][name] = {
            "quality": (first + 2 * climb * rise + noise()).tolist(),
            "best_quality": (first + (0.1 + 2 * climb) * rise).tolist(),
        }
        by_task["restarts"][name] = {"best_quality": (first + 0.14 * rise).tolist()}
        by_task["greedy"][name] = {"quality": np.maximum.accumulate(search + noise()).tolist()}
    mean = lambda scaffold, figure: np.mean([one[figure] for one in by_task[scaffold].values()], 0).tolist()
    error = [0.05] * len(KS)
    events = lambda up, down: {
        "improved": [None, *[up] * (len(KS) - 1)],
        "worsened": [None, *(down * np.linspace(1, 1.3, len(KS) - 1)).tolist()],
    }
    plain, crashed = events(0.3 + climb, 0.2), [0.4, 0.3, 0.25, 0.2, 0.2, 0.2]
    net = [None, *(up - down for up, down in zip(plain["improved"][1:], plain["worsened"][1:]))]
    nothing = [0.0] * len(KS)
    chain = {
        **{"accuracy": nothing, "accuracy_se": nothing, "delta": nothing, "best_so_far": nothing},
        **{"net_corrections": nothing, "corrected": nothing, "broken": nothing, "stopped": [None] * len(KS)},
        "net_corrections_sum": nothing,
        **{"quality": mean("chain", "quality"), "quality_se": error, "best_quality": mean("chain", "best_quality")},
        **plain,
        **{"net_gains": net, "net_gains_se": [None, *error[1:]], "notes": {"crashed": crashed}},
        "by_difficulty": {},
    }
    best = mean("restarts", "best_quality")
    restarts = {"every": 1, "best_so_far": nothing, "best_quality": best, "best_quality_se": error}
    greedy = {
        "quality": mean("greedy", "quality"),
        "quality_se": error,
        **events(0.15, 0.5),
        "notes": {"crashed": crashed},
    }
    scaffolds = {"chain": chain, "restarts": restarts, "greedy": greedy}
    for scaffold, entry in scaffolds.items():
        entry["by_task"] = by_task[scaffold]
    return {"k": KS, "num_tasks": len(names), "samples_per_task": 16, "scaffolds": scaffolds}


def script_chain(seed: int, split: str, number: int, num_steps: int = 8) -> dict:
    """Return a row of chains.jsonl: a Python script of which each step changes a line or two, its score and its trace."""
    rng = np.random.default_rng([seed, number, *split.encode()])
    names = list(COMPETITIONS[split.partition("-")[0]])
    lines = [
        "import os",
        "import pandas as pd",
        "from sklearn.linear_model import LogisticRegression",
        "",
        "def main():",
        '    folder = os.environ["DATA_DIR"]',
        '    train = pd.read_csv(os.path.join(folder, "train.csv"))',
        "    model = LogisticRegression(C=1.0)",
        '    model.fit(train.drop(columns=["id", "target"]), train["target"])',
        '    print("score <b>not</b> bold")',
        "",
        "main()",
    ]
    quality, responses, feedback, parents, best = [], [], [], [], 0
    for k in range(num_steps + 1):
        parents.append(best if k else -1)
        lines[7] = (
            f"    model = LogisticRegression(C={rng.choice([0.01, 0.1, 1.0, 10.0])}, max_iter={rng.integers(1, 9)}00)"
        )
        crashed = bool(rng.random() < 0.25)
        lines[8] = lines[8].replace('"target"]', '"tarqet"]') if crashed else lines[8].replace("tarqet", "target")
        quality.append(0.0 if crashed else round(float(rng.uniform(0.3, 0.9)), 4))
        trace = "Traceback (most recent call last):\n  File \"solution.py\", line 9\nKeyError: 'tarqet'"
        feedback.append(trace if crashed else f"The submission scored {quality[-1]:.3f} (accuracy).")
        responses.append("\n".join(lines))
        best = k if quality[k] >= quality[best] else best
    task = number // 2
    about = {
        "split": split,
        "task": task,
        "sample": number % 2,
        "name": names[task % 3],
        "request": f"# {names[task % 3]}",
    }
    about |= {"modes": ["base"] + ["improve"] * num_steps, "feedback": feedback}
    about |= {"from": parents} if split.endswith("greedy") else {}
    return about | {"quality": quality, "responses": responses}
