"""Measure rewards: the overhead of a call, and what a reward costs that hangs on 1% and crashes on 1% of its calls.

    python benchmarks/rewards.py
    python benchmarks/rewards.py --items 4000 --call 0.1 --limit 0.5 --workers 8 --hang wait

A call waits for ``--call`` seconds, as one of a judge does, or computes so long with ``--busy``. A hang computes for ever, or
waits for ever (``--hang wait``). Completions come in batches, one after another, as iterations grade them. "throughput" is that
of the same calls without accidents; "expected" is what hangs alone should leave of it, if each costs its limit and all
workers share them (rewards.py). Prints a Markdown table; exits with 1 if other items were lost than those that hang or crash.
"""

import argparse
import dataclasses
import pathlib
import sys
import tempfile
import time
from typing import Any

from exit_jax.domains.task.rewards import Rewards
from exit_jax.domains.task.settings import TaskConfig
from exit_jax.domains.worker_process import WALL_FACTOR

REWARD = """
import os
import time


def score(completion, call, busy, hang):
    kind = completion.split()[0]
    end = time.perf_counter() + call
    if kind == "hang":
        while hang == "compute":
            pass
        time.sleep(1e6)
    if kind == "crash":
        os.abort()
    if busy:
        while time.perf_counter() < end:
            pass
    elif call:
        time.sleep(call)
    return 1.0


def batch(completions, call, busy, hang):
    return [score(*given) for given in zip(completions, call, busy, hang)]
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """A task, as rewards see it."""

    prompt: str
    columns: dict[str, Any]
    messages: tuple = ()
    place: str = ""
    conversational: bool = False


def completions(num_items: int, accidents: bool) -> list[str]:
    """Return texts of which one in 100 hangs, and another one crashes."""
    kinds = {17: "hang", 71: "crash"} if accidents else {}
    return [f"{kinds.get(number % 100, 'fine')} {number} {accidents}" for number in range(num_items)]


def score_all(rewards: Rewards, row: Row, texts: list[str], batch: int) -> tuple[float, int]:
    """Return the seconds that scoring takes, and how many items are lost."""
    started, lost = time.perf_counter(), 0
    for first in range(0, len(texts), batch):
        part = texts[first : first + batch]
        lost += sum(not one.graded for one in rewards.score([row] * len(part), part))
    return time.perf_counter() - started, lost


def measure(
    num_items: int,
    call_secs: float,
    limit_secs: float,
    workers: int,
    batch: int,
    busy: bool = False,
    hang: str = "compute",
    function: str = "score",
) -> dict[str, Any]:
    """Return figures by name."""
    row = Row("Question?", {"call": call_secs, "busy": busy, "hang": hang})
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "benchmark_reward.py"
        path.write_text(REWARD)
        config = TaskConfig(reward=(f"{path}:{function}",), reward_workers=workers, reward_secs=limit_secs)
        rewards = Rewards(config, None, sorted(row.columns))
        try:
            score_all(rewards, row, [f"fine start {number}" for number in range(8 * workers)], batch)
            clean, _ = score_all(rewards, row, completions(num_items, accidents=False), batch)
            texts = completions(num_items, accidents=True)
            secs, lost = score_all(rewards, row, texts, batch)
            again, _ = score_all(rewards, row, texts, batch)
        finally:
            rewards.close()
    accidents = sum(not text.startswith("fine") for text in texts)
    hangs = sum(text.startswith("hang") for text in texts)
    wait = hangs * limit_secs * (1.0 if hang == "compute" else WALL_FACTOR) / workers
    return {
        "items": num_items,
        "accidents": accidents,
        "lost items": lost,
        "items a second without accidents": f"{num_items / clean:.0f}",
        "overhead of an item (ms)": f"{1e3 * (clean / num_items - call_secs / workers):.2f}",
        "items a second": f"{num_items / secs:.0f}",
        "throughput (%)": f"{100 * clean / secs:.0f}",
        "expected (%)": f"{100 * clean / (clean + wait):.0f}",
        "known items a second": f"{num_items / again:.0f}",
    }


def main() -> int:
    """Measure what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--call", type=float, default=0.05, help="seconds of a call")
    parser.add_argument("--limit", type=float, default=0.5, help="domain.reward_secs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=500, help="completions of an iteration")
    parser.add_argument("--busy", action="store_true", help="calls compute, and do not wait")
    parser.add_argument("--hang", choices=("compute", "wait"), default="compute")
    parser.add_argument("--function", choices=("score", "batch"), default="score")
    flags = parser.parse_args()
    given = (flags.items, flags.call, flags.limit, flags.workers, flags.batch, flags.busy, flags.hang, flags.function)
    figures = measure(*given)
    print("| what | value |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value} |")
    return int(figures["lost items"] != figures["accidents"])


if __name__ == "__main__":
    sys.exit(main())
