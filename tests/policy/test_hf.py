"""Hugging Face checkpoints without torch: config fields, sharded loading, bad files, export, host memory."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from exit_jax.policy import decoder
from exit_jax.policy.decoder import DecoderConfig, LoraConfig
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf import export as hf_export
from exit_jax.policy.hf.config import CheckpointError
from exit_jax.policy.hf.export import export, export_adapter
from exit_jax.policy.hf.load import inspect, load

ROOT = pathlib.Path(__file__).parents[2]
COMPUTE = {
    "dtype": "float32",
    "param_dtype": "float32",
    "attention": "xla",
    "remat": "none",
    "unroll_layers": False,
    "decode_stages": 1,
    "lora": LoraConfig(0, 1.0, ()),
}
LAYERS, VOCAB, EMBED, MLP, HEADS, KV_HEADS, HEAD, EXPERTS = 3, 48, 16, 40, 4, 2, 8, 3
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": EMBED,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_act": None,
        "rope_theta": None,
    }
    | {"sliding_window": 16, "sliding_window_pattern": 3, "tie_word_embeddings": True},
    "olmo2": {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"},
    "smollm3": {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "no_rope_layers": [1, 0, 1]},
    "qwen3_moe": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": EXPERTS}
    | {"num_experts_per_tok": 2, "moe_intermediate_size": MLP, "norm_topk_prob": True},
    "mixtral": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": EXPERTS}
    | {"num_experts_per_tok": 2},
}
# As on the hub, transformers 4's spelling.
LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
R1_QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.0",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def write_config(folder, **fields):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**TINY, **fields}))
    return folder


def make_tensors(content, dtype, seed=0):
    """Return random tensors by name, written out by hand, for a family's config.json."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (VOCAB, EMBED), "model.norm.weight": (EMBED,)}
    if not content.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (VOCAB, EMBED)
    for i in range(LAYERS):
        layer = {
            "input_layernorm.weight": (EMBED,),
            "post_attention_layernorm.weight": (EMBED,),
            "self_attn.q_proj.weight": (HEADS * HEAD, EMBED),
            "self_attn.k_proj.weight": (KV_HEADS * HEAD, EMBED),
            "self_attn.v_proj.weight": (KV_HEADS * HEAD, EMBED),
            "self_attn.o_proj.weight": (EMBED, HEADS * HEAD),
            "mlp.gate_proj.weight": (MLP, EMBED),
            "mlp.up_proj.weight": (MLP, EMBED),
            "mlp.down_proj.weight": (EMBED, MLP),
        }
        if content.get("model_type") == "qwen2":
            layer |= {f"self_attn.{x}_proj.bias": (n * HEAD,) for x, n in zip("qkv", (HEADS, KV_HEADS, KV_HEADS))}
        kind = content.get("model_type")
        if kind in ("qwen3", "qwen3_moe", "gemma3_text"):
            layer |= {"self_attn.q_norm.weight": (HEAD,), "self_attn.k_norm.weight": (HEAD,)}
        if kind == "olmo2":
            del layer["input_layernorm.weight"]
            layer |= {"self_attn.q_norm.weight": (HEADS * HEAD,), "self_attn.k_norm.weight": (KV_HEADS * HEAD,)}
        if kind in ("olmo2", "gemma3_text"):
            layer["post_feedforward_layernorm.weight"] = (EMBED,)
        if kind == "gemma3_text":
            layer["pre_feedforward_layernorm.weight"] = (EMBED,)
        if kind in ("qwen3_moe", "mixtral"):
            dense = {name: layer.pop(f"mlp.{name}_proj.weight") for name in ("gate", "up", "down")}
            called = {"gate": "w1", "up": "w3", "down": "w2"} if kind == "mixtral" else {}
            block = "block_sparse_moe" if kind == "mixtral" else "mlp"
            layer[f"{block}.gate.weight"] = (EXPERTS, EMBED)
            for name, shape in dense.items():
                one = called.get(name, f"{name}_proj")
                layer |= {f"{block}.experts.{e}.{one}.weight": shape for e in range(EXPERTS)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write_checkpoint(folder, dtype=np.float32, num_files=1, **fields):
    """Write a random checkpoint and return its tensors; in two files, layers are cut across them."""
    write_config(folder, **fields)
    tensors = make_tensors(fields, dtype)
    if num_files == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    names = sorted(tensors)
    files = {f"model-{i + 1:05}-of-{num_files:05}.safetensors": names[i::num_files] for i in range(num_files)}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def make_config(folder, **compute):
    return DecoderConfig(**hf_config.read(folder), **(COMPUTE | compute))


def make_shardings(config, data=2, fsdp=2, tensor=2):
    """Split matrices over fsdp and tensor, biases over tensor, and nothing over data, whose devices hold copies."""
    axes = ("data", "fsdp", "tensor")
    grid = jax.make_mesh((data, fsdp, tensor), axes, (AxisType.Auto,) * 3)

    def place(path, leaf):
        split = {"kernel": ("fsdp", "tensor"), "embedding": ("tensor", "fsdp"), "bias": ("tensor",)}.get(
            path[-1].key, ()
        )
        split = ("fsdp", None) if path[-2:][0].key == "router" else split
        return NamedSharding(grid, PartitionSpec(*(None,) * (leaf.ndim - len(split)), *split))

    return jax.tree.map_with_path(place, jax.eval_shape(lambda: decoder.init(config, jax.random.key(0))))


def assert_bits(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].tobytes() == right[name].tobytes(), name


# config.json


def test_reads_llama_with_scaled_rope(tmp_path):
    write_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    fields = hf_config.read(tmp_path)
    assert fields == {
        "vocab_size": 128256,
        "num_layers": 16,
        "embed_dim": 2048,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 64,
        "mlp_dim": 8192,
        "rope_theta": 500000.0,
        "rope_scaling": (32.0, 1.0, 4.0, 8192.0),
        "norm_eps": 1e-5,
        "tie_embeddings": True,
        "qkv_bias": False,
        "qk_norm": False,
        "layer_windows": (),
        "rope_local_theta": 0.0,
        "query_scalar": 0.0,
        "attention_cap": 0.0,
        "logits_cap": 0.0,
        "norms": "before",
        "norm_offset": False,
        "embedding_scaled": False,
        "activation": "silu",
        "qk_norm_whole": False,
        "no_rope_layers": (),
        "num_experts": 0,
        "experts_per_token": 0,
        "experts_renormalised": False,
    }
    shape_fields = {field.name for field in dataclasses.fields(DecoderConfig)} - {*COMPUTE, "unused_ids"}
    assert set(fields) == shape_fields
    assert hf_config.read_eos(tmp_path) == (128001, 128008, 128009)
    assert hf_config.read_limits(tmp_path) == {"max_position_embeddings": 131072}  # as scaled


def test_both_spellings_are_the_same(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    old = hf_config.read(tmp_path)
    new = dict(LLAMA_1B)
    new["rope_parameters"] = {**new.pop("rope_scaling"), "rope_theta": new.pop("rope_theta")}
    new["dtype"] = new.pop("torch_dtype")
    (tmp_path / "config.json").write_text(json.dumps(new))
    assert hf_config.read(tmp_path) == old


def test_reads_qwen_distilled_from_r1(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(R1_QWEN_7B))
    fields = hf_config.read(tmp_path)
    assert fields["head_dim"] == 128
    assert fields["qkv_bias"]
    assert not fields["qk_norm"]
    assert fields["rope_scaling"] == ()


# As on the hub.
GEMMA_3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
    "vocab_size": 262144,
}


def test_reads_gemma_3(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GEMMA_3_1B))
    fields = hf_config.read(tmp_path)
    assert fields["layer_windows"] == ((512,) * 5 + (0,)) * 4 + (512, 512)
    assert (fields["rope_theta"], fields["rope_local_theta"], fields["query_scalar"]) == (1e6, 1e4, 256.0)
    assert (fields["tie_embeddings"], fields["norms"], fields["norm_offset"]) == (True, "both", True)
    new = {name: value for name, value in GEMMA_3_1B.items() if "rope" not in name and "pattern" not in name}
    new["layer_types"] = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(26)]
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
    }
    (tmp_path / "config.json").write_text(json.dumps(new))
    assert hf_config.read(tmp_path) == fields


