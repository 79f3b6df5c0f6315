"""The layers of the decoder, as flax.nnx modules, which hold parameters only; decoder.py puts them together."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from exit_jax.policy import attention
from exit_jax.policy.cache import (
    Cache,
    LayerCache,
    View,
    causal_mask,
    prompt_within_window,
    within_window,
    write,
)
from exit_jax.policy.ragged import ragged_product
from exit_jax.policy.rope import rope
from exit_jax.policy.shape import DecoderConfig, LoraConfig
from exit_jax.types import Array, pytree

ACTIVATION = {
    "silu": jax.nn.silu,
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype),
}
FAR = 1 << 30  # the window of a layer that has none, beside others that have one


@pytree
class Int8:
    """A kernel [..., n, m] as whole steps and the size of a step, which each output has of its own."""

    values: Array  # int8 [..., n, m], -127 to 127
    scale: Array  # float32 [..., m]


class RMSNorm(nnx.Module):
    """x over the root of its mean square, times a learnt scale (arXiv 1910.07467), or 1 and what is learnt beside it."""

    def __init__(self, dim: int, config: DecoderConfig):
        self.offset = config.norm_offset
        self.scale = nnx.Param(jnp.zeros((dim,)) if self.offset else jnp.ones((dim,)))
        self.eps = config.norm_eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        scale = 1.0 + self.scale[...] if self.offset else self.scale[...]
        return (normed * jnp.broadcast_to(scale, x.shape)).astype(x.dtype)


def _normed(x: Array, norm: RMSNorm | None) -> Array:
    return x if norm is None else norm(x)


def _product(rows: Array, kernel: Array | Int8) -> Array:
    """Return float32 [N, m] of rows [N, n] and a kernel [n, m] in the rows' dtype, in which the steps of int8 are exact."""
    if isinstance(kernel, Int8):
        return _product(rows, kernel.values) * kernel.scale[None]
    # sums in float32: with bfloat16 out, XLA's CPU backend misses its fast kernel (32 against 120 GFLOP/s at 64 rows)
    return jnp.matmul(rows, kernel.astype(rows.dtype), preferred_element_type=jnp.float32)


class Linear(nnx.Module):
    """x [..., n] -> [..., m], computed in x's dtype."""

    def __init__(
        self,
        n: int,
        m: int,
        rngs: nnx.Rngs,
        bias: bool = False,
        scale: float = 1.0,
        lora: LoraConfig | None = None,
    ):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (n, m)) * scale * n**-0.5)
        self.bias = nnx.Param(jnp.zeros((m,))) if bias else None
        self.lora_scale = lora.scale if lora else 0.0
        self.lora_a = nnx.Param(jax.random.normal(rngs.params(), (n, lora.rank)) * n**-0.5) if lora else None
        self.lora_b = nnx.Param(jnp.zeros((lora.rank, m))) if lora else None

    def __call__(self, x: Array) -> Array:
        rows = x.reshape(-1, x.shape[-1])  # one large matmul: XLA's CPU backend is 1.7 times faster on its gradient
        y = _product(rows, self.kernel.get_value())
        if self.lora_a is not None and self.lora_b is not None:
            # added before y is rounded: half a bfloat16 step of y is more than an update of a few steps of training
            low = _product(rows, self.lora_a[...]).astype(x.dtype)
            y += _product(low, self.lora_b[...]) * self.lora_scale
        y = y.astype(x.dtype)
        if self.bias is not None:
            y += self.bias[...].astype(x.dtype)[None]
        return y.reshape(*x.shape[:-1], -1)


def _linear(config: DecoderConfig, name: str, n: int, m: int, rngs: nnx.Rngs, bias: bool = False, scale: float = 1.0):
    """Return the projection ``name`` of a block, with adapters if it is among the targets."""
    adapted = config.lora.rank and name in config.lora.targets
    return Linear(n, m, rngs, bias, scale, config.lora if adapted else None)


