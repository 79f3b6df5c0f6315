"""Bidirectional transformers as pure functions over a nested dict of parameters, and their pooling to one vector a text.

The dict is keyed as checkpoints name their tensors, so no table of names is needed: "encoder.layer.3.output.dense.weight"
is row 3 of ``params["layers"]["output"]["dense"]["weight"]``. Layers are stacked and scanned.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from exit_jax.policy.rope import rope, rope_frequencies, rotation
from exit_jax.types import Array, Params

_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)
ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What an encoder computes; ``embedding.config.read`` finds it in config.json."""

    family: (
        str  # "bert" (BERT and RoBERTa: norms after the sums, learned positions) or "modernbert" (before, rope, GLU)
    )
    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    max_tokens: int  # positions that it has, or was trained on
    activation: str  # one of ACTIVATIONS
    norm_eps: float
    # BERT and RoBERTa
    num_positions: int = 0  # rows of the table
    num_types: int = 0  # segments, of which a text is the first
    pad_id: int = -1  # RoBERTa's positions begin at pad_id + 1 and leave out tokens of this id; -1 for BERT
    # ModernBERT
    is_local: tuple[bool, ...] = ()  # layers whose attention reaches ``window`` tokens to either side
    window: int = 0
    rope_theta: tuple[float, float] = (0.0, 0.0)  # global and local layers
    norm_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True


def tensors(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's tensors by name, where "*" stands for the number of the layer."""
    e = encoder
    d, m = e.embed_dim, e.mlp_dim

    def norm(name):
        return {f"{name}.weight": (d,)} | ({f"{name}.bias": (d,)} if e.norm_bias else {})

    def linear(name, n, m, bias=True):
        return {f"{name}.weight": (m, n)} | ({f"{name}.bias": (m,)} if bias else {})

    if e.family == "modernbert":
        ends = {"embeddings.tok_embeddings.weight": (e.vocab_size, d)} | norm("embeddings.norm") | norm("final_norm")
        layer = norm("attn_norm") | norm("mlp_norm")
        layer |= linear("attn.Wqkv", d, 3 * d, e.attention_bias) | linear("attn.Wo", d, d, e.attention_bias)
        layer |= linear("mlp.Wi", d, 2 * m, e.mlp_bias) | linear("mlp.Wo", m, d, e.mlp_bias)
        return ends | {f"layers.*.{name}": shape for name, shape in layer.items()}
    tables = {"word": e.vocab_size, "position": e.num_positions, "token_type": e.num_types}
    ends = {f"embeddings.{name}_embeddings.weight": (rows, d) for name, rows in tables.items()}
    layer = linear("attention.output.dense", d, d) | norm("attention.output.LayerNorm")
    for name in ("query", "key", "value"):
        layer |= linear(f"attention.self.{name}", d, d)
    layer |= linear("intermediate.dense", d, m) | linear("output.dense", m, d) | norm("output.LayerNorm")
    return ends | norm("embeddings.LayerNorm") | {f"encoder.layer.*.{name}": shape for name, shape in layer.items()}


def apply(encoder: Encoder, params: Params, tokens: Array, mask: Array, dtype: str) -> Array:
    """Return the final hidden states [B, S, D] of tokens int32 [B, S].

    The scores of all pairs of tokens are formed, local layers' too: B · H · S² float32 numbers at a time.

    Args:
      mask: bool [B, S], False for padding on the right, which nothing attends to.
      dtype: of activations and products; norms and softmax are float32.
    """
    family = {"bert": _bert, "modernbert": _modernbert}[encoder.family]
    return family(encoder, params, tokens, mask, dtype)


def pool(hidden: Array, mask: Array, pooling: str, normalize: bool) -> Array:
    """Return one vector a text, float32 [B, D].

    Args:
      hidden: [B, S, D].
      mask: bool [B, S], True for tokens; their ``"mean"`` is 0 where there are none.
      pooling: "mean", or "cls" for the first token's.
      normalize: scale vectors to length 1.
    """
    hidden = hidden.astype(jnp.float32)
    if pooling == "mean":
        total = jnp.where(mask[..., None], hidden, 0.0).sum(axis=1)
        vector = total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    else:
        vector = hidden[:, 0]
    if normalize:
        vector /= jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), 1e-12)
    return vector


