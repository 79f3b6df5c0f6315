"""The fingerprint of what a run reads from outside: each input is replaced on disk in turn, and refused by its name."""

import dataclasses
import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest
from small import LLAMA, TINY_MATH, random_params
from test_train import smoke

from exit_jax import run
from exit_jax.config.parse import validate
from exit_jax.domains.text import tokenizer
from exit_jax.errors import ConfigError
from exit_jax.policy.hf.export import export
from exit_jax.policy.shape import no_shape
from exit_jax.training.start import warm_start
from exit_jax.workdir import inputs
from exit_jax.workdir.identity import open_workdir

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return a folder with a small Llama, a tokenizer of its own beside it, and what passes for an encoder."""
    folder = tmp_path_factory.mktemp("sources")
    trained = tokenizer.train(["What is 1 + 2? Improve the response.\n\n# Request\n"] * 3, 300, folder)
    shape = dataclasses.replace(LLAMA, vocab_size=len(trained))
    export(random_params(shape), shape, folder / "model", None, "float32")
    (folder / "model/generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": [1]}))
    trained.save_pretrained(folder / "model")
    trained.save_pretrained(folder / "tokenizer")
    shutil.copy(folder / "model/config.json", folder / "tokenizer")
    (folder / "tokenizer/generation_config.json").write_text(json.dumps({"eos_token_id": [0]}))
    (folder / "encoder/1_Pooling").mkdir(parents=True)
    (folder / "encoder/1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (folder / "encoder/config.json").write_text("{}")
    shutil.copy(folder / "model/model.safetensors", folder / "encoder")
    return folder


@pytest.fixture
def config(sources, tmp_path):
    """Return configs/arithmetic_cpu.py over copies of the sources, with adapters."""
    content = runpy.run_path(str(ROOT / "configs/arithmetic_cpu.py"))["get_config"]()
    shutil.copytree(sources, tmp_path / "sources")
    own = {name: value for name, value in TINY_MATH.items() if name.removeprefix("policy.") not in no_shape()}
    content.update_from_flattened_dict(own | {"domain.data_dir": str(tmp_path / "data")})
    content.policy.update(no_shape())
    content.update_from_flattened_dict(
        {
            "checkpoint": str(tmp_path / "sources/model"),
            "domain.tokenizer": str(tmp_path / "sources/tokenizer"),
            "encoder.checkpoint": str(tmp_path / "sources/encoder"),
            "algorithm.diversity_embedding": "grades",
            "policy.lora.rank": 2,
            "policy.lora.targets": ("query",),
            "domain.prompt_width": 400,
        }
    )
    return validate(content, 1)


def change_json(path: pathlib.Path, **fields):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def change_weights(path: pathlib.Path):
    """Change one bit of the last weight."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES = {
    "the weights of .*/model, the base of the adapters": lambda at: change_weights(at / "model/model.safetensors"),
    "config.json of .*/model": lambda at: change_json(at / "model/config.json", rope_theta=99.0),
    "generation_config.json of .*/model": lambda at: change_json(at / "model/generation_config.json", temperature=0.7),
    "generation_config.json of .*/model,?": lambda at: (at / "model/generation_config.json").unlink(),
    "the tokenizer .*/tokenizer": lambda at: change_json(at / "tokenizer/tokenizer.json", truncation=None, padding=1),
    "the tokenizer .*/tokenizer,?": lambda at: change_json(at / "tokenizer/tokenizer_config.json", add_bos_token=True),
    "the chat template of .*/tokenizer": lambda at: next(at.glob("tokenizer/chat_template*")).write_text("{{ 1 }}"),
    "the end tokens .* of .*/tokenizer": lambda at: change_json(
        at / "tokenizer/generation_config.json", eos_token_id=[0, 2]
    ),
    "the encoder .*/encoder": lambda at: change_weights(at / "encoder/model.safetensors"),
    "the encoder .*/encoder,?": lambda at: change_json(
        at / "encoder/1_Pooling/config.json", pooling_mode_cls_token=True
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_input_that_was_replaced_is_refused_by_its_name(name, config, tmp_path):
    workdir = tmp_path / "run"
    inputs.check(config, workdir, False, "--workdir")
    inputs.check(config, workdir, True, "--workdir")
    CHANGES[name](tmp_path / "sources")
    with pytest.raises(
        ConfigError, match=rf"changed since: {name}\. Restore what was there, or choose another --workdir$"
    ):
        inputs.check(config, workdir, True, "--workdir")
    inputs.check(config, workdir, False, "--workdir")  # nothing was made from them yet


def test_a_template_within_the_tokenizers_settings_is_one_of_its_own(config, tmp_path):
    settings = tmp_path / "sources/tokenizer/tokenizer_config.json"
    next(settings.parent.glob("chat_template*")).unlink()
    change_json(settings, chat_template="{{ 1 }}")
    before = inputs.find(config)
    change_json(settings, chat_template="{{ 2 }}")
    after = inputs.find(config)
    assert {name for name in before if before[name] != after[name]} == {
        f"the chat template of {tmp_path / 'sources/tokenizer'}"
    }


def test_what_changes_nothing_is_not_refused(config, tmp_path):
    """Provenance, another layout of JSON, files that no one reads, weights that are no longer needed."""
    before = inputs.find(config)
    at = tmp_path / "sources"
    change_json(at / "model/config.json", transformers_version="9", _name_or_path="elsewhere")
    path = at / "tokenizer/tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4, sort_keys=True))
    (at / "model/README.md").write_text("news")
    assert inputs.find(config) == before
    (at / "model/model.safetensors").unlink()
    assert inputs.find(config).items() < before.items()


def test_a_run_of_before_is_adopted_and_new_inputs_are_added(config, tmp_path):
    inputs.check(config, tmp_path / "run", True, "--workdir")
    file = tmp_path / "run/inputs.json"
    whole = json.loads(file.read_text())
    assert len(whole) == 7
    file.write_text(json.dumps({name: value for name, value in whole.items() if "encoder" not in name}))
    inputs.check(config, tmp_path / "run", True, "--workdir")
    assert json.loads(file.read_text()) == whole
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"inputs.json is damaged .* delete it"):
        inputs.check(config, tmp_path / "run", True, "--workdir")


