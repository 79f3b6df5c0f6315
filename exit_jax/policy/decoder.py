"""A decoder-only transformer in today's standard form: RMSNorm, RoPE, grouped-query attention, SwiGLU.

flax.nnx builds the modules, which hold parameters only; everything outside this file sees ``init(config, key)`` and
``apply(config, params, tokens, positions, mask, cache)`` over a plain nested dict. Layers are stacked and scanned for the
learner; the sampler's parameters are a tuple of layers, so that a step of decoding reads each weight where it lies and
copies none.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from exit_jax.parallel.mesh import BATCH
from exit_jax.policy import attention
from exit_jax.policy.cache import Cache, LayerCache, causal_mask, write
from exit_jax.policy.rope import rope, rope_frequencies, rotation
from exit_jax.policy.shape import COMPUTE_FIELDS as COMPUTE_FIELDS  # older config files know it by this name
from exit_jax.policy.shape import PROJECTIONS as PROJECTIONS
from exit_jax.policy.shape import DecoderConfig, LoraConfig
from exit_jax.types import Array, Params, pytree

UNUSED = -1e30  # its exp is 0, also at a temperature; not -inf, for 0 times that is NaN in an entropy


@pytree
class Int8:
    """A kernel [..., n, m] as whole steps and the size of a step, which each output has of its own."""

    values: Array  # int8 [..., n, m], -127 to 127
    scale: Array  # float32 [..., m]


class RMSNorm(nnx.Module):
    def __init__(self, dim: int, eps: float):
        self.scale = nnx.Param(jnp.ones((dim,)))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        return (normed * jnp.broadcast_to(self.scale[...], x.shape)).astype(x.dtype)


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
        q_dim, kv_dim = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.query = _linear(c, "query", c.embed_dim, q_dim, rngs, bias=c.qkv_bias)
        self.key = _linear(c, "key", c.embed_dim, kv_dim, rngs, bias=c.qkv_bias)
        self.value = _linear(c, "value", c.embed_dim, kv_dim, rngs, bias=c.qkv_bias)
        self.out = _linear(c, "out", q_dim, c.embed_dim, rngs, scale=(2 * c.num_layers) ** -0.5)
        self.query_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
        self.key_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None

    def __call__(
        self,
        x: Array,
        turn: tuple[Array, Array],
        mask: Array,
        cache: Cache,
        layer: LayerCache,
        last: Array | None = None,
    ):
        """X [B, G, S, D] -> [B, G, S, D], and the layer's own keys and values with these S tokens.

        ``turn`` is the ``rotation`` of the tokens' positions. ``mask`` is over the own slots that are looked at, bool
        [B, G, W], as it is after these tokens. Of ``last``, as in ``apply``, the output is [B, G, 1, D].
        """
        c = self.config
        B, G, S, _ = x.shape
        query = self.query(pick(x, last)).reshape(B, G, -1, c.num_heads, c.head_dim)
        key = self.key(x).reshape(B, G, S, c.num_kv_heads, c.head_dim)
        value = self.value(x).reshape(B, G, S, c.num_kv_heads, c.head_dim).swapaxes(2, 3)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rope(query, *(pick(part, last) for part in turn)), rope(key, *turn).swapaxes(2, 3)

        backend = attention.resolve(c.attention, jax.default_backend(), c.dtype)
        if layer.key is not None:
            key, value = write(layer.key, key, cache.used), write(layer.value, value, cache.used)
        if layer.key is not None or last is not None:
            backend = "xla"  # the kernels have no form for slots that are filled in part, nor for a single query
        layer = dataclasses.replace(layer, key=key, value=value)
        if backend == "xla":
            window = mask.shape[-1]
            seen = dataclasses.replace(layer, key=key[..., :window, :], value=value[..., :window, :])
            mixed = attention.grouped(query, seen, cache.prompt_mask, causal_mask(mask, cache.used, query.shape[2]))
        else:
            mixed = attention.flash(backend, query, layer, cache.prompt_mask, mask)
        return self.out(mixed.reshape(*mixed.shape[:3], -1)), (key, value)


class MLP(nnx.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = config
        self.gate = _linear(c, "gate", c.embed_dim, c.mlp_dim, rngs)
        self.up = _linear(c, "up", c.embed_dim, c.mlp_dim, rngs)
        self.down = _linear(c, "down", c.mlp_dim, c.embed_dim, rngs, scale=(2 * c.num_layers) ** -0.5)

    def __call__(self, x: Array) -> Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x: Array,
        turn: tuple[Array, Array],
        mask: Array,
        cache: Cache,
        layer: LayerCache,
        last: Array | None = None,
    ):
        mixed, own = self.attention(self.attention_norm(x), turn, mask, cache, layer, last)
        x = pick(x, last) + mixed
        return x + self.mlp(self.mlp_norm(x)), own


class Ends(nnx.Module):
    """What comes before the blocks and after them."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        # 1/sqrt(D): with tied embeddings the first logits then have unit variance
        scale = config.embed_dim**-0.5
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, config.embed_dim)) * scale)
        self.final_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.embed_dim, config.vocab_size, rngs)

    def logits(self, hidden: Array) -> Array:
        kernel = self.embedding[...].T if self.head is None else self.head.kernel[...]
        return jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)


