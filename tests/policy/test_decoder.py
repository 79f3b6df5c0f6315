"""Test what a token of the decoder may see, and that sharing, caching and recomputing change its cost only."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.policy import cache as caches
from exit_jax.policy import decoder, sampler
from exit_jax.policy.decoder import DecoderConfig

LLAMA = DecoderConfig(
    vocab_size=17,
    num_layers=2,
    embed_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=24,
    rope_theta=100.0,
    norm_eps=1e-6,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    dtype="float32",
    remat=False,
    unroll_layers=False,
)
QWEN2 = dataclasses.replace(LLAMA, qkv_bias=True, num_kv_heads=1, tie_embeddings=False)
QWEN3 = dataclasses.replace(LLAMA, qk_norm=True, num_kv_heads=4)
each_config = pytest.mark.parametrize("config", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])

LENGTHS_B = np.array([5, 1, 3])  # ragged: full, a single token, padded
PROMPT_BP = np.random.default_rng(0).integers(17, size=(3, 5))
TOKENS_BGT = np.random.default_rng(1).integers(17, size=(3, 2, 6))


@functools.cache
def random_params(config):
    """Return parameters of which none is zero or one, as biases and norms are at first."""
    shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.normal(0.1, 0.4, leaf.shape).astype(np.float32), shapes)


def new_cache(config, B, G, S):
    shape = (config.num_layers, B, G, config.num_kv_heads, S, config.head_dim)
    return caches.empty(shape, config.dtype, jnp.ones((B, G, S), bool))


@functools.partial(jax.jit, static_argnums=0)
def read(config, params, tokens_BGS, start=0, cache=None):
    """Return logits [B, G, S, V] of tokens at positions from ``start``, and the cache; a new one has no prompt."""
    cache = cache or new_cache(config, *tokens_BGS.shape)
    position_BGS = start + jnp.broadcast_to(jnp.arange(tokens_BGS.shape[-1]), tokens_BGS.shape)
    hidden_BGSD, cache = decoder.apply(config, params, tokens_BGS, position_BGS, cache)
    return decoder.logits(config, params, hidden_BGSD), cache


logprobs = jax.jit(sampler.logprobs, static_argnums=(0, 1))


def test_own_mask_is_causal_as_in_its_docstring():
    key = jnp.zeros((1, 1, 1, 3, 1))
    layer = caches.LayerCache(None, None, None, key, key, jnp.ones((1, 1, 3), bool), used=jnp.int32(2))
    np.testing.assert_array_equal(layer.own_mask(2)[0, 0], [[True, False, False], [True, True, False]])
    np.testing.assert_array_equal(layer.own_mask(1)[0, 0], [[True, True, False]])
    masked = dataclasses.replace(layer, mask=jnp.array([[[False, True, True]]]))
    np.testing.assert_array_equal(masked.own_mask(2)[0, 0], [[False, False, False], [False, True, False]])


def test_no_token_sees_a_later_one_nor_another_rollout():
    params = random_params(LLAMA)
    changed_BGT = TOKENS_BGT.copy()
    changed_BGT[:, 0, 3] = (changed_BGT[:, 0, 3] + 1) % LLAMA.vocab_size
    before, after = (read(LLAMA, params, tokens)[0] for tokens in (TOKENS_BGT, changed_BGT))
    np.testing.assert_array_equal(before[:, 0, :3], after[:, 0, :3])
    np.testing.assert_array_equal(before[:, 1], after[:, 1])
    assert (before[:, 0, 3:] != after[:, 0, 3:]).any(-1).all()


def test_content_of_the_padding_is_irrelevant():
    params = random_params(LLAMA)
    padding = np.arange(5) >= LENGTHS_B[:, None]
    other_BP = np.where(padding, (PROMPT_BP + 1) % LLAMA.vocab_size, PROMPT_BP)
    one, other = (logprobs(LLAMA, 1.0, params, prompt, LENGTHS_B, TOKENS_BGT) for prompt in (PROMPT_BP, other_BP))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    no_padding, _ = logprobs(LLAMA, 1.0, params, PROMPT_BP, jnp.array([5, 5, 5]), TOKENS_BGT)
    assert (no_padding != one[0])[1:].all()


@each_config
def test_shared_prompt_equals_plain_sequences(config):
    @jax.jit
    def read_shared(params, prompt_BP, length_B, tokens_BGT):
        last_BD, prompt = sampler.prefill(config, params, prompt_BP, length_B)
        position_BGT = length_B[:, None, None] + jnp.broadcast_to(jnp.arange(6), tokens_BGT.shape)
        cache = caches.share_prompt(prompt, group_size=2, width=6)
        hidden_BGTD, _ = decoder.apply(config, params, tokens_BGT, position_BGT, cache)
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
    cache, chunks = new_cache(config, *TOKENS_BGT.shape), []
    for start, end in ((0, 1), (1, 3), (3, 6)):
        logits, cache = read(config, params, TOKENS_BGT[..., start:end], start, cache)
        chunks.append(logits)
    assert cache.used == 6
    np.testing.assert_allclose(jnp.concatenate(chunks, axis=2), whole_BGTV, atol=1e-5)


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
        return sampler.logprobs(config, 1.0, params, PROMPT_BP, LENGTHS_B, TOKENS_BGT)[0].mean()

    params = random_params(config)
    program = jax.jit(jax.grad(loss)).trace(params)
    return program.lower().compile()(params), str(program.jaxpr)


@each_config
def test_every_parameter_gets_a_gradient(config):
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads_of(config)[0]):
        assert np.abs(leaf).max() > 1e-5, jax.tree_util.keystr(path)


@pytest.mark.parametrize("field", ["remat", "unroll_layers"])
def test_gradients_are_the_same_however_computed(field):
    (one, program), (two, other) = grads_of(QWEN3), grads_of(dataclasses.replace(QWEN3, **{field: True}))
    assert program != other  # else the comparison below says nothing
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, two)
