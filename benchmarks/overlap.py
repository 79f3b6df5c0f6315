"""What grading on the host costs, with and without sampling batches ahead, and how fast an evaluation runs.

    python -m exit_jax.main --config configs/arithmetic_cpu.py --workdir runs/arithmetic
    python benchmarks/overlap.py --workdir runs/arithmetic [--rounds 5] [--latency 0.5] [--lags 0 1 2]

Goes on from the trained policy of ``--workdir``, so that answers are real ones. Iterations by each lag run in
turns; seconds are medians over all of them (minimum-maximum), and the share waited is that of an iteration in which devices
had nothing to do because of grading. On a CPU the grader's processes take the cores that the "devices" need: ``--latency``
adds a wait to each batch's grading that costs no core, as an accelerator would see it.
"""

import argparse
import dataclasses
import pathlib
import runpy
import statistics
import time

import jax
import numpy as np

from exit_jax import domains
from exit_jax.algorithm.in_flight import Batch, InFlight
from exit_jax.algorithm.iteration import iterate, sample
from exit_jax.config.parse import validate
from exit_jax.evaluation.chains import run_chains
from exit_jax.step.device import Constants
from exit_jax.step.hosted import HostedSteps
from exit_jax.step.program import make_program
from exit_jax.training import train

CONFIG = pathlib.Path(__file__).parents[1] / "configs/arithmetic_cpu.py"
BATCHES = 4  # of a round, each way


def spread(values: list[float], scale: float = 1.0) -> str:
    """Return median (minimum-maximum)."""
    low, middle, high = (scale * f(values) for f in (min, statistics.median, max))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of a run of configs/arithmetic_cpu.py")
    parser.add_argument("--data_dir", default="data/arithmetic")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that grading a batch takes longer")
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1], help="batches sampled ahead, 0 among them")
    args = parser.parse_args()
    content = runpy.run_path(str(CONFIG))["get_config"]()
    content.domain.data_dir = args.data_dir
    content.run.mesh.data = 1
    plain = validate(content, jax.device_count())
    params = train.restore_params(plain, args.workdir.expanduser().absolute())
    if params is None:
        parser.error(f"{args.workdir} holds no checkpoint; train first")

    sides = {}
    for lag in args.lags:
        config = dataclasses.replace(plain, algorithm=dataclasses.replace(plain.algorithm, rollout_lag=lag))
        program, constants = make_program(config), Constants(train.base_tasks(config, "train"), None)
        domain = domains.make(config.domain_name, config.domain)

        def slow(*batch, grade=domain.grade):
            time.sleep(args.latency)
            return grade(*batch)

        domain = dataclasses.replace(domain, grade=slow)
        steps = HostedSteps(config, domain, program.mesh, program.steps, constants, program.early)
        state = program.init(jax.tree.map(jax.numpy.copy, params), 0)
        ahead: list[Batch] = []
        for _ in range(lag):  # as Program.begin, by these steps
            ahead.append(sample(steps, state, tuple(asked for asked, _ in ahead)))
        carry = InFlight.of(state, ahead) if ahead else state
        sides[lag] = [steps, carry]
    secs, waited, graded = ({lag: [] for lag in args.lags} for _ in range(3))
    for index in range(args.rounds + 1):
        for lag, side in sides.items():
            for number in range(lag + BATCHES):
                steps, carry = side
                started = time.perf_counter()
                side[1], metrics = iterate(steps, carry)
                jax.block_until_ready(metrics)
                elapsed = time.perf_counter() - started
                # the first round compiles; the first of a turn were graded while others had theirs
                if index and number >= lag:
                    secs[lag].append(elapsed)
                    waited[lag].append(float(metrics["time/device_wait_secs"]) / elapsed)
                    graded[lag].append(float(metrics["time/grading_secs"]))
    rollouts = plain.algorithm.num_prompts * plain.algorithm.group_size
    print(
        f"{jax.devices()[0].device_kind}, {rollouts} rollouts an iteration, {args.latency} s added to a batch's grading\n"
    )
    print("| rollout_lag | s an iteration | s of grading | devices wait, % |\n|---|---|---|---|")
    for lag in sides:
        print(f"| {lag} | {spread(secs[lag])} | {spread(graded[lag])} | {spread(waited[lag], 100)} |")
    for lag in args.lags[1:]:
        ratio = [a / b for a, b in zip(secs[args.lags[0]], secs[lag])]
        print(f"\na lag of {lag}: {spread(ratio)} times as fast as {args.lags[0]}")

    evaluation = dataclasses.replace(plain.eval, steps=(0, 1, 2, 4), samples_per_task=1)
    config = dataclasses.replace(plain, eval=evaluation)
    run_chains(config, params, "test")
    started = time.perf_counter()
    tokens = int(np.sum(run_chains(config, params, "test").chains.tokens))
    print(f"evaluation: {tokens / (time.perf_counter() - started):,.0f} tokens/s, grading (of known answers) included")


if __name__ == "__main__":
    main()
