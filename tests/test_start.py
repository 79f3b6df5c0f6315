"""What a command imports and prints before it has anything to do: a fault is told at once, and nothing else is."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from exit_jax.parallel import hosts

ROOT = pathlib.Path(__file__).parents[1]
# whatever computes, or takes long to import; torch came along with tensorboardX, which no longer has a part in this
SLOW = {"jax", "numpy", "torch", "flax", "optax", "orbax", "matplotlib", "scipy", "transformers", "tensorboardX"}


def start(*flags: str, env=None, status: int = 2) -> tuple[list[str], set[str]]:
    """Run the command line; returns the lines of stderr and the names of the modules that were imported."""
    code = "import atexit, json, sys; atexit.register(lambda: print(json.dumps(sorted(sys.modules)))); "
    code += "from exit_jax.main import entry; entry()"
    command = [sys.executable, "-c", code, *flags]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | (env or {}), capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stderr.splitlines(), set(json.loads(done.stdout.splitlines()[-1]))


def test_help_imports_nothing_that_computes():
    _, modules = start("--help", status=1)  # absl's own status
    assert not modules & SLOW


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--confg", "configs/smoke.py"), "config"),
        (("--config", "configs/smoke.py", "--config.algorithm.gruop_size=3"), "group_size"),
        (("--config", "configs/smoke.py", "--config.algorithm.group_size=many"), "many"),
        (("--config", "configs/smoke.py:variant=expo"), "variant=expo"),
        (("--config", "configs/math_lora.py:chekpoint=x"), "chekpoint=x"),
    ],
)
def test_a_flag_that_cannot_be_is_told_before_anything_is_imported(flags, words):
    lines, modules = start(*flags)
    assert len(lines) <= 3
    assert words in "".join(lines)
    assert not modules & SLOW


def test_faults_of_a_config_are_told_before_what_computes_is_imported():
    """No more is printed, also where libtpu is installed without a TPU."""
    flags = ("--config.algorithm.min_buffer_size=10000", "--config.algorithm.group_size=1")
    # an empty name stands for a platform that was not chosen
    lines, modules = start("--config", "configs/smoke.py", *flags, env={"JAX_PLATFORMS": ""})
    assert len(lines) == 4, lines
    assert not modules & (SLOW - {"jax", "numpy"})
    assert not {name for name in modules if name.startswith(("exit_jax.domains.math", "exit_jax.policy.decoder"))}


@pytest.mark.slow
def test_training_imports_neither_plots_nor_torch():
    """They take seconds, and are imported where they are used."""
    code = "import json, sys, exit_jax.run; "
    code += "print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & {"torch", "matplotlib", "transformers", "tensorboardX", "tokenizers"}


def test_a_report_asks_for_no_checkpoint(tmp_path):
    """Nor for the hub, which has gated ones: here there is none of that name at all."""
    flags = ("--mode", "report", "--config", "configs/math_llama3b.py:checkpoint=nobody/has-this")
    lines, modules = start(*flags, "--workdir", str(tmp_path), env={"HF_HUB_OFFLINE": "1"})
    assert "nothing to report on" in "".join(lines)
    assert not modules & {"huggingface_hub", "transformers", "torch"}


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ({}, "cpu"),
        ({"sys/bus/pci/devices/0/vendor": "0x8086"}, "cpu"),
        ({"sys/bus/pci/devices/0/vendor": "0x1ae0\n"}, None),
        ({"dev/accel0": ""}, None),
        ({"dev/vfio/vfio": ""}, "cpu"),
        ({"dev/vfio/0": ""}, None),
    ],
)
def test_libtpu_is_asked_only_where_there_may_be_a_tpu(files, chosen, tmp_path, monkeypatch):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.setattr(hosts.importlib.metadata, "entry_points", lambda group: ())
    hosts.skip_absent_tpu(tmp_path)
    assert not updates, "JAX_PLATFORMS is set in tests"
    monkeypatch.setattr(type(jax.config), "jax_platforms", None)
    hosts.skip_absent_tpu(tmp_path)
    assert updates.get("jax_platforms") == chosen
    updates.clear()
    monkeypatch.setattr(hosts.importlib.metadata, "entry_points", lambda group: ("cuda",))
    hosts.skip_absent_tpu(tmp_path)
    assert not updates


def carried_out(code: str) -> tuple[int, str, str]:
    """Run the command line with a ``carry_out`` of its own; returns status, stdout and stderr."""
    before = "import atexit, gc, signal, threading, time\nfrom exit_jax import main\n"
    code = f"{before}{code}\nmain.carry_out = carry_out\nmain.entry()"
    command = [sys.executable, "-c", code, "--config", "configs/smoke.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_a_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost():
    """JAX has such a callback; Python can only report what is raised in it."""
    code = """
def callback(*_):
    gc.callbacks.clear()
    signal.raise_signal(signal.SIGINT)

def carry_out():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.callbacks.append(callback)
    gc.collect()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(0.01)
"""
    assert carried_out(code) == (130, "", "\nstopped; the same command goes on\n")


def test_a_stopped_run_does_not_crash_at_its_end():
    """A daemon thread that waits in XLA, as a library may have one, aborts the process when Python ends it."""
    code = """
def carry_out():
    import jax
    step = lambda _, x: jax.numpy.tanh(x @ x)
    found = jax.jit(lambda x: jax.lax.fori_loop(0, 2**20, step, x))(jax.numpy.ones((256, 256)))
    threading.Thread(target=jax.block_until_ready, args=[found], daemon=True).start()
    time.sleep(0.3)
    atexit.register(print, "the others are called")
    raise KeyboardInterrupt
"""
    ended = (130, "the others are called\n", "\nstopped; the same command goes on\n")
    assert carried_out(code) == ended
