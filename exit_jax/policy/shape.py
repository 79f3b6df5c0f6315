"""What a decoder looks like and how it is computed, as settings; decoder.py computes it.

Apart from it, since a config is checked before anything is imported that computes.
"""

import dataclasses

PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")
REMAT = ("none", "layer", "dots")
ATTENTION = ("auto", "xla", "cudnn", "splash", "splash_interpret")  # the last is for tests on a CPU


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside frozen kernels (LoRA, arXiv 2106.09685): W + A B · alpha / rank."""

    rank: int  # 0 for none: all parameters are trained
    alpha: float
    targets: tuple[str, ...]  # of PROJECTIONS

    @property
    def scale(self) -> float:
        """What the product of the adapters is multiplied by; 0 without adapters."""
        return self.alpha / self.rank if self.rank else 0.0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape of the decoder; Llama is the default, Qwen2 adds ``qkv_bias``, Qwen3 adds ``qk_norm``."""

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float
    rope_scaling: tuple[float, ...]  # Llama 3's (factor, low and high frequency factor, original length), () for none
    norm_eps: float
    tie_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    # how it is computed
    dtype: str  # of activations and of the sampler's parameters; norms, softmax and logits are float32
    param_dtype: str  # of the learner's parameters; adapters are float32
    attention: str  # one of ATTENTION
    remat: str  # what the backward pass recomputes: "none", each "layer", or all but the matrix products ("dots")
    unroll_layers: bool  # of the learner: faster for small models, slower to compile
    decode_stages: int  # of sampling without refilled slots: stage i of n reads the first i/n of the own slots
    lora: LoraConfig
    # ranges [start, stop) of ids that no token has: they have probability 0 in sampling and in learning, and no gradient
    unused_ids: tuple[tuple[int, int], ...] = ()


COMPUTE_FIELDS = ("dtype", "param_dtype", "attention", "remat", "unroll_layers", "decode_stages", "lora")
