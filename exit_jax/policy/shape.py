"""What a decoder looks like and how it is computed, as settings; decoder.py computes it.

Apart from it, since a config is checked before anything is imported that computes.
"""

import dataclasses
from typing import Any

from exit_jax.settings import defaults, group, setting

PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")
REMAT = ("none", "layer", "dots")
ATTENTION = ("auto", "xla", "cudnn", "splash", "splash_interpret")  # the last is for tests on a CPU


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside frozen kernels (LoRA, arXiv 2106.09685): W + A B · alpha / rank."""

    rank: int = setting(0, "columns of the adapters; 0 trains all parameters", within="[0, inf)")
    alpha: float = setting(16.0, "scale of the adapters' product, before it is divided by the rank (our choice)")
    targets: tuple[str, ...] = setting((), "the kernels that have adapters", choices=PROJECTIONS)

    @property
    def scale(self) -> float:
        """What the product of the adapters is multiplied by; 0 without adapters."""
        return self.alpha / self.rank if self.rank else 0.0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape of the decoder and how it is computed; Llama is the default, Qwen2 adds ``qkv_bias``, Qwen3 adds ``qk_norm``.

    The shape, up to ``qk_norm``, is read from ``checkpoint`` where there is one, and stays at its defaults in the config.
    """

    vocab_size: int = setting(0, "tokens; 0 for the domain's, or the checkpoint's", within="[0, inf)")
    num_layers: int = setting(0, "layers; 0 for the checkpoint's, as for the next five", within="[0, inf)")
    embed_dim: int = setting(0, "width of the residual stream", within="[0, inf)")
    num_heads: int = setting(0, "query heads", within="[0, inf)")
    num_kv_heads: int = setting(0, "key and value heads", within="[0, inf)")
    head_dim: int = setting(0, "width of a head", within="[0, inf)")
    mlp_dim: int = setting(0, "width of the MLP", within="[0, inf)")
    rope_theta: float = setting(10000.0, "base of the rotary embedding's wavelengths", within="(0, inf)")
    rope_scaling: tuple[float, ...] = setting(
        (), "Llama 3's (factor, low and high frequency factor, original length); () for none"
    )
    norm_eps: float = setting(1e-6, "added to the mean square in RMS norms", within="[0, inf)")
    tie_embeddings: bool = setting(False, "whether the embedding is the output layer, too")
    qkv_bias: bool = setting(False, "whether queries, keys and values have a bias")
    qk_norm: bool = setting(False, "whether queries and keys are normalised, head by head")
    dtype: str = setting(
        "bfloat16",
        "dtype of activations and of the sampler's parameters; norms, softmax and logits are float32",
        choices=("float32", "bfloat16"),
    )
    param_dtype: str = setting(
        "float32", "dtype of the learner's parameters; adapters are float32", choices=("float32", "bfloat16")
    )
    attention: str = setting("auto", "the kernel of attention; auto takes the fastest that there is", choices=ATTENTION)
    remat: str = setting(
        "layer", "what the backward pass recomputes: each layer, or all but matrix products (dots)", choices=REMAT
    )
    unroll_layers: bool = setting(False, "unroll the learner's layers: faster for small models, slower to compile")
    decode_stages: int = setting(
        4, "stages of decoding: stage i of n reads the first i/n of a row's slots of the KV cache", within="[1, inf)"
    )
    lora: LoraConfig = group(LoraConfig, "low-rank adapters")
    unused_ids: tuple[tuple[int, int], ...] = setting(
        (),
        "ranges [start, stop) of ids without a token: probability 0 in sampling and learning, no gradient",
        younger=True,
    )


# the fields that say how it is computed; all others are the shape, which a checkpoint gives
COMPUTE_FIELDS = ("dtype", "param_dtype", "attention", "remat", "unroll_layers", "decode_stages", "lora")


def no_shape() -> dict[str, Any]:
    """Return the defaults of the fields of the shape, at which a config leaves them to the checkpoint."""
    return {name: value for name, value in defaults(DecoderConfig).items() if name not in COMPUTE_FIELDS}
