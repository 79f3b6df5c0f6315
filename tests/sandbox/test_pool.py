"""Test the pool: order, fairness, cores, the cache, faults, and what a killed trainer leaves behind."""

import dataclasses
import errno
import gc
import logging
import marshal
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing

import pytest

from exit_jax.sandbox import Job, Limits, Result, Sandbox, SandboxError, bwrap, launch, levels
from exit_jax.sandbox.cache import Cache, Folders, decode, encode, key_of, versions_of
from exit_jax.sandbox.pool import Task, Turns

ROOT = pathlib.Path(__file__).parents[2]
CLOCK = Job("import time; print(time.time_ns())")  # never prints the same


@pytest.fixture
def public(tmp_path):
    folder = tmp_path / "public"
    (folder / "images").mkdir(parents=True)
    (folder / "train.csv").write_text("x,y\n1,2\n")
    (folder / "images" / "1.txt").write_text("one")
    return folder


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a bare Sandbox with a cache; they are closed at the end."""
    made = []

    def make(isolation="none", cache_dir=tmp_path / "cache", num_workers=2, **limits):
        made.append(Sandbox(isolation, dataclasses.replace(Limits(wall_secs=60.0), **limits), num_workers, cache_dir))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


@pytest.fixture
def fake(monkeypatch):
    """Replace running by a function; return where to put it."""

    def put(function):
        monkeypatch.setattr(launch, "run", function)

    return put


def done(job: Job) -> Result:
    return Result("ok", "", 0, stdout=job.code)


def test_order_data_and_files(isolated, public):
    code = """
import os, pathlib
data = pathlib.Path(os.environ["DATA_DIR"])
pathlib.Path("submission.csv").write_text((data / "train.csv").read_text() + (data / "images/1.txt").read_text() + "{}")
print({})
"""
    results = isolated.run([Job(code.format(i, i), public, ("submission.csv",)) for i in range(6)])
    assert [result.stdout for result in results] == [f"{i}\n" for i in range(6)]
    assert [result.files for result in results] == [{"submission.csv": f"x,y\n1,2\none{i}".encode()} for i in range(6)]
    assert not any(result.cached for result in results)


@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_data_by_a_relative_path_and_a_link(isolation, isolated, bare, public, monkeypatch):
    monkeypatch.chdir(public.parent)
    pathlib.Path("link").symlink_to("public")
    code = "import os; print(open(os.environ['DATA_DIR'] + '/train.csv').read())"
    sandbox = {"auto": isolated, "none": bare}[isolation]
    for path in ("public", "link"):
        assert sandbox.run([Job(code, pathlib.Path(path))])[0].stdout == "x,y\n1,2\n\n"


def test_numerical_libraries(isolated, public):
    code = """
