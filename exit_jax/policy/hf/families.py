"""The families of checkpoints: what each is in the decoder's fields, and which fields of config.json say nothing else.

Defaults of absent fields are those of transformers.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """What distinguishes a family; everything else about it is the one decoder."""

    model_type: str
    max_positions: int  # where config.json gives no max_position_embeddings
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # of DecoderConfig, where not at the default
    windows: str = ""  # "all" layers have the window, or "some" as layer_types say; "" for none
    window: int | None = 4096  # where config.json gives no sliding_window
    window_switch: bool = False  # whether use_sliding_window must be true for a window to count
    kv_heads_default: bool = False  # whether an absent num_key_value_heads is num_attention_heads
    head_dim: int = 0  # where config.json gives none; 0 for hidden_size / num_attention_heads
    theta: float = 10000.0  # where config.json gives none
    local_theta: float = 0.0  # the same of layers with a window, where these have a base of their own; 0 for none
    pattern: int = (
        0  # of how many layers the last alone has no window, where layer_types does not say; 0 for max_window_layers
    )
    ties: bool = False  # tie_word_embeddings where config.json has none
    # further fields of DecoderConfig that are numbers: their name, and what is meant where there is none
    numbers: dict[str, tuple[str, float | None]] = dataclasses.field(default_factory=dict)
    only: dict[str, Any] = dataclasses.field(default_factory=dict)  # as ONLY, and in its place
    ignored: tuple[str, ...] = ()  # further fields that change nothing that the decoder computes


_GEMMA = {"norms": "both", "norm_offset": True, "embedding_scaled": True, "activation": "gelu_pytorch_tanh"}
_ONLY_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
    "use_bidirectional_attention": False,
}
FAMILIES = {
    "LlamaForCausalLM": Family("llama", 2048, kv_heads_default=True, window=None),
    "MistralForCausalLM": Family("mistral", 131072, windows="all"),
    "Qwen2ForCausalLM": Family("qwen2", 32768, {"qkv_bias": True}, windows="some", window_switch=True),
    "Qwen3ForCausalLM": Family("qwen3", 32768, {"qk_norm": True}, windows="some", window_switch=True, head_dim=128),
    "Gemma2ForCausalLM": Family(
        "gemma2",
        8192,
        _GEMMA,
        windows="some",
        pattern=2,
        head_dim=256,
        ties=True,
        numbers={
            "query_scalar": ("query_pre_attn_scalar", 256),
            "attention_cap": ("attn_logit_softcapping", 50.0),
            "logits_cap": ("final_logit_softcapping", 30.0),
        },
        only=_ONLY_GEMMA | {"sliding_window_pattern": 2},
        ignored=("cache_implementation",),
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3_text",
        131072,
        _GEMMA | {"qk_norm": True},
        windows="some",
        pattern=6,
        head_dim=256,
        theta=1e6,
        local_theta=10000.0,
        ties=True,
        numbers={
            "query_scalar": ("query_pre_attn_scalar", 256),
            "logits_cap": ("final_logit_softcapping", None),
        },
        # transformers computes no bound of scores here, whatever the field says
        only=_ONLY_GEMMA | {"attn_logit_softcapping": None},
        ignored=("cache_implementation", "_sliding_window_pattern"),
    ),
}
# what families do not share, at its defaults; ``read`` gives these fields for every family
FAMILY_DEFAULTS: dict[str, Any] = {
    "qkv_bias": False,
    "qk_norm": False,
    "rope_local_theta": 0.0,
    "query_scalar": 0.0,
    "attention_cap": 0.0,
    "logits_cap": 0.0,
    "norms": "before",
    "norm_offset": False,
    "embedding_scaled": False,
    "activation": "silu",
}
SUPPORTED = (
    "LlamaForCausalLM (Llama 3.x, DeepSeek-R1-Distill-Llama), Qwen2ForCausalLM (Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen), "
    "Qwen3ForCausalLM, MistralForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM (text); "
    "rope of type default, linear, llama3 or yarn"
)
SIZES = {  # ours: theirs
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}
# Fields that are read somewhere below.
READ = {
    *SIZES.values(),
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
    "max_window_layers",
    "max_position_embeddings",
}
# Those of a family whose layers with a window have a rope of their own.
LOCAL_READ = {"rope_local_base_freq", "sliding_window_pattern"}
# Fields that would change what the model computes; where present, this value is the only one that the decoder computes.
ONLY = {
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
IRRELEVANT = {
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
