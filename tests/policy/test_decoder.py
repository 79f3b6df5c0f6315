"""Test what a token of the decoder may see, and that sharing, caching and recomputing change its cost only."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import LLAMA, random_params, read

from exit_jax.parallel import mesh as meshes
from exit_jax.policy import cache as caches
from exit_jax.policy import decoder, layers, prefill, sampler
from exit_jax.policy.shape import PROJECTIONS

QWEN2 = dataclasses.replace(LLAMA, qkv_bias=True, num_kv_heads=1, tie_embeddings=False)
QWEN3 = dataclasses.replace(LLAMA, qk_norm=True, num_kv_heads=4)
WINDOW = dataclasses.replace(LLAMA, layer_windows=(3, 0))  # in one layer of the two
GEMMA = dataclasses.replace(
    WINDOW,
    **{"qk_norm": True, "rope_local_theta": 10.0, "query_scalar": 5.0, "attention_cap": 2.0, "logits_cap": 3.0},
    **{"norms": "both", "norm_offset": True, "embedding_scaled": True, "activation": "gelu_pytorch_tanh"},
)
OLMO2 = dataclasses.replace(LLAMA, norms="after", qk_norm=True, qk_norm_whole=True, no_rope_layers=(1,))
EXPERTS = dataclasses.replace(LLAMA, num_experts=4, experts_per_token=2)
CONFIGS = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "window": WINDOW}
CONFIGS |= {"gemma": GEMMA, "olmo2": OLMO2, "experts": EXPERTS}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

LENGTHS_B = np.array([5, 1, 3])  # ragged: full, a single token, padded
PROMPT_BP = np.random.default_rng(0).integers(17, size=(3, 5))
TOKENS_BGT = np.random.default_rng(1).integers(17, size=(3, 2, 6))


_logprobs = jax.jit(sampler.logprobs, static_argnums=(0, 1, 2))


def logprobs(config, temperature, *args, chunk=0):
    return _logprobs(config, temperature, chunk, *args)


def test_causal_mask_is_as_in_its_docstring():
    mask = jnp.ones((1, 1, 3), bool)
    np.testing.assert_array_equal(caches.causal_mask(mask, 1, 2)[0, 0], [[True, True, False], [True, True, True]])
    unused = mask.at[0, 0, 2].set(False)
    np.testing.assert_array_equal(caches.causal_mask(unused, 1, 1)[0, 0], [[True, True, False]])
    np.testing.assert_array_equal(
        caches.causal_mask(mask, 1, 1)[0, 0], [[True, True, True]]
    )  # of a ring, all before it
    hidden = mask.at[0, 0, 0].set(False)
    np.testing.assert_array_equal(caches.causal_mask(hidden, 1, 2)[0, 0], [[False, True, False], [False, True, True]])


def test_no_token_sees_a_later_one_nor_another_rollout():
    params = random_params(LLAMA)
    changed_BGT = TOKENS_BGT.copy()
    changed_BGT[:, 0, 3] = (changed_BGT[:, 0, 3] + 1) % LLAMA.vocab_size
    before, after = (read(LLAMA, params, tokens)[0] for tokens in (TOKENS_BGT, changed_BGT))
    np.testing.assert_array_equal(before[:, 0, :3], after[:, 0, :3])
    np.testing.assert_array_equal(before[:, 1], after[:, 1])
    assert (before[:, 0, 3:] != after[:, 0, 3:]).any(-1).all()


@each_config
def test_int8_kernels_are_the_nearest_steps_and_compute_as_these(config):
    """Against weights that NumPy made of the steps; an output whose weights are all zero stays zero."""
    kernel = lambda path: path[0].key == "blocks" and path[-1].key == "kernel" and path[-2].key != "router"
    empty = lambda path, leaf: leaf.at[..., 0].set(0.0) if kernel(path) else leaf
    params = jax.tree.map_with_path(empty, random_params(config))
    rounded = decoder.quantise(params)
    is_int8 = lambda leaf: isinstance(leaf, decoder.Int8)
    number = lambda leaf: np.float32(leaf.values) * np.asarray(leaf.scale)[..., None, :] if is_int8(leaf) else leaf
    whole = jax.tree.map(number, rounded, is_leaf=is_int8)
    assert sum(map(is_int8, jax.tree.leaves(rounded, is_leaf=is_int8))) == len(PROJECTIONS)
    for (path, leaf), nearest in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(whole)):
        step = np.abs(leaf).max(-2, keepdims=True) / 127 if kernel(path) else 0.0
        assert (np.abs(leaf - nearest) <= 0.501 * step).all()
    logits = read(config, rounded, TOKENS_BGT)[0]
    np.testing.assert_allclose(logits, read(config, whole, TOKENS_BGT)[0], atol=1e-4)
    assert np.abs(logits - read(config, params, TOKENS_BGT)[0]).max() > 1e-3


def test_content_of_the_padding_is_irrelevant():
    params = random_params(LLAMA)
    padding = np.arange(5) >= LENGTHS_B[:, None]
    other_BP = np.where(padding, (PROMPT_BP + 1) % LLAMA.vocab_size, PROMPT_BP)
    one, other = (logprobs(LLAMA, 1.0, params, prompt, LENGTHS_B, TOKENS_BGT) for prompt in (PROMPT_BP, other_BP))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    no_padding, _ = logprobs(LLAMA, 1.0, params, PROMPT_BP, jnp.array([5, 5, 5]), TOKENS_BGT)
    assert (no_padding != one[0])[1:].all()


@pytest.mark.parametrize("layers", ["scanned", "unrolled", "unstacked"])
@each_config
def test_shared_prompt_equals_plain_sequences(config, layers):
    """Also where the last layer computes nothing but keys and values of most of the prompt."""
    config = dataclasses.replace(config, unroll_layers=layers == "unrolled")

    @jax.jit
    def read_shared(params, prompt_BP, length_B, tokens_BGT):
        if layers == "unstacked":
            params = decoder.unstack(config, params)
        last_BD, prompt = prefill.read_prompts(config, params, prompt_BP, length_B)
        position_BGT = length_B[:, None, None] + jnp.broadcast_to(jnp.arange(6), tokens_BGT.shape)
        cache = caches.share_prompt(prompt, group_size=2, width=6)
        hidden_BGTD, _ = decoder.apply(config, params, tokens_BGT, position_BGT, jnp.ones((3, 2, 6), bool), cache)
        return decoder.logits(config, params, last_BD), decoder.logits(config, params, hidden_BGTD)

    params = random_params(config)
    first_BV, logits_BGTV = read_shared(params, PROMPT_BP, LENGTHS_B, TOKENS_BGT)
    rows = [(b, g, length) for b, length in enumerate(LENGTHS_B) for g in range(2)]
    plain = np.zeros((len(rows), 1, 11), int)
    for row, (b, g, length) in enumerate(rows):
        plain[row, 0, : length + 6] = [*PROMPT_BP[b, :length], *TOKENS_BGT[b, g]]
    plain_logits = read(config, params, plain)[0][:, 0]
    for row, (b, g, length) in enumerate(rows):
        np.testing.assert_allclose(first_BV[b], plain_logits[row, length - 1], atol=1e-5)
        np.testing.assert_allclose(logits_BGTV[b, g], plain_logits[row, length : length + 6], atol=1e-5)


@each_config
def test_cache_written_in_chunks_equals_written_at_once(config):
    params = random_params(config)
    whole_BGTV, _ = read(config, params, TOKENS_BGT)
    slots = jnp.zeros((config.num_layers, 3, 2, config.num_kv_heads, 6, config.head_dim))
    cache, chunks = caches.Cache(caches.LayerCache(key=slots, value=slots), mask=jnp.zeros((3, 2, 6), bool)), []
    for start, end in ((0, 1), (1, 3), (3, 6)):
        logits, cache = read(config, params, TOKENS_BGT[..., start:end], start, cache)
        chunks.append(logits)
    assert cache.used == 6
    np.testing.assert_allclose(jnp.concatenate(chunks, axis=2), whole_BGTV, atol=1e-5)


@pytest.mark.parametrize("layers", ["scanned", "unstacked"])
def test_a_window_ends_where_it_says(layers):
    """Through two layers that see three tokens each, a token's logits depend on the five last; through others, on all."""
    config = dataclasses.replace(LLAMA, layer_windows=(3, 3))
    params = random_params(config)
    params = decoder.unstack(config, params) if layers == "unstacked" else params
    changed_BGT = np.concatenate([(TOKENS_BGT[..., :1] + 1) % LLAMA.vocab_size, TOKENS_BGT[..., 1:]], axis=-1)
    before, after = (read(config, params, tokens)[0] for tokens in (TOKENS_BGT, changed_BGT))
    differs_T = (before != after).any((0, 1, 3))
    np.testing.assert_array_equal(differs_T, [True] * 5 + [False])
    unlike = read(WINDOW, params, TOKENS_BGT)[0] != read(WINDOW, params, changed_BGT)[0]
    assert unlike.any((0, 1, 3)).all()


