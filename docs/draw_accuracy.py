"""Draws docs/accuracy_by_k.png from the rows of the sudoku's study, and prints the tables and figures of docs/results.md.

    python docs/draw_accuracy.py

The picture carries a hash of its figures, by which a test tells a picture of older rows.
"""

import hashlib
import json
import pathlib

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from exit_jax import study
from exit_jax.report.plots import STEP, STYLE, WIDTH, draw_mean, style
from exit_jax.workdir.markdown import table

DOCS = pathlib.Path(__file__).parent
SETTINGS = {"paper": "training puzzles with 4-7 clues", "control": "with 4-14 clues"}
NAMES = {
    "base": "warm start",
    "grpo": "GRPO",
    "improve": "ExIt, improve",
    "diverge": "ExIt, diverge",
    "exit": "full ExIt",
}
MIN_SEEDS = 5
Results = dict[str, dict[int, dict]]  # variant -> seed -> what evaluation.json holds


def read_all() -> dict[str, Results]:
    """Return the evaluations of each setting whose study has come far enough, of the seeds that all variants have."""
    found = {setting: in_common(read(rows_of(setting))) for setting in SETTINGS if rows_of(setting).exists()}
    return {setting: results for setting, results in found.items() if len(results[study.BASE]) >= MIN_SEEDS}


def rows_of(setting: str) -> pathlib.Path:
    """Return the file of a setting's rows."""
    return DOCS / "studies" / f"sudoku_{setting}.jsonl"


def in_common(results: Results) -> Results:
    """Return what there is of the seeds that all variants have."""
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in results.values())))
    return {name: {seed: by_seed[seed] for seed in seeds} for name, by_seed in results.items()}


