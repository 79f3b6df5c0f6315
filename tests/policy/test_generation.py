"""Test what is read of a generation_config.json, field by field of transformers' own class, and what is written."""

import json
import logging

import pytest

from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.hf import generation
from exit_jax.policy.hf.config import CheckpointError

QWEN = {  # Qwen2.5-7B-Instruct's
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "transformers_version": "4.37.0",
}
LLAMA = {  # Llama-3.2-3B-Instruct's
    "bos_token_id": 128000,
    "do_sample": True,
    "eos_token_id": [128001, 128008, 128009],
    "temperature": 0.6,
    "top_p": 0.9,
    "transformers_version": "4.45.0.dev0",
}


def read(folder, content):
    (folder / generation.FILE).write_text(json.dumps(content))
    return generation.read(folder)


def test_what_qwen_and_llama_ship(tmp_path):
    assert generation.read(tmp_path) == {}
    assert read(tmp_path, QWEN) == {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert read(tmp_path, LLAMA) == {"temperature": 0.6, "top_p": 0.9, "top_k": 50}, "transformers' own default"
    assert read(tmp_path, LLAMA | {"top_k": 0})["top_k"] == 0
    assert read(tmp_path, LLAMA | {"top_k": None})["top_k"] == 50
    assert read(tmp_path, {"eos_token_id": 2, "max_length": 4096, "top_p": None}) == {}
    greedy = {"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1, "min_new_tokens": 3}
    assert read(tmp_path, greedy) == {"temperature": 0.0, "repetition_penalty": 1.1, "min_tokens": 3}
    assert read(tmp_path, {"suppress_tokens": [7, 9]}) == {"suppress_tokens": [7, 9]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_repeat_ngram_size", 3),
        ("bad_words_ids", [[4, 5]]),
        ("begin_suppress_tokens", [4]),
        ("forced_eos_token_id", 2),
        ("forced_bos_token_id", 1),
        ("typical_p", 0.9),
        ("epsilon_cutoff", 3e-4),
        ("eta_cutoff", 3e-4),
        ("top_h", 0.4),
        ("min_length", 10),
        ("num_beams", 4),
        ("penalty_alpha", 0.6),
        ("guidance_scale", 1.5),
        ("stop_strings", ["\n\n"]),
        ("exponential_decay_length_penalty", [5, 1.1]),
        ("sequence_bias", [[[4], -1.0]]),
        ("encoder_repetition_penalty", 1.2),
        ("watermarking_config", {"bias": 2.0}),
        ("dola_layers", "high"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tmp_path, name, value):
    with pytest.raises(CheckpointError, match=rf"(?s)eval\.from_checkpoint to False.*{name} is "):
        read(tmp_path, QWEN | {name: value})
    assert read(tmp_path, QWEN | {name: None}) == read(tmp_path, QWEN)


def test_all_that_is_not_computed_is_named_at_once(tmp_path):
    with pytest.raises(CheckpointError, match=r"(?s)num_beams is 2.*no_repeat_ngram_size is 3"):
        read(tmp_path, {"no_repeat_ngram_size": 3, "num_beams": 2})


def test_what_is_unknown_or_odd_is_warned_of(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    read(tmp_path, {"chat_format": "chatml", "max_window_size": 6144})
    assert "chat_format, max_window_size are unknown" in caplog.text
    assert read(tmp_path, {"temperature": 0.6}) == {"temperature": 0.6}
    assert "temperature, but no do_sample" in caplog.text


def test_every_field_of_transformers_is_known(require_parity):
    """A field that a later version adds is looked at before it is let pass."""
    (transformers,) = require_parity("transformers")
    fields = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("__")}
    known = {"do_sample", *generation._CUTS, *generation._RULES, *generation._ONLY, *generation._IRRELEVANT}
    assert fields <= known
    defaults = transformers.GenerationConfig._get_default_generation_params()
    assert defaults["top_k"] == generation.TOP_K
    neutral = {name: value for name, value in defaults.items() if name in generation._ONLY}
    assert neutral == {name: generation._ONLY[name] for name in neutral}


def test_what_is_written_reads_the_same(tmp_path, require_parity):
    (transformers,) = require_parity("transformers")
    sampling = SamplingConfig(9, (5, 7), 0.7, 0, 0.8, 0.1, 2, repetition_penalty=1.05, suppress_tokens=(3,))
    content = generation.make(sampling, {"bos_token_id": 1, "pad_token_id": None}, range(20, 22))
    assert content == {
        **{"bos_token_id": 1, "eos_token_id": [5, 7], "max_new_tokens": 9, "do_sample": True, "temperature": 0.7},
        **{"top_k": 0, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.05, "min_new_tokens": 2},
        "suppress_tokens": [3, 20, 21],
    }
    found = read(tmp_path, content)
    assert found.pop("suppress_tokens") == [3, 20, 21]
    assert all(getattr(sampling, name) == value for name, value in found.items())
    transformers.GenerationConfig.from_pretrained(tmp_path).validate(strict=True)
    greedy = generation.make(SamplingConfig(9, (5,), 0.0), {}, ())
    assert greedy == {"eos_token_id": [5], "max_new_tokens": 9, "do_sample": False}
    assert read(tmp_path, greedy) == {"temperature": 0.0}
