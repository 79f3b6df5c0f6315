"""A decoder-only transformer in today's standard form: RMSNorm, RoPE, grouped-query attention, SwiGLU.

flax.nnx builds the modules of layers.py; everything outside sees ``init(config, key)`` and
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
from exit_jax.policy.cache import Cache, LayerCache, View, view
from exit_jax.policy.layers import Block, Ends, Int8, pick
from exit_jax.policy.layers import Linear as Linear
from exit_jax.policy.rope import length_of, rope_frequencies, rotation
from exit_jax.policy.shape import COMPUTE_FIELDS as COMPUTE_FIELDS  # older config files know it by this name
from exit_jax.policy.shape import PROJECTIONS as PROJECTIONS
from exit_jax.policy.shape import DecoderConfig, LayerKind, layer_kinds
from exit_jax.policy.shape import LoraConfig as LoraConfig
from exit_jax.types import Array, Params

UNUSED = -1e30  # its exp is 0, also at a temperature; not -inf, for 0 times that is NaN in an entropy


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
    kinds = layer_kinds(config)
    distinct = tuple(dict.fromkeys(kinds))
    windows, kind_L = tuple(kind.window for kind in distinct), [distinct.index(kind) for kind in kinds]
    look = view(seen, cache.used, positions) if any(windows) else View(seen)
    turns = [_turn(config, kind, positions) for kind in distinct]

    def run(kind, x, inputs, last=None):
        block, layer = inputs
        turn = turns[kind] if isinstance(kind, int) else jax.tree.map(lambda *each: jnp.stack(each)[kind], *turns)
        return _merge(Block, config, block)(x, turn, look, cache, layer, windows, kind, last)

    x = ends.embed(tokens)
    final = config.num_layers - 1
    if unrolled:
        layers = []
        for index, (kind, block, layer) in enumerate(zip(kind_L, blocks, cache.layers)):
            x, (key, value) = run(kind, x, (block, layer), last if index == final else None)
            if tokens.shape[-1] > 1:  # or XLA overlaps the layers of a long prompt: 64 GiB more, for 70B on v5p:2x4x4
                x, key, value = jax.lax.optimization_barrier((x, key, value))
            layers.append(dataclasses.replace(layer, key=key, value=value))
        layers = tuple(layers)
    else:

        def step(kind, x, inputs, last=None):
            layer = functools.partial(run, kind)
            if config.remat != "none":
                layer = jax.checkpoint(layer, policy=_keep_dots if config.remat == "dots" else None)
            return layer(split_tokens(x), inputs, last)

        if config.unroll_layers:
            each = []
            for index, kind in enumerate(kind_L):
                inputs = jax.tree.map(lambda leaf, index=index: leaf[index], (blocks, cache.layers))
                x, own = step(kind, x, inputs, last if index == final else None)
                each.append(own)
            key, value = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        elif len(distinct) == 1:
            x, (key, value) = jax.lax.scan(functools.partial(step, 0), x, (blocks, cache.layers))
            x = pick(x, last)
        else:
            # a layer's kind is a number to the scan
            one = lambda x, inputs: step(inputs[0], x, inputs[1:])
            x, (key, value) = jax.lax.scan(one, x, (jnp.asarray(kind_L), blocks, cache.layers))
            x = pick(x, last)
        layers = dataclasses.replace(cache.layers, key=key, value=value)
    used = cache.used + tokens.shape[-1]
    return ends.final_norm(x), dataclasses.replace(cache, layers=layers, mask=seen, used=used)


def _turn(config: DecoderConfig, kind: LayerKind, positions: Array) -> tuple[Array, Array]:
    """Return the ``rotation`` of positions [B, G, S] in layers of a kind, float32 [B, G, S, h / 2] twice."""
    if not kind.theta:
        straight = jnp.zeros((*positions.shape, config.head_dim // 2))
        return straight, straight + 1.0
    sin, cos = rotation(positions, rope_frequencies(config.head_dim, kind.theta, kind.scaling))
    longer = length_of(kind.scaling)
    return (sin, cos) if longer == 1.0 else (sin * longer, cos * longer)


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

    Embedding and head stay as they are, and so do routers, biases and norms. TPUs read the int8 values inside the matrix
    product (seen in what libtpu compiles; a bfloat16 copy of a kernel is nowhere), so that decoding moves half the bytes.
    """

    def round_kernel(path, x):
        if path[0].key != "blocks" or path[-1].key != "kernel" or path[-2].key == "router":
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
    "router/kernel": ("embed", None),
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
