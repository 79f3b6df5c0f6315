"""What the sandbox costs: a trivial script in it, beside the same script as a bare subprocess, round by round.

    python benchmarks/sandbox.py [--rounds 15] [--runs 10] [--workers 2] [--isolation auto] [--small]

A round times the kinds one after the other, so that a machine that is busy with something else slows them all. "None" is the
supervisor with its limits but without bubblewrap. Shown are the median of the rounds and, in brackets, their quartiles. On a
busy machine the processor time, of all child processes, is the better measure.
"""

import argparse
import concurrent.futures
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from exit_jax.sandbox import Job, Limits, Sandbox

CODE = "print('done')"


def bare(folder: str, index: int):
    """Run the script as a plain subprocess would."""
    path = pathlib.Path(folder) / f"{index}.py"
    path.write_text(CODE)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, stdin=subprocess.DEVNULL, check=True)
    assert done.stdout == b"done\n"


def in_sandbox(sandbox: Sandbox, jobs: Sequence[Job]):
    """Run jobs, all of which must end well."""
    results = sandbox.run(jobs)
    assert all(result.status == "ok" for result in results), results[0]


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that an action takes by the clock, and its child processes' seconds of processor time."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    action()
    secs, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return secs, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median and the quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measure(isolation: str, num_rounds: int, num_runs: int, num_workers: int) -> dict[str, str]:
    """Return the table's rows."""
    sandboxes = {name: Sandbox(name, Limits(), num_workers) for name in (isolation, "none")}
    one: dict[str, list[float]] = {name: [] for name in ("bare", *sandboxes)}
    many: dict[str, list[float]] = {name: [] for name in one}
    processor: dict[str, list[float]] = {name: [] for name in one}
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(num_workers) as threads:
        for index in range(num_rounds + 1):
            seconds = {"bare": timed(lambda: [bare(folder, run) for run in range(num_runs)])}
            together = {"bare": timed(lambda: list(threads.map(lambda run: bare(folder, run), range(num_runs))))}
            for name, sandbox in sandboxes.items():
                alone = lambda sandbox=sandbox: [in_sandbox(sandbox, [Job(CODE)]) for _ in range(num_runs)]
                at_once = lambda sandbox=sandbox: in_sandbox(sandbox, [Job(CODE)] * num_runs)
                seconds[name], together[name] = timed(alone), timed(at_once)
            if index:  # the first warms up
                for name in one:
                    one[name].append(1e3 * seconds[name][0] / num_runs)
                    processor[name].append(1e3 * seconds[name][1] / num_runs)
                    many[name].append(num_runs / together[name][0])
        cached = Sandbox(isolation, Limits(), num_workers, pathlib.Path(folder) / "cache")
        jobs = [Job(f"{CODE}  # {index}") for index in range(num_runs)]
        in_sandbox(cached, jobs)
        rates = [num_runs / timed(lambda: in_sandbox(cached, jobs))[0] for _ in range(max(num_rounds, 2))]
    level = sandboxes[isolation].level
    rows = {
        "cores; runs at once; rounds; runs a round": f"{os.cpu_count()}; {cached.num_workers}; {num_rounds}; {num_runs}",
        "ms a run alone, bare subprocess": spread(one["bare"], 1),
        f"ms a run alone, {level}": spread(one[isolation], 1),
        "ms a run alone, none": spread(one["none"], 1),
        f"ms that {level} adds": spread([a - b for a, b in zip(one[isolation], one["bare"])], 1),
        f"times as long, {level}": spread([a / b for a, b in zip(one[isolation], one["bare"])], 2),
        "ms of processor time, bare subprocess": spread(processor["bare"], 1),
        f"ms of processor time, {level}": spread(processor[isolation], 1),
        "ms of processor time, none": spread(processor["none"], 1),
        "runs a second, bare subprocesses": spread(many["bare"], 1),
        f"runs a second, {level}": spread(many[isolation], 1),
        "runs a second, none": spread(many["none"], 1),
        "cached runs a second": spread(rates, 0),
    }
    for sandbox in (*sandboxes.values(), cached):
        sandbox.close()
    return rows


def main() -> int:
    """Parse the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--isolation", default="auto")
    parser.add_argument("--small", action="store_true", help="so little that it measures nothing")
    flags = parser.parse_args()
    num_rounds, num_runs = (2, 2) if flags.small else (flags.rounds, flags.runs)
    rows = measure(flags.isolation, num_rounds, num_runs, flags.workers)
    print("| what | value |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