def test_a_hub_ids_commit_is_named_when_main_has_moved(config, tmp_path, monkeypatch):
    commits = iter(["aaa", "aaa", "bbb", "ccc"])

    def resolve(name):
        if "model" not in name:
            return pathlib.Path(name)
        target = tmp_path / "snapshots" / next(commits)
        if not target.exists():
            shutil.copytree(tmp_path / "sources/model", target)
        return target

    monkeypatch.setattr(inputs, "resolve", resolve)
    config = dataclasses.replace(config, checkpoint="owner/model")
    inputs.check(config, tmp_path / "run", False, "--workdir")
    inputs.check(config, tmp_path / "run", True, "--workdir")
    inputs.check(config, tmp_path / "run", True, "--workdir")  # another commit of the same files
    change_weights(tmp_path / "sources/model/model.safetensors")
    with pytest.raises(ConfigError, match=r"the weights of owner/model.*Name the commit .* owner/model@aaa, or choose"):
        inputs.check(config, tmp_path / "run", True, "--workdir")


def test_of_large_files_samples_of_each_tensor_are_read(config, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "WHOLE", 1 << 8)
    monkeypatch.setattr(inputs, "BLOCK", 1 << 4)
    file = tmp_path / "sources/model/model.safetensors"
    content = file.read_bytes()
    with file.open("rb") as opened:
        spans = list(inputs._samples(opened, file, len(content)))
    header = int.from_bytes(content[:8], "little")
    tensors = {name: value for name, value in json.loads(content[8 : 8 + header]).items() if name != "__metadata__"}
    assert spans[0] == (0, 8 + header)
    assert sum(stop - start for start, stop in spans[1:]) == 4 * 16 * len(tensors)
    before = inputs._hash_file(file)
    for start, stop in (value["data_offsets"] for value in tensors.values()):
        changed = bytearray(content)
        changed[8 + header + start : 8 + header + stop] = np.random.default_rng(0).bytes(stop - start)
        file.write_bytes(changed)
        assert inputs._hash_file(file) != before
    file.write_bytes(content + b"x")
    assert inputs._hash_file(file) != before, "its size"


def test_data_are_known_by_content(tmp_path):
    assert inputs._hash_data(tmp_path / "absent") == ""
    for name in ("train.csv", "deep/test.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    hashes = [inputs._hash_data(tmp_path), inputs._hash_data(tmp_path / "train.csv")]
    (tmp_path / "deep/test.csv").write_text("2")
    hashes.append(inputs._hash_data(tmp_path))
    (tmp_path / "deep/test.csv").rename(tmp_path / "deep/other.csv")
    hashes.append(inputs._hash_data(tmp_path))
    assert len(set(hashes)) == 4


@pytest.mark.parametrize("command", ["train", "evaluate", "export"])
def test_every_command_asks(command, config, tmp_path):
    workdir = open_workdir(tmp_path / "run", config)
    inputs.check(config, workdir, False, "--workdir")
    (workdir / "train.jsonl").write_text('{"step": 1}\n')
    change_weights(tmp_path / "sources/model/model.safetensors")
    ask = {
        "train": lambda: run.train(config, workdir),
        "evaluate": lambda: run.evaluate(config, workdir),
        "export": lambda: run.export(config, workdir),
    }[command]
    with pytest.raises(ConfigError, match="changed since: the weights of"):
        ask()


def test_a_shared_warm_start_knows_what_it_began_from(tmp_path, monkeypatch):
    """The encoder has no part in it; another's, which may only be read, is adopted as it is."""
    shared = {"warm_start_dir": str(tmp_path / "warm"), "num_iterations": 5}
    found = {"the weights of owner/model": "1"}
    monkeypatch.setattr(inputs, "find", lambda config, of_run: dict(found) if not of_run else 1 / 0)
    config = smoke(changes={"warm_start.num_steps": 5}, **shared)
    warm_start(config, tmp_path / "one", None)
    warm_start(config, tmp_path / "two", None)
    found["the weights of owner/model"] = "2"
    with pytest.raises(ConfigError, match=r"the weights of owner/model\. .* choose another run.warm_start_dir"):
        warm_start(config, tmp_path / "three", None)
    next(tmp_path.glob("warm/*/inputs.json")).unlink()

    def read_only(*_):
        raise PermissionError

    monkeypatch.setattr(inputs, "write_json", read_only)
    warm_start(config, tmp_path / "three", None)
