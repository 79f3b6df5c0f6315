"""From a Hugging Face folder through training to a Hugging Face folder, with all parameters and with adapters."""

import dataclasses
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
import tiny_sudoku
from small import LLAMA, random_params

from exit_jax import run
from exit_jax.config.parse import validate
from exit_jax.errors import ConfigError
from exit_jax.policy import decoder
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf.export import export
from exit_jax.policy.hf.load import load
from exit_jax.step.program import make_program
from exit_jax.training import train
from exit_jax.training.export import export_policy
from exit_jax.training.start import untrained

ROOT = pathlib.Path(__file__).parents[1]
SHAPE = dataclasses.replace(LLAMA, vocab_size=64, num_heads=4, num_kv_heads=2, rope_theta=1000.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a folder with a small Llama, as transformers would have written it."""
    folder = tmp_path_factory.mktemp("llama") / "checkpoint"
    export(random_params(SHAPE), SHAPE, folder, None, "float32")
    return folder


def tiny(source, arg="", changes=None):
    """Return configs/sudoku_hf.py as small as tiny_sudoku.py, over a mesh of 2 x 2 x 2."""
    content = runpy.run_path(str(ROOT / "configs/sudoku_hf.py"))["get_config"](f"checkpoint={source}{arg}")
    smoke = tiny_sudoku.get_config()
    for group in ("domain", "algorithm", "eval"):
        content[group] = smoke[group]
    content.warm_start.num_steps = 5
    content.warm_start.num_states = 16
    content.warm_start.optimizer.update_from_flattened_dict({"warmup_steps": 1, "decay_steps": 5})
    content.policy.dtype = "float32"
    content.optimizer.learning_rate = 1e-3
    content.run.update_from_flattened_dict(
        {"num_iterations": 5, "steps_per_call": 5, "checkpoint_every": 5, "export_dtype": "float32"}
    )
    content.run.mesh.update_from_flattened_dict({"data": 2, "fsdp": 2, "tensor": 2})
    content.update_from_flattened_dict(changes or {})
    return validate(content, jax.device_count())


def read(folder):
    config = dataclasses.replace(LLAMA, **hf_config.read(folder))
    same = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), random_params(config))
    return config, load(folder, config, same)


@pytest.mark.slow
def test_train_and_export_all_parameters(source, tmp_path):
    config = tiny(source)
    np.testing.assert_array_equal(untrained(config)["embedding"], random_params(SHAPE)["embedding"])
    run.train(config, tmp_path)
    (folder,) = export_policy(config, tmp_path)
    found, params = read(folder)
    assert dataclasses.replace(found, rope_scaling=()) == SHAPE
    trained = train.restore_params(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, trained)
    assert not np.array_equal(params["embedding"], random_params(SHAPE)["embedding"])
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 64
    with pytest.raises(ConfigError, match="export"):  # never over an older one
        export_policy(config, tmp_path)


@pytest.mark.slow
def test_train_and_export_adapters(source, tmp_path):
    config = tiny(source, ",lora=2")
    run.train(config, tmp_path)
    whole, adapter = export_policy(config, tmp_path)
    _, params = read(whole)
    base = random_params(SHAPE)
    np.testing.assert_array_equal(params["embedding"], base["embedding"])
    trained = train.restore_params(config, tmp_path)
    adapters, kernels = decoder.split_adapters(jax.device_get(trained))
    for part, name in (("attention", name) for name in ("query", "key", "value", "out")):
        learnt, kernel = adapters["blocks"][part][name], kernels["blocks"][part][name]["kernel"]
        exact = kernel + np.float64(learnt["lora_a"]) @ learnt["lora_b"] * config.policy.lora.scale
        np.testing.assert_allclose(params["blocks"][part][name]["kernel"], exact, rtol=1e-6, atol=1e-9)
    assert not np.array_equal(params["blocks"]["mlp"]["up"]["kernel"], base["blocks"]["mlp"]["up"]["kernel"])
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 2


def test_faults_come_before_any_compilation(source, tmp_path):
    for changes, words in (
        ({"checkpoint": str(tmp_path / "none")}, "none"),
        ({"run.mesh.tensor": 4, "run.mesh.data": 1, "run.mesh.fsdp": 1}, "num_kv_heads = 2 is not a multiple"),
        ({"policy.lora.rank": 2}, "targets"),
        ({"algorithm.reference_mix": 0.5, "algorithm.kl_coef": 0.1, "policy.lora": lora()}, "mixture of adapters"),
        ({"policy.attention": "flash"}, "not one of"),
        ({"optimizer.decay_steps": 5, "optimizer.warmup_steps": 5}, "warmup_steps = 5 is not below"),
    ):
        with pytest.raises(ConfigError, match=words):
            tiny(source, changes=changes)


def lora():
    return {"rank": 2, "alpha": 2.0, "targets": ("query",)}


def test_a_shape_beside_a_checkpoint_is_refused(source):
    content = runpy.run_path(str(ROOT / "configs/sudoku_hf.py"))["get_config"](f"checkpoint={source}")
    content.policy.num_layers = 2
    with pytest.raises(ConfigError, match=r"config\.policy gives num_layers"):
        validate(content, 8)


def test_a_vocabulary_that_does_not_match_is_refused(source, tmp_path):
    small = dataclasses.replace(SHAPE, vocab_size=20)
    export(random_params(small), small, tmp_path / "small", None, "float32")
    with pytest.raises(ConfigError, match=r"vocab_size = 20, but the domain sudoku has"):
        make_program(tiny(tmp_path / "small"))

    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(21)}, unk_token="0"))
    words.save(str(tmp_path / "small" / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"tokenizer has 21 tokens .* vocab_size is 20"):
        tiny(tmp_path / "small")