import numpy as np, pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
rng = np.random.default_rng(0)
frame = pd.DataFrame(rng.normal(size=(300, 5)), columns=list("abcde"))
print(cross_val_score(RandomForestClassifier(20, n_jobs=-1), frame, frame.a > 0, n_jobs=-1).mean() > 0.8)
print(np.linalg.norm(np.ones((500, 500)) @ np.ones((500, 500))))
"""
    result = isolated.run([Job(code, public)])[0]
    assert (result.status, result.stdout) == ("ok", "True\n250000.0\n"), result.stderr


@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_same_environment_and_hashes_each_time(isolation, isolated, bare):
    sandbox = {"auto": isolated, "none": bare}[isolation]
    code = "import os; print(hash('x'), os.environ['OMP_NUM_THREADS'], os.environ['LOKY_MAX_CPU_COUNT'], sorted(os.environ))"
    first, second = sandbox.run([Job(code)] * 2)
    assert first.stdout == second.stdout
    assert first.stdout.split()[1:3] == ["1", "1"]


def test_any_umask(isolated):
    before = os.umask(0o777)
    try:
        result = isolated.run([Job("open('s', 'w').write('1')", collect=("s",))])[0]
    finally:
        os.umask(before)
    assert (result.status, result.files) == ("ok", {"s": b"1"})


def test_exit_codes(isolated):
    codes = [
        "",
        "raise SystemExit(3)",
        "import os; os.kill(os.getpid(), 11)",
        "é = 'ü'; print(é)",
        "x = '\0'",
        "\ud800",
    ]
    results = isolated.run([Job(code) for code in codes])
    assert [(result.status, result.exit_code, result.reason) for result in results] == [
        ("ok", 0, ""),
        ("crashed", 3, "exit status 3"),
        ("crashed", -11, "killed by SIGSEGV"),
        ("ok", 0, ""),
        ("crashed", 1, "exit status 1"),
        ("crashed", 1, "exit status 1"),
    ]
    assert results[3].stdout == "ü\n"


def test_owners_take_turns():
    turns = Turns()
    tasks = {name: Task(Job(name), name) for name in ("a1", "a2", "a3", "b1", "c1", "c2")}
    turns.put([(ord(name[0]), task) for name, task in tasks.items()])
    taken = [turns.take() for _ in tasks]
    assert [task.key for task in taken if task] == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_group_of_many_does_not_delay_another(fake, make):
    order = []
    fake(lambda jail, job, limits, hold: order.append(job.code) or done(job))
    sandbox = make(num_workers=1, cache_dir=None)
    for _ in range(2):  # the second time a worker is waiting
        order.clear()
        sandbox.run([Job(name) for name in ("a1", "a2", "a3", "b1", "a4")], owners=[7, 7, 7, 8, 7])
        assert order == ["a1", "b1", "a2", "a3", "a4"]


def test_calls_at_once_share_the_workers(fake, make, monkeypatch):
    """Two calls of one job each run side by side: each waits for the other to have begun."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    both = threading.Barrier(2)
    fake(lambda jail, job, limits, hold: both.wait(20) < 2 and done(job))
    sandbox = make(cache_dir=None)
    other = threading.Thread(target=sandbox.run, args=([Job("a")],))
    other.start()
    assert sandbox.run([Job("b")])[0].status == "ok"
    other.join()


@pytest.mark.parametrize(
    ("cores", "threads", "asked", "expected"),
    [(8, 1, 0, 8), (8, 2, 0, 4), (8, 3, 9, 2), (2, 4, 0, 1), (8, 1, 3, 3)],
)
def test_never_more_than_the_cores(fake, make, monkeypatch, cores, threads, asked, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    running, most, lock = 0, 0, threading.Lock()

    def run(jail, job, limits, hold):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return done(job)

    fake(run)
    sandbox = make(num_workers=asked, threads=threads, cache_dir=None)
    assert len(sandbox.run([Job(str(i)) for i in range(30)])) == 30
    assert most == sandbox.num_workers == expected


def test_cache_repeats_results(isolated, tmp_path, public, make):
    job = Job("import time; print(time.time_ns()); open('s', 'wb').write(bytes(range(256)))", public, ("s", "t"))
    first = make("auto").run([job, job])
    again = make("auto").run([job])[0]
    assert [result.cached for result in (*first, again)] == [False, True, True]
    assert first[1] == again == dataclasses.replace(first[0], cached=True)
    assert again.files["s"] == bytes(range(256))
    assert again.faults == {"t": "No such file or directory"}


def test_without_a_cache_everything_runs(make):
    results = make(cache_dir=None).run([CLOCK] * 3)
    assert len({result.stdout for result in results}) == 3


def test_key_depends_on_everything(public, tmp_path):
    job, limits, folders = Job("x", public, ("a",)), Limits(), Folders(needs_all=True)
    key = lambda job=job, limits=limits, level="none", versions=("1",): key_of(
        job, folders.digest(job.public or public), limits, level, versions
    )
    keys = {
        key(),
        key(job=dataclasses.replace(job, code="y")),
        key(job=dataclasses.replace(job, collect=("b",))),
        key(limits=dataclasses.replace(limits, wall_secs=1.0)),
        key(level="bubblewrap"),
        key(versions=("2",)),
    }
    shutil.copytree(public, other := tmp_path / "other")
    assert key(job=dataclasses.replace(job, public=other)) == key(), "the same data elsewhere"
    (public / "images" / "1.txt").write_text("two")
    os.utime(public / "images" / "1.txt", ns=(1, 1))  # the clock of many file systems ticks every 4 ms
    keys.add(key())
    (public / "images" / "1.txt").rename(public / "images" / "2.txt")
    keys.add(key())
    (public / "empty").mkdir()
    keys.add(key())
    assert len(keys) == 9


def test_public_data_must_be_plain_and_readable(public, make):
    sandbox = make()
    with pytest.raises(ValueError, match="must be a folder"):
        sandbox.run([Job("", public / "nowhere")])
    (public / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="no link"):
        sandbox.run([Job("", public)])
    (public / "link").unlink()
    (public / "train.csv").chmod(0o600)
    Folders(needs_all=False).digest(public)
    with pytest.raises(ValueError, match=r"chmod -R o\+rX"):
        Folders(needs_all=True).digest(public)


def test_timeouts_lie_apart_and_can_be_deleted(make, tmp_path):
    sandbox = make(wall_secs=0.5)
    job = Job("import time; time.sleep(30)")
    first, again = sandbox.run([job])[0], sandbox.run([job])[0]
    assert (first.status, first.cached, again.cached) == ("timeout", False, True)
    assert len(list((tmp_path / "cache" / "timeouts").glob("*/*"))) == 1
    assert not (tmp_path / "cache" / "results").exists()
    shutil.rmtree(tmp_path / "cache" / "timeouts")
    assert not sandbox.run([job])[0].cached


def test_damaged_entries_are_made_again(make, tmp_path, caplog):
    sandbox = make()
    first = sandbox.run([CLOCK])[0]
    (path,) = (tmp_path / "cache" / "results").glob("*/*")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        path.write_bytes(damaged)
        again = sandbox.run([CLOCK])[0]
        assert not again.cached
        assert again.stdout != first.stdout
    assert "made again" in caplog.text
    assert sandbox.run([CLOCK])[0].cached


def test_entries_survive_any_bytes():
    rng = random.Random(0)
    for _ in range(50):
        files = {name: rng.randbytes(rng.randrange(300)) for name in ("a", "ü", "\n")[: rng.randrange(4)]}
        result = Result("crashed", "\0", -9, "é\ud800", "\n", files, {"x": "y"}, 1.5)
        assert decode(encode(result)) == dataclasses.replace(result, cached=True)


def test_a_full_disk_costs_the_entry_only(make, tmp_path, caplog, monkeypatch):
    def write(self, data):
        self.open("wb").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", write)
    results = make().run([CLOCK, Job("print(2)")])
    assert [result.status for result in results] == ["ok", "ok"]
    assert caplog.text.count("cannot be cached: [Errno 28]") == 1
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()], "a scratch file was left"
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    assert make(cache_dir=tmp_path / "file").run([CLOCK])[0].status == "ok"


