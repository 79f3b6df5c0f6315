"""What is installed: a wheel made from the sdist trains away from the checkout; names of configs; the version; extras."""

import ast
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile

import pytest
from mutations import ROOT

import exit_jax
from exit_jax import config, domains
from exit_jax.config import shipped
from exit_jax.errors import ConfigError, DomainError
from exit_jax.study import Experiment

# what the base install does not have -> the folders of exit_jax/ that may import it
OF_EXTRAS = {
    "math_verify": ("domains/math",),
    "latex2sympy2_extended": ("domains/math",),
    "sympy": ("domains/math", "domains/gym"),
    "mpmath": (),
    "pandas": (),
    "sklearn": ("domains/ml_engineering",),
    "reasoning_gym": ("domains/gym",),
    "bfcl_eval": ("domains/tool_use",),
    "textarena": ("domains/multi_turn",),
    "verifiers": ("domains/multi_turn",),
    "websockets": ("domains/multi_turn",),
    "torch": (),
    "umap": ("report",),
}
SOURCES = ("exit_jax", "configs", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
SHORT = {"run.num_iterations": 5, "run.checkpoint_every": 5, "warm_start.num_steps": 20}
SHORT |= {"eval.splits": "('test',)", "eval.restart_every": 0}


def run(*command, folder):
    """Run a command in a folder, with nothing of the checkout on its path; returns what it prints."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the folder of an environment with the wheel, made from the sdist; the rest is that of this Python."""
    folder = tmp_path_factory.mktemp("install")
    source, environment = folder / "source", folder / "environment"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    run(sys.executable, "-c", build, "build_sdist", folder, folder=source)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    run(sys.executable, "-c", build, "build_wheel", folder, folder=next((folder / "unpacked").iterdir()))
    run(sys.executable, "-m", "venv", environment, folder=folder)
    python = environment / "bin/python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", next(folder.glob("*.whl")), folder=folder)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(
        sysconfig.get_path("purelib")
    )  # without that folder's own .pth, such as the checkout's
    return environment


@pytest.mark.slow
@pytest.mark.long  # .ci/run does the same in empty environments
def test_a_wheel_trains_away_from_the_checkout(installed, tmp_path):
    where = run(installed / "bin/python", "-c", "import exit_jax; print(exit_jax.__file__)", folder=tmp_path)
    assert where.startswith(str(installed))
    assert run(installed / "bin/exit-jax", "--version", folder=tmp_path) == f"exit_jax {exit_jax.__version__}\n"
    code = "from exit_jax.config import shipped; print(*shipped.names())"
    assert run(installed / "bin/python", "-c", code, folder=tmp_path).split() == shipped.names()
    short = [f"--config.{name}={value}" for name, value in SHORT.items()]
    printed = run(installed / "bin/exit-jax", "--config", "smoke:seed=3", *short, folder=tmp_path)
    assert "test accuracy: k=0" in printed
    assert (tmp_path / "runs/smoke-exit-seed3/report").is_dir()


def test_a_config_is_a_name_or_a_file(tmp_path, monkeypatch):
    assert len(shipped.names()) == len(list((ROOT / "configs").glob("*.py"))) > 10
    assert shipped.find("sudoku") == ROOT / "configs/sudoku.py"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sudoku").mkdir()  # a folder is no config
    own = tmp_path / "own.py"
    own.write_text(
        "from exit_jax import config\ndef get_config(arg=''):\n    return config.default('sudoku', name='own')\n"
    )
    assert config.load("own.py").name == "own"
    assert (
        config.load("sudoku:variant=grpo,seed=3").to_dict()
        == config.load(f"{ROOT / 'configs/sudoku.py'}:variant=grpo,seed=3").to_dict()
    )
    own.rename(tmp_path / "smoke")
    assert shipped.find("smoke") == pathlib.Path("smoke"), "a file of a user's own comes first"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "sudko",
            "there is no file 'sudko', and no config of that name ships; did you mean 'sudoku'?.* arithmetic_cpu, ",
        ),
        ("nowhere/smoke.py", "did you mean 'smoke'?"),
        ("zzz", "ships; those that do: arithmetic_cpu, "),
        ("", "there is no file ''"),
    ],
)
def test_an_unknown_config_is_one_error(name, words):
    with pytest.raises(ConfigError, match=words) as error:
        config.load(name)
    assert "\n" not in str(error.value), "the command line tells the last line"


def test_the_command_line_takes_names(tmp_path):
    command = (sys.executable, "-m", "exit_jax.main", "--config")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run([*command, "sudko", "--config.seed=3"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1)
    assert "did you mean 'sudoku'?" in told.stderr
    shown = subprocess.run(
        [*command, "smoke:seed=4", "--mode", "settings"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert "\nseed = 4" in shown.stdout


def test_a_study_takes_a_name():
    read = Experiment("smoke", "setting=control,seed=9", {}).read("grpo", 3)
    assert (read.variant, read.seed) == ("grpo", 3)
    assert read.to_dict() == config.load("smoke:setting=control,variant=grpo,seed=3").to_dict()


def test_the_version_is_that_of_the_release_notes():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert newest
    assert cited
    assert newest[1] == cited[1] == exit_jax.__version__


def test_an_image_has_what_the_wheel_is_made_of():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {*SOURCES, "constraints.txt"} - {"MANIFEST.in", "CHANGELOG.md"}


def test_what_an_extra_installs_is_imported_for_it_alone():
    found = set()
    for path in (ROOT / "exit_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.partition(".")[0] for name in names} & OF_EXTRAS.keys():
                place = path.relative_to(ROOT / "exit_jax").as_posix()
                assert place.startswith(OF_EXTRAS[name]), f"{place} imports {name}"
                found.add(name)
    assert {"math_verify", "sklearn", "sympy"} <= found


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("arithmetic_cpu", "math_verify", r'the domain math needs math_verify: pip install "exit_jax\[math\]"'),
        ("mle_tiny", "sklearn", r'the domain ml_engineering needs sklearn: pip install "exit_jax\[mle\]"'),
    ],
)
def test_a_missing_extra_is_told_before_anything_is_made(name, module, remedy, monkeypatch):
    content = config.load(name)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda m, *a: None if m == module else find_spec(m, *a))
    with pytest.raises(DomainError, match=remedy):
        domains.make.__wrapped__(content.domain_name, config.validate(content, 1).domain)
