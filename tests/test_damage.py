"""Each file of a checkpoint or a workdir that is damaged costs one line and no traceback: through the command line's main."""

import json
import logging
import os
import shutil
import textwrap

import checkpoints
import jax
import lifelike
import pytest
from absl import flags
from small import ROOT, TINY_MATH
from test_requirements import WIDTHS

from exit_jax import domains
from exit_jax import main as command_line
from exit_jax.policy import decoder
from exit_jax.policy.decoder import DecoderConfig, LoraConfig
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf.export import export
from exit_jax.report import runs
from exit_jax.step.program import _check_checkpoint
from exit_jax.training import start, train
from exit_jax.training.start import untrained

SETTINGS = {k: v for k, v in TINY_MATH.items() if not k.startswith("policy.")} | WIDTHS
SETTINGS |= {"eval.splits": ("test",), "eval.from_checkpoint": True}
CONFIG = """
    import runpy

    from exit_jax.policy.shape import no_shape

    def get_config(arg=""):
        c = runpy.run_path({path!r})["get_config"]()
        c.policy.update(no_shape())
        c.update_from_flattened_dict({settings!r})
        return c
"""


class Reached(Exception):
    """The run would begin now."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with a checkpoint, in two files of weights, and a config that starts from it."""
    root = tmp_path_factory.mktemp("damage")
    folder = checkpoints.make(root / "checkpoint", "qwen3")
    compute = {
        "dtype": "float32",
        "param_dtype": "float32",
        "attention": "xla",
        "remat": "none",
        "unroll_layers": False,
    }
    config = DecoderConfig(**hf_config.read(folder), **compute, decode_stages=1, lora=LoraConfig(0, 1.0, ()))
    export(decoder.init(config, jax.random.key(0)), config, root / "written", folder, "float32", max_shard_bytes=40_000)
    for file in (root / "written").glob("model*"):
        shutil.copy(file, folder)
    settings = SETTINGS | {
        "checkpoint": str(folder),
        "domain.tokenizer": str(folder),
        "domain.data_dir": str(root / "data"),
    }
    path = str(ROOT / "configs/arithmetic_cpu.py")
    text = CONFIG.format(path=path, settings=settings)
    (root / "config.py").write_text(textwrap.dedent(text))
    return root


@pytest.fixture(scope="module")
def launch(root):
    """Return a function that runs a mode up to where the first program would be compiled: its exit status, or "reached"."""
    levels = {name: logging.getLogger(name).level for name in ("absl", "jax")}

    def stop(title, call, config, **_):
        untrained(config)  # the weights are read
        raise Reached

    def restore(config, workdir):
        raise Reached

    def launch(mode):
        domains.make.cache_clear()
        _check_checkpoint.cache_clear()
        flags.FLAGS.unparse_flags()
        arguments = ["--config", str(root / "config.py"), "--workdir", str(root / "run"), "--mode", mode]
        try:
            command_line.parse_flags(["main", *arguments])
            return command_line.main([])
        except Reached:
            return "reached"

    with pytest.MonkeyPatch.context() as patch:
        for module in (start, train):
            patch.setattr(module, "run_loop", stop)
        patch.setattr(train, "restore_params", restore)
        yield launch
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def kept():
    """Return a function that names a file, which is put back as it was."""
    held = {}

    def keep(path):
        held[path] = path.read_bytes()
        return path

    yield keep
    for path, content in held.items():
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def all_fields(value):
    return lambda path: path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_bytes()), value)))


def into_a_folder(path):
    path.unlink()
    path.mkdir()


def unreadable(path):
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    path.chmod(0)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "list": lambda path: path.write_text("[1, 2]"),
    "null": lambda path: path.write_text("null"),
    "fields of lists": all_fields([{"a": [1]}]),
    "fields of text": all_fields("x"),
    "nested": lambda path: path.write_text('{"a":' * 100_000),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "folder": into_a_folder,
    "absent": lambda path: path.unlink(),
    "unreadable": unreadable,
}
FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "model-00002-of-00002.safetensors",
]
HARMLESS = {("generation_config.json", "absent")}


def damage_file(path, damage):
    if path.suffix == ".safetensors" and damage.startswith("fields"):
        pytest.skip("no JSON")
    DAMAGE[damage](path)


def test_without_damage_the_run_begins(launch, root):
    assert launch("train") == "reached"
    assert {file.name for file in (root / "checkpoint").iterdir()} >= set(FILES)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_one_error(launch, root, kept, capfd, file, damage):
    damage_file(kept(root / "checkpoint" / file), damage)
    status = launch("train")
    if (file, damage) in HARMLESS:
        assert status == "reached"
        return
    said = capfd.readouterr().err
    assert status == 2
    assert said.count("error: ") == 1
    assert len(said.strip().splitlines()) <= 12, said  # a list of all that config.json lacks is the longest
    assert "checkpoint" in said or "eval.temperature" in said


@pytest.fixture(scope="module")
def workdir(launch, root):
    """Return the workdir of a run that has begun."""
    assert launch("train") == "reached"
    (root / "run/checkpoints/1").mkdir(parents=True)
    return root / "run"


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["config.json", "tasks.json"])
@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_a_damaged_workdir_is_one_error(launch, workdir, kept, capfd, mode, file, damage):
    damage_file(kept(workdir / file), damage)
    status = launch(mode)
    if (file, damage) == ("tasks.json", "absent"):  # a run of before there was one
        assert status == "reached"
        return
    said = capfd.readouterr().err
    assert status in (1, 2)  # 1: of the disk, where the same command goes on
    assert said.count("error: ") == 1
    assert len(said.strip().splitlines()) <= 12, said
    assert str(workdir) in said


# what a report is drawn from


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return lifelike.write_run(tmp_path_factory.mktemp("runs") / "run", num_rows=3, splits=("aime_2024",), num_chains=1)


def figures(folder):
    """Read a run and reduce it to what tables and plots are made of."""
    groups = runs.group([runs.load(folder)])
    (label,) = groups
    splits = runs.splits_of(groups)
    for split, ks in splits.items():
        runs.by_k(groups[label], split, ks, "accuracy")
    return label, splits, runs.over_training(groups[label], "reward")[1].size, groups[label][0].scores


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name not in ("folder", "unreadable")])
@pytest.mark.parametrize("file", ["config.json", "evaluation.json", "train.jsonl", "buffer_scores.json"])
def test_a_report_leaves_out_what_is_damaged(finished, kept, file, damage):
    whole = figures(finished)
    assert whole[0] == "exit"
    assert (len(whole[1]), whole[2], len(whole[3])) == (1, 3, 1)
    path = kept(finished / file)
    if file == "train.jsonl" and damage.startswith("fields"):
        path.write_text('{"step": [1], "reward": 1.0}\n{"step": 2, "reward": "x"}\n{"step": null}\n')
    else:
        damage_file(path, damage)
    label, splits, num_rows, scores = figures(finished)
    assert label == ("run" if file == "config.json" else "exit")
    assert bool(splits) == (file != "evaluation.json")
    if file == "train.jsonl":
        assert num_rows == (1 if damage == "half" else 0)
    assert bool(scores) == (file != "buffer_scores.json")
