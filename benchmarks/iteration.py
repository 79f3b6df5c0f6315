"""Speed of one ExIt iteration on sudoku: fused in one program, with grading on the host, and of its sampler alone.

    python benchmarks/iteration.py
    taskset -c 0 python benchmarks/iteration.py --profile

The variants run in turns for several rounds, each round timing ``run.steps_per_call`` iterations. The bound is the time that
the same matrix products would need at the best rate that this machine reaches on a square float32 product, measured
here; it counts no attention scores, softmax, sampling, sorting or optimiser. Prints a Markdown table of medians and ranges.
With --profile, where the time of the fused iteration goes instead: milliseconds by phase and kind of operation.
"""

import argparse
import collections
import gzip
import json
import pathlib
import re
import runpy
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from exit_jax import domains
from exit_jax.config.parse import validate
from exit_jax.config.schema import Config
from exit_jax.step.device import Constants
from exit_jax.step.program import make_program
from exit_jax.training import train

CONFIG = pathlib.Path(__file__).parents[1] / "configs/sudoku.py"


def read_config(**changes: object) -> Config:
    """Return the config on one device, with the settings that ``changes`` names by their dotted paths."""
    content = runpy.run_path(str(CONFIG))["get_config"]()
    content.update_from_flattened_dict({"run.mesh.data": 1} | changes)
    return validate(content, jax.device_count())


def matmul_flops(config: Config) -> tuple[float, float]:
    """Return floating-point operations of the matrix products of one iteration: sampling, and learning.

    A token costs 2 a parameter forward and 4 backward. A group's prompt is read once, by sampler and learner alike; each of
    its G responses has T - 1 tokens to read.
    """
    domain = domains.make(config.domain_name, config.domain)
    params = make_program(config).init_params(0)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    a = config.algorithm
    num_tokens = a.num_prompts * (domain.prompt_width + a.group_size * (domain.max_tokens - 1))
    return 2.0 * num_params * num_tokens, 6.0 * num_params * num_tokens * a.num_epochs


def peak_flops(size: int = 2048, repeats: int = 10) -> float:
    """Return the best rate of a square float32 product on this machine, operations a second."""
    x = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    secs = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(product(x, x))
        secs.append(time.perf_counter() - started)
    return 2.0 * size**3 / min(secs)


def phase_of(op_name: str) -> str:
    """Return what an operation is part of, by the path that JAX notes for it."""
    if "transpose(jvp" in op_name:
        return "learner, backward"
    if "jvp(" in op_name:
        return "learner, forward"
    return (
        "sampler, a token at a time"
        if "/while/body/closed_call/while/" in op_name
        else "rest, with the sampler's prefill"
    )


def profile(config: Config) -> None:
    """Print milliseconds an iteration by phase, of matrix products and of all else, from a trace of the compiled program."""
    program = make_program(config)
    constants = Constants(train.base_tasks(config, "train"), None)
    state = program.init(program.init_params(0), 0)
    text = program.train.lower(constants, state).compile().as_text()
    operations = dict(re.findall(r'^\s*(?:ROOT )?%([\w.-]+) = .*?op_name="([^"]*)"', text, re.MULTILINE))
    state, _ = jax.block_until_ready(program.train(constants, state))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            jax.block_until_ready(program.train(constants, state))
        trace = json.loads(gzip.decompress(next(pathlib.Path(folder).rglob("perfetto_trace.json.gz")).read_bytes()))
    products, others = collections.Counter(), collections.Counter()
    for event in trace["traceEvents"]:
        name = event.get("name", "")
        if event.get("ph") == "X" and name in operations and not name.startswith(("while", "call", "conditional")):
            kind = products if operations[name].endswith("/dot_general") or name.startswith("dot") else others
            kind[phase_of(operations[name])] += event["dur"] / 1e3 / config.run.steps_per_call
    print("| phase | matrix products ms | all else ms |\n|---|---|---|")
    for phase in sorted(products | others):
        print(f"| {phase} | {products[phase]:.1f} | {others[phase]:.1f} |")
    print(f"| sum | {products.total():.1f} | {others.total():.1f} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="speed of one ExIt iteration")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--profile", action="store_true", help="where the time goes; pin it to one core to have it add up"
    )
    flags = parser.parse_args()
    rounds = flags.rounds
    config = read_config()
    if flags.profile:
        return profile(config)
    hosted_config = read_config(**{"domain.on_host": True, "run.steps_per_call": 1})  # the host is between iterations
    program, hosted = make_program(config), make_program(hosted_config)
    constants = Constants(train.base_tasks(config, "train"), None)
    num_steps = config.run.steps_per_call
    params = program.init_params(0)
    fused_state, host_state = program.init(params, 0), hosted.init(params, 0)

    def host_graded(state):
        for _ in range(num_steps):
            state, metrics = hosted.train(constants, state)
        return state, metrics

    def timed(call, *args):
        started = time.perf_counter()
        value = jax.block_until_ready(call(*args))
        return value, (time.perf_counter() - started) / num_steps

    secs: dict[str, list[float]] = {"fused": [], "graded on the host": [], "sampler": []}
    sampled = 0.0
    for index in range(rounds + 1):  # the first compiles and is not counted
        (fused_state, metrics), fused = timed(program.train, constants, fused_state)
        (host_state, _), on_host = timed(host_graded, host_state)
        instances, key = hosted.steps.select(constants, host_state, ())
        sampler_params = hosted.steps.reshard(constants, host_state.params)
        started = time.perf_counter()
        for _ in range(num_steps):
            jax.block_until_ready(hosted.steps.sample(constants, sampler_params, instances, key))
        alone = (time.perf_counter() - started) / num_steps
        if index:
            for name, value in zip(secs, (fused, on_host, alone)):
                secs[name].append(value)
            sampled = float(metrics["response_length"].mean())

    rate = peak_flops()
    sampling, learning = matmul_flops(config)
    num_rollouts = config.algorithm.num_prompts * config.algorithm.group_size
    print(f"{num_rollouts} rollouts an iteration; {rate / 1e9:.0f} GFLOP/s measured peak\n")
    print("| what | ms (min-max) | 1/s | matmul bound ms | share of bound |\n|---|---|---|---|---|")
    for name, values in secs.items():
        median = statistics.median(values)
        bound = (sampling if name == "sampler" else sampling + learning) / rate
        spread = f"{1e3 * median:.1f} ({1e3 * min(values):.1f}-{1e3 * max(values):.1f})"
        print(f"| {name} | {spread} | {1 / median:.2f} | {1e3 * bound:.1f} | {bound / median:.0%} |")
    ratio = statistics.median(b / a for a, b in zip(secs["fused"], secs["graded on the host"]))
    print(f"\ngrading on the host costs {ratio:.2f} times the fused iteration (median of pairs)")
    print(f"sampler: {num_rollouts * sampled / statistics.median(secs['sampler']):.0f} tokens/s")


if __name__ == "__main__":
    main()
