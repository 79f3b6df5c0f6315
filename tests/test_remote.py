"""Workdirs at a URL: nothing that was there is lost, and a run goes on from it on another machine to the same bits."""

import json
import logging
import pathlib
import shutil
import threading
import time

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from test_train import assert_same, smoke, train_and_die

from exit_jax import run
from exit_jax.errors import ConfigError
from exit_jax.main import print_report
from exit_jax.training import train
from exit_jax.workdir import remote
from exit_jax.workdir.lock import try_lock
from exit_jax.workdir.metrics import read_jsonl, trained_iterations

URL = "gs://bucket/runs/mine"


class Bucket(MemoryFileSystem):
    """A bucket in memory, which knows no appending, as object stores do, and counts what is written."""

    protocol = "gs"
    store, pseudo_dirs, written = {}, [""], []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))

    def _open(self, path, mode="rb", **kwargs):
        assert "a" not in mode
        return super()._open(path, mode, **kwargs)

    def put_file(self, lpath, rpath, **kwargs):
        self.written.append(rpath.removeprefix("/bucket/"))
        super().put_file(lpath, rpath, **kwargs)


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url: (Bucket(), Bucket._strip_protocol(url)))
    for held in (Bucket.store, Bucket.written):
        held.clear()
    return lambda: {name.removeprefix("/bucket/"): file.getvalue().decode() for name, file in Bucket.store.items()}


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """Return what makes this another machine, with no copy of anything."""

    def start(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        remote._stored.clear()
        remote._fetched.clear()

    start("first")
    return start


def test_a_url_has_a_folder_and_a_folder_says_its_url(tmp_path):
    folder = remote.local_folder(URL + "/")
    assert folder == tmp_path / "first/exit_jax/workdirs/gs/bucket/runs/mine"
    assert str(remote.place(folder / "best" / "checkpoints")) == URL + "/best/checkpoints"
    assert str(remote.place(remote.local_folder("s3://b/x") / "checkpoints")) == "s3://b/x/checkpoints"
    assert str(remote.place(remote.local_folder("file:///mnt/b/x"))) == "/mnt/b/x"
    assert remote.local_folder("~/runs/x") == pathlib.Path.home() / "runs/x"
    assert remote.local_folder("runs/x") == pathlib.Path.cwd() / "runs/x"
    assert str(remote.place(tmp_path / "checkpoints")) == str(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    "name",
    [
        *("az://b/x", "gs://", "gs:///", "gs://b/../x", pathlib.Path("gs://b/x"), "https://b/x"),
        *(
            "gs://bucket",
            "s3://bucket/",
            "gs://b/run#1",
            "s3://b/run?1",
            "file://runs/x",
            "file://~/x",
        ),  # of the last two, / or the home may be meant
    ],
)
def test_what_is_no_place_for_a_run_is_refused(name):
    with pytest.raises(ConfigError, match=r"is no place for a run; give a folder, or as a text gs://bucket/folder"):
        remote.local_folder(name)


def test_what_a_command_leaves_is_what_the_next_one_finds_elsewhere(bucket, machine):
    with remote.opened(URL) as folder:
        (folder / "answers").mkdir()
        (folder / "answers" / "a.jsonl").write_text("1\n")
        (folder / "train.jsonl").write_text("row\n")
        (folder / "gone.json").write_text("{}")
        for left_out in ("checkpoints/5/leaf", "warm_start/x/checkpoints/5/leaf", "half.json.tmp", "checkpoints.lock"):
            (folder / left_out).parent.mkdir(parents=True, exist_ok=True)
            (folder / left_out).write_text("not this")
    assert bucket() == {
        "runs/mine/answers/a.jsonl": "1\n",
        "runs/mine/train.jsonl": "row\n",
        "runs/mine/gone.json": "{}",
    }
    machine("second")
    with remote.opened(URL) as folder:
        assert (folder / "train.jsonl").read_text() == "row\n"
        with (folder / "train.jsonl").open("a") as file:
            file.write("another\n")
        (folder / "gone.json").unlink()
    assert bucket() == {"runs/mine/answers/a.jsonl": "1\n", "runs/mine/train.jsonl": "row\nanother\n"}
    assert Bucket.written[3:] == ["runs/mine/train.jsonl"], "what did not change was copied again"

    machine("first")  # which has copies that are older, and a file that is no more
    with remote.opened(URL) as folder:
        assert (folder / "train.jsonl").read_text() == "row\nanother\n"
        assert not (folder / "gone.json").exists()
        assert not list(folder.rglob("*.tmp")) or (folder / "half.json.tmp").exists()
    assert len(bucket()) == 2
    assert len(Bucket.written) == 4


def test_an_error_loses_nothing(bucket):
    def fail():
        with remote.opened(URL) as folder:
            (folder / "train.jsonl").write_text("row\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert bucket() == {"runs/mine/train.jsonl": "row\n"}


def test_long_work_is_copied_while_it_goes_on_and_a_fault_is_told_once(bucket, monkeypatch, caplog):
    monkeypatch.setattr(remote, "EVERY", 0.01)
    put, away = Bucket.put_file, threading.Event()

    def refuse(self, *args, **kwargs):
        if away.is_set():
            raise OSError("no such host")
        put(self, *args, **kwargs)

    monkeypatch.setattr(Bucket, "put_file", refuse)
    away.set()
    with remote.opened(URL) as folder:
        (folder / "train.jsonl").write_text("row\n")
        time.sleep(0.2)
        away.clear()
        until = time.monotonic() + 20
        while "runs/mine/train.jsonl" not in bucket() and time.monotonic() < until:
            time.sleep(0.01)
        assert bucket() == {"runs/mine/train.jsonl": "row\n"}
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [
        f"{URL} cannot be written: no such host\ncheck its name, log in to it, or mend it; the same command then goes on"
    ]

    away.set()
    with pytest.raises(ConfigError, match=f"{URL} cannot be written: no such host"), remote.opened(URL) as folder:
        (folder / "train.jsonl").write_text("row\nanother\n")


def test_what_a_command_of_this_machine_works_in_is_not_replaced(bucket, caplog):
    with remote.opened(URL) as folder:
        (folder / "train.jsonl").write_text("new\n")
        Bucket().pipe_file("/bucket/runs/mine/train.jsonl", b"old\n")
        for name in (URL, URL + "/exit/seed0", "gs://bucket/runs"):  # itself, below it, above it
            with remote.visited(name) as other:
                assert other == remote.local_folder(name)
            assert remote.fetch(name) == other
            assert (folder / "train.jsonl").read_text() == "new\n"
            assert bucket()["runs/mine/train.jsonl"] == "old\n"
        with remote.opened("gs://bucket/others"):
            pass
    assert bucket()["runs/mine/train.jsonl"] == "new\n"

    held = (folder / remote.LOCK).open("w")
    assert try_lock(held)
    threading.Timer(1.5, held.close).start()
    began = time.monotonic()
    with remote.opened(URL):
        assert time.monotonic() - began > 1
    assert f"waiting for another process, which works in {URL}" in caplog.text


def test_a_cache_that_is_cleared_under_a_command_costs_nothing_that_is_at_the_url(bucket):
    Bucket().pipe_file("/bucket/runs/mine/train.jsonl", b"row\n")

    def work():
        with remote.opened(URL) as folder:
            shutil.rmtree(folder.parents[3])
            (folder / "warm_start").mkdir(parents=True)  # as a run that goes on may make anew
            with pytest.raises(ConfigError, match="was removed while a command worked in it"):
                remote.store(folder / "warm_start")

    with pytest.raises(ConfigError, match=f"{URL} was left as it is"):
        work()
    assert bucket() == {"runs/mine/train.jsonl": "row\n"}
    with remote.opened(URL) as folder:
        assert (folder / "train.jsonl").read_text() == "row\n"


def test_folders_that_a_bucket_holds_as_empty_objects_are_no_files(bucket):
    for name in ("", "answers/"):
        Bucket.store[f"/bucket/runs/mine/{name}"] = MemoryFile(None, None, b"")
    Bucket().pipe_file("/bucket/runs/mine/answers/a.jsonl", b"1\n")
    with remote.opened(URL) as folder:
        assert (folder / "answers" / "a.jsonl").read_text() == "1\n"


def test_locks_that_were_copied_to_the_url_by_hand_stay_there(bucket):
    for name in ("workdir.lock", "checkpoints.lock", "a.json.1.tmp"):
        Bucket().pipe_file(f"/bucket/runs/mine/{name}", b"")
    with remote.opened(URL) as folder, (folder / remote.LOCK).open("w") as another:
        assert not try_lock(another)
        assert [path.name for path in folder.iterdir()] == [remote.LOCK]
    assert len(bucket()) == 3


def test_what_is_below_an_open_workdir_is_open_and_what_is_above_is_refused(bucket):
    with remote.opened(URL) as folder:
        with remote.opened(URL + "/warm") as inner:
            assert inner == folder / "warm"
            inner.mkdir()
            (inner / "warm_start.jsonl").write_text("row\n")
        with pytest.raises(ConfigError, match=f"gs://bucket/runs holds {URL}, in which this command works"):
            remote.opened("gs://bucket/runs").__enter__()
    assert bucket() == {"runs/mine/warm/warm_start.jsonl": "row\n"}
    with remote.opened("gs://bucket/runs"):
        pass


@pytest.mark.parametrize("verb", ["written", "read"])
def test_a_full_disk_leaves_no_half_of_a_file(verb, tmp_path, monkeypatch):
    there, url = tmp_path / "mount" / "run", f"file://{tmp_path}/mount/run"
    there.mkdir(parents=True)
    (there / "train.jsonl").write_text("row\n")
    copy = LocalFileSystem.cp_file

    def fill(self, source, target, **kwargs):
        copy(self, source, target, **kwargs)
        with open(target, "r+") as file:
            file.truncate(2)
        raise OSError(28, "No space left on device")

    def work():
        with monkeypatch.context() as patched:
            if verb == "read":
                patched.setattr(LocalFileSystem, "cp_file", fill)
            with remote.opened(url) as folder:
                (folder / "train.jsonl").write_text("row\nanother\n")
                patched.setattr(LocalFileSystem, "cp_file", fill)

    with pytest.raises(ConfigError, match=f"{url} cannot be {verb}: .*No space left"):
        work()
    assert [path.name for path in there.iterdir()] == ["train.jsonl"]
    assert (there / "train.jsonl").read_text() == "row\n"
    assert not list(remote.local_folder(url).rglob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"which stands for gs://bucket/x: Not a directory; set .* XDG_CACHE_HOME"):
        remote.fetch("gs://bucket/x")


def test_a_url_that_cannot_be_written_is_told_before_anything_computes(bucket, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError("no right to create objects")

    monkeypatch.setattr(Bucket, "put_file", refuse)
    begun = []
    monkeypatch.setattr(train, "train", lambda *args: begun.append(args))
    with pytest.raises(ConfigError, match=f"{URL} cannot be written: no right to create objects"):
        run.train(smoke(num_iterations=5), URL)
    assert not begun


def test_a_page_follows_a_run_of_another_machine(bucket, machine, monkeypatch):
    monkeypatch.setattr(remote, "EVERY", 0.01)
    Bucket().pipe_file("/bucket/runs/mine/train.jsonl", b"1\n")
    folder = remote.fetch(URL)
    with remote.followed(folder):
        Bucket().pipe_file("/bucket/runs/mine/train.jsonl", b"1\n2\n")
        until = time.monotonic() + 20
        while (folder / "train.jsonl").read_text() == "1\n" and time.monotonic() < until:
            time.sleep(0.01)
    assert (folder / "train.jsonl").read_text() == "1\n2\n"
    assert not Bucket.written


def test_a_file_that_is_renamed_while_others_are_fetched_is_passed_over(bucket, monkeypatch):
    for name in ("a", "b", "c"):
        Bucket().pipe_file(f"/bucket/runs/mine/{name}", name.encode())
    find = Bucket.find

    def find_and_lose(self, *args, **kwargs):
        found = find(self, *args, **kwargs)
        Bucket.store.pop("/bucket/runs/mine/b")
        return found

    monkeypatch.setattr(Bucket, "find", find_and_lose)
    folder = remote.fetch(URL)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c", remote.LOCK]


@pytest.mark.parametrize(("scheme", "remedy"), [("gs", r'pip install "exit_jax\[gs\]"'), ("s3", "pip install s3fs")])
def test_a_package_that_is_missing_is_named(scheme, remedy, monkeypatch):
    def missing(url):
        raise ImportError("there is no such module")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=f"{scheme}://bucket/x: there is no such module; {remedy}"):
        remote.fetch(f"{scheme}://bucket/x")


def test_a_killed_run_goes_on_elsewhere_to_the_same_result(machine, monkeypatch, tmp_path):
    """Its checkpoints by orbax, its rows by copies; of a folder that is reached by a URL, since orbax writes to no memory."""
    changes = {"warm_start.num_steps": 5, "eval.steps": (0, 2), "eval.samples_per_task": 1}
    make = lambda **more: smoke(changes=changes, num_iterations=20, checkpoint_every=10, trackers=(), **more)
    plain = run.train(make(), tmp_path / "plain")

    url, warm = f"file://{tmp_path}/bucket/run", f"file://{tmp_path}/bucket/warm"
    config = make(warm_start_dir=warm)
    train_and_die(config, url, monkeypatch, 16)
    there = tmp_path / "bucket" / "run"
    assert trained_iterations(there) == 10
    (there / "train.jsonl").write_text("".join((there / "train.jsonl").read_text().splitlines(keepends=True)[:10]))

    machine("second")  # the rows after the checkpoint never came: a killed process copies nothing
    assert run.train(config, url) == plain
    print_report(url, [url])
    folder = remote.local_folder(url)
    assert folder.is_relative_to(tmp_path / "second")
    assert trained_iterations(folder) == trained_iterations(there) == 20
    assert not (folder / "checkpoints").exists()
    assert (there / "report" / "report.md").read_text().count("| exit |")
    assert len(list((tmp_path / "bucket" / "warm").glob("*/checkpoints/5"))) == 1
    assert not list(there.rglob("*.tmp")) + list(there.rglob("*.lock"))
    untimed = lambda at: [{k: v for k, v in row.items() if "time/" not in k} for row in read_jsonl(at / "train.jsonl")]
    assert untimed(there) == untimed(tmp_path / "plain")
    assert_same(train.restore_params(config, folder), train.restore_params(config, tmp_path / "plain"))

    machine("third")
    (there / "chains.jsonl").unlink()
    assert run.evaluate(config, url) == plain
    assert json.loads((there / "evaluation.json").read_text()) == plain
    assert (there / "chains.jsonl").read_text() == (tmp_path / "plain" / "chains.jsonl").read_text()
    with pytest.raises(ConfigError, match=f"file://{tmp_path}/bucket/none holds no run"):
        run.evaluate(config, f"file://{tmp_path}/bucket/none")
