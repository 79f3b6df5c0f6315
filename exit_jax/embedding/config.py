"""What the files beside an encoder's weights say, read such that no field of config.json is silently ignored.

config.json gives the architecture; the files of sentence-transformers, where there are any, give the pooling.
"""

import json
import pathlib
from typing import Any, NamedTuple

from exit_jax.embedding.encoder import ACTIVATIONS, Encoder
from exit_jax.embedding.settings import POOLINGS
from exit_jax.policy.hf.config import CheckpointError, list_faults, read_json

_BERT_LIKE = ("bert", "roberta", "xlm-roberta")
_SUPPORTED = (
    "model_type bert (MiniLM, BGE and E5 among them), roberta, xlm-roberta and modernbert; sentence-transformers with mean "
    "or cls pooling, and normalisation at most after it"
)
_SIZES = {  # ours: theirs
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "max_tokens": "max_position_embeddings",
}
# Fields that are read below, for every family and for some.
_READ = {"model_type", *_SIZES.values()}
_READ_BERT = {"hidden_act", "layer_norm_eps", "type_vocab_size", "pad_token_id"}
_READ_MODERNBERT = {
    "hidden_activation",
    "norm_eps",
    "norm_bias",
    "attention_bias",
    "mlp_bias",
    "local_attention",
    "layer_types",
    "global_attn_every_n_layers",
    "global_rope_theta",
    "local_rope_theta",
    "rope_parameters",
}
# Fields that would change what the model computes; where present, this value is the only one that is computed.
_ONLY = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "quantization_config": None,
    "rope_scaling": None,
}
_ONLY_BERT = {"position_embedding_type": "absolute"}
# Fields that do not change hidden states, by reason.
_IRRELEVANT = {
    "training": (
        "attention_dropout attention_probs_dropout_prob embedding_dropout gradient_checkpointing hidden_dropout_prob "
        "initializer_cutoff_factor initializer_range layerdrop mlp_dropout sparse_pred_ignore_index sparse_prediction"
    ),
    "heads, which are not read": (
        "architectures classifier_activation classifier_bias classifier_dropout classifier_pooling decoder_bias id2label "
        "label2id num_labels pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head "
        "pooler_type problem_type repad_logits_with_grad tie_encoder_decoder tie_word_embeddings"
    ),
    "the tokenizer's business": (
        "bos_token_id cls_token_id directionality eos_token_id mask_token_id sep_token_id tokenizer_class"
    ),
    "provenance": "_name_or_path finetuning_task model_max_length transformers_version",
    "each tensor says its own dtype": "dtype torch_dtype",
    "speed, memory, and what their forward pass returns": (
        "chunk_size_feed_forward deterministic_flash_attn output_attentions output_hidden_states output_past "
        "reference_compile return_dict torchscript use_cache"
    ),
}
# ModernBERT's checkpoints carry these two of BERT, which their model does not read.
_IRRELEVANT_MODERNBERT = {"layer_norm_eps", "position_embedding_type", "pad_token_id"}
_KINDS = {"sliding_attention": True, "full_attention": False}  # kind of layer -> whether its attention is local


def read(folder: str | pathlib.Path) -> Encoder:
    """Return the encoder that config.json describes. Defaults of absent fields are those of transformers.

    Raises:
      CheckpointError: for an architecture or any field that is not computed here; all faults at once.
    """
    path = pathlib.Path(folder) / "config.json"
    content = read_json(path)
    model_type = content.get("model_type")
    if model_type not in (*_BERT_LIKE, "modernbert"):
        raise CheckpointError(
            f"{path} is of model_type {model_type!r}, which is not supported\nsupported: {_SUPPORTED}"
        )
    modern = model_type == "modernbert"
    only = _ONLY if modern else _ONLY | _ONLY_BERT
    known = _READ | set(only) | set(" ".join(_IRRELEVANT.values()).split())
    known |= _READ_MODERNBERT | _IRRELEVANT_MODERNBERT if modern else _READ_BERT
    faults = [
        f"{name} is {content[name]!r}; only {value!r} is supported"
        for name, value in only.items()
        if name in content and content[name] != value
    ]
    sizes = {ours: _take_size(content, theirs, None, faults) for ours, theirs in _SIZES.items()}
    unknown = sorted(set(content) - known)
    if unknown:
        faults.append(
            f"fields that are not known here: {', '.join(unknown)}; delete from config.json what does not change the "
            "model's hidden states, and open an issue about what does"
        )
    dim, heads = sizes["embed_dim"], sizes["num_heads"]
    if not faults and dim % (2 * heads if modern else heads):
        multiple = "an even multiple" if modern else "a multiple"
        faults.append(f"hidden_size is {dim}, which must be {multiple} of num_attention_heads = {heads}")
    fields = {**sizes, **(_read_modernbert if modern else _read_bert)(content, sizes, faults)}
    if faults:
        raise CheckpointError(list_faults(f"{path} is not supported:", faults) + f"\nsupported: {_SUPPORTED}")
    return Encoder(**fields)


def _read_bert(content: dict, sizes: dict[str, int], faults: list[str]) -> dict[str, Any]:
    fields = {
        "family": "bert",
        "activation": _take(content, "hidden_act", "gelu", faults, tuple(ACTIVATIONS)),
        "norm_eps": _take(content, "layer_norm_eps", 1e-12, faults),
        "num_positions": sizes["max_tokens"],
        "num_types": _take_size(content, "type_vocab_size", 2, faults),
    }
    if content["model_type"] != "bert":
        pad_id = _take(content, "pad_token_id", 1, faults)
        fields |= {"pad_id": pad_id, "max_tokens": sizes["max_tokens"] - pad_id - 1}
    return fields


