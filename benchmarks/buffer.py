"""Insert into and sample from the task buffer, against jaxued's LevelSampler, in one process and in turns.

    pip install -e ".[benchmark]" && python benchmarks/buffer.py

Both hold N histories of 1024 tokens with a score each, take 64 candidates at once and draw 64 instances with
replacement by score: P(i) ∝ exp(κ S_i) here, by rank there, which is the nearest that jaxued has; staleness 0.
Both calls are jitted with the buffer donated and timed to the end of the computation. Prints a Markdown table: medians over
the rounds, and the median of the paired ratios with its range.
"""

import argparse
import dataclasses
import statistics
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

setattr(jax, "tree_map", jax.tree_util.tree_map)  # noqa: B010 - jaxued 0.0.1 uses the name of an older JAX

from jaxued.level_sampler import LevelSampler  # pyright: ignore[reportMissingImports]

from exit_jax.algorithm import buffer as buffers
from exit_jax.algorithm.buffer_draws import softmax
from exit_jax.types import NO_ID, History

NUM_CANDIDATES, NUM_DRAWS, NUM_TOKENS = 64, 64, 1024


SETTINGS: Any = types.SimpleNamespace(score_temperature=20.0, selection_staleness=0.0)  # all that the draw reads


def candidates(rng) -> tuple[History, jax.Array]:
    """Return 64 random histories and their scores."""
    zero = jnp.zeros(NUM_CANDIDATES, jnp.int32)
    tokens = jnp.asarray(rng.integers(1, 1000, (NUM_CANDIDATES, NUM_TOKENS)), jnp.int32)
    lengths = jnp.broadcast_to(jnp.array([256, 256, 256, 256]), (NUM_CANDIDATES, 4))
    history = History(tokens, lengths, zero + NO_ID, zero, zero, zero, zero.astype(jnp.float32), zero, zero)
    return history, jnp.asarray(rng.random(NUM_CANDIDATES), jnp.float32)


def ours(size: int):
    """Return (state, insert, sample) of exit_jax."""

    def insert(state, history, score):
        state, ids = buffers.assign_ids(state, jnp.ones(NUM_CANDIDATES, bool))
        return buffers.insert(state, dataclasses.replace(history, id=ids), score, jnp.zeros(NUM_CANDIDATES, jnp.int32))[
            0
        ]

    def sample(state, key):
        return jax.tree.map(lambda x: x[softmax(SETTINGS, state, jnp.int32(0), key, NUM_DRAWS)], state.history)

    return buffers.create(size, NUM_TOKENS), jax.jit(insert, donate_argnums=0), jax.jit(sample)


def theirs(size: int):
    """Return (state, insert, sample) of jaxued, with the same history as the level."""
    sampler = LevelSampler(size, staleness_coeff=0.0, prioritization="rank")
    history, _ = candidates(np.random.default_rng(0))
    state = sampler.initialize(jax.tree.map(lambda x: x[0], history))
    insert = jax.jit(lambda state, history, score: sampler.insert_batch(state, history, score)[0], donate_argnums=0)

    def sample(state, key):
        return sampler.sample_replay_levels(state, key, NUM_DRAWS)[1][1]

    return state, insert, jax.jit(sample)


def timed(call, *args):
    """Return the call's value and its seconds."""
    started = time.perf_counter()
    value = jax.block_until_ready(call(*args))
    return value, time.perf_counter() - started


def measure(size: int, rounds: int) -> dict[str, list[float]]:
    """Time both in turns: insert and sample seconds a round, after the buffers are full and the calls compiled."""
    rng = np.random.default_rng(size)
    rivals = {"ours": ours(size), "jaxued": theirs(size)}
    states = {name: rival[0] for name, rival in rivals.items()}
    for name, (_, insert, sample) in rivals.items():
        for _ in range(size // NUM_CANDIDATES + 1):
            states[name] = insert(states[name], *candidates(rng))
        jax.block_until_ready(sample(states[name], jax.random.key(0)))
    secs: dict[str, list[float]] = {f"{name} {what}": [] for name in rivals for what in ("insert", "sample")}
    for index in range(rounds):
        batch = jax.block_until_ready(candidates(rng))
        for name, (_, insert, sample) in rivals.items():
            states[name], insert_secs = timed(insert, states[name], *batch)
            _, sample_secs = timed(sample, states[name], jax.random.key(index))
            secs[f"{name} insert"].append(insert_secs)
            secs[f"{name} sample"].append(sample_secs)
    return secs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="task buffer against jaxued")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 16384])
    arguments = parser.parse_args()
    print("| N | what | exit_jax ms | jaxued ms | ratio (min-max) |\n|---|---|---|---|---|")
    for size in arguments.sizes:
        secs = measure(size, arguments.rounds)
        for what in ("insert", "sample"):
            mine, other = secs[f"ours {what}"], secs[f"jaxued {what}"]
            ratios = [b / a for a, b in zip(mine, other)]
            print(
                f"| {size} | {what} | {1e3 * statistics.median(mine):.2f} | {1e3 * statistics.median(other):.2f} "
                f"| {statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f}) |"
            )


if __name__ == "__main__":
    main()
