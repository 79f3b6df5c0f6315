"""Sampling of grouped responses, and their log-probs for the learner; the two read a prompt the same way."""

import dataclasses

import jax
import jax.numpy as jnp

from exit_jax.algorithm.types import Array, Params, Rollouts, pytree
from exit_jax.policy import cache as caches
from exit_jax.policy import decoder
from exit_jax.policy.cache import Cache
from exit_jax.policy.decoder import DecoderConfig


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are sampled."""

    max_tokens: int  # T
    stop_token: int  # ends a response and is part of it
    temperature: float  # 0 for greedy
    top_k: int = 0  # keep the k likeliest tokens; 0 for all
    top_p: float = 1.0  # keep the smallest set of likeliest tokens whose probability reaches p


@pytree
class DecodeState:
    """The carry of the decoding loop."""

    position: Array  # int32 []: tokens sampled so far, at least 1
    tokens: Array  # int32 [B, G, T]
    logp: Array  # float32 [B, G, T]
    mask: Array  # bool [B, G, T]
    done: Array  # bool [B, G]: stop token sampled
    cache: Cache


def prefill(config: DecoderConfig, params: Params, prompt: Array, prompt_length: Array) -> tuple[Array, Cache]:
    """Read prompts [B, P]: hidden state [B, D] of each last token, and the cache of the prompts (at G = 1)."""
    batch, width = prompt.shape
    position = jnp.broadcast_to(jnp.arange(width), (batch, 1, width))
    mask = position < prompt_length[:, None, None]
    shape = (config.num_layers, batch, 1, config.num_kv_heads, width, config.head_dim)
    empty = caches.empty(shape, config.dtype, mask)
    hidden, cache = decoder.apply(config, params, prompt[:, None], position, empty)
    last = jnp.take_along_axis(hidden[:, 0], (prompt_length - 1)[:, None, None], axis=1)
    return last[:, 0], cache


def truncate(logits: Array, top_k: int, top_p: float) -> Array:
    """Set logits [..., V] outside the top k, then outside the nucleus of mass p (arXiv 1904.09751), to -inf."""
    if top_k and top_k < logits.shape[-1]:
        kept, _ = jax.lax.top_k(logits, top_k)
        logits = jnp.where(logits < kept[..., -1:], -jnp.inf, logits)
    if top_p < 1.0:
        descending = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        probability = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability  # mass of all likelier tokens
        smallest = jnp.where(before < top_p, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return logits


def choose(config: SamplingConfig, logits: Array, keys: Array) -> tuple[Array, Array]:
    """Sample tokens [B, G] from logits [B, G, V] with one key a row: tokens, and log-probs under what was sampled from."""
    if config.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1)
        return tokens, jnp.zeros(tokens.shape, jnp.float32)
    logits = truncate(logits / config.temperature, config.top_k, config.top_p)
    tokens = jax.vmap(jax.vmap(jax.random.categorical))(keys, logits)
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    return tokens, logp


def sample(
    config: DecoderConfig,
    sampling: SamplingConfig,
    group_size: int,
    params: Params,
    prompt: Array,
    prompt_length: Array,
    key: Array,
) -> Rollouts:
    """Sample ``group_size`` responses to each prompt [B, P]; stops when every row has ended or T tokens are out.

    The key of a token is folded from ``key``, its logical row (prompt · G + rollout) and its position, so the outcome
    depends neither on the number of devices nor on how long other rows run.
    """
    batch, width = prompt.shape[0], sampling.max_tokens
    rows = jnp.arange(batch * group_size).reshape(batch, group_size)
    row_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))(key, rows)

    def record(state: DecodeState, logits: Array, cache: Cache) -> DecodeState:
        """Sample the next token of every row that is not done."""
        t = state.position
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(row_keys, t)
        token, logp = choose(sampling, logits, keys)

        def put(array, value, otherwise):
            return jax.lax.dynamic_update_index_in_dim(array, jnp.where(state.done, otherwise, value), t, axis=2)

        return DecodeState(
            position=t + 1,
            tokens=put(state.tokens, token, 0),
            logp=put(state.logp, logp, 0.0),
            mask=put(state.mask, True, False),
            done=state.done | (token == sampling.stop_token),
            cache=cache,
        )

    def step(state: DecodeState) -> DecodeState:
        """Read the last token of every row, then sample the next."""
        t = state.position
        token = jax.lax.dynamic_slice_in_dim(state.tokens, t - 1, 1, axis=2)
        position = jnp.broadcast_to((prompt_length + t - 1)[:, None, None], token.shape)
        hidden, cache = decoder.apply(config, params, token, position, state.cache)
        return record(state, decoder.logits(config, params, hidden[:, :, 0]), cache)

    last, prompt_cache = prefill(config, params, prompt, prompt_length)
    shape = (batch, group_size, width)
    start = DecodeState(
        position=jnp.int32(0),
        tokens=jnp.zeros(shape, jnp.int32),
        logp=jnp.zeros(shape, jnp.float32),
        mask=jnp.zeros(shape, bool),
        done=jnp.zeros(shape[:2], bool),
        cache=caches.share_prompt(prompt_cache, group_size, width - 1),
    )
    first = decoder.logits(config, params, last)[:, None]
    start = record(start, jnp.broadcast_to(first, (*shape[:2], first.shape[-1])), start.cache)
    end = jax.lax.while_loop(lambda state: (state.position < width) & ~state.done.all(), step, start)
    return Rollouts(tokens=end.tokens, mask=end.mask, logp=end.logp, finished=end.done)


def logprobs(
    config: DecoderConfig, temperature: float, params: Params, prompt: Array, prompt_length: Array, tokens: Array
) -> tuple[Array, Array]:
    """Return log-probs of tokens [B, G, T] and the entropies they were sampled at, nats, float32 [B, G, T].

    Token t is predicted from the prompt and the tokens before it: the last prompt token gives the first. The prompt is
    read once a group. Values behind a response's end mean nothing; mask them.
    """
    batch, group_size, width = tokens.shape
    last, prompt_cache = prefill(config, params, prompt, prompt_length)
    first = jnp.broadcast_to(last[:, None, None], (batch, group_size, 1, last.shape[-1]))
    position = prompt_length[:, None, None] + jnp.broadcast_to(jnp.arange(width - 1), (batch, group_size, width - 1))
    cache = caches.share_prompt(prompt_cache, group_size, width - 1)
    rest, _ = decoder.apply(config, params, tokens[..., :-1], position, cache)
    logits = decoder.logits(config, params, jnp.concatenate([first, rest], axis=2)) / temperature
    log_probability = jax.nn.log_softmax(logits)
    logp = jnp.take_along_axis(log_probability, tokens[..., None], axis=-1)[..., 0]
    entropy = -(jnp.exp(log_probability) * log_probability).sum(-1)
    return logp, entropy