class Attention(nnx.Module):
    """Causal grouped-query attention over the group's shared prompt and each rollout's own tokens."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.scale = c.query_scalar**-0.5 if c.query_scalar else 0.0
        q_dim, kv_dim = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.query = _linear(c, "query", c.embed_dim, q_dim, rngs, bias=c.qkv_bias)
        self.key = _linear(c, "key", c.embed_dim, kv_dim, rngs, bias=c.qkv_bias)
        self.value = _linear(c, "value", c.embed_dim, kv_dim, rngs, bias=c.qkv_bias)
        self.out = _linear(c, "out", q_dim, c.embed_dim, rngs, scale=(2 * c.num_layers) ** -0.5)
        whole = c.qk_norm_whole
        self.query_norm = RMSNorm(q_dim if whole else c.head_dim, c) if c.qk_norm else None
        self.key_norm = RMSNorm(kv_dim if whole else c.head_dim, c) if c.qk_norm else None

    def __call__(
        self,
        x: Array,
        turn: tuple[Array, Array],
        view: View,
        cache: Cache,
        layer: LayerCache,
        windows: tuple[int, ...],
        kind: Any,
        last: Array | None = None,
    ):
        """X [B, G, S, D] -> [B, G, S, D], and the layer's own keys and values with these S tokens.

        ``turn`` is the ``rotation`` of the tokens' positions, ``view`` what they see as it is after these tokens. The layer's
        window is ``windows[kind]``, where ``kind`` is an int, or int32 [] in a scan over layers that are not alike. Of
        ``last``, as in ``apply``, the output is [B, G, 1, D].
        """
        c = self.config
        B, G, S, _ = x.shape
        query, key = self.query(pick(x, last)), self.key(x)
        if c.qk_norm_whole:
            query, key = _normed(query, self.query_norm), _normed(key, self.key_norm)
        query = query.reshape(B, G, -1, c.num_heads, c.head_dim)
        key = key.reshape(B, G, S, c.num_kv_heads, c.head_dim)
        value = self.value(x).reshape(B, G, S, c.num_kv_heads, c.head_dim).swapaxes(2, 3)
        if not c.qk_norm_whole:
            query, key = _normed(query, self.query_norm), _normed(key, self.key_norm)
        query, key = rope(query, *(pick(part, last) for part in turn)), rope(key, *turn).swapaxes(2, 3)

        backend = attention.resolve(c.attention, jax.default_backend(), c.dtype, c.attention_cap)
        if layer.key is not None:
            key, value = write(layer.key, key, cache.used), write(layer.value, value, cache.used)
        if layer.key is not None or last is not None:
            backend = "xla"  # the kernels have no form for slots that are filled in part, nor for a single query
        layer = dataclasses.replace(layer, key=key, value=value)
        if backend == "xla":
            mixed = self._grouped(query, layer, view, windows, kind, cache, last)
        else:
            rest = (backend, query, layer, cache.prompt_mask, view.mask)
            attend = lambda window: attention.flash(*rest, window, self.scale, c.attention_cap)
            # a kernel is compiled for its window
            each = [functools.partial(attend, window) for window in windows]
            mixed = each[kind]() if isinstance(kind, int) else jax.lax.switch(kind, each)
        return self.out(mixed.reshape(*mixed.shape[:3], -1)), (key, value)

    def _grouped(self, query: Array, layer: LayerCache, view: View, windows, kind, cache: Cache, last) -> Array:
        width, count = view.mask.shape[-1], query.shape[2]
        seen = dataclasses.replace(layer, key=layer.key[..., :width, :], value=layer.value[..., :width, :])
        mask, prompt_mask = causal_mask(view.mask, cache.used, count), cache.prompt_mask
        if any(windows):
            wide = [window or FAR for window in windows]
            window = wide[kind] if isinstance(kind, int) else jnp.asarray(wide)[kind]
            view = dataclasses.replace(view, slot=pick(view.slot, last), position=pick(view.position, last))
            mask &= within_window(view, window)
            prompt_mask = None if prompt_mask is None else prompt_within_window(view, window, prompt_mask)
        return attention.grouped(query, seen, prompt_mask, mask, self.scale, self.config.attention_cap)


class MLP(nnx.Module):
    """SwiGLU, or GeGLU (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.gate = _linear(c, "gate", c.embed_dim, c.mlp_dim, rngs)
        self.up = _linear(c, "up", c.embed_dim, c.mlp_dim, rngs)
        self.down = _linear(c, "down", c.mlp_dim, c.embed_dim, rngs, scale=(2 * c.num_layers) ** -0.5)

    def __call__(self, x: Array) -> Array:
        return self.down(ACTIVATION[self.config.activation](self.gate(x)) * self.up(x))


class Mixture(nnx.Module):
    """Experts, each a gated MLP, of which a token is sent to the few that its router thinks likeliest (arXiv 2101.03961)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.router = Linear(c.embed_dim, c.num_experts, rngs)
        self.experts = Experts(c, rngs)

    def __call__(self, x: Array) -> Array:
        c = self.config
        rows = x.reshape(-1, x.shape[-1])
        share, expert = jax.lax.top_k(self.share(rows), c.experts_per_token)
        if c.experts_renormalised:
            share /= share.sum(-1, keepdims=True)
        order = jnp.argsort(expert.reshape(-1), stable=True)  # rows of an expert stand together
        mixed = self.experts(rows[order // c.experts_per_token], expert.reshape(-1)[order])
        mixed = mixed[jnp.argsort(order)].reshape(*expert.shape, -1)
        return (mixed * share[..., None]).sum(1).astype(x.dtype).reshape(x.shape)

    def share(self, rows: Array) -> Array:
        """Return how likely each expert is to the router, float32 [N, experts], of rows [N, D]."""
        return jax.nn.softmax(_product(rows, self.router.kernel.get_value()), axis=-1)


class Experts(nnx.Module):
    """The experts' MLPs, whose kernels have a leading dimension of experts."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.gate = Kernels(c, c.embed_dim, c.mlp_dim, rngs)
        self.up = Kernels(c, c.embed_dim, c.mlp_dim, rngs)
        self.down = Kernels(c, c.mlp_dim, c.embed_dim, rngs, scale=(2 * c.num_layers) ** -0.5)

    def __call__(self, rows: Array, expert: Array) -> Array:
        """Rows [N, D] in the order of their experts, int32 [N], -> float32 [N, D]."""
        gate, up = self.gate(rows, expert).astype(rows.dtype), self.up(rows, expert).astype(rows.dtype)
        return self.down(ACTIVATION[self.config.activation](gate) * up, expert)


class Kernels(nnx.Module):
    """A kernel for each expert: rows [N, n] in the order of their experts, int32 [N], -> float32 [N, m]."""

    def __init__(self, config: DecoderConfig, n: int, m: int, rngs: nnx.Rngs, scale: float = 1.0):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (config.num_experts, n, m)) * scale * n**-0.5)

    def __call__(self, rows: Array, expert: Array) -> Array:
        kernel: Any = self.kernel.get_value()
        if isinstance(kernel, Int8):
            return ragged_product(rows, kernel.values.astype(rows.dtype), expert) * kernel.scale[expert]
        return ragged_product(rows, kernel.astype(rows.dtype), expert)