def test_entries_are_whole_or_not_there(tmp_path):
    """Writers of one key, and readers beside them, never see a part."""
    cache, result = Cache(tmp_path), Result("ok", "", 0, files={"x": os.urandom(1 << 16)})

    def write():
        for _ in range(30):
            cache.put("ab", result)

    writers = [threading.Thread(target=write) for _ in range(3)]
    cache.put("ab", result)
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert cache.get("ab") == dataclasses.replace(result, cached=True)  # None would be a part
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["ab"]


@pytest.mark.parametrize("bwrap_says", ["/bin/false", "/nowhere/bwrap"])
def test_fault_of_the_sandbox_is_told_apart(make, monkeypatch, tmp_path, bwrap_says, require_sandbox, caplog):
    sandbox = make("auto")
    sandbox._jail = dataclasses.replace(sandbox._jail, bwrap=bwrap_says)
    result = sandbox.run([Job("1/0")])[0]
    assert (result.status, result.exit_code) == ("fault", None)
    assert result.reason.startswith("the sandbox failed: ")
    assert caplog.text.count("once more") == 1
    assert not (tmp_path / "cache").exists()


def test_a_passing_fault_is_retried(make, fake, tmp_path):
    answers = [launch.fault("x"), Result("ok", "", 0)]
    fake(lambda jail, job, limits, hold: answers.pop(0))
    assert make().run([Job("")])[0].status == "ok"
    assert not answers


def test_an_exception_of_the_host_is_a_fault(make, fake):
    def run(jail, job, limits, hold):
        if job.code == "bad":
            raise MemoryError("none left")
        return done(job)

    fake(run)
    results = make().run([Job("good"), Job("bad"), Job("fine")])
    assert [result.status for result in results] == ["ok", "fault", "ok"]
    assert "none left" in results[1].reason


