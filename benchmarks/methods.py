"""What each of the field's methods costs an iteration on sudoku, beside plain GRPO: time, temporary memory, checkpoint.

    python benchmarks/methods.py
    python benchmarks/methods.py --words sec refill --rounds 9

In each round a method and plain GRPO run one after the other, ``run.steps_per_call`` iterations each; the ratio is the median
of pairs. Temporary memory is the compiler's figure of the program of these iterations; the checkpoint is the state's size.
Prints a Markdown table.
"""

import argparse
import statistics
import time
from typing import Any

import jax

from exit_jax.config.methods import METHODS
from exit_jax.config.parse import validate
from exit_jax.config.shipped import load
from exit_jax.domains import make
from exit_jax.errors import ConfigError
from exit_jax.step.device import Constants
from exit_jax.step.program import Program, make_program
from exit_jax.step.starts import gold_of
from exit_jax.training import train

PLAIN = "grpo"


def prepare(experiment: str, variant: str) -> tuple[Program, Constants, Any]:
    """Return a variant's program, what it is given, and its first state."""
    name, _, arguments = experiment.partition(":")
    content = load(f"{name}:{arguments}{',' if arguments else ''}variant={variant}")
    content.update_from_flattened_dict({"run.mesh.data": 1})
    config = validate(content, jax.device_count())
    program, domain = make_program(config), make(config.domain_name, config.domain)
    gold = jax.device_put(gold_of(config.algorithm.starts, domain))
    constants = Constants(train.base_tasks(config, "train"), None, gold)
    return program, constants, program.init(program.init_params(0), 0)


def measure(experiment: str, word: str, rounds: int) -> list[str]:
    """Return a row of the table."""
    runs = {variant: prepare(experiment, variant) for variant in (PLAIN, f"{PLAIN}-{word}")}
    secs: dict[str, list[float]] = {variant: [] for variant in runs}
    for index in range(rounds + 1):  # the first compiles and is not counted
        for variant, (program, constants, state) in runs.items():
            started = time.perf_counter()
            state, _ = jax.block_until_ready(program.train(constants, state))
            runs[variant] = program, constants, state
            if index:
                secs[variant].append(time.perf_counter() - started)
    sizes = {variant: sum(leaf.nbytes for leaf in jax.tree.leaves(run[2])) / 1e6 for variant, run in runs.items()}
    memory = {
        variant: program.train.lower(constants, state).compile().memory_analysis().temp_size_in_bytes / 1e6  # type: ignore[attr-defined]
        for variant, (program, constants, state) in runs.items()
    }
    ratios = [own / plain for plain, own in zip(secs[PLAIN], secs[f"{PLAIN}-{word}"], strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    more = [f"{table[f'{PLAIN}-{word}'] - table[PLAIN]:+.2f}" for table in (memory, sizes)]
    return [word, spread, *more]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="cost of the field's methods")
    parser.add_argument("--config", default="sudoku")
    parser.add_argument("--words", nargs="*", default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print("| method | time of an iteration / plain GRPO's | temporary memory, MB | checkpoint, MB |\n|---|---|---|---|")
    for word in args.words:
        try:
            print("| " + " | ".join(measure(args.config, word, args.rounds)) + " |", flush=True)
        except (ConfigError, ValueError) as error:
            print(f"| {word} | not on this domain: {str(error)[:80]} | | |", flush=True)


if __name__ == "__main__":
    main()
