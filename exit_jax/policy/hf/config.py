"""What a checkpoint's own config.json says: the decoder's shape, read such that no field is silently ignored.

Both spellings are known: ``rope_theta`` + ``rope_scaling`` and ``torch_dtype`` of transformers 4, ``rope_parameters`` and
``dtype`` of transformers 5. Defaults of absent fields are those of transformers.
"""

import json
import pathlib
from typing import Any

from exit_jax.errors import UserError

# What distinguishes the families; everything else about them is one decoder.
FAMILIES = {
    "LlamaForCausalLM": {"model_type": "llama", "qkv_bias": False, "qk_norm": False},
    "MistralForCausalLM": {"model_type": "mistral", "qkv_bias": False, "qk_norm": False},
    "Qwen2ForCausalLM": {"model_type": "qwen2", "qkv_bias": True, "qk_norm": False},
    "Qwen3ForCausalLM": {"model_type": "qwen3", "qkv_bias": False, "qk_norm": True},
}
_SUPPORTED = (
    "LlamaForCausalLM (Llama 3.x, DeepSeek-R1-Distill-Llama), Qwen2ForCausalLM (Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen), "
    "Qwen3ForCausalLM, MistralForCausalLM without a sliding window; rope of type default or llama3"
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
    "layer_types",
    "max_position_embeddings",
}
# Fields that would change what the model computes; where present, this value is the only one that the decoder computes.
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
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
    "max_window_layers": "used only with use_sliding_window",
    "bos_token_id": "token_ids() below",
    "eos_token_id": "token_ids() below",
    "pad_token_id": "token_ids() below",
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
_MISTRAL_WINDOW = 4096  # what transformers assumes where config.json says nothing


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
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object; download it again")
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
    faults += wrong + _windows(family["model_type"], content)
    shape = {ours: content.get(theirs) for ours, theirs in _SIZES.items()}
    shape["num_kv_heads"] = content.get("num_key_value_heads")
    if shape["num_kv_heads"] is None and family["model_type"] == "llama":
        shape["num_kv_heads"] = shape["num_heads"]
    shape["head_dim"] = content.get("head_dim") or _derive_head_dim(family["model_type"], shape)
    theirs_of = {**_SIZES, "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
    faults += [
        f"{theirs_of[name]} is {value!r}, which must be a positive whole number"
        for name, value in shape.items()
        if type(value) is not int or value < 1
    ]
    eps: Any = content.get("rms_norm_eps")
    tie = content.get("tie_word_embeddings", False)
    if not _is_number(eps):
        faults.append(f"rms_norm_eps is {eps!r}, which must be a number")
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
    families = [FAMILIES.get(name) for name in named or []]
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
    return isinstance(value, int | float) and not isinstance(value, bool)


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
        clash = sorted(key for key in renamed if merged.get(key, renamed[key]) != renamed[key])
        faults += [f"rope's {key} is both {merged[key]!r} and {renamed[key]!r}" for key in clash]
        merged |= renamed
    kind, theta = merged.pop("rope_type", "default"), merged.pop("rope_theta", 10000.0)
    partial = merged.pop("partial_rotary_factor", 1.0)
    if partial != 1.0:
        faults.append(f"rope's partial_rotary_factor is {partial!r}; only 1.0 is supported")
    if not _is_number(theta):
        faults.append(f"rope_theta is {theta!r}, which must be a number")
        theta = 0.0
    wanted = {"default": (), "llama3": _LLAMA3}.get(kind)
    if wanted is None:
        return float(theta), (), [*faults, f"rope of type {kind!r}; only 'default' and 'llama3' are supported"]
    wrong = sorted(key for key in set(wanted) | set(merged) if key not in wanted or not _is_number(merged.get(key)))
    faults += [f"rope of type {kind!r} has {key} {merged.get(key)!r}" for key in wrong]
    return float(theta), () if wrong else tuple(float(merged[key]) for key in wanted), faults


def _windows(model_type: str, content: dict) -> list[str]:
    """Return the faults of fields that would restrict attention to a window."""
    faults = []
    if not set(content.get("layer_types") or []) <= {"full_attention"}:
        kinds = ", ".join(sorted(map(str, set(content["layer_types"]) - {"full_attention"})))
        faults.append(f"layer_types holds {kinds}; only full_attention is supported")
    if model_type in ("qwen2", "qwen3"):
        return faults  # there sliding_window counts only with use_sliding_window, which must be false
    window = content.get("sliding_window", _MISTRAL_WINDOW if model_type == "mistral" else None)
    longest = content.get("max_position_embeddings")
    if window is not None and not (_is_number(window) and _is_number(longest) and window >= longest):
        stated = "" if "sliding_window" in content else " (it is absent, and transformers then assumes this)"
        faults.append(
            f"sliding_window is {window!r}{stated} and max_position_embeddings {longest!r}; attention is full here: if "
            "you stay within the window, set sliding_window to null"
        )
    return faults


def token_ids(folder: str | pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Return {bos, eos, pad: ids} of a checkpoint, of its generation_config.json before its config.json; () for none."""
    folder = pathlib.Path(folder)
    content = read_json(folder / "config.json")
    if (folder / "generation_config.json").exists():
        generation = read_json(folder / "generation_config.json")
        content |= {key: value for key, value in generation.items() if value is not None}
    found = {kind: content.get(f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    return {kind: tuple(ids) if isinstance(ids, list) else () if ids is None else (ids,) for kind, ids in found.items()}


def read_sampling(folder: str | pathlib.Path) -> dict[str, Any]:
    """Return temperature, top_k, top_p and min_p that a checkpoint's generation_config.json gives; {} without one."""
    path = pathlib.Path(folder) / "generation_config.json"
    content = read_json(path) if path.exists() else {}
    if content.get("do_sample") is False:
        return {"temperature": 0.0}
    return {name: content[name] for name in ("temperature", "top_k", "top_p", "min_p") if content.get(name) is not None}


def check_tokenizer(folder: str | pathlib.Path, vocab_size: int) -> None:
    """Refuse a tokenizer.json with more tokens than the model's vocabulary; models pad theirs, so fewer are fine.

    Raises:
      CheckpointError: naming both sizes.
    """
    path = pathlib.Path(folder) / "tokenizer.json"
    if not path.exists():
        return
    content = read_json(path)
    ids = [token["id"] for token in content.get("added_tokens", [])]
    vocab = content.get("model", {}).get("vocab", {})
    ids += vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    if ids and max(ids) >= vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {max(ids) + 1} tokens but the model's vocab_size is {vocab_size}; they belong to "
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
