"""What a checkpoint's generation_config.json says of sampling, read such that no field is silently ignored, and written again.

A field means what `transformers.GenerationConfig` means by it. The sampler computes temperature, top_k, top_p, min_p,
repetition_penalty, min_new_tokens and suppress_tokens in the same way (``policy.choice``); whatever else generate() would
compute is refused by name.
"""

import logging
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from exit_jax.policy.hf.config import CheckpointError, list_faults, read_json

log = logging.getLogger(__name__)

FILE = "generation_config.json"
TOP_K = 50  # what transformers takes where it samples and the file gives none; 0 in the file keeps all tokens
_CUTS = ("temperature", "top_k", "top_p", "min_p")  # fields of sampling, theirs and ours alike
_RULES = {  # fields of sampling and of greedy decoding, theirs: ours
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "suppress_tokens": "suppress_tokens",
}
# Fields that change what is generated: the sampler computes what this value means, null, or a list of nothing.
_ONLY = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "force_words_ids": None,
    "constraints": None,
    "min_length": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "token_healing": False,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "dola_layers": None,
    "stop_strings": None,
    "max_time": None,
}
# Fields that do not change which token comes next, and why.
_IRRELEVANT = {
    **dict.fromkeys(("max_length", "max_new_tokens"), "config.domain says how long responses are"),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), "config.token_ids"),
    **dict.fromkeys(("early_stopping", "length_penalty"), "beams"),
    **dict.fromkeys(("remove_invalid_values", "renormalize_logits"), "same distribution"),
    **dict.fromkeys(("num_return_sequences", "output_attentions", "output_hidden_states"), "what generate() returns"),
    **dict.fromkeys(("output_scores", "output_logits", "return_dict_in_generate"), "what generate() returns"),
    **dict.fromkeys(("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"), "memory"),
    **dict.fromkeys(("compile_config", "disable_compile", "prefill_chunk_size", "use_mtp"), "speed"),
    **dict.fromkeys(("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"), "speed"),
    **dict.fromkeys(("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"), "speed"),
    **dict.fromkeys(("target_lookbehind", "assistant_ensemble_weight", "speculation_type"), "speed"),
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size", "continuous_batching_config"), "speed"),
    **dict.fromkeys(("transformers_version", "_from_model_config", "_commit_hash", "_name_or_path"), "provenance"),
}


def read(folder: str | pathlib.Path) -> dict[str, Any]:
    """Return the fields of EvalConfig that a checkpoint's generation_config.json gives; {} without one.

    Raises:
      CheckpointError: listing all fields that generate() would heed and the sampler does not.
    """
    path = pathlib.Path(folder) / FILE
    content = {name: value for name, value in (read_json(path) if path.exists() else {}).items() if value is not None}
    faults = [
        f"{name} is {content[name]!r}; only {value!r} is supported"
        for name, value in _ONLY.items()
        if content.get(name) not in (None, value, [], {})
    ]
    if faults:
        title = (
            f"{path} asks for more than the sampler computes; set eval.from_checkpoint to False, and eval's own fields:"
        )
        raise CheckpointError(list_faults(title, faults))
    unknown = sorted(set(content) - {"do_sample", *_CUTS, *_RULES} - set(_ONLY) - set(_IRRELEVANT))
    if unknown:
        log.warning("%s: %s are unknown here, and are not applied", path, ", ".join(unknown))
    rules = {ours: content[theirs] for theirs, ours in _RULES.items() if theirs in content}
    cuts = {name: content[name] for name in _CUTS if name in content}
    if content.get("do_sample") is False:
        return rules | {"temperature": 0.0}
    if content.get("do_sample"):
        if "top_k" not in cuts:
            log.info("%s samples and gives no top_k: transformers then takes %d, and so does eval.top_k", path, TOP_K)
        return rules | {"top_k": TOP_K} | cuts
    if cuts:
        log.warning(
            "%s gives %s, but no do_sample, without which transformers would always take the likeliest token; here it is "
            "sampled: add do_sample to the file",
            *(path, ", ".join(cuts)),
        )
    return rules | cuts


def make(sampling: Any, ids: Mapping[str, int | None], unused: Iterable[int]) -> dict[str, Any]:
    """Return a generation_config.json under which generate() samples in the same way.

    Args:
      sampling: a ``policy.choice.SamplingConfig``, which is not imported, for a config is checked before what computes.
      ids: bos_token_id and pad_token_id, None for none.
      unused: ids that no token has.
    """
    does_sample = sampling.temperature > 0
    content: dict[str, Any] = {name: number for name, number in ids.items() if number is not None}
    content |= {
        "eos_token_id": list(sampling.stop_tokens),
        "max_new_tokens": sampling.max_tokens,
        "do_sample": does_sample,
    }
    if does_sample:
        content |= {name: getattr(sampling, name) for name in _CUTS if name != "min_p" or sampling.min_p}
    neutral = {"repetition_penalty": 1.0, "min_new_tokens": 0, "suppress_tokens": []}
    rules = {theirs: getattr(sampling, ours) for theirs, ours in _RULES.items()}
    rules["suppress_tokens"] = sorted({*sampling.suppress_tokens, *unused})
    return content | {name: value for name, value in rules.items() if value != neutral[name]}