def test_interpreter_that_does_not_start_is_a_fault(isolated, monkeypatch):
    real = launch.request

    def broken(*arguments):
        code, header, program = marshal.loads(real(*arguments))
        return marshal.dumps((code, header | {"command": ["/nowhere/python", "solution.py"]}, program))

    monkeypatch.setattr(launch, "request", broken)
    result = isolated.run([Job("")])[0]
    assert result.status == "fault"
    assert "did not start" in result.reason


@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_close(make, mark, find_named, isolation, require_sandbox):
    sandbox = make(isolation, num_workers=1, cache_dir=None, wall_secs=100.0)
    errors = []

    def run():
        try:
            sandbox.run([Job(f"open('/proc/self/comm', 'w').write({mark!r}); import time; time.sleep(60)")] * 3)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(200):
        if not find_named(mark):
            time.sleep(0.05)
    assert len(find_named(mark)) == 1
    started = time.monotonic()
    sandbox.close()
    thread.join()
    assert errors == ["the sandbox was closed"]
    assert time.monotonic() - started < 10
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.run([CLOCK])


def test_threads_end_with_their_sandbox():
    sandbox = Sandbox("none")
    sandbox.run([CLOCK])
    threads = sandbox._threads
    del sandbox
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


TRAINER = """
import pathlib, sys
from exit_jax.sandbox import Job, Limits, Sandbox
sandbox = Sandbox(sys.argv[1], Limits(wall_secs=100.0), 2, pathlib.Path(sys.argv[2]))
slow = '''
open('/proc/self/comm', 'w').write({mark!r})
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(90)
time.sleep(90)
'''
sandbox.run([Job("import time; print(time.time_ns())"), Job("import time; print(2, time.time_ns())"), Job(slow)])
"""


@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_killed_trainer_leaves_no_orphan_and_loses_no_result(
    isolation, make, tmp_path, mark, find_named, require_sandbox
):
    command = [sys.executable, "-c", TRAINER.replace("{mark!r}", repr(mark)), isolation, str(tmp_path / "cache")]
    trainer = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if len(find_named(mark)) == 3 and len(list((tmp_path / "cache").glob("results/*/*"))) == 2:
                break
            time.sleep(0.05)
        assert len(find_named(mark)) == 3, "the control: they do run"
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    for _ in range(100):
        if find_named(mark):
            time.sleep(0.05)
    assert not find_named(mark)
    sandbox = Sandbox(isolation, Limits(wall_secs=100.0), 2, tmp_path / "cache")
    jobs = [Job("import time; print(time.time_ns())"), Job("import time; print(2, time.time_ns())")]
    assert all(result.cached for result in sandbox.run(jobs))
    sandbox.close()


def test_isolation_must_be_known():
    with pytest.raises(ValueError, match="'docker' must be one of auto, bubblewrap"):
        Sandbox("docker")


def test_without_bubblewrap_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr(bwrap, "find", lambda: (None, False))
    levels.detect.cache_clear()
    for isolation in ("auto", "bubblewrap", "bubblewrap+seccomp"):
        with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
            Sandbox(isolation)
    levels.detect.cache_clear()


def test_without_namespaces_the_reason_is_told(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    levels.detect.cache_clear()
    with pytest.raises(SandboxError, match=r"(?s)No permissions to create new namespace.*sysctl"):
        Sandbox("auto")
    levels.detect.cache_clear()


def test_no_isolation_is_said_aloud_once(caplog):
    levels.detect.cache_clear()
    with caplog.at_level(logging.WARNING):
        Sandbox("none").close()
        Sandbox("none").close()
    assert caplog.text.count("isolation is NONE") == 1


def test_the_level_is_printed_once(require_sandbox, capsys):
    levels.detect.cache_clear()
    level = Sandbox("auto").level
    Sandbox("auto").close()
    assert capsys.readouterr().out.count(f"sandbox: {level}") == 1


def test_users_that_are_drawn():
    for text, low, high in [
        ("0 0 4294967295\n", 1 << 30, 1 << 31),
        ("0 100000 65536", 32768, 65534),
        ("0 1000 1\n", 0, 0),
    ]:
        drawn = {bwrap.foreign_uid(text) for _ in range(50)}
        assert drawn == {None} if not low else all(uid is not None and low <= uid < high for uid in drawn)


def test_links_on_the_way(tmp_path):
    tmp_path = tmp_path.resolve()
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("")
    (tmp_path / "relative").symlink_to("a/../a/b")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    links = {}
    assert bwrap.real_path(tmp_path / "absolute" / "file", links) == str(tmp_path / "a" / "b" / "file")
    assert links == {str(tmp_path / "absolute"): str(tmp_path / "relative"), str(tmp_path / "relative"): "a/../a/b"}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "a\0b"])
