"""What a decoder looks like and how it is computed, as settings; decoder.py computes it.

Apart from it, since a config is checked before anything is imported that computes.
"""

import dataclasses
from typing import Any, NamedTuple

from exit_jax.settings import defaults, group, setting

PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")
REMAT = ("none", "layer", "dots")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")  # as transformers call them
NORMS = ("before", "after", "both")  # where the norms of a layer stand: before attention and MLP, after them, or both
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
    """Shape of the decoder and how it is computed; Llama is the default, and other families are a few fields each.

    The shape, all but COMPUTE_FIELDS, is read from ``checkpoint`` where there is one, and stays at its defaults in the config.
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
        (),
        "Llama 3's (factor, low and high frequency factor, original length); linear (factor,); yarn's (factor, original "
        "length, fast and slow beta, attention factor, 1 for whole bounds or 0); () for none",
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
    layer_windows: tuple[int, ...] = setting(
        (),
        "of each layer, how many tokens a token sees, itself among them, 0 for all; () where all layers see all",
        younger=True,
    )
    rope_local_theta: float = setting(
        0.0,
        "rope_theta of layers with a window, without rope_scaling; 0 for that of all",
        within="[0, inf)",
        younger=True,
    )
    query_scalar: float = setting(
        0.0, "attention scores are divided by its root; 0 for head_dim", within="[0, inf)", younger=True
    )
    attention_cap: float = setting(
        0.0, "bound c of attention scores, c tanh(score / c); 0 for none", within="[0, inf)", younger=True
    )
    logits_cap: float = setting(0.0, "bound of logits, likewise; 0 for none", within="[0, inf)", younger=True)
    norms: str = setting(
        "before",
        "where a layer's norms stand: before attention and MLP, after them, or both",
        choices=NORMS,
        younger=True,
    )
    norm_offset: bool = setting(False, "whether norms scale by 1 + their parameter, which begins at 0", younger=True)
    embedding_scaled: bool = setting(
        False, "whether embeddings are multiplied by the root of embed_dim, rounded to dtype", younger=True
    )
    activation: str = setting("silu", "function of the MLP's gate", choices=ACTIVATIONS, younger=True)
    qk_norm_whole: bool = setting(False, "with qk_norm, whether all heads are normalised at once", younger=True)
    no_rope_layers: tuple[int, ...] = setting(
        (), "layers without a rotary embedding, by number, the first is 0", younger=True
    )
    num_experts: int = setting(
        0,
        "experts of each layer's MLP, mlp_dim wide each; 0 for one MLP of all tokens",
        within="[0, inf)",
        younger=True,
    )
    experts_per_token: int = setting(
        0, "experts that a token is sent to, the likeliest of its router", within="[0, inf)", younger=True
    )
    experts_renormalised: bool = setting(
        False, "whether the shares of a token's experts are scaled to a sum of 1", younger=True
    )


class LayerKind(NamedTuple):
    """What differs from layer to layer: how far a token sees, and how its position is told."""

    window: int  # tokens that a token sees, itself among them; 0 for all
    theta: float  # 0 for no rotary embedding
    scaling: tuple[float, ...]  # rope_scaling


def layer_kinds(config: DecoderConfig) -> tuple[LayerKind, ...]:
    """Return the kind of each layer."""
    c = config

    def kind(layer: int, window: int) -> LayerKind:
        if layer in c.no_rope_layers:
            return LayerKind(window, 0.0, ())
        if window and c.rope_local_theta:
            return LayerKind(window, c.rope_local_theta, ())
        return LayerKind(window, c.rope_theta, c.rope_scaling)

    return tuple(kind(*item) for item in enumerate(c.layer_windows or (0,) * c.num_layers))


# the fields that say how it is computed; all others are the shape, which a checkpoint gives
COMPUTE_FIELDS = ("dtype", "param_dtype", "attention", "remat", "unroll_layers", "decode_stages", "lora")


def no_shape() -> dict[str, Any]:
    """Return the defaults of the fields of the shape, at which a config leaves them to the checkpoint."""
    return {name: value for name, value in defaults(DecoderConfig).items() if name not in COMPUTE_FIELDS}