def test_windows_are_as_in_their_docstrings():
    mask = jnp.asarray([[[True, False, True, True]]])
    seen = caches.view(mask, 2, jnp.asarray([[[1, 2]]]))
    np.testing.assert_array_equal(
        (caches.within_window(seen, 2) & caches.causal_mask(mask, 2, 2))[0, 0],
        [[True, False, True, False], [False, False, True, True]],
    )
    ring = caches.view(jnp.ones((1, 1, 4), bool), 1, jnp.asarray([[[9]]]))  # slot 2 is the oldest, 0 the one before
    np.testing.assert_array_equal(caches.within_window(ring, 3)[0, 0], [[True, True, False, True]])
    prompt = caches.prompt_within_window(seen, 2, jnp.asarray([[True, True]]))
    np.testing.assert_array_equal(prompt[0, 0], [[True, True], [False, True]])


def test_experts_are_those_of_the_router():
    """Against each token by itself, in float64; also mapped over a batch, as a server does."""
    config = dataclasses.replace(EXPERTS, experts_renormalised=True)
    module = layers.Mixture(config, decoder.nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, 5, 16)).astype(np.float32)
    kernel = lambda part: np.asarray(part.kernel.get_value(), np.float64)
    gate, up, down = map(kernel, (module.experts.gate, module.experts.up, module.experts.down))
    wanted = np.zeros(x.shape)
    for place in np.ndindex(3, 5):
        row = x[place].astype(np.float64)
        share = np.exp(row @ kernel(module.router))
        for expert in np.argsort(-share)[:2]:
            inner = row @ gate[expert]
            inner = inner / (1 + np.exp(-inner)) * (row @ up[expert])
            wanted[place] += share[expert] / np.sort(share)[-2:].sum() * (inner @ down[expert])
    np.testing.assert_allclose(module(jnp.asarray(x)), wanted, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(module))(x), wanted, atol=1e-5)


