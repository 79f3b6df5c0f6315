"""Two processes of four devices each: training, checkpoints, resume, signals and faults, as on two hosts."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from test_train import leaves, rows, smoke

from exit_jax.parallel import hosts
from exit_jax.training import train

ROOT = pathlib.Path(__file__).parents[1]


def start(workdir: pathlib.Path, *flags: str, script: str = "", url: bool = False) -> list[subprocess.Popen]:
    """Start two processes of the smoke experiment, or of a script that is given its flags.

    Args:
      url: whether they are given the workdir as a URL, and nothing else of a disk that both have.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = ["-c", script] if script else ["-m", "exit_jax.main"]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "xla"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    name = f"file://{workdir}" if url else str(workdir)
    arguments = [sys.executable, *command, "--config", "tests/tiny_sudoku.py", "--workdir", name, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    own = lambda i: {"JAX_PROCESS_ID": str(i), "XDG_CACHE_HOME": str(workdir.parent / f"disk{i}")}
    return [subprocess.Popen(arguments, cwd=ROOT, env=env | own(i), **pipes) for i in range(2)]


LATE = "Gloo context initialization failed"  # it waits half a minute for its peer, which on a busy machine may be too little


def run(workdir: pathlib.Path, *flags: str, script: str = "", url: bool = False) -> list[tuple[int, str, str]]:
    """Run two processes to their end; again if they were late to meet."""
    for _ in range(3):
        outcome = finish(start(workdir, *flags, script=script, url=url))
        if LATE not in str(outcome):
            return outcome
    raise AssertionError("two processes did not meet in three attempts")


def finish(processes) -> list[tuple[int, str, str]]:
    outputs = [process.communicate(timeout=600) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs)]