def init(config: DecoderConfig, key: Array) -> Params:
    """Return fresh parameters, see ``cast`` for their dtypes; those of layers carry a leading dimension L."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stack(rngs):
        return Block(config, rngs)

    rngs = nnx.Rngs(params=key)
    pure = lambda module: nnx.to_pure_dict(nnx.state(module, nnx.Param))
    params = pure(Ends(config, rngs)) | {"blocks": pure(stack(rngs))}
    return cast(params, config.param_dtype)


def cast(params: Params, dtype: str, adapters: bool = False) -> Params:
    """Return the parameters in a dtype, all but the scales of norms and, unless told, adapters, which stay float32."""
    stays = lambda path: path[-1].key == "scale" or (path[-1].key.startswith("lora_") and not adapters)
    return jax.tree.map_with_path(lambda path, x: x if stays(path) else x.astype(dtype), params)


@functools.lru_cache
def _structure(module: Any, config: DecoderConfig):
    return nnx.split(nnx.eval_shape(lambda: module(config, nnx.Rngs(0))))


def _merge(module: Any, config: DecoderConfig, params: Params) -> Any:
    graph, state = _structure(module, config)
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy, since the next line writes into it
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def _ends(config: DecoderConfig, params: Params) -> Ends:
    return _merge(Ends, config, {name: value for name, value in params.items() if name != "blocks"})


def apply(
    config: DecoderConfig,
    params: Params,
    tokens: Array,
    positions: Array,
    mask: Array,
    cache: Cache | None = None,
    last: Array | None = None,
) -> tuple[Array, Cache]:
    """Run the decoder over new tokens int32 [B, G, S].

    Args:
      params: with blocks stacked, or as a tuple of layers (``unstack``); the cache's layers are alike.
      positions: int32 [B, G, S].
      mask: bool [B, G, S], False for padding, which no token attends to.
      cache: what the tokens see besides each other; None for nothing.
      last: int32 [B, G], where each row's last real token is, if its hidden state is all that is asked for. The last layer
        then makes keys and values of all S tokens, and the rest of this one alone; but not where layers are scanned.

    Returns:
      Final hidden states [B, G, S, D], or [B, G, 1, D] of ``last``; the cache with the S tokens after what it held.
    """
    ends, blocks = _ends(config, params), params["blocks"]
    unrolled = isinstance(blocks, tuple)
    cache = cache or Cache((LayerCache(),) * config.num_layers if unrolled else LayerCache())
    seen = mask if cache.mask is None else jax.lax.dynamic_update_slice(cache.mask, mask, (0, 0, cache.used))
    turn = rotation(positions, rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling))

    def run(x, inputs, last=None):
        block, layer = inputs
        return _merge(Block, config, block)(x, turn, seen, cache, layer, last)

    x = ends.embedding[...][tokens].astype(config.dtype)
    final = config.num_layers - 1
    if unrolled:
        layers = []
        for index, (block, layer) in enumerate(zip(blocks, cache.layers)):
            x, (key, value) = run(x, (block, layer), last if index == final else None)
            if tokens.shape[-1] > 1:  # or XLA overlaps the layers of a long prompt: 64 GiB more, for 70B on v5p:2x4x4
                x, key, value = jax.lax.optimization_barrier((x, key, value))
            layers.append(dataclasses.replace(layer, key=key, value=value))
        layers = tuple(layers)
    else:
        if config.remat != "none":
            run = jax.checkpoint(run, policy=_keep_dots if config.remat == "dots" else None)
        step = lambda x, inputs, last=None: run(split_tokens(x), inputs, last)
        if config.unroll_layers:
            each = []
            for index in range(config.num_layers):
                inputs = jax.tree.map(lambda leaf, index=index: leaf[index], (blocks, cache.layers))
                x, own = step(x, inputs, last if index == final else None)
                each.append(own)
            key, value = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        else:
            x, (key, value) = jax.lax.scan(step, x, (blocks, cache.layers))
            x = pick(x, last)
        layers = dataclasses.replace(cache.layers, key=key, value=value)
    used = cache.used + tokens.shape[-1]
    return ends.final_norm(x), dataclasses.replace(cache, layers=layers, mask=seen, used=used)


def pick(x: Array, index: Array | None) -> Array:
    """Return x [B, G, S, ...] at token ``index`` [B, G] of each row, [B, G, 1, ...]; all of it for None."""
    return x if index is None else jnp.take_along_axis(x, index[..., None, None], axis=2)


def split_tokens(x: Array) -> Array:
    """Split hidden states [B, G, S, D] over the axis of heads by tokens, if it divides them; use inside ``mesh.use``.

    What a layer is recomputed from is then kept once, not once a device of that axis, and the sum over heads comes back
    as its parts, for no more traffic (sequence parallelism, arXiv 2205.05198).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[2] % mesh.shape["tensor"]:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH, None, "tensor", None))