def _read_modernbert(content: dict, sizes: dict[str, int], faults: list[str]) -> dict[str, Any]:
    every = _take(content, "global_attn_every_n_layers", 3, faults)
    kinds = content.get("layer_types")
    if kinds is None:  # as transformers 4 wrote it
        kinds = ["sliding_attention" if i % max(every, 1) else "full_attention" for i in range(sizes["num_layers"])]
    if not isinstance(kinds, list) or len(kinds) != sizes["num_layers"] or not {*map(str, kinds)} <= set(_KINDS):
        faults.append(f"layer_types is {kinds!r}, which must be {sizes['num_layers']} words of {', '.join(_KINDS)}")
        kinds = []
    return {
        "family": "modernbert",
        "activation": _take(content, "hidden_activation", "gelu", faults, tuple(ACTIVATIONS)),
        "norm_eps": _take(content, "norm_eps", 1e-5, faults),
        "is_local": tuple(_KINDS[kind] for kind in kinds),
        "window": _take(content, "local_attention", 128, faults) // 2,  # the field counts both sides
        "rope_theta": (
            _read_theta(content, "full_attention", "global_rope_theta", 160000.0, faults),
            _read_theta(content, "sliding_attention", "local_rope_theta", 10000.0, faults),
        ),
        **{name: _take(content, name, False, faults) for name in ("norm_bias", "attention_bias", "mlp_bias")},
    }


def _read_theta(content: dict, kind: str, old: str, default: float, faults: list[str]) -> float:
    """Return rope's base for one kind of layers, from ``rope_parameters`` of transformers 5 or the field of 4."""
    theta = _take(content, old, default, faults)
    given = content.get("rope_parameters") or {}
    rope = given.get(kind) or {} if isinstance(given, dict) else given
    name = f"rope_parameters.{kind}"
    if not isinstance(rope, dict) or not {*rope} <= {"rope_type", "rope_theta"}:
        faults.append(f"{name} is {rope!r}; only rope_type and rope_theta are supported")
        return theta
    if rope.get("rope_type", "default") != "default":
        faults.append(f"{name} is of type {rope['rope_type']!r}; only 'default' is supported")
    return _take(rope, "rope_theta", theta, faults)


def _take_size(content: dict, name: str, default: int | None, faults: list[str]) -> int:
    value = content.get(name, default)
    if type(value) is int and value > 0:
        return value
    faults.append(f"{name} is {value!r}, which must be a positive whole number")
    return 1


_WORDS = {bool: "true or false", int: "a whole number of at least 0", float: "a number of at least 0"}


def _take(content: dict, name: str, default: Any, faults: list[str], choices: tuple[str, ...] = ()) -> Any:
    """Return a field of the default's type and, if it is text, of ``choices``."""
    value = content.get(name, default)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if choices and value not in choices:
        faults.append(f"{name} is {value!r}, which is not one of {', '.join(choices)}")
    elif type(value) is not type(default) or (not choices and value < 0):
        faults.append(f"{name} is {value!r}, which must be {_WORDS[type(default)]}")
    else:
        return value
    return default


class Recipe(NamedTuple):
    """What stands around the encoder in a folder of sentence-transformers."""

    pooling: str  # "mean" or "cls"
    normalize: bool  # vectors are scaled to length 1
    lower_case: bool  # texts are lowered before they are tokenised


def read_recipe(folder: str | pathlib.Path, pooling: str) -> Recipe:
    """Return what modules.json and the files that it names say.

    A ``pooling`` other than "auto" has the last word on theirs. Without modules.json, "auto" is mean, as it is to
    sentence-transformers.

    Raises:
      CheckpointError: for modules and options that are not computed here.
    """
    folder = pathlib.Path(folder)
    path = folder / "modules.json"
    if not path.exists():
        return Recipe("mean" if pooling == "auto" else pooling, normalize=False, lower_case=False)
    try:
        modules = [(row["type"].rpartition(".")[2], row["path"]) for row in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); download it again") from error
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0][1]:
        listed = ", ".join(f"{kind} in {where or '.'}" for kind, where in modules)
        raise CheckpointError(f"{path} lists {listed or 'nothing'}, which is not supported\nsupported: {_SUPPORTED}")
    prompt = _read_option(folder / "config_sentence_transformers.json", "default_prompt_name")
    if prompt:
        raise CheckpointError(
            f"{folder} puts its prompt {prompt!r} before every text, which is not supported; set default_prompt_name to "
            "null in config_sentence_transformers.json, or take another encoder"
        )
    if pooling == "auto":
        pooling = _read_pooling(folder / modules[1][1] / "config.json")
    path = folder / "sentence_bert_config.json"
    lower_case = _read_option(path, "do_lower_case") or False
    if not isinstance(lower_case, bool):
        raise CheckpointError(f"{path}: do_lower_case is {lower_case!r}, which must be true or false")
    return Recipe(pooling, "Normalize" in kinds, lower_case)


def _read_option(path: pathlib.Path, name: str) -> Any:
    return read_json(path).get(name) if path.exists() else None


def _read_pooling(path: pathlib.Path) -> str:
    """Return "mean" or "cls"; both spellings are known, a flag for each mode and ``pooling_mode``."""
    remedy = f'; set the pooling to one of {POOLINGS[1:]} in place of "auto"'
    if not path.exists():
        raise CheckpointError(f"{path} is absent, although modules.json names it; download it{remedy}")
    content = read_json(path)
    flags = [
        name.removeprefix("pooling_mode_") for name, value in content.items() if value is True and "_mode_" in name
    ]
    modes = content.get("pooling_mode") or flags
    modes = [modes] if isinstance(modes, str) else modes
    known = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        stated = ", ".join(map(str, modes)) or "no mode"
        raise CheckpointError(f"{path} says {stated}; mean or cls is supported{remedy}")
    return known[modes[0]]