MESH = ("--config.run.mesh.data=2", "--config.run.mesh.fsdp=2", "--config.run.mesh.tensor=2")
SHORT = ("--config.run.num_iterations=10", "--config.eval.steps=(0,1)", "--config.run.checkpoint_every=5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the workdir of a run of two processes that was never interrupted."""
    workdir = tmp_path_factory.mktemp("hosts") / "whole"
    (code, out, errors), (other, quiet, _) = run(workdir, *MESH, *SHORT)
    assert (code, other) == (0, 0), errors
    assert "accuracy" in out
    assert "accuracy" not in quiet  # only the lead reports
    return workdir


@pytest.mark.slow
def test_resume_on_the_same_mesh_is_bitwise(whole):
    """SIGTERM to the second process alone, in the first of two calls: both save the same step, and go on to the same end.

    The workdir is at a URL, so that the two have no folder in common but for that of the checkpoints.
    """
    broken = whole.parent / "broken"
    script = """
import os, signal
from exit_jax import main
from exit_jax.workdir import metrics
look = metrics.Watch.look
def look_and_be_told_to_stop(self, step, found):
    if os.environ["JAX_PROCESS_ID"] == "1" and self._title == "train":
        os.kill(os.getpid(), signal.SIGTERM)
    look(self, step, found)
metrics.Watch.look = look_and_be_told_to_stop
main.entry()
"""
    stopped = run(broken, *MESH, *SHORT, script=script, url=True)
    assert [code for code, _, _ in stopped] == [128 + signal.SIGTERM] * 2, stopped
    assert all("stopped at train step 5;" in errors for _, _, errors in stopped)
    outcomes = run(broken, *MESH, *SHORT, url=True)
    assert (broken.parent / "disk1" / "exit_jax").is_dir()
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes[0][2]
    assert rows(broken) == rows(whole)
    assert json.loads((broken / "evaluation.json").read_text()) == json.loads((whole / "evaluation.json").read_text())


@pytest.mark.slow
def test_one_process_and_two_with_another_mesh_restore_equal_parameters(whole):
    changes = {"algorithm.kl_coef": 0.0, "algorithm.reference_every": 100}
    config = smoke(changes=changes, num_iterations=10)
    params = train.restore_params(config, whole)
    assert len(leaves(params)) > 5
    script = f"""
import pathlib, jax, numpy as np
from exit_jax.parallel import hosts
hosts.initialize()
import dataclasses
from test_train import smoke
from exit_jax.parallel import mesh as meshes
from exit_jax.step.program import make_program
from exit_jax.training import train
config = smoke(changes={changes!r}, num_iterations=10)
config = dataclasses.replace(config, run=dataclasses.replace(config.run, mesh=meshes.MeshConfig(2, 2, 2)))
params = train.restore_params(config, pathlib.Path({str(whole)!r}))
gathered = jax.jit(lambda x: x, out_shardings=meshes.replicated(make_program(config).mesh))(params)
np.savez({str(whole.parent)!r} + f"/params{{jax.process_index()}}.npz", *jax.tree.leaves(jax.device_get(gathered)))
"""
    outcome = run(whole, script=script)
    assert [code for code, _, _ in outcome] == [0, 0], outcome[0][2]
    for index in range(2):
        saved = np.load(whole.parent / f"params{index}.npz")
        for ours, theirs in zip(leaves(params), saved.values(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_each_process_grades_its_own_rows_and_a_fault_on_one_is_a_value(tmp_path):
    script = f"""
import jax, numpy as np
from exit_jax.parallel import hosts, mesh as meshes
hosts.initialize()
hosts.initialize()  # as a script does that trains and evaluates: they have been joined
import jax.numpy as jnp
mesh = meshes.make_mesh(meshes.MeshConfig(2, 2, 2))
rows = jax.jit(lambda: jnp.arange(24.0).reshape(8, 3), out_shardings=meshes.by_row(mesh))()
seen = []
def double(x):
    seen.extend(x[:, 0].tolist())
    return {{"value": 2 * x, "even": x[:, 0] % 2 == 0}}
def blank(x):
    return {{"value": np.zeros_like(x), "even": np.zeros(len(x), bool)}}
def fails(x):
    return 1 / 0 if jax.process_index() == 1 else double(x)
good, failed = hosts.on_own_rows(double, blank, rows)
mine = sorted(seen)
bad, failed_here = hosts.on_own_rows(fails, blank, rows)
assert not failed
assert failed_here == (jax.process_index() == 1)
assert hosts.agree(int(failed_here)) == 1
np.savez({str(tmp_path)!r} + f"/rows{{jax.process_index()}}.npz", mine=mine, **good, bad=bad["value"])
"""
    outcome = run(tmp_path / "x", script=script)
    assert [code for code, _, _ in outcome] == [0, 0], outcome[0][2] + outcome[1][2]
    saved = [np.load(tmp_path / f"rows{index}.npz") for index in range(2)]
    table = np.arange(24.0).reshape(8, 3)
    assert sorted([*saved[0]["mine"], *saved[1]["mine"]]) == table[:, 0].tolist(), "each row is graded once"
    assert len(saved[0]["mine"]) == len(saved[1]["mine"]) == 4
    for one in saved:
        np.testing.assert_array_equal(one["value"], 2 * table)
        np.testing.assert_array_equal(one["even"], table[:, 0] % 2 == 0)
        kept = np.isin(table[:, 0], saved[0]["mine"])
        np.testing.assert_array_equal(one["bad"], np.where(kept[:, None], 2 * table, 0.0))


def test_a_process_without_its_number_is_told_so(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID = 'first'"):
        hosts.initialize()


HOSTED = ("--config.domain.on_host=True", "--config.run.steps_per_call=1", "--config.run.mesh.data=8")
BRIEF = ("--config.run.num_iterations=6", "--config.run.checkpoint_every=1", "--config.eval.steps=(0,1)", *HOSTED)
# moment -> what the victim does then, once it has saved something
MOMENTS = {
    "sampled": ("exit_jax.step.hosted.HostedSteps.rollout", "after"),
    "grading": ("exit_jax.step.hosted.grade_rows", "before"),
    "learnt": ("exit_jax.workdir.metrics.Watch.look", "before"),
    "saving": ("exit_jax.workdir.checkpoint.Checkpoints.save", "after"),  # orbax writes in threads that go on
    "evaluating": ("exit_jax.evaluation.evaluate.run_chains", "before"),
}
KILLED = """
import functools, os, pkgutil, signal
from exit_jax import main
place, when = {moment!r}
owner, _, name = place.rpartition(".")
owner, calls = pkgutil.resolve_name(owner), 0
function = getattr(owner, name)
@functools.wraps(function)
def killed(*args, **kwargs):
    global calls
    calls += 1
    dies = os.environ["JAX_PROCESS_ID"] == "{victim}" and calls >= {calls}
    if dies and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    value = function(*args, **kwargs)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return value
setattr(owner, name, killed)
main.entry()
"""


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("kills") / "whole"
    outcome = run(workdir, *BRIEF)
    assert [code for code, _, _ in outcome] == [0, 0], outcome[0][2]
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["lead", "other"])
def test_a_run_outlives_the_kills_of_a_process(victim, left_alone, tmp_path):
    """SIGKILL at each moment in turn: the other leaves within seconds and says why; the last start ends as if nothing was."""
    for moment, (place, when) in MOMENTS.items():
        calls = 1 if moment == "evaluating" else 2
        script = KILLED.format(moment=(place, when), victim=victim, calls=calls)
        processes = start(tmp_path / "run", *BRIEF, script=script)
        processes[victim].wait(timeout=300)
        killed = time.monotonic()
        outcome = finish(processes)
        secs = time.monotonic() - killed
        codes, errors = [code for code, _, _ in outcome], outcome[1 - victim][2]
        assert codes[victim] == -signal.SIGKILL, (moment, outcome)
        assert codes[1 - victim] not in (0, 2), (moment, errors)
        assert "another process of this run is gone" in errors or "another task died" in errors, (moment, errors)
        assert secs < 60, f"the other took {secs:.0f} s to leave, {moment}"
    outcome = run(tmp_path / "run", *BRIEF)
    assert [code for code, _, _ in outcome] == [0, 0], outcome[0][2]
    assert rows(tmp_path / "run") == rows(left_alone)
    evaluations = [json.loads((path / "evaluation.json").read_text()) for path in (tmp_path / "run", left_alone)]
    assert evaluations[0] == evaluations[1]


def test_an_iteration_that_stalls_ends_the_process_and_says_where():
    script = """
import time
from exit_jax.training.loop import _ended_by_stall
with _ended_by_stall(0.5) as alive:
    for _ in range(3):
        alive()
        time.sleep(0.3)
    print("alive", flush=True)
    def hang():
        time.sleep(60)
    hang()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    assert done.stdout == "alive\n"
    assert "Timeout" in done.stderr
    assert "in hang" in done.stderr


def test_every_iteration_is_a_sign_of_life(tmp_path, monkeypatch):
    armed = []
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda secs, **_: armed.append(secs))
    monkeypatch.setattr("faulthandler.cancel_dump_traceback_later", lambda: armed.append("off"))
    changes = {"warm_start.num_steps": 0}
    train.train(
        smoke(changes=changes, num_iterations=3, steps_per_call=1, checkpoint_every=3, stall_secs=99.0), tmp_path
    )
    assert armed == [99.0] * 3 + ["off"]


def test_a_heartbeat_is_whole_seconds(monkeypatch):
    monkeypatch.setenv("EXIT_JAX_HEARTBEAT_SECS", "soon")
    with pytest.raises(ValueError, match="EXIT_JAX_HEARTBEAT_SECS = 'soon'"):
        hosts.initialize()