class Block(nnx.Module):
    """One layer: attention, then the MLP, each added to the residual stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        norm = lambda *where: RMSNorm(config.embed_dim, config) if config.norms in where else None
        self.attention_norm = norm("before", "both")
        self.attention = Attention(config, rngs)
        self.attention_out_norm = norm("after", "both")
        self.mlp_norm = norm("before")
        self.mlp_in_norm = norm("both")  # checkpoints have another name for it than for the norm before it
        self.mlp = Mixture(config, rngs) if config.num_experts else MLP(config, rngs)
        self.mlp_out_norm = norm("after", "both")

    def __call__(
        self,
        x: Array,
        turn: tuple[Array, Array],
        view: View,
        cache: Cache,
        layer: LayerCache,
        windows: tuple[int, ...],
        kind: Any,
        last: Array | None = None,
    ):
        read = _normed(x, self.attention_norm)
        mixed, own = self.attention(read, turn, view, cache, layer, windows, kind, last)
        x = pick(x, last) + _normed(mixed, self.attention_out_norm)
        out = self.mlp(_normed(x, self.mlp_norm or self.mlp_in_norm))
        return x + _normed(out, self.mlp_out_norm), own


class Ends(nnx.Module):
    """What comes before the blocks and after them."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        # 1/sqrt(D): with tied embeddings the first logits then have unit variance
        scale = config.embed_dim**-0.5
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, config.embed_dim)) * scale)
        self.final_norm = RMSNorm(config.embed_dim, config)
        self.head = None if config.tie_embeddings else Linear(config.embed_dim, config.vocab_size, rngs)

    def embed(self, tokens: Array) -> Array:
        """Return the residual stream [..., D] that tokens [...] begin with."""
        x = self.embedding[...][tokens].astype(self.config.dtype)
        return x * jnp.asarray(self.config.embed_dim**0.5, x.dtype) if self.config.embedding_scaled else x

    def logits(self, hidden: Array) -> Array:
        kernel = self.embedding[...].T if self.head is None else self.head.kernel[...]
        found = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        cap = self.config.logits_cap
        return cap * jnp.tanh(found / cap) if cap else found


def pick(x: Array, index: Array | None) -> Array:
    """Return x [B, G, S, ...] at token ``index`` [B, G] of each row, [B, G, 1, ...]; all of it for None."""
    return x if index is None else jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=2)
