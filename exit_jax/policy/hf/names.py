"""How the decoder's parameters are called, and laid out, in Hugging Face checkpoints of the Llama lineage."""

import collections
import re
from typing import Any, cast

import numpy as np
from flax.traverse_util import flatten_dict

from exit_jax.policy.shape import DecoderConfig

Path = tuple[str, ...]  # path of a leaf in the tree of parameters

_MODULES = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "attention_out_norm": "post_attention_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp_in_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "router": "mlp.gate",
}
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
_KINDS = {
    "embedding": "weight",
    "scale": "weight",
    "kernel": "weight",
    "bias": "bias",
    "lora_a": "lora_A.weight",  # as PEFT writes them
    "lora_b": "lora_B.weight",
}
ADAPTERS = ("lora_a", "lora_b")


def flatten(tree: Any) -> dict[Path, Any]:
    """Return the leaves of nested dicts by path."""
    return cast(dict[Path, Any], flatten_dict(tree))


def num_stacked(path: Path) -> int:
    """Return how many leading dimensions the leaf has of which the checkpoint has one tensor each: layers, then experts."""
    return (path[0] == "blocks") + ("experts" in path)


def is_transposed(path: Path) -> bool:
    """Whether the leaf is [in, out] where the checkpoint has [out, in]."""
    return path[-1] in ("kernel", *ADAPTERS)


def tensor_name(config: DecoderConfig, path: Path, index: tuple[int, ...] = ()) -> str:
    """Return the checkpoint's name of a leaf, for a stacked one of its layer: "model.layers.3.self_attn.q_proj.weight".

    That of an expert is "model.layers.3.mlp.experts.5.up_proj.weight", but in Mixtral.
    """
    ours = path[-1] if len(path) == 1 else path[-2]
    module = _MODULES[ours]
    is_mixtral = config.num_experts and not config.qk_norm
    if "experts" in path:
        last = _MIXTRAL[ours] if is_mixtral else projection_name(ours)
        module = f"mlp.experts.{index[1]}.{last}"
    if is_mixtral:
        module = module.replace("mlp.", "block_sparse_moe.")
    prefix = f"model.layers.{index[0]}." if index else ""
    return f"{prefix}{module}.{_KINDS[path[-1]]}"


def tensors(config: DecoderConfig, path: Path, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], str]]:
    """Return (index of the leading dimensions, name) of the checkpoint's tensors that a leaf of this shape holds."""
    return [(index, tensor_name(config, path, index)) for index in np.ndindex(shape[: num_stacked(path)])]


def projection_name(name: str) -> str:
    """Return the last part of their name of one of our projections: "query" -> "q_proj"."""
    return _MODULES[name].rpartition(".")[2]


def by_layer(names: list[str]) -> list[str]:
    """Fold names that differ in the layer only: "a.0.b", "a.1.b" -> "a.*.b (layers 0 1)"."""
    layers = collections.defaultdict(list)
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        pattern = f"{name[: number.start()]}.*.{name[number.end() :]}" if number else name
        layers[pattern].append(int(number[1]) if number else -1)
    return [
        pattern if numbers == [-1] else f"{pattern} (layers {' '.join(map(str, sorted(numbers)))})"
        for pattern, numbers in layers.items()
    ]
