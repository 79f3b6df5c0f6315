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
    sizes: dict[str, str] = dataclasses.field(default_factory=dict)  # as SIZES, and in its place
    flags: dict[str, tuple[str, bool]] = dataclasses.field(default_factory=dict)  # as numbers, true or false
    rope_interval: int = 0  # of how many layers the last alone has no rotary embedding; 0 where all have one
    only: dict[str, Any] = dataclasses.field(default_factory=dict)  # as ONLY, and in its place
    ignored: tuple[str, ...] = ()  # further fields that change nothing that the decoder computes


_GEMMA = {"norms": "both", "norm_offset": True, "embedding_scaled": True, "activation": "gelu_pytorch_tanh"}
_ONLY_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
    "use_bidirectional_attention": False,
}
_EXPERTS = {"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}
_ROUTER = ("output_router_logits", "router_aux_loss_coef")  # of their training loss
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
    "Olmo2ForCausalLM": Family(
        "olmo2", 2048, {"norms": "after", "qk_norm": True, "qk_norm_whole": True}, kv_heads_default=True, window=None
    ),
    "SmolLM3ForCausalLM": Family(
        "smollm3",
        32768,
        windows="some",
        window=None,
        window_switch=True,
        theta=2e6,
        ties=True,
        rope_interval=4,
        ignored=("pretraining_tp", "max_window_layers"),
    ),
    "Qwen3MoeForCausalLM": Family(
        "qwen3_moe",
        32768,
        {"qk_norm": True},
        windows="all",
        window_switch=True,
        sizes=_EXPERTS | {"mlp_dim": "moe_intermediate_size"},
        flags={"experts_renormalised": ("norm_topk_prob", False)},
        only={"decoder_sparse_step": 1, "mlp_only_layers": []},
        ignored=(*_ROUTER, "intermediate_size", "max_window_layers"),
    ),
    "MixtralForCausalLM": Family(
        "mixtral",
        131072,
        {"experts_renormalised": True},
        windows="all",
        window=None,
        theta=1e6,
        sizes=_EXPERTS,
        only={"router_jitter_noise": 0.0},
        ignored=_ROUTER,
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
    "qk_norm_whole": False,
    "no_rope_layers": (),
    "num_experts": 0,
    "experts_per_token": 0,
    "experts_renormalised": False,
}
SUPPORTED = (
    "LlamaForCausalLM (Llama 3.x, DeepSeek-R1-Distill-Llama), Qwen2ForCausalLM (Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen), "
    "Qwen3ForCausalLM, MistralForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM (text), "
    "Olmo2ForCausalLM, SmolLM3ForCausalLM, Qwen3MoeForCausalLM, MixtralForCausalLM; "
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
# That of one in which some layers have none.
NO_ROPE_READ = {"no_rope_layers", "no_rope_layer_interval"}
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
