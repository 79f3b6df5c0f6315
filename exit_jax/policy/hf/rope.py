"""What config.json says of the rotary embedding, in the spelling of transformers 4 or 5."""

import math
from collections.abc import Mapping
from typing import Any

_WANTED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"),
}
_KNOWN = " and ".join([", ".join(map(repr, list(_WANTED)[:-1])), repr(list(_WANTED)[-1])])


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def merge(sources: list[Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what several objects say of a rope together, and where they are at odds or no objects."""
    merged: dict[str, Any] = {}
    faults = []
    for source in sources:
        if not isinstance(source, dict):
            return {}, [f"rope_scaling and rope_parameters must be objects, not {source!r}"]
        renamed = {"rope_type" if key == "type" else key: value for key, value in source.items()}
        if "type" in source and source.get("rope_type", source["type"]) != source["type"]:
            faults.append(f"rope type is both {source['type']!r} and {source['rope_type']!r}")
        clash = sorted(key for key in renamed if key in merged and merged[key] != renamed[key])
        faults += [f"rope's {key} is both {merged[key]!r} and {renamed[key]!r}" for key in clash]
        merged |= renamed
    return merged, faults


def parse(merged: Mapping[str, Any], theta: float, positions: Any) -> tuple[float, tuple[float, ...], list[str]]:
    """Return (rope_theta, rope_scaling as DecoderConfig has it, faults) of a merged object.

    Args:
      merged: as ``merge`` returns it.
      theta: what rope_theta is where there is none.
      positions: max_position_embeddings, which yarn takes for the original length where there is none.
    """
    merged, faults = dict(merged), []
    kind, theta = merged.pop("rope_type", "default"), merged.pop("rope_theta", theta)
    partial = merged.pop("partial_rotary_factor", 1.0)
    if partial != 1.0:
        faults.append(f"rope's partial_rotary_factor is {partial!r}; only 1.0 is supported")
    if not is_number(theta):
        faults.append(f"rope_theta is {theta!r}, which must be a number above 0")
        theta = 0.0
    wanted = _WANTED.get(str(kind))
    if wanted is None:
        return float(theta), (), [*faults, f"rope of type {kind!r}; only {_KNOWN} are supported"]
    if kind == "yarn":
        merged = _complete_yarn(merged, positions)
    wrong = sorted(key for key in set(wanted) | set(merged) if key not in wanted or not is_number(merged.get(key)))
    wrong = [key for key in wrong if key != "truncate" or not isinstance(merged.get(key), bool)]
    faults += [f"rope of type {kind!r} has {key} {merged.get(key)!r}" for key in wrong]
    low, high = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}.get(
        kind, ("",) * 2
    )
    if not wrong and low and merged[low] >= merged[high]:
        wrong = [low]
        faults.append(f"rope of type {kind!r} has {low} {merged[low]!r}, which must be below {high} {merged[high]!r}")
    return float(theta), () if wrong else tuple(float(merged[key]) for key in wanted), faults


def _complete_yarn(given: Mapping[str, Any], positions: Any) -> dict[str, Any]:
    """Return yarn's numbers with transformers' values for those that are absent; mscale is what the attention factor is of."""
    merged = dict(given)
    one, other = merged.pop("mscale", None), merged.pop("mscale_all_dim", None)
    absent = {"original_max_position_embeddings": positions, "beta_fast": 32, "beta_slow": 1, "truncate": True}
    merged |= {key: value for key, value in absent.items() if merged.get(key) is None}
    if merged.get("attention_factor") is None:
        factor: Any = merged.get("factor")
        if not is_number(factor) or not all(each is None or is_number(each) for each in (one, other)):
            return merged | {"mscale": (one, other)}  # a fault, since it is not among the wanted
        longer = lambda scale: 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
        merged["attention_factor"] = longer(one) / longer(other) if one and other else longer(1.0)
    return merged


def write(scaling: tuple[float, ...]) -> dict[str, Any]:
    """Return the object ``rope_scaling`` of a config.json, in the spelling of transformers 4; {} for none."""
    kind = {0: "default", 1: "linear", 4: "llama3", 6: "yarn"}[len(scaling)]
    if kind == "default":
        return {}
    content: dict[str, Any] = {"rope_type": kind} | dict(zip(_WANTED[kind], scaling))
    if "original_max_position_embeddings" in content:
        content["original_max_position_embeddings"] = int(content["original_max_position_embeddings"])
    if "truncate" in content:
        content["truncate"] = bool(content["truncate"])
    return content
