"""Test that what honest programs do works inside, or fails at once with a word that says why."""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from exit_jax.sandbox import Job, Result, Sandbox, launch
from exit_jax.sandbox.bwrap import Jail
from exit_jax.sandbox.job import Limits

ROOT = pathlib.Path(__file__).parents[2]
# what multiprocessing starts anew imports the program first
HEAD = """
import asyncio, concurrent.futures, multiprocessing, os, signal, subprocess, sys, time
from multiprocessing import shared_memory

def square(x):
    return x * x

def put(queue, value):
    queue.put(value)

def send(end):
    end.send({"a": 1})
    end.close()

def main():
"""
HABITS = {
    "pool": """
        with multiprocessing.Pool(2) as pool:
            print(sum(pool.map(square, range(5))))
        """,
    "pool of spawned processes": """
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(square, (5,)) + 5)
        """,
    "pool of a server of forks": """
        with multiprocessing.get_context("forkserver").Pool(1) as pool:
            print(pool.apply(square, (5,)) + 5)
        """,
    "duplex pipe": """
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=send, args=(theirs,))
        process.start()
        print(29 + ours.recv()["a"])
        process.join()
        """,
    "queue": """
        queue = multiprocessing.Queue()
        process = multiprocessing.Process(target=put, args=(queue, 30))
        process.start()
        print(queue.get())
        process.join()
        """,
    "manager": """
        with multiprocessing.Manager() as manager:
            values = manager.list([10])
            values.append(20)
            print(sum(values))
        """,
    "futures": """
        with concurrent.futures.ProcessPoolExecutor(2) as executor:
            print(sum(executor.map(square, range(5))))
        """,
    "shared memory": """
        memory = shared_memory.SharedMemory(create=True, size=1 << 20)
        process = multiprocessing.Process(target=memory.buf.__setitem__, args=(1000, 30))
        process.start()
        process.join()
        print(memory.buf[1000])
        memory.close()
        memory.unlink()
        """,
    "values and locks": """
        value = multiprocessing.Value("i", 29)
        with value.get_lock():
            value.value += 1
        print(value.value)
        """,
    "asyncio": """
        async def ask():
            command = [sys.executable, "-c", "print(10)"]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            output, _ = await process.communicate()
            server = await asyncio.start_unix_server(lambda reader, writer: (writer.write(b"20"), writer.close()), "s")
            reader, _ = await asyncio.open_unix_connection("s")
            return int(output) + int(await reader.read())
        print(asyncio.run(ask()))
        """,
    "handler of children's ends": """
        seen = []
        signal.signal(signal.SIGCHLD, lambda *arguments: seen.append(30))
        subprocess.run([sys.executable, "-c", ""], check=True)
        print(seen[0])
        """,
    "database": """
        import sqlite3
        database = sqlite3.connect("base.db")
        database.execute("create table t (a)")
        database.execute("insert into t values (30)")
        database.commit()
        print(*database.execute("select a from t").fetchone())
        """,
    "copies": """
        import shutil
        open("a", "w").write("30")
        shutil.copy2("a", "b")
        shutil.copytree(".", "/tmp/c")
        print(open("/tmp/c/b").read())
        """,
}
PACKAGES = {
    "joblib": """
        from joblib import Parallel, delayed
        for kind in ("loky", "multiprocessing"):
            values = Parallel(2, backend=kind)(delayed(square)(x) for x in range(5))
        print(sum(values))
        """,
    "sklearn": """
        import numpy as np
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.model_selection import cross_val_score
        rows = np.random.default_rng(0).normal(size=(60, 3))
        cross_val_score(RandomForestClassifier(3, n_jobs=2), rows, rows[:, 0] > 0, n_jobs=2)
        print(30)
        """,
    "torch": """
        import torch
        numbers = torch.utils.data.TensorDataset(torch.arange(40.0).reshape(20, 2), torch.arange(20))
        for kind in ("file_descriptor", "file_system"):
            torch.multiprocessing.set_sharing_strategy(kind)
            batches = torch.utils.data.DataLoader(numbers, batch_size=4, num_workers=2, persistent_workers=True)
            total = sum(int(labels.sum()) for _ in range(2) for _, labels in batches)
        queue = torch.multiprocessing.Queue()
        process = torch.multiprocessing.Process(target=put, args=(queue, 10))
        process.start()
        print(queue.get() + total // 19)
        process.join()
        """,
    "polars": """
        import polars
        polars.DataFrame({"a": [10, 20]}).write_csv("a.csv")
        print(polars.scan_csv("a.csv").select(polars.col("a").sum()).collect().item())
        """,
}