def test_layers_without_rope_are_every_fourth_where_a_config_says_nothing(tmp_path):
    fields = FAMILIES["smollm3"] | {"no_rope_layers": None, "num_hidden_layers": 9, "pretraining_tp": 2}
    found = hf_config.read(write_config(tmp_path, **fields))
    assert (found["no_rope_layers"], found["layer_windows"]) == ((3, 7), ())
    found = hf_config.read(write_config(tmp_path, **fields, use_sliding_window=True, sliding_window=8))
    assert found["layer_windows"] == (0, 0, 0, 8, 0, 0, 0, 8, 0)  # as transformers have it


def test_experts_are_read_under_either_name(tmp_path):
    fields = FAMILIES["qwen3_moe"]
    found = hf_config.read(write_config(tmp_path, **fields, intermediate_size=999))
    assert [found[name] for name in ("num_experts", "experts_per_token", "mlp_dim")] == [EXPERTS, 2, MLP]
    new = {name: value for name, value in fields.items() if name != "num_experts"}
    assert hf_config.read(write_config(tmp_path, **new, num_local_experts=EXPERTS)) == found


def test_defaults_of_absent_fields(tmp_path):
    content = {
        k: v for k, v in TINY.items() if k not in ("head_dim", "num_key_value_heads", "rope_theta", "architectures")
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    fields = hf_config.read(tmp_path)
    assert (fields["head_dim"], fields["num_kv_heads"], fields["rope_theta"]) == (4, 4, 10000.0)


GEMMA, MOE = FAMILIES["gemma3"], FAMILIES["qwen3_moe"]
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
LONGROPE = {"rope_type": "longrope", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
SWITCHED = {"sliding_window": 64, "use_sliding_window": True}


def test_yarn_is_read_with_transformers_defaults(tmp_path):
    scaling = lambda **fields: hf_config.read(write_config(tmp_path, rope_scaling=YARN | fields))["rope_scaling"]
    assert scaling() == (4.0, 512.0, 32.0, 1.0, pytest.approx(0.1 * np.log(4) + 1), 1.0)
    assert scaling(attention_factor=0.5, truncate=False, beta_fast=8, original_max_position_embeddings=64) == (
        (4.0, 64.0, 8.0, 1.0, 0.5, 0.0)
    )
    ratio = (0.2 * np.log(4) + 1) / (0.05 * np.log(4) + 1)
    assert scaling(mscale=2.0, mscale_all_dim=0.5)[4] == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("fields", "limits"),
    [
        ({}, {"max_position_embeddings": 512}),
        (MISTRAL | {"sliding_window": None}, {"max_position_embeddings": 512}),
        (MISTRAL | {"sliding_window": 256}, {"max_position_embeddings": 512}),
        (
            {
                "layer_types": ["full_attention", "sliding_attention"],
                "sliding_window": 128,
            },  # which Llama does not compute
            {"max_position_embeddings": 512, "sliding_window": 128},
        ),
        ({"rope_scaling": YARN}, {"factor times original_max_position_embeddings": 2048}),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 128}}, {"max_position_embeddings": 512}),
    ],
)
def test_how_far_a_checkpoint_goes(tmp_path, fields, limits):
    write_config(tmp_path, **fields)
    assert hf_config.read(tmp_path)["num_layers"] == LAYERS
    assert hf_config.read_limits(tmp_path) == limits


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        (MISTRAL, ()),  # transformers' own is 4096, which no sequence outgrows here
        (MISTRAL | {"max_position_embeddings": 8192}, (4096, 4096, 4096)),
        (MISTRAL | {"sliding_window": None}, ()),
        (MISTRAL | {"sliding_window": 256}, (256, 256, 256)),
        (QWEN2 | {"sliding_window": 64, "max_window_layers": 1}, ()),  # it counts only where it is switched on
        (QWEN2 | SWITCHED, ()),  # from layer 28 on
        (QWEN2 | SWITCHED | {"max_window_layers": 1}, (0, 64, 64)),
        (QWEN2 | SWITCHED | {"layer_types": ["sliding_attention", *["full_attention"] * 2]}, (64, 0, 0)),
    ],
)
def test_which_layers_have_a_window(tmp_path, fields, windows):
    assert hf_config.read(write_config(tmp_path, **fields))["layer_windows"] == windows


