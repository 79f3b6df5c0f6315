"""What a checkpoint's own config.json says: the decoder's shape, read such that no field is silently ignored.

Both spellings are known: ``rope_theta`` + ``rope_scaling`` and ``torch_dtype`` of transformers 4, ``rope_parameters`` and
``dtype`` of transformers 5. Defaults of absent fields are those of transformers.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from exit_jax.errors import UserError

# What distinguishes the families; everything else about them is one decoder. ``max_positions`` is what transformers assumes
# where config.json gives no max_position_embeddings.
FAMILIES = {
    "LlamaForCausalLM": {"model_type": "llama", "qkv_bias": False, "qk_norm": False, "max_positions": 2048},
    "MistralForCausalLM": {"model_type": "mistral", "qkv_bias": False, "qk_norm": False, "max_positions": 131072},
    "Qwen2ForCausalLM": {"model_type": "qwen2", "qkv_bias": True, "qk_norm": False, "max_positions": 32768},
    "Qwen3ForCausalLM": {"model_type": "qwen3", "qkv_bias": False, "qk_norm": True, "max_positions": 32768},
}
_SUPPORTED = (
    "LlamaForCausalLM (Llama 3.x, DeepSeek-R1-Distill-Llama), Qwen2ForCausalLM (Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen), "
    "Qwen3ForCausalLM, MistralForCausalLM; rope of type default or llama3; runs that stay within a sliding window"
)
_SIZES = {  # ours: theirs
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}
# Fields that are read somewhere below.
_READ = {
    *_SIZES.values(),
    "architectures",
    "model_type",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "max_position_embeddings",
}
# Fields that would change what the model computes; where present, this value is the only one that the decoder computes.
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "use_mrope": False,
    "pretraining_tp": 1,  # above 1: matmuls in slices, which round otherwise
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "is_decoder": False,  # true stands for an encoder turned decoder
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
}
# Fields that do not change what the decoder computes, and why.
_IRRELEVANT = {
    "_name_or_path": "provenance",
    "_from_model_config": "provenance",
    "transformers_version": "provenance",
    "unsloth_fixed": "provenance",
    "unsloth_version": "provenance",
    "torch_dtype": "each tensor says its own dtype",
    "dtype": "each tensor says its own dtype",
    "initializer_range": "training from scratch",
    "use_cache": "speed",
    "chunk_size_feed_forward": "memory",
    "max_window_layers": "runs stay within the window, so that it does not matter which layers have it",
    "bos_token_id": "prompts are made by the chat template, and padding is masked",
    "eos_token_id": "read_eos() below",
    "pad_token_id": "prompts are made by the chat template, and padding is masked",
    "tokenizer_class": "the tokenizer's business",
    "output_attentions": "what their forward pass returns",
    "output_hidden_states": "what their forward pass returns",
    "return_dict": "what their forward pass returns",
    "torchscript": "what their forward pass returns",
    "id2label": "classifiers",
    "label2id": "classifiers",
    "problem_type": "classifiers",
    "finetuning_task": "provenance",
    "tie_encoder_decoder": "encoder-decoders",
}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_WINDOW = 4096  # what transformers assumes of Mistral and Qwen where config.json says nothing


class CheckpointError(UserError):
    """A Hugging Face checkpoint that cannot be read or written; the message says why and what helps."""


def list_faults(title: str, faults: list[str]) -> str:
    """Return a title and its faults, one a line."""
    return "\n".join([title, *(f"  - {fault}" for fault in faults)])


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
      CheckpointError: if there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} holds no {path.name}; name a folder with a Hugging Face checkpoint, or a hub id"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {content!r:.40}, not an object; download it again")
    return content


def read(folder: str | pathlib.Path) -> dict[str, Any]:
    """Return the DecoderConfig fields of a checkpoint that give its shape (all but dtypes, attention, remat, LoRA).

    Raises:
      CheckpointError: for an architecture or any field that the decoder does not compute; all faults at once.
    """
    path = pathlib.Path(folder) / "config.json"
    content = read_json(path)
    family = _family(path, content)
    faults = [
        f"{name} is {content[name]!r}; only {value!r} is supported"
        for name, value in _ONLY.items()
        if name in content and content[name] != value
    ]
    theta, scaling, wrong = _read_rope(content)
    faults += wrong + _read_limits(family, content)[1]
    shape = {ours: content.get(theirs) for ours, theirs in _SIZES.items()}
    shape["num_kv_heads"] = content.get("num_key_value_heads")
    if shape["num_kv_heads"] is None and family["model_type"] == "llama":
        shape["num_kv_heads"] = shape["num_heads"]
    shape["head_dim"] = content.get("head_dim") or _derive_head_dim(family["model_type"], shape)
    theirs_of = {**_SIZES, "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
    faults += [
        f"{theirs_of[name]} is {value!r}, which must be a positive whole number"
        for name, value in shape.items()
        if not _is_size(value)
    ]
    eps: Any = content.get("rms_norm_eps")
    tie = content.get("tie_word_embeddings", False)
    if not _is_number(eps):
        faults.append(f"rms_norm_eps is {eps!r}, which must be a number above 0")
    if not isinstance(tie, bool):
        faults.append(f"tie_word_embeddings is {tie!r}, which must be true or false")
    unknown = sorted(set(content) - _READ - set(_ONLY) - set(_IRRELEVANT))
    if unknown:
        faults.append(
            f"fields that are not known here: {', '.join(unknown)}; delete from config.json what does not change the "
            "model's logits, and open an issue about what does"
        )
    if faults:
        raise CheckpointError(list_faults(f"{path} is not supported:", faults) + f"\nsupported: {_SUPPORTED}")
    return {
        **shape,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": float(eps),
        "tie_embeddings": tie,
        "qkv_bias": family["qkv_bias"],
        "qk_norm": family["qk_norm"],
    }


def _family(path: pathlib.Path, content: dict) -> dict[str, Any]:
    """Return the entry of FAMILIES that config.json names, by ``architectures`` or else by ``model_type``."""
    named, model_type = content.get("architectures"), content.get("model_type")
    families = [FAMILIES.get(str(name)) for name in named] if isinstance(named, list) else []
    if not named:
        families = [family for family in FAMILIES.values() if family["model_type"] == model_type]
    if len(families) != 1 or families[0] is None or families[0]["model_type"] != model_type:
        raise CheckpointError(
            f"{path} names the architecture {named!r} of model_type {model_type!r}, which is not supported\n"
            f"supported: {_SUPPORTED}"
        )
    return families[0]


def _derive_head_dim(model_type: str, shape: dict) -> int | None:
    """Return head_dim where config.json has none: 128 for Qwen3, else hidden_size / num_attention_heads."""
    if model_type == "qwen3":
        return 128
    dim, heads = shape["embed_dim"], shape["num_heads"]
    return dim // heads if type(dim) is int and type(heads) is int and heads > 0 and dim % heads == 0 else None


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_size(value) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _read_rope(content: dict) -> tuple[float, tuple[float, ...], list[str]]:
    """Return (rope_theta, rope_scaling as DecoderConfig has it, faults)."""
    merged: dict[str, Any] = {}
    faults = []
    old = {"rope_theta": content["rope_theta"]} if content.get("rope_theta") is not None else {}
    for source in (old, content.get("rope_scaling") or {}, content.get("rope_parameters") or {}):
        if not isinstance(source, dict):
            return 0.0, (), [f"rope_scaling and rope_parameters must be objects, not {source!r}"]
        renamed = {"rope_type" if key == "type" else key: value for key, value in source.items()}
        if "type" in source and source.get("rope_type", source["type"]) != source["type"]:
            faults.append(f"rope type is both {source['type']!r} and {source['rope_type']!r}")
        clash = sorted(key for key in renamed if key in merged and merged[key] != renamed[key])
        faults += [f"rope's {key} is both {merged[key]!r} and {renamed[key]!r}" for key in clash]
        merged |= renamed
    kind, theta = merged.pop("rope_type", "default"), merged.pop("rope_theta", 10000.0)
    partial = merged.pop("partial_rotary_factor", 1.0)
    if partial != 1.0:
        faults.append(f"rope's partial_rotary_factor is {partial!r}; only 1.0 is supported")
    if not _is_number(theta):
        faults.append(f"rope_theta is {theta!r}, which must be a number above 0")
        theta = 0.0
    wanted = {"default": (), "llama3": _LLAMA3}.get(str(kind))
    if wanted is None:
        return float(theta), (), [*faults, f"rope of type {kind!r}; only 'default' and 'llama3' are supported"]
    wrong = sorted(key for key in set(wanted) | set(merged) if key not in wanted or not _is_number(merged.get(key)))
    faults += [f"rope of type {kind!r} has {key} {merged.get(key)!r}" for key in wrong]
    if not wrong and wanted and merged["low_freq_factor"] >= merged["high_freq_factor"]:
        wrong = ["low_freq_factor"]
        faults.append(
            f"rope of type {kind!r} has low_freq_factor {merged['low_freq_factor']!r}, which must be below high_freq_factor "
            f"{merged['high_freq_factor']!r}"
        )
    return float(theta), () if wrong else tuple(float(merged[key]) for key in wanted), faults


def _read_limits(family: Mapping[str, Any], content: dict) -> tuple[dict[str, int], list[str]]:
    """Return (the longest sequences that the model knows, by the field that says so; faults)."""
    faults, kinds = [], content.get("layer_types")
    known = {"full_attention", "sliding_attention"}
    if kinds is not None and not (isinstance(kinds, list) and {*map(str, kinds)} <= known):
        faults.append(f"layer_types is {kinds!r}; only full_attention and sliding_attention are supported")
        kinds = None
    switch = content.get("use_sliding_window", False)
    if not isinstance(switch, bool):
        faults.append(f"use_sliding_window is {switch!r}, which must be true or false")
    limits = {"max_position_embeddings": content.get("max_position_embeddings", family["max_positions"])}
    # in Qwen, sliding_window counts only with use_sliding_window; in Llama, only where it is given
    of_qwen, of_mistral = family["model_type"].startswith("qwen"), family["model_type"] == "mistral"
    window = content.get("sliding_window", None if family["model_type"] == "llama" else _WINDOW)
    if window is not None and (of_mistral or switch is True or not of_qwen or "sliding_attention" in (kinds or ())):
        limits["sliding_window"] = window
    faults += [
        f"{name} is {value!r}, which must be a positive whole number"
        for name, value in limits.items()
        if not _is_size(value)
    ]
    return limits, faults


def read_limits(folder: str | pathlib.Path) -> dict[str, int]:
    """Return the tokens of the longest sequences that a checkpoint knows, by the field of its config.json that says so.

    Attention is full here. Within ``sliding_window`` tokens that is what the model computes, too.
    """
    path = pathlib.Path(folder) / "config.json"
    content = read_json(path)
    limits, faults = _read_limits(_family(path, content), content)
    if faults:
        raise CheckpointError(list_faults(f"{path} is not supported:", faults))
    return limits


def read_eos(folder: str | pathlib.Path) -> tuple[int, ...]:
    """Return the ids that end a response, of a folder's generation_config.json or else its config.json; () for none.

    A folder that holds a tokenizer alone has neither file.

    Raises:
      CheckpointError: if a file is damaged, or ``eos_token_id`` is neither an id nor a list of ids.
    """
    for name in ("generation_config.json", "config.json"):
        path = pathlib.Path(folder) / name
        ids = read_json(path).get("eos_token_id") if path.exists() else None
        if ids is None or ids == []:
            continue
        listed = ids if isinstance(ids, list) else [ids]
        if any(type(token) is not int or token < 0 for token in listed):
            raise CheckpointError(f"{path}: eos_token_id is {ids!r}, which must be a token's number or a list of them")
        return tuple(listed)
    return ()


def check_tokenizer(folder: str | pathlib.Path, vocab_size: int) -> None:
    """Refuse a tokenizer.json with more tokens than the model's vocabulary; it is only looked at, to be loaded later.

    Raises:
      CheckpointError: naming both sizes, or if the file is of another format.
    """
    path = pathlib.Path(folder) / "tokenizer.json"
    if not path.exists():
        return
    content = read_json(path)
    try:
        ids = [token["id"] for token in content.get("added_tokens") or []]
        vocab = content["model"]["vocab"]
        ids += vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        num_tokens = 1 + max(ids, default=-1)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no tokenizer of the library tokenizers ({error!r}); download it again"
        ) from error
    require_embeddings(path, num_tokens, vocab_size)


def require_embeddings(path: pathlib.Path, num_tokens: int, vocab_size: int) -> None:
    """Raise unless the model has an embedding for every token of a tokenizer; models pad their vocabulary, so more are fine."""
    if num_tokens > vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {num_tokens} tokens but the model's vocab_size is {vocab_size}; they belong to "
            "different models, or tokens were added without enlarging the embedding"
        )


def resolve(name: str) -> pathlib.Path:
    """Return the folder of a checkpoint: ``name`` itself, or a hub id ``owner/model[@revision]`` downloaded or cached.

    Raises:
      CheckpointError: if it is neither, or the hub cannot be reached and the cache has nothing.
    """
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return folder
    hub_id, _, revision = name.partition("@")
    if hub_id.startswith((".", "/", "~")) or hub_id.count("/") > 1 or folder.exists():
        raise CheckpointError(f"{name} is no folder; name a checkpoint's folder or a hub id such as Qwen/Qwen2.5-0.5B")
    import huggingface_hub  # here, since only hub ids need it

    at = f" --revision {revision}" if revision else ""
    try:
        found = huggingface_hub.snapshot_download(
            hub_id,
            revision=revision or None,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt", "LICENSE*"],
            ignore_patterns=["*/*.safetensors", "consolidated*"],  # the same weights in other formats
        )
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        cause = str(error).strip().splitlines() or [repr(error)]
        raise CheckpointError(
            f"cannot get {name} from the Hugging Face hub or its cache ({type(error).__name__}: {cause[0]})\n"
            "  - spelled as on the hub (owner/model)? If the model is gated: accept its terms there, then hf auth login\n"
            f"  - no network on this machine: run `hf download {hub_id}{at}` where there is one, copy the cache, and set "
            "HF_HOME to it (HF_HUB_OFFLINE=1 stops all attempts to connect)\n"
            "  - or give the path of a folder that holds the checkpoint"
        ) from error
    return pathlib.Path(found)