_keep_dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def logits(config: DecoderConfig, params: Params, hidden: Array) -> Array:
    """Return float32 logits [..., V] of hidden states [..., D]; those of ``unused_ids`` are UNUSED."""
    found = _ends(config, params).logits(hidden)
    ids = jax.lax.broadcasted_iota(jnp.int32, found.shape, found.ndim - 1)
    for start, stop in config.unused_ids:
        found = jnp.where((start <= ids) & (ids < stop), UNUSED, found)
    return found


# Forms of the parameters


def quantise(params: Params) -> Params:
    """Return the parameters with the kernels of all layers in int8, in steps of each output's largest weight over 127.

    Embedding and head stay as they are, and so do biases and norms. TPUs read the int8 values inside the matrix product
    (seen in what libtpu compiles; a bfloat16 copy of a kernel is nowhere), so that decoding moves half the bytes.
    """

    def round_kernel(path, x):
        if path[0].key != "blocks" or path[-1].key != "kernel":
            return x
        x = x.astype(jnp.float32)
        largest = jnp.abs(x).max(-2)
        scale = jnp.where(largest > 0, largest, 1.0) / 127
        return Int8(jnp.round(x / scale[..., None, :]).astype(jnp.int8), scale)

    return jax.tree.map_with_path(round_kernel, params)


def unstack(config: DecoderConfig, params: Params) -> Params:
    """Turn stacked blocks [L, ...] into a tuple of L."""
    layer = lambda i: jax.tree.map(lambda x: x[i], params["blocks"])
    return params | {"blocks": tuple(map(layer, range(config.num_layers)))}


def split_adapters(params: Params) -> tuple[Params, Params]:
    """Split into (adapters, the rest), nested dicts that ``join`` puts together again."""

    def pick(node, adapters):
        kept = {name: pick(value, adapters) for name, value in node.items() if isinstance(value, dict)}
        own = [name for name, x in node.items() if not isinstance(x, dict) and name.startswith("lora_") == adapters]
        return {name: value for name, value in kept.items() if value} | {name: node[name] for name in own}

    return pick(params, True), pick(params, False)


def join(left: Params, right: Params | None) -> Params:
    """Put two nested dicts with different leaves together."""
    if right is None:
        return left
    both = lambda name, value: join(left[name], value) if isinstance(left.get(name), dict) else value
    return left | {name: both(name, value) for name, value in right.items()}


def merge(kernel: Array, lora_a: Array, lora_b: Array, scale: float) -> Array:
    """Return float32 W + A B · scale, of one layer or of all: rounded to bfloat16, it would lose most of a small update."""
    update = jnp.matmul(lora_a, lora_b, precision=jax.lax.Precision.HIGHEST)
    return kernel.astype(jnp.float32) + update * scale


_LOGICAL = {
    "embedding": ("vocab", "embed"),
    "head/kernel": ("embed", "vocab"),
    "query/kernel": ("embed", "heads"),
    "key/kernel": ("embed", "kv_heads"),
    "value/kernel": ("embed", "kv_heads"),
    "out/kernel": ("heads", "embed"),
    "gate/kernel": ("embed", "mlp"),
    "up/kernel": ("embed", "mlp"),
    "down/kernel": ("mlp", "embed"),
}


def logical_axes(params: Params) -> Params:
    """Return the logical axis names of every parameter, or of its shape: a tuple in place of each leaf."""

    def stacked(leaf, *axes):
        return ("layers",) * (len(leaf.shape) - len(axes)) + axes

    def name(path, leaf):
        *_, parent, last = [""] + [str(getattr(key, "key", "")) for key in path]
        if last == "scale":
            return stacked(leaf, None)
        n, m = _LOGICAL[last if last in _LOGICAL else f"{parent}/kernel"]
        if isinstance(leaf, Int8):
            return dataclasses.replace(leaf, values=stacked(leaf.values, n, m), scale=stacked(leaf.scale, m))
        return stacked(leaf, *{"bias": (m,), "lora_a": (n, None), "lora_b": (None, m)}.get(last, (n, m)))

    return jax.tree.map_with_path(name, params, is_leaf=lambda leaf: isinstance(leaf, Int8))
