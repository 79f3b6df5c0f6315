"""Environment steps a second on BFCL's back-ends: the ground truth of 16 training tasks, 8 episodes of each in lockstep.

    python benchmarks/environments.py [--workers 2] [--tasks 16] [--group 8] [--small]

The first row is the tiny world's (exit_jax/domains/tool_use/tiny/), as many episodes of as many tasks, in this process.

A step is a call or a finished marker; the latter brings both verdicts. "Rebuilt" plays each turn in an environment that has
none of the states, as after a restart. Needs bfcl-eval (exit_jax/domains/tool_use/bfcl.py names the command).
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence

from exit_jax.domains.tool_use.bfcl import BfclEnvironment, load_tasks, split_tasks
from exit_jax.domains.tool_use.episode import Episode, Task
from exit_jax.domains.tool_use.parser import render_call
from exit_jax.domains.tool_use.tiny.tasks import tasks as tiny_tasks
from exit_jax.domains.tool_use.tiny.world import TinyWorld

FINISHED = "<finished>"


def responses(task: Task) -> list[str]:
    """Return the responses that make the true calls."""
    return [
        text for calls in task.truth for text in (*(render_call(call.name, call.arguments) for call in calls), FINISHED)
    ]


def play(
    environment: BfclEnvironment | TinyWorld, tasks: Sequence[Task]
) -> tuple[list[Episode], dict[str, list[float]]]:
    """Play the tasks in lockstep, calls and finished markers apart; return the episodes, and rows and seconds by kind."""
    episodes, scripts = [environment.reset(task.id)[0] for task in tasks], [responses(task) for task in tasks]
    spent = {"call": [0.0, 0.0, 0.0], "verdict": [0.0, 0.0, 0.0]}  # rows, seconds, seconds of this process's processor
    for turn in range(max(map(len, scripts))):
        for kind in spent:
            rows = [
                row
                for row, script in enumerate(scripts)
                if turn < len(script) and (script[turn] == FINISHED) == (kind == "verdict")
            ]
            started, processor = time.perf_counter(), time.process_time()
            results = environment.step_many([(episodes[row], scripts[row][turn]) for row in rows], max_turns=100)
            spent[kind][0] += len(rows)
            spent[kind][1] += time.perf_counter() - started
            spent[kind][2] += time.process_time() - processor
            for row, result in zip(rows, results):
                episodes[row] = result.episode
    return episodes, spent


def measure_tiny(num_tasks: int, group_size: int, num_times: int = 20) -> dict[str, str]:
    """Return the tiny world's row; it is so fast that it is played several times."""
    tasks, rows, processor = tiny_tasks("train", num_tasks, 0), 0.0, 0.0
    for _ in range(num_times):
        world = TinyWorld({task.id: task for task in tasks})
        episodes, spent = play(world, [task for task in tasks for _ in range(group_size)])
        assert all(episode.how == "finished" for episode in episodes)
        rows += sum(parts[0] for parts in spent.values())
        processor += sum(parts[2] for parts in spent.values())
    return {"tiny world: steps a second of processor time": f"{rows / processor:.0f}"}


def memory_mib(pid: int) -> float:
    """Return a process's peak memory in MiB, 0 if /proc is missing."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def measure(tasks: Mapping[str, Task], num_workers: int, num_tasks: int, group_size: int) -> dict[str, str]:
    """Return the table's rows."""
    chosen = [tasks[task_id] for task_id in split_tasks(tasks)["train"][:num_tasks] for _ in range(group_size)]
    environment, fresh = BfclEnvironment(tasks, num_workers), BfclEnvironment(tasks, num_workers)
    play(environment, chosen)  # starts the workers
    replayed = environment.stats.num_replayed
    episodes, spent = play(environment, chosen)
    replayed = environment.stats.num_replayed - replayed
    num_steps = sum(rows for rows, _, _ in spent.values())
    secs, processor = (sum(parts[index] for parts in spent.values()) for index in (1, 2))
    fresh.step_many([(Episode(chosen[0].id), "<finished>")] * (4 * num_workers), max_turns=100)  # starts the workers
    pasts = [(episode.before(turn), responses(tasks[episode.task_id])[turn]) for episode in episodes for turn in range(8)
             if turn < len(episode.turns)]  # fmt: skip
    started = time.perf_counter()
    fresh.step_many(pasts, max_turns=100)
    rebuilt = time.perf_counter() - started
    rows = {
        "workers; episodes in lockstep; their turns": f"{num_workers}; {len(chosen)}; {num_steps:.0f}",
        "steps a second": f"{num_steps / secs:.0f}",
        "calls a second": f"{spent['call'][0] / spent['call'][1]:.0f}",
        "requests judged by both rules a second": f"{spent['verdict'][0] / spent['verdict'][1]:.0f}",
        f"ms a turn of {len(chosen)} episodes that all call": f"{1e3 * len(chosen) * spent['call'][1] / spent['call'][0]:.1f}",
        "processor time of the calling process, ms a step": f"{1e3 * processor / num_steps:.2f}",
        "recorded calls made again, a step": f"{replayed / num_steps:.3f}",
        "turns a second where each state is rebuilt": f"{len(pasts) / rebuilt:.0f}",
        "recorded calls made again, a rebuilt turn": f"{fresh.stats.num_replayed / len(pasts):.2f}",
        "peak of a worker, MiB": f"{max(memory_mib(worker.process.pid) for worker in environment._pool._workers):.0f}",
        "requests fulfilled, of": f"{sum(e.num_fulfilled for e in episodes)}, {sum(len(t.requests) for t in chosen)}",
    }
    environment.close()
    fresh.close()
    return rows


def main() -> int:
    """Parse the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--small", action="store_true", help="so little that it measures nothing")
    flags = parser.parse_args()
    try:
        tasks = load_tasks()
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    num_tasks, group_size = (2, 2) if flags.small else (flags.tasks, flags.group)
    print("| what | value |\n|---|---|")
    rows = measure_tiny(num_tasks, group_size) | measure(tasks, flags.workers, num_tasks, group_size)
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