def test_collected_names_have_no_path(name):
    with pytest.raises(ValueError, match="without a path"):
        Job("", collect=(name,))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_positive(name):
    for value in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"limits.{name}"):
            Limits(**{name: typing.cast(typing.Any, value)})


def scraps() -> dict[str, int]:
    """Count what runs could leak in this process: its children and descriptors."""
    children = [path.read_text().split() for path in pathlib.Path("/proc/self/task").glob("*/children")]
    return {"children": sum(map(len, children)), "descriptors": len(os.listdir("/proc/self/fd"))}


WHOLE = """
import csv, os, sys
import numpy as np

def main():
    rows = np.arange(20.0).reshape(10, 2)
    weights = np.linalg.lstsq(rows[:, :1], rows[:, 1], rcond=None)[0]
    with open("submission.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "y"])
        for index, row in enumerate(rows):
            writer.writerow([index, float(row[:1] @ weights)])
    print("rows", len(rows), file=sys.stderr)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("number", [60, pytest.param(2000, marks=(pytest.mark.slow, pytest.mark.long))])
def test_noise_and_truncated_programs(isolated, number, mark, find_named):
    """No crash of ours, nothing left: counted before and after."""
    rng = random.Random(number)
    noise = [rng.randbytes(rng.randrange(1, 400)) for _ in range(number // 2)]
    texts = [
        part.decode("latin-1") if index % 2 else part.decode("utf-8", "surrogateescape")
        for index, part in enumerate(noise)
    ]
    head = f"open('/proc/self/comm', 'w').write({mark!r})\n"
    texts += [head + WHOLE[: rng.randrange(len(WHOLE))] for _ in range(number - len(texts))]
    isolated.run([Job("")] * 4)  # its threads are there
    gc.collect()  # pools that other tests left in cycles, with their processes and pipes
    before = scraps()
    results = isolated.run([Job(text, collect=("submission.csv",)) for text in texts])
    assert scraps() == before
    assert not find_named(mark)
    statuses = {status: sum(result.status == status for result in results) for status in ("ok", "crashed")}
    assert sum(statuses.values()) == number, {result.reason for result in results}
    assert statuses["crashed"] > number // 3
    assert statuses["ok"] > 0


def test_a_bare_run_removes_its_folder(make, tmp_path, monkeypatch):
    """However it ends; without isolation its folder is one of this machine's."""
    folder = tmp_path / "boxes"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))  # other tests have folders in /tmp
    head = "import os, time; open('left', 'w').write('x'); print(os.getcwd(), flush=True); "
    ends = {"ok": "pass", "crashed": "1 / 0", "timeout": "time.sleep(60)", "fault": "os.kill(os.getppid(), 9)"}
    results = make(cache_dir=None, wall_secs=5.0).run([Job(head + end) for end in ends.values()])
    assert [result.status for result in results] == list(ends)
    assert all(result.stdout.startswith(f"{folder}/exit_jax-") for result in results[:3])  # of a fault nothing is known
    assert not list(folder.iterdir())


def test_versions_name_what_is_missing():
    assert versions_of(["numpy", "no-such-package"])[-1] == "no-such-package-"


def test_hidden_folders_appear_empty(isolated, caplog):
    folder = pathlib.Path(os.__file__).parent / "email"
    look = Job(f"import os; print(len(os.listdir({str(folder)!r})), os.statvfs({str(folder)!r}).f_flag & os.ST_RDONLY)")
    sandbox = Sandbox("auto", isolated.limits, 1, hidden=(folder,))
    (hidden,), (shown,) = sandbox.run([look]), isolated.run([look])
    sandbox.close()
    assert hidden.stdout == "0 1\n", hidden
    assert int(shown.stdout.split()[0]) > 10
    Sandbox("none", isolated.limits, 1, hidden=(folder,))
    assert "nothing hides" in caplog.text