def positions(encoder: Encoder, tokens: Array) -> Array:
    """Return the rows of the table of positions, int32 [B, S]: 0, 1, .. for BERT.

    RoBERTa counts from pad_id + 1 and skips tokens that say "<pad>": with pad_id 1, [0, 7, 1, 8, 2] are at [2, 3, 1, 4, 5].
    """
    if encoder.pad_id < 0:
        return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    real = (tokens != encoder.pad_id).astype(jnp.int32)
    return jnp.cumsum(real, axis=1) * real + encoder.pad_id


def _bert(e: Encoder, params: Params, tokens: Array, mask: Array, dtype: str) -> Array:
    table = {name: weights["weight"] for name, weights in params["embeddings"].items() if name != "LayerNorm"}
    activate = ACTIVATIONS[e.activation]
    x = table["word_embeddings"][tokens] + table["position_embeddings"][positions(e, tokens)]
    x = _norm(e, params["embeddings"]["LayerNorm"], (x + table["token_type_embeddings"][:1][None]).astype(dtype))

    def block(x, layer):
        own = layer["attention"]
        query, key, value = (_heads(e, _linear(own["self"][name], x)) for name in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None]).reshape(x.shape)
        x = _norm(e, own["output"]["LayerNorm"], x + _linear(own["output"]["dense"], mixed))
        inner = activate(_linear(layer["intermediate"]["dense"], x))
        return _norm(e, layer["output"]["LayerNorm"], x + _linear(layer["output"]["dense"], inner)), None

    return jax.lax.scan(block, x, params["layers"])[0]


def _modernbert(e: Encoder, params: Params, tokens: Array, mask: Array, dtype: str) -> Array:
    position = jnp.arange(tokens.shape[1])[None]
    near = jnp.abs(position - position.T) <= e.window
    frequency = [rope_frequencies(e.embed_dim // e.num_heads, theta, ()) for theta in e.rope_theta]
    embeddings, activate = params["embeddings"], ACTIVATIONS[e.activation]
    x = _norm(e, embeddings["norm"], embeddings["tok_embeddings"]["weight"][tokens].astype(dtype))

    def block(x, inputs):
        layer, number, is_local = inputs
        normed = jnp.where(number == 0, x, _norm(e, layer["attn_norm"], x))  # the first layer has no such norm
        query, key, value = map(functools.partial(_heads, e), jnp.split(_linear(layer["attn"]["Wqkv"], normed), 3, -1))
        turn = rotation(position, jnp.where(is_local, *frequency[::-1]))
        seen = mask[:, None, None] & (near | ~is_local)[None, None]
        mixed = jax.nn.dot_product_attention(rope(query, *turn), rope(key, *turn), value, mask=seen)
        x = x + _linear(layer["attn"]["Wo"], mixed.reshape(x.shape))
        inner, gate = jnp.split(_linear(layer["mlp"]["Wi"], _norm(e, layer["mlp_norm"], x)), 2, -1)
        return x + _linear(layer["mlp"]["Wo"], activate(inner) * gate), None

    inputs = (params["layers"], jnp.arange(e.num_layers), jnp.asarray(e.is_local))
    return _norm(e, params["final_norm"], jax.lax.scan(block, x, inputs)[0])


def _heads(e: Encoder, x: Array) -> Array:
    """[B, S, D] -> [B, S, H, D / H]."""
    return x.reshape(*x.shape[:2], e.num_heads, -1)


def _linear(weights: Params, x: Array) -> Array:
    """X [B, S, n] by weights [m, n], as checkpoints have them, -> [B, S, m] in x's dtype, summed in float32."""
    rows = x.reshape(-1, x.shape[-1])  # one large product
    y = jnp.matmul(rows, weights["weight"].astype(x.dtype).T, preferred_element_type=jnp.float32)
    if "bias" in weights:
        y += weights["bias"].astype(jnp.float32)[None]
    return y.astype(x.dtype).reshape(*x.shape[:-1], -1)


def _norm(e: Encoder, weights: Params, x: Array) -> Array:
    """Layer norm over the last axis, computed in float32."""
    wide = x.astype(jnp.float32)
    wide -= wide.mean(axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + e.norm_eps)
    shift = weights["bias"][None, None] if "bias" in weights else 0.0
    return (wide * weights["weight"][None, None] + shift).astype(x.dtype)
