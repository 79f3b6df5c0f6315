"""What a checkpoint's own config.json says: the decoder's shape, read such that no field is silently ignored.

Both spellings are known: ``rope_theta`` + ``rope_scaling`` and ``torch_dtype`` of transformers 4, ``rope_parameters`` and
``dtype`` of transformers 5. Defaults of absent fields are those of transformers.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from exit_jax.errors import UserError
from exit_jax.policy.hf import rope
from exit_jax.policy.hf.families import (
    FAMILIES,
    FAMILY_DEFAULTS,
    IRRELEVANT,
    LOCAL_READ,
    NO_ROPE_READ,
    ONLY,
    READ,
    SIZES,
    SUPPORTED,
    Family,
)


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
    only = {name: value for name, value in (ONLY | family.only).items() if name not in family.ignored}
    faults = [
        f"{name} is {content[name]!r}; only {value!r} is supported"
        for name, value in only.items()
        if content.get(name) is not None and content[name] != value
    ]
    limits, wrong = _read_limits(family, content)
    shape, wrong_sizes = _read_sizes(family, content)
    ropes, wrong_ropes = _read_ropes(family, content)
    windows, wrong_windows = ((), []) if wrong else _read_windows(family, content, min(limits.values()))
    numbers, wrong_numbers = _read_numbers(family, content)
    straight, wrong_straight = _read_no_rope_layers(family, content)
    faults += wrong_ropes + wrong + wrong_windows + wrong_sizes + wrong_numbers + wrong_straight
    eps: Any = content.get("rms_norm_eps")
    tie = content.get("tie_word_embeddings", family.ties)
    if not rope.is_number(eps):
        faults.append(f"rms_norm_eps is {eps!r}, which must be a number above 0")
    if not isinstance(tie, bool):
        faults.append(f"tie_word_embeddings is {tie!r}, which must be true or false")
    also = {name for name, _ in (family.numbers | family.flags).values()} | {*family.sizes.values()}
    also |= (LOCAL_READ if family.local_theta else set()) | (NO_ROPE_READ if family.rope_interval else set())
    also |= {"num_experts"} if "num_experts" in family.sizes else set()
    unknown = sorted({*content} - READ - {*only} - {*IRRELEVANT} - {*family.ignored} - also)
    if unknown:
        faults.append(
            f"fields that are not known here: {', '.join(unknown)}; delete from config.json what does not change the "
            "model's logits, and open an issue about what does"
        )
    if faults:
        raise CheckpointError(list_faults(f"{path} is not supported:", faults) + f"\nsupported: {SUPPORTED}")
    found = shape | ropes | {"norm_eps": float(eps), "tie_embeddings": tie, "layer_windows": windows}
    found |= {"no_rope_layers": straight}
    return FAMILY_DEFAULTS | family.fields | found | numbers


def _family(path: pathlib.Path, content: dict) -> Family:
    """Return the entry of FAMILIES that config.json names, by ``architectures`` or else by ``model_type``."""
    named, model_type = content.get("architectures"), content.get("model_type")
    families = [FAMILIES.get(str(name)) for name in named] if isinstance(named, list) else []
    if not named:
        families = [family for family in FAMILIES.values() if family.model_type == model_type]
    if len(families) != 1 or families[0] is None or families[0].model_type != model_type:
        raise CheckpointError(
            f"{path} names the architecture {named!r} of model_type {model_type!r}, which is not supported\n"
            f"supported: {SUPPORTED}"
        )
    return families[0]


def _read_sizes(family: Family, content: dict) -> tuple[dict[str, Any], list[str]]:
    """Return (the fields that are sizes, faults)."""
    names = SIZES | family.sizes
    shape: dict[str, Any] = {ours: content.get(theirs) for ours, theirs in names.items()}
    if "num_experts" in names:  # transformers 4 and 5 have different names for it
        one, other = content.get("num_experts"), shape["num_experts"]
        shape["num_experts"] = one if other is None else other
        if None not in (one, other) and one != other:
            return shape, [f"num_experts is {one!r}, but num_local_experts is {other!r}; delete the wrong one"]
    shape["num_kv_heads"] = content.get("num_key_value_heads")
    if shape["num_kv_heads"] is None and family.kv_heads_default:
        shape["num_kv_heads"] = shape["num_heads"]
    shape["head_dim"] = content.get("head_dim") or family.head_dim or _divide(shape["embed_dim"], shape["num_heads"])
    theirs_of = {**names, "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
    faults = _require_sizes({theirs_of[name]: value for name, value in shape.items()})
    if "num_experts" in names and not faults and shape["experts_per_token"] > shape["num_experts"]:
        faults.append(
            f"num_experts_per_tok is {shape['experts_per_token']}, more than all {shape['num_experts']} experts"
        )
    return shape, faults


def _require_sizes(values: Mapping[str, Any]) -> list[str]:
    wrong = {name: value for name, value in values.items() if not (type(value) is int and 0 < value < 1 << 31)}
    return [f"{name} is {value!r}, which must be a positive whole number" for name, value in wrong.items()]


def _divide(dim: Any, heads: Any) -> int | None:
    return dim // heads if type(dim) is int and type(heads) is int and heads > 0 and dim % heads == 0 else None


def _read_numbers(family: Family, content: dict) -> tuple[dict[str, Any], list[str]]:
    """Return (further fields of a family that are numbers, 0 for none, or true or false; faults)."""
    values = {ours: (theirs, content.get(theirs, default)) for ours, (theirs, default) in family.numbers.items()}
    flags = {ours: (theirs, content.get(theirs, default)) for ours, (theirs, default) in family.flags.items()}
    faults = [
        f"{name} is {value!r}, which must be a number above 0, or null for none"
        for name, value in values.values()
        if value is not None and not rope.is_number(value)
    ]
    faults += [
        f"{name} is {value!r}, which must be true or false"
        for name, value in flags.values()
        if not isinstance(value, bool)
    ]
    if faults:
        return {}, faults
    found: dict[str, Any] = {ours: float(value or 0.0) for ours, (_, value) in values.items()}
    return found | {ours: value for ours, (_, value) in flags.items()}, []


def _read_no_rope_layers(family: Family, content: dict) -> tuple[tuple[int, ...], list[str]]:
    """Return (the layers without a rotary embedding, faults)."""
    count: Any = content.get("num_hidden_layers")
    if not family.rope_interval or _require_sizes({"": count}):
        return (), []
    turned, interval = content.get("no_rope_layers"), content.get("no_rope_layer_interval", family.rope_interval)
    if turned is None:
        faults = _require_sizes({"no_rope_layer_interval": interval})
        return () if faults else tuple(range(interval - 1, count, interval)), faults
    if not isinstance(turned, list) or len(turned) != count or not all(each in (0, 1) for each in turned):
        return (), [
            f"no_rope_layers is {turned!r}, which must be num_hidden_layers = {count} times 1, or 0 for no rope"
        ]
    return tuple(layer for layer, each in enumerate(turned) if not each), []


def _read_ropes(family: Family, content: dict) -> tuple[dict[str, Any], list[str]]:
    """Return (the fields of rotary embeddings, faults)."""
    positions = content.get("max_position_embeddings", family.max_positions)
    new, local = content.get("rope_parameters") or {}, {}
    if family.local_theta:
        if not isinstance(new, dict) or not {*new} <= {"full_attention", "sliding_attention"}:
            return {}, [f"rope_parameters is {new!r}, which must have full_attention and sliding_attention"]
        new, local = new.get("full_attention") or {}, new.get("sliding_attention") or {}
    old = {"rope_theta": content["rope_theta"]} if content.get("rope_theta") is not None else {}
    merged, faults = rope.merge([old, content.get("rope_scaling") or {}, new])
    theta, scaling, wrong = rope.parse(merged, family.theta, positions)
    fields, faults = {"rope_theta": theta, "rope_scaling": scaling}, faults + wrong
    if family.local_theta:
        base = content.get("rope_local_base_freq")
        merged, wrong = rope.merge([{} if base is None else {"rope_theta": base}, local])
        base, stretched, more = rope.parse(merged, family.local_theta, positions)
        faults += [f"of layers with a window: {fault}" for fault in wrong + more]
        if stretched:
            faults.append(f"rope of layers with a window is {merged!r}; only type 'default' is supported there")
        fields["rope_local_theta"] = 0.0 if (base, ()) == (theta, scaling) else base
    return fields, faults


def _read_limits(family: Family, content: dict) -> tuple[dict[str, int], list[str]]:
    """Return (the longest sequences that the model knows, by the field that says so; faults)."""
    limits = {"max_position_embeddings": content.get("max_position_embeddings", family.max_positions)}
    if not family.windows and content.get("sliding_window") is not None:
        limits["sliding_window"] = content["sliding_window"]  # full attention is computed, which is the same within it
    if faults := _require_sizes(limits):
        return limits, faults
    ropes, _ = _read_ropes(family, content)
    if (
        len(scaling := ropes.get("rope_scaling", ())) == 6
        and scaling[0] * scaling[1] > limits["max_position_embeddings"]
    ):
        # Qwen's way of switching yarn on leaves max_position_embeddings at the original length
        del limits["max_position_embeddings"]
        limits["factor times original_max_position_embeddings"] = int(scaling[0] * scaling[1])
    return limits, []


def _read_windows(family: Family, content: dict, longest: Any) -> tuple[tuple[int, ...], list[str]]:
    """Return (layer_windows, faults); () if no sequence of up to ``longest`` tokens outgrows the window."""
    kinds, count, faults = content.get("layer_types"), content.get("num_hidden_layers", 0), []
    known = ("full_attention", "sliding_attention")
    if kinds is not None and not (isinstance(kinds, list) and {*map(str, kinds)} <= {*known}):
        return (), [f"layer_types is {kinds!r}; only full_attention and sliding_attention are supported"]
    switch = content.get("use_sliding_window", False)
    if not isinstance(switch, bool):
        return (), [f"use_sliding_window is {switch!r}, which must be true or false"]
    if not family.windows or _require_sizes({"": count}):
        return (), []
    off, (straight, _) = family.window_switch and not switch, _read_no_rope_layers(family, content)
    window: Any = None if off else content.get("sliding_window", family.window)
    if window is not None:
        faults = _require_sizes({"sliding_window": window})
    if kinds is None and family.pattern:
        pattern = content.get("sliding_window_pattern", family.pattern)
        if faults := faults + _require_sizes({"sliding_window_pattern": pattern}):
            return (), faults
        kinds = [known[bool(layer % pattern)] for layer in range(1, count + 1)]
    elif kinds is None and family.rope_interval:
        kinds = [known[window is not None and layer in straight] for layer in range(count)]
    elif kinds is None or family.windows == "all":
        first = content.get("max_window_layers", 28) if family.windows == "some" else 0
        wanted = [known[window is not None and layer >= first] for layer in range(count)] if type(first) is int else []
        if not wanted:
            faults.append(f"max_window_layers is {first!r}, which must be a whole number")
        if kinds is not None and kinds != wanted:
            faults.append(
                f"layer_types is {kinds!r}, but a {family.model_type} model has sliding_window in all layers or none"
            )
        kinds = wanted
    if len(kinds) != count:
        faults.append(f"layer_types has {len(kinds)} entries, which must be num_hidden_layers = {count}")
    if known[1] in kinds and window is None:
        faults.append(
            "layer_types has sliding_attention, but there is no sliding_window; give it, and use_sliding_window"
        )
    if faults or known[1] not in kinds or window >= longest:
        return (), faults
    sizes = {known[0]: 0, known[1]: int(window or 0)}
    return tuple(sizes[kind] for kind in kinds), []


def read_limits(folder: str | pathlib.Path) -> dict[str, int]:
    """Return the tokens of the longest sequences that a checkpoint knows, by the field of its config.json that says so."""
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