def test_only_distances_between_positions_matter():
    params = random_params(LLAMA)
    here, there = (read(LLAMA, params, TOKENS_BGT, start)[0] for start in (0, 9))
    np.testing.assert_allclose(here, there, atol=1e-5)
    stretched, _ = read(LLAMA, params, TOKENS_BGT, np.arange(6).reshape(1, 1, 6))
    assert np.abs(stretched - here).max() > 0.1


def test_grouped_queries_equal_heads_with_repeated_keys_and_values():
    params = random_params(LLAMA)
    repeated = jax.tree.map(lambda leaf: leaf, params)
    for name in ("key", "value"):
        heads = params["blocks"]["attention"][name]["kernel"].reshape(2, 16, 2, 8)  # [L, D, K, h]
        repeated["blocks"]["attention"][name]["kernel"] = np.repeat(heads, 2, axis=2).reshape(2, 16, 32)
    multi_head = dataclasses.replace(LLAMA, num_kv_heads=4)
    grouped, full = (read(config, tree, TOKENS_BGT)[0] for config, tree in ((LLAMA, params), (multi_head, repeated)))
    np.testing.assert_allclose(grouped, full, atol=1e-5)


@functools.cache
def grads_of(config):
    """Return a loss's gradients and the program that computes them."""

    def loss(params):
        return sampler.logprobs(config, 1.0, 0, params, PROMPT_BP, LENGTHS_B, TOKENS_BGT)[0].mean()

    params = random_params(config)
    program = jax.jit(jax.grad(loss)).trace(params)
    return program.lower().compile()(params), str(program.jaxpr)


@each_config
def test_every_parameter_gets_a_gradient(config):
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads_of(config)[0]):
        assert np.abs(leaf).max() > 1e-5, jax.tree_util.keystr(path)


@pytest.mark.parametrize("change", [{"remat": "layer"}, {"remat": "dots"}, {"unroll_layers": True}], ids=str)
def test_gradients_are_the_same_however_computed(change):
    (one, program), (two, other) = grads_of(QWEN3), grads_of(dataclasses.replace(QWEN3, **change))
    assert program != other  # else the comparison below says nothing
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, two)


def test_what_layers_are_recomputed_from_is_split_by_tokens():
    """On eight devices of the axis of heads, sixteen layers' inputs take an eighth where the axis divides the width."""
    config = dataclasses.replace(LLAMA, num_layers=16, num_heads=8, num_kv_heads=8, remat="layer")
    shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    mesh = meshes.make_mesh(meshes.MeshConfig(1, 1, 8))

    def temporaries(width: int) -> int:
        position, mask = jnp.arange(width)[None, None], jnp.ones((1, 1, width), bool)

        def loss(params, tokens):
            with meshes.use(mesh):
                return decoder.apply(config, params, tokens, position, mask)[0].sum()

        where = meshes.shardings(mesh, decoder.logical_axes(shapes), shapes, meshes.LEARNER)
        grad = jax.jit(jax.grad(loss), in_shardings=(where, meshes.replicated(mesh)))
        tokens = jax.ShapeDtypeStruct((1, 1, width), jnp.int32)
        return grad.lower(shapes, tokens).compile().memory_analysis().temp_size_in_bytes

    inputs = config.num_layers * 1024 * config.embed_dim * 4
    saved = temporaries(1023) - temporaries(1024)
    assert saved > 0.7 * inputs, (saved, inputs)


@pytest.mark.parametrize("layers", ["unrolled", "unstacked"])
def test_the_last_layer_takes_most_of_a_prompt_for_keys_and_values_alone(layers):
    """Its MLP computes one row a prompt, that of layers before it one a token."""
    config = dataclasses.replace(LLAMA, unroll_layers=True)
    params = random_params(config)
    if layers == "unstacked":
        params = decoder.unstack(config, params)
    read = jax.jit(lambda params: prefill.read_prompts(config, params, PROMPT_BP, LENGTHS_B))
    products = [line for line in read.lower(params).as_text().splitlines() if "dot_general" in line]
    rows = lambda count: sum(f"tensor<{count}x{config.mlp_dim}x" in line.rpartition("->")[2] for line in products)
    assert (rows(PROMPT_BP.size), rows(len(PROMPT_BP))) == (2 * (config.num_layers - 1), 2)  # gate and up