def program(body: str) -> str:
    """Return a program as people write it, with what it does in a function."""
    return f'{HEAD}{textwrap.indent(textwrap.dedent(body), "    ")}\nif __name__ == "__main__":\n    main()\n'


@pytest.mark.parametrize("name", HABITS)
def test_habits(isolated, name):
    result = isolated.run([Job(program(HABITS[name]))])[0]
    assert (result.status, result.stdout, result.hint) == ("ok", "30\n", ""), result


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_packages(isolated, name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    limits = dataclasses.replace(isolated.limits, memory_bytes=3 << 30)
    sandbox = Sandbox("auto", limits, num_workers=1)
    result = sandbox.run([Job(program(PACKAGES[name]))])[0]
    sandbox.close()
    assert (result.status, result.stdout, result.hint) == ("ok", "30\n", ""), result


REFUSED = {
    "shared mapping without a file": ("import mmap; mmap.mmap(-1, 4096)", "files in /dev/shm"),
    "file without a name": ("import os; os.memfd_create('x')", "files in /dev/shm"),
    "internet": ("import socket; socket.create_connection(('127.0.0.1', 80), 3)", "there is no network"),
    "names": ("import urllib.request; urllib.request.urlopen('http://example.com')", "there is no network"),
    "datagrams": ("import socket; socket.socketpair(type=socket.SOCK_DGRAM)", "there is no network"),
    "processes": (
        "import os, time\nfor _ in range(40):\n    os.fork() or time.sleep(60)",
        "32 processes and threads at most",
    ),
    "threads": (
        "import threading, time\nfor _ in range(40): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "32 processes and threads at most",
    ),
    "files": ("held = [open('/dev/null') for _ in range(300)]", "256 open files at most"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why_at_once(isolated, name):
    """Processes and threads may also be too many for the supervisor, before the kernel refuses one."""
    code, word = REFUSED[name]
    result = isolated.run([Job(code)])[0]
    assert result.secs < 60
    if result.status == "processes" and name in ("processes", "threads"):
        return
    assert result.status == "crashed"
    assert word in result.hint, result
    assert result.hint.startswith("sandbox: ")
    assert result.stderr.endswith(f"{result.hint}\n")


def test_hints_are_for_what_failed_here():
    jail, limits = Jail("bubblewrap+seccomp", "root"), Limits()
    failed = Result("crashed", "exit status 1", 1, stderr="x\nPermissionError: [Errno 1] Operation not permitted\n")
    told = launch.explained(failed, jail, limits)
    assert told.stderr == f"{failed.stderr}{told.hint}\n"
    for result, other in (
        (dataclasses.replace(failed, stderr="ValueError: 1\n"), jail),
        (dataclasses.replace(failed, status="ok"), jail),
        (failed, Jail("none")),
    ):
        assert launch.explained(result, other, limits) is result


def test_a_wait_for_what_was_refused_is_not_cached(isolated, tmp_path):
    """A program that only sleeps is."""
    sandbox = Sandbox("auto", dataclasses.replace(isolated.limits, wall_secs=3.0), 2, tmp_path)
    waits = """
        import os, time
        try:
            os.memfd_create('x')
        except OSError as error:
            print(error, file=__import__('sys').stderr)
        time.sleep(60)
        """
    jobs = [Job(textwrap.dedent(waits)), Job("import time; time.sleep(60)")]
    first = sandbox.run(jobs)
    again = sandbox.run(jobs)
    sandbox.close()
    assert [result.status for result in (*first, *again)] == ["timeout"] * 4
    assert [bool(result.hint) for result in first] == [True, False]
    assert [result.cached for result in again] == [False, True]


def test_a_trainer_that_ignores_its_children(isolated):
    """Some launchers leave it so; neither bubblewrap nor the standard library then learns how one ended."""
    code = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from exit_jax.sandbox import Job, Sandbox
print(*(result.status for result in Sandbox("auto").run([Job("print(1)"), Job("1 / 0")])))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "ok crashed", done.stderr