def read(file: pathlib.Path) -> Results:
    """Return the evaluations of a study's rows; variants in the order of the ablations, the base policy first."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = {row["variant"] for row in rows}
    variants = [name for name in (study.BASE, *study.VARIANTS) if name in found]
    by_seed = {name: {row["seed"]: row["evaluation"] for row in rows if row["variant"] == name} for name in variants}
    return {name: dict(sorted(seeds.items())) for name, seeds in by_seed.items()}


def curves(results: Results) -> tuple[list[int], dict[str, np.ndarray]]:
    """Return the k, and the accuracies in % [seeds, k] of the variants that have a name, on test."""
    split = next(iter(results[study.BASE].values()))["splits"]["test"]
    accuracy = lambda seeds: [found["splits"]["test"]["scaffolds"]["chain"]["accuracy"] for found in seeds.values()]
    return split["k"], {name: 100 * np.array(accuracy(seeds)) for name, seeds in results.items() if name in NAMES}


def draw(by_setting: dict[str, Results]) -> Figure:
    """Draw accuracy by self-improvement step, a panel for each setting."""
    fig = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    for ax, (setting, results) in zip(
        fig.subplots(1, len(by_setting), sharey=True, squeeze=False)[0], by_setting.items()
    ):
        k, lines = curves(results)
        for name, values in lines.items():
            draw_mean(ax, range(len(k)), values, label=NAMES[name], **style(list(NAMES).index(name)))
        ax.set_xticks(range(len(k)), [str(step) for step in k])
        ax.set(title=f"{setting}: {SETTINGS[setting]}", xlabel=STEP, ylim=(0, 100))
    fig.axes[0].set_ylabel("held-out puzzles solved (%)")
    fig.axes[0].legend(loc="upper left")
    return fig


def digest(by_setting: dict[str, Results]) -> str:
    """Return a hash of what is drawn."""
    figures = [
        {name: values.tolist() for name, values in curves(results)[1].items()} for results in by_setting.values()
    ]
    return hashlib.sha256(json.dumps(figures).encode()).hexdigest()


def gains(results: Results) -> str:
    """Return, for each variant, the accuracy gained from k = 8 to 16 in %, and net corrections by k = 16; both ± 95%."""
    k, lines = curves(results)
    net_of = lambda found: found["splits"]["test"]["scaffolds"]["chain"]["net_corrections"][-1]
    net = {name: np.array([net_of(found) for found in results[name].values()], float) for name in lines}
    said = lambda values: f"{values.mean():+.1f} ± {float(study.half_width(values)):.1f}"
    rows = []
    for name, values in lines.items():
        late = values[:, k.index(16)] - values[:, k.index(8)]
        rows.append(
            f"{name}: gained {said(late)}; net corrections {said(net[name])}, {said(net[name] - net['grpo'])} to GRPO's"
        )
    return "\n".join(rows)


def longest(setting: str) -> str:
    """Return GRPO and diverge over all seeds that these two have: accuracy, what is frozen, and their differences, ± 95%."""
    found = read(rows_of(setting))
    results = in_common({name: found[name] for name in (study.BASE, "grpo", "diverge")})
    last = lambda name, figure: np.array(
        [e["splits"]["test"]["scaffolds"]["chain"][figure][-1] for e in results[name].values()]
    )
    said = lambda values: f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
    rows = [f"{len(results['grpo'])} seeds, mean ± standard deviation, k = 16:"]
    for figure in ("accuracy", "unchanged_wrong", "net_corrections"):
        paired = last("diverge", figure) - last("grpo", figure)
        values = ", ".join(f"{name} {said(last(name, figure))}" for name in results)
        gap = f"{paired.mean():+.3f} ± {float(study.half_width(paired)):.3f} (95%), {paired.min():+.3f} to {paired.max():+.3f}"
        rows.append(f"{figure}: {values}; diverge - GRPO {gap}")
    return "\n".join(rows)


def depth() -> str:
    """Return what the policies of the setting paper come to by k = 64: chains, chains that restart, and the tokens of both."""
    results = in_common(read(DOCS / "studies/sudoku_depth.jsonl"))
    split = next(iter(results[study.BASE].values()))["splits"]["test"]
    k = split["k"]
    rows = []
    for name, found in results.items():
        for scaffold, figure in (("chain", "accuracy"), ("restarts", "best_so_far")):
            of = lambda which, found=found, scaffold=scaffold: np.array(
                [e["splits"]["test"]["scaffolds"][scaffold][which] for e in found.values()], float
            )
            values, tokens = of(figure), of("tokens").mean(0)
            cells = [f"{mean:.3f} ± {std:.3f}" for mean, std in zip(values.mean(0), values.std(0, ddof=1), strict=True)]
            rows.append([f"{name}, {scaffold}", *cells[3:], f"{tokens[k.index(16)]:.0f}, {tokens[-1]:.0f}"])
    accuracy = {
        name: np.array([e["splits"]["test"]["scaffolds"]["chain"]["accuracy"] for e in found.values()])
        for name, found in results.items()
    }
    said = lambda values: f"{values.mean():+.3f} ± {float(study.half_width(values)):.3f}"
    late = [f"{name} {said(values[:, -1] - values[:, k.index(16)])}" for name, values in accuracy.items()]
    above = [f"{name} {said(values[:, -1] - accuracy[study.BASE][:, -1])}" for name, values in accuracy.items()]
    text = table(["", *(f"k={step}" for step in k[3:]), "tokens at 16, 64"], rows)
    return f"{text}\n\ngained from k = 16 to 64: {', '.join(late)}\nabove the warm start at 64: {', '.join(above[1:])}"


def ablations() -> str:
    """Return what one change does to diverge in the setting paper: accuracy and frozen at k = 16, and differences, ± 95%."""
    plain = read(rows_of("paper"))["diverge"]
    rows = [json.loads(line) for line in (DOCS / "studies/sudoku_ablations.jsonl").read_text().splitlines()]
    last = lambda found, figure: found["splits"]["test"]["scaffolds"]["chain"][figure][-1]
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        found = {row["seed"]: row["evaluation"] for row in rows if row["variant"] == variant}
        cells = []
        for figure in ("accuracy", "unchanged_wrong"):
            own = np.array([last(one, figure) for one in found.values()])
            paired = own - np.array([last(plain[seed], figure) for seed in found])
            cells.append(f"{own.mean():.3f} ± {own.std(ddof=1):.3f}")
            cells.append(f"{paired.mean():+.3f} ± {float(study.half_width(paired)):.3f}")
        lines.append([variant, str(len(found)), *cells])
    return table(["", "seeds", "k=16", "minus diverge", "frozen", "minus diverge"], lines)


def main() -> None:
    """Draw the picture of the rows as they are, and print their tables."""
    by_setting = read_all()
    with rc_context(STYLE):
        draw(by_setting).savefig(DOCS / "accuracy_by_k.png", metadata={"Source": digest(by_setting)})
    for setting, results in by_setting.items():
        print(f"# {setting}\n\n{study.markdown(study.over_seeds(results))}\n{gains(results)}\n\n{longest(setting)}\n")
    print(f"# to k = 64\n\n{depth()}\n\n# one change\n\n{ablations()}")


if __name__ == "__main__":
    main()