@pytest.mark.parametrize(
    ("model_type", "longest"), [("llama", 2048), ("mistral", 131072), ("qwen2", 32768), ("qwen3", 32768)]
)
def test_a_silent_config_goes_as_far_as_transformers_assumes(tmp_path, model_type, longest, require_parity):
    (transformers,) = require_parity("transformers")
    content = {k: v for k, v in TINY.items() if k not in ("max_position_embeddings", "architectures")}
    (tmp_path / "config.json").write_text(json.dumps(content | {"model_type": model_type}))
    assert hf_config.read_limits(tmp_path)["max_position_embeddings"] == longest
    assert transformers.AutoConfig.from_pretrained(tmp_path).max_position_embeddings == longest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*not supported\nsupported: Llama.*Qwen3.*Mistral"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"model_type": "qwen2"}, "model_type 'qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"pretraining_tp": 2}, "pretraining_tp is 2"),
        ({"rope_scaling": LONGROPE}, "rope of type 'longrope'; only 'default', 'linear', 'llama3' and 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": -2.0}}, "rope of type 'linear' has factor -2.0"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope of type 'yarn' has attention_factor None"),
        ({"rope_scaling": YARN | {"mscale": "1"}}, "rope of type 'yarn' has attention_factor None"),
        ({"rope_scaling": YARN | {"beta_fast": 0.5}}, "beta_slow 1, which must be below beta_fast 0.5"),
        ({"rope_scaling": YARN | {"short_factor": [1]}}, r"rope of type 'yarn' has short_factor \[1\]"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'llama3' has high_freq_factor None"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1]}}, r"'default' has mrope_section \[1\]"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is both 10000.0 and 5.0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, r"layer_types is \['full_attention', 'chunked"),
        ({"layer_types": [{"a": 1}, []]}, "layer_types is"),
        ({"layer_types": 5}, "layer_types is 5; only"),
        ({**MISTRAL, "sliding_window": "256"}, "sliding_window is '256', which must be a positive whole"),
        ({**QWEN2, "use_sliding_window": "yes"}, "use_sliding_window is 'yes', which must be true or false"),
        ({**QWEN2, **SWITCHED, "max_window_layers": None}, "max_window_layers is None, which must be a whole"),
        (
            {**QWEN2, "layer_types": ["sliding_attention"] * 3},
            "layer_types has sliding_attention, but there is no sliding_w",
        ),
        ({**QWEN2, **SWITCHED, "layer_types": ["full_attention"]}, "layer_types has 1 entries, which must be .* = 3"),
        (
            {**MISTRAL, "layer_types": ["full_attention"] * 3},
            "but a mistral model has sliding_window in all layers or none",
        ),
        ({**GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; only None"),
        ({**GEMMA, "hidden_activation": "gelu"}, "hidden_activation is 'gelu'; only 'gelu_pytorch_tanh'"),
        ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (
            {**GEMMA, "final_logit_softcapping": -1},
            "final_logit_softcapping is -1, which must be a number above 0, or null",
        ),
        ({**GEMMA, "rope_parameters": {"rope_theta": 5.0}}, "must have full_attention and sliding_attention"),
        ({**GEMMA, "sliding_window_pattern": 0}, "sliding_window_pattern is 0, which must be"),
        (
            {**GEMMA, "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope of layers with a window is .*; only type 'default' is supported there",
        ),
        ({"query_pre_attn_scalar": 5}, "not known here: query_pre_attn_scalar"),
        ({**FAMILIES["smollm3"], "no_rope_layers": [1, 2, 1]}, r"no_rope_layers is \[1, 2, 1\], which must be"),
        ({**MOE, "num_experts_per_tok": 9}, "num_experts_per_tok is 9, more than all 3"),
        ({**MOE, "num_local_experts": 9}, "num_experts is 3, but num_local_experts is 9"),
        ({**MOE, "norm_topk_prob": 1}, "norm_topk_prob is 1, which must be true or false"),
        ({**MOE, "mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]; only \[\]"),
        ({**MOE, "decoder_sparse_step": 2}, "decoder_sparse_step is 2; only 1"),
        ({"num_experts": 3}, "not known here: num_experts"),
        ({"max_position_embeddings": None}, "max_position_embeddings is None, which must be"),
        ({"max_position_embeddings": True}, "max_position_embeddings is True, which must be"),
        ({"architectures": 5}, "names the architecture 5"),
        ({"architectures": [["LlamaForCausalLM"]]}, "names the architecture"),
        ({"model_type": ["llama"]}, "names the architecture"),
        ({"vocab_size": 10**30}, "vocab_size is 1000"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, r"rope of type \['llama3'\]"),
        ({"rope_scaling": [1]}, "must be objects"),
        ({"rope_scaling": {"rope_type": "llama3", **dict.fromkeys(LLAMA3, 4.0)}}, "must be below high_freq_factor 4.0"),
        ({"hidden_size": None}, "hidden_size is None, which must be"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({**FAMILIES["qwen3"], "num_key_value_heads": None}, "num_key_value_heads is None"),
    ],
)
def test_unsupported_fields_are_named(tmp_path, fields, message):
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        hf_config.read(write_config(tmp_path, **fields))


def test_all_faults_of_a_config_at_once(tmp_path):
    write_config(tmp_path, hidden_act="relu", embedding_multiplier=12.0, logits_scaling=8.0, rope_scaling=LONGROPE)
    with pytest.raises(
        CheckpointError, match=r"(?s)relu.*longrope.*not known here: embedding_multiplier, logits_scaling;"
    ):
        hf_config.read(tmp_path)


def test_no_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        hf_config.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        hf_config.read(tmp_path)


def test_generation_config_has_the_last_word_on_stops(tmp_path):
    write_config(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7], "pad_token_id": 0}')
    assert hf_config.read_eos(tmp_path) == (2, 7)


def test_a_folder_is_its_own_name(tmp_path):
    assert hf_config.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="is no folder"):
        hf_config.resolve(str(tmp_path / "absent"))


def test_hub_id_without_network_or_cache(tmp_path):
    """In a process of its own, since the hub's library reads the environment when it is imported."""
    code = "from exit_jax.policy.hf import config; config.resolve('owner/model-3B@v2')"
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    last = run.stderr.partition("hf.config.CheckpointError: ")[2]
    for word in ("owner/model-3B@v2", "HF_HOME", "HF_HUB_OFFLINE", "hf download owner/model-3B --revision v2", "gated"):
        assert word in last


def test_hub_id_from_the_cache(tmp_path):
    cached = tmp_path / "hub" / "models--owner--model" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    (tmp_path / "hub" / "models--owner--model" / "refs").mkdir()
    (tmp_path / "hub" / "models--owner--model" / "refs" / "main").write_text("abc")
    code = "from exit_jax.policy.hf import config; print(config.resolve('owner/model'))"
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == str(cached), run.stderr


# loading


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_loads_into_shards(tmp_path, family, num_files):
    tensors = write_checkpoint(tmp_path, num_files=num_files, **FAMILIES[family])
    config = make_config(tmp_path)
    shardings = make_shardings(config)
    params = load(tmp_path, config, shardings)
    like = decoder.init(config, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), like)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    held = params["blocks"]["mlp"]
    if config.num_experts:
        called = {"mixtral": "block_sparse_moe.experts.{}.w2"}.get(family, "mlp.experts.{}.down_proj")
        name = f"model.layers.{{}}.{called}.weight"
        down = np.stack([[tensors[name.format(i, e)].T for e in range(EXPERTS)] for i in range(LAYERS)])
        held = held["experts"]
    else:
        down = np.stack([tensors[f"model.layers.{i}.mlp.down_proj.weight"].T for i in range(LAYERS)])
    np.testing.assert_array_equal(held["down"]["kernel"], down)
    whole = (*down.shape[:-2], MLP // 2, EMBED // 2)
    assert held["down"]["kernel"].addressable_shards[0].data.shape == whole
    np.testing.assert_array_equal(params["embedding"], tensors["model.embed_tokens.weight"])
    if "head" in params:
        np.testing.assert_array_equal(params["head"]["kernel"], tensors["lm_head.weight"].T)
    if config.qkv_bias:
        bias = np.stack([tensors[f"model.layers.{i}.self_attn.k_proj.bias"] for i in range(LAYERS)])
        np.testing.assert_array_equal(params["blocks"]["attention"]["key"]["bias"], bias)


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_loads_into_the_wanted_dtype(tmp_path, stored, wanted):
    tensors = write_checkpoint(tmp_path, stored)
    config = make_config(tmp_path, param_dtype=wanted)
    params = load(tmp_path, config, make_shardings(config))
    up = np.stack([tensors[f"model.layers.{i}.mlp.up_proj.weight"].T for i in range(LAYERS)])
    np.testing.assert_array_equal(params["blocks"]["mlp"]["up"]["kernel"], up.astype(wanted))


def test_a_large_matrix_is_read_in_several_blocks_of_rows(tmp_path):
    """As many rows as three and a half blocks."""
    content = {**TINY, "vocab_size": 112, "tie_word_embeddings": True}
    tensors = make_tensors(content, np.float32)
    tensors["model.embed_tokens.weight"] = np.arange(112.0 * EMBED, dtype=np.float32).reshape(112, EMBED)
    write_config(tmp_path, vocab_size=112, tie_word_embeddings=True)
    save_file(tensors, tmp_path / "model.safetensors")
    config = make_config(tmp_path)
    params = load(tmp_path, config, make_shardings(config, data=1, fsdp=4))
    np.testing.assert_array_equal(params["embedding"], tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("given", "name", "revision"),
    [
        ("owner/model@refs/pr/3", "owner/model", "refs/pr/3"),
        ("owner/model", "owner/model", None),
        ("base@v2", "{folder}/base@v2", None),  # a folder's name may hold one, too
        (None, None, None),
    ],
)
def test_adapters_name_their_base_as_peft_looks_for_it(given, name, revision, tmp_path, monkeypatch):
    """A hub id and its revision apart, and a folder wherever one stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base@v2").mkdir()
    config = make_config(write_config(tmp_path / "in"), lora=LoraConfig(2, 8.0, ("value", "down")))
    export_adapter(decoder.init(config, jax.random.key(0)), config, tmp_path / "out", given)
    content = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == (name and name.format(folder=tmp_path))
    assert content["revision"] == revision


def test_adapters_are_not_loaded(tmp_path):
    write_checkpoint(tmp_path)
    config = make_config(tmp_path, lora=LoraConfig(2, 4.0, ("query", "down")))
    params = load(tmp_path, config, make_shardings(config))
    adapters, base = decoder.split_adapters(decoder.init(config, jax.random.key(0)))
    assert adapters
    assert jax.tree.structure(params) == jax.tree.structure(base)


def test_loaded_arrays_can_be_donated(tmp_path):
    """Several devices may hold the same array; giving one copy away must not reach the others."""
    write_checkpoint(tmp_path)
    config = make_config(tmp_path)
    params = load(tmp_path, config, make_shardings(config, data=8, fsdp=1, tensor=1))
    before = np.array(params["embedding"])
    changed = jax.jit(lambda x: x + 1, donate_argnums=0)(params["embedding"])
    for shard in changed.addressable_shards:
        np.testing.assert_array_equal(shard.data, before + 1)


def test_harmless_extras(tmp_path):
    tensors = write_checkpoint(tmp_path, **FAMILIES["tied"])
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    config = make_config(tmp_path)
    assert "head" not in load(tmp_path, config, make_shardings(config))
    tensors["lm_head.weight"][5, 5] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not of this architecture: lm_head\.weight"):
        load(tmp_path, config, make_shardings(config))


def test_all_wrong_tensors_at_once(tmp_path):
    tensors = write_checkpoint(tmp_path)
    for i in (0, 2):
        del tensors[f"model.layers.{i}.self_attn.q_proj.weight"]
    tensors["model.layers.1.self_attn.q_proj.bias"] = np.zeros(HEADS * HEAD, np.float32)
    tensors["model.norm.weight"] = np.zeros(EMBED + 1, np.float32)
    tensors["lm_head.weight"] = np.zeros((VOCAB, EMBED), np.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    config = make_config(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        load(tmp_path, config, make_shardings(config))
    rows = str(raised.value).splitlines()[1:]
    assert sorted(row.strip(" -") for row in rows) == [
        "lm_head.weight is I8, and must be one of F32, BF16, F16 (quantised weights are not read)",
        "missing: model.layers.*.self_attn.q_proj.weight (layers 0 2)",
        f"model.norm.weight is ({EMBED + 1},), and must be ({EMBED},)",
        "not of this architecture: model.layers.*.self_attn.q_proj.bias (layers 1)",
    ]


def test_folders_without_weights(tmp_path):
    write_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no weights.*no file of weights"):
        inspect(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"it has pytorch_model\.bin.*save_pretrained"):
        inspect(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="merged into their base"):
        inspect(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        inspect(tmp_path / "absent")


def test_damaged_files_are_named(tmp_path):
    write_checkpoint(tmp_path, num_files=3)
    for number in (1, 2):
        path = tmp_path / f"model-{number:05}-of-00003.safetensors"
        path.write_bytes(path.read_bytes()[: 100 if number == 1 else -4])
    with pytest.raises(CheckpointError, match=r"(?s)damaged.*00001-of-00003.*\(100 bytes\).*00002-of-00003") as raised:
        inspect(tmp_path)
    assert "00003-of-00003" not in str(raised.value)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"(?s)absent.*model-00002-of-00003\.safetensors"):
        inspect(tmp_path)


# export


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bitwise(tmp_path, family, dtype):
    tensors = write_checkpoint(tmp_path / "in", np.dtype(dtype), 2, **FAMILIES[family])
    (tmp_path / "in" / "tokenizer.json").write_text("{}")  # which tokens were trained on is not for weights to say
    (tmp_path / "in" / "LICENSE.txt").write_text("as is")
    config = make_config(tmp_path / "in", param_dtype="float32" if dtype == "float16" else dtype)
    params = load(tmp_path / "in", config, make_shardings(config))
    export(params, config, tmp_path / "out", tmp_path / "in", dtype, max_shard_bytes=5000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    held = [load_file(file) for file in files]
    assert_bits({name: array for file in held for name, array in file.items()}, tensors)
    assert len(files) > 1
    assert all(sum(x.nbytes for x in file.values()) <= 5000 or len(file) == 1 for file in held)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: path.name for path, file in zip(files, held) for name in file}
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    assert hf_config.read(tmp_path / "out") == hf_config.read(tmp_path / "in")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    copied = {path.name for path in (tmp_path / "out").iterdir()} - {path.name for path in files}
    assert copied == {"config.json", "LICENSE.txt", "model.safetensors.index.json"}


@pytest.mark.parametrize("family", FAMILIES)
def test_export_without_a_source(tmp_path, family):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    config = make_config(write_config(tmp_path / "in", **FAMILIES[family], rope_scaling=scaling))
    params = decoder.init(config, jax.random.key(1))
    export(params, config, tmp_path / "out", None, "float32")
    assert make_config(tmp_path / "out") == config
    loaded = load(tmp_path / "out", config, make_shardings(config))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    config = make_config(write_config(tmp_path / "in"))
    params = decoder.init(config, jax.random.key(0))
    write = hf_export._write_file

    def fill_disk(path, tensors, arrays, dtype):
        if "00002" in path.name:
            raise OSError(28, "No space left on device")
        write(path, tensors, arrays, dtype)

    monkeypatch.setattr(hf_export, "_write_file", fill_disk)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left"):
        export(params, config, tmp_path / "out", None, "float32", max_shard_bytes=5000)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    monkeypatch.undo()
    export(params, config, tmp_path / "out", None, "float32")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        export(params, config, tmp_path / "out", None, "float32")
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == 3 + 9 * LAYERS


def test_what_export_refuses(tmp_path):
    config = make_config(write_config(tmp_path / "in"))
    params = decoder.init(config, jax.random.key(0))
    with pytest.raises(CheckpointError, match=r"rope_theta is 10000.0 in .*, 5.0 in the policy"):
        export(params, dataclasses.replace(config, rope_theta=5.0), tmp_path / "out", tmp_path / "in", "float32")
    with pytest.raises(CheckpointError, match="dtype 'int8' is not one of"):
        export(params, config, tmp_path / "out", None, "int8")
    with pytest.raises(CheckpointError, match="both qkv_bias and qk_norm"):
        export(params, dataclasses.replace(config, qkv_bias=True, qk_norm=True), tmp_path / "out", None, "float32")
    unlike = dataclasses.replace(config, norm_offset=True, layer_windows=(4, 0, 4))
    with pytest.raises(CheckpointError, match=r"has both norm_offset and layer_windows = \(4, 0, 4\)"):
        export(params, unlike, tmp_path / "out", None, "float32")
    with pytest.raises(CheckpointError, match="no adapters"):
        export_adapter(params, config, tmp_path / "out", None)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_adapter_folder(tmp_path):
    config = make_config(write_config(tmp_path / "in"), lora=LoraConfig(2, 8.0, ("value", "down")))
    params = decoder.init(config, jax.random.key(0))
    export_adapter(params, config, tmp_path / "out", "owner/base")
    content = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert content["target_modules"] == ["down_proj", "v_proj"]
    assert (content["r"], content["lora_alpha"], content["base_model_name_or_path"]) == (2, 8, "owner/base")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.{}.{}.lora_{}.weight"
    shapes = {}
    for i in range(LAYERS):
        shapes[name.format(i, "self_attn.v_proj", "A")] = (2, EMBED)
        shapes[name.format(i, "self_attn.v_proj", "B")] = (KV_HEADS * HEAD, 2)
        shapes[name.format(i, "mlp.down_proj", "A")] = (2, MLP)
        shapes[name.format(i, "mlp.down_proj", "B")] = (EMBED, 2)
    assert {name: array.shape for name, array in tensors.items()} == shapes
    lora_a = params["blocks"]["mlp"]["down"]["lora_a"]
    np.testing.assert_array_equal(tensors[name.format(1, "mlp.down_proj", "A")], lora_a[1].T)


# two processes, each with four of the eight devices

PROCESS = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
port, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from exit_jax.policy import decoder
from exit_jax.policy.decoder import DecoderConfig, LoraConfig
from exit_jax.policy.hf import config as hf_config, export as hf_export, load as hf_load

config = DecoderConfig(**hf_config.read(folder), dtype="float32", param_dtype="float32", attention="xla",
                       remat="none", unroll_layers=False, decode_stages=1, lora=LoraConfig(0, 1.0, ()))
shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
grid = jax.make_mesh((8,), ("fsdp",))
shardings = jax.tree.map(lambda x: NamedSharding(grid, PartitionSpec(*[None] * (x.ndim - 1), "fsdp")), shapes)
count, read = [], hf_load._read_shard
hf_load._read_shard = lambda *args: (shard := read(*args), count.append(shard.size))[0]
params = hf_load.load(folder, config, shardings)
assert 2 * sum(count) == sum(x.size for x in jax.tree.leaves(shapes)), count
hf_export.export(params, config, folder + "-out", folder, "float32", max_shard_bytes=5000)
if process == 0:
    (hf_export.pathlib.Path(folder + "-bad")).write_text("in the way")
try:
    hf_export.export(params, config, folder + "-bad", folder, "float32")
except hf_config.CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
def test_two_processes_read_halves_and_write_one_checkpoint(tmp_path):
    tensors = write_checkpoint(tmp_path / "in", num_files=2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = "--xla_force_host_platform_device_count=4"
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    start = lambda i: subprocess.Popen(
        [sys.executable, "-c", PROCESS, port, str(i), str(tmp_path / "in")],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes = [start(0), start(1)]
    try:
        out = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], out
    assert ["exists and is not empty" in out[0][0], "the first process says why" in out[1][0]] == [True, True]
    held = [load_file(file) for file in (tmp_path / "in-out").glob("*.safetensors")]
    assert_bits({name: array for file in held for name, array in file.items()}, tensors)


# host memory

MEASURE = """
import pathlib, re, sys, time
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from exit_jax.policy import decoder
from exit_jax.policy.decoder import DecoderConfig, LoraConfig
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf.export import export
from exit_jax.policy.hf.load import load

def read(field):
    return int(re.search(field + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

def reset():
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew

folder, out, fsdp = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = DecoderConfig(**hf_config.read(folder), dtype="bfloat16", param_dtype="bfloat16", attention="xla",
                       remat="none", unroll_layers=False, decode_stages=1, lora=LoraConfig(0, 1.0, ()))
shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
grid = jax.make_mesh((fsdp,), ("fsdp",), devices=jax.devices()[:fsdp])
shardings = jax.tree.map(lambda x: NamedSharding(grid, PartitionSpec(*[None] * (x.ndim - 1), "fsdp")), shapes)
jax.block_until_ready(jnp.zeros(8))  # the back-end is up
size = sum(x.size * 2 for x in jax.tree.leaves(shapes))
largest, layers = max(x.size * 2 for x in jax.tree.leaves(shapes)), config.num_layers
reset()
start, clock = read("VmRSS"), time.time()
params = load(folder, config, shardings)
print("load", read("VmHWM") - start, size, largest, time.time() - clock)
export(params, config, out + "-first", folder, "bfloat16")  # compiling takes 100 MB, whatever the model's size
reset()
start, clock = read("VmRSS"), time.time()
export(params, config, out + "-second", folder, "bfloat16")
print("export", read("VmHWM") - start, size, largest / layers, time.time() - clock)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("fsdp", [1, 8])
def test_peak_host_memory(tmp_path, fsdp):
    """Loading takes the model and one more stacked parameter, export takes a few of its layers.

    On CPU the devices' arrays lie in host memory as well, hence "the model and". The peak counts the file's mapped pages,
    which are those of one tensor; so does the margin.
    """
    dim, mlp, layers = 1024, 4096, 8
    fields = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": layers}
    write_config(tmp_path / "in", vocab_size=2048, hidden_size=dim, intermediate_size=mlp, **fields)
    shapes = {"model.embed_tokens.weight": (2048, dim), "lm_head.weight": (2048, dim), "model.norm.weight": (dim,)}
    for i in range(layers):
        layer = {f"self_attn.{name}_proj.weight": (dim, dim) for name in "qkvo"}
        layer |= {
            "mlp.gate_proj.weight": (mlp, dim),
            "mlp.up_proj.weight": (mlp, dim),
            "mlp.down_proj.weight": (dim, mlp),
        }
        layer |= {"input_layernorm.weight": (dim,), "post_attention_layernorm.weight": (dim,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    save_file(
        {name: np.ones(x, ml_dtypes.bfloat16) for name, x in shapes.items()}, tmp_path / "in" / "model.safetensors"
    )
    tries = []
    for i in range(3):  # the runtime lets go of a buffer on a thread of its own, which a busy machine may run late
        code = [sys.executable, "-c", MEASURE, str(tmp_path / "in"), str(tmp_path / f"out{i}"), str(fsdp)]
        out = subprocess.run(code, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        tries.append({name: list(map(float, rest)) for name, *rest in map(str.split, out.stdout.splitlines())})
    figures = {name: min(each[name] for each in tries) for name in tries[0]}
    peak, size, largest, secs = figures["load"]
    print(f"load, fsdp={fsdp}: peak host bytes / model bytes = {peak / size:.2f} ({size / 1e6:.0f} MB in {secs:.1f} s)")
    assert peak - size < 1.4 * largest  # an eighth of it is mapped; the interpreter grows by some MB
    peak, size, layer, secs = figures["export"]
    print(f"export, fsdp={fsdp}: extra host bytes / model bytes = {peak / size:.2f} ({secs:.1f} s)")
    assert peak < 4 * layer  # up to 3.0 were measured: XLA's slice, its transpose, the interpreter
