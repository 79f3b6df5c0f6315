"""Sampling of grouped responses, and their log-probs for the learner; the two read a prompt the same way.

A row's tokens are those of its prompt, shared by the group, then its own. ``start`` reads prompts, ``extend`` reads own
tokens that are given, ``generate`` samples until every row has ended; a conversation alternates the last two over one cache.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from exit_jax.algorithm.types import Array, Params, Rollouts, pytree
from exit_jax.policy import cache as caches
from exit_jax.policy import decoder
from exit_jax.policy.cache import Cache
from exit_jax.policy.shape import DecoderConfig
from exit_jax.policy.stops import StopText

READ_CHUNK = 128  # tokens of each row: of tools on v5e:4x4, 256 take 1.5 GiB a chip more


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are sampled."""

    max_tokens: int  # T
    stop_tokens: tuple[int, ...]  # each ends a response and is part of it
    temperature: float  # 0 for greedy
    top_k: int = 0  # keep the k likeliest tokens; 0 for all
    top_p: float = 1.0  # keep the smallest set of likeliest tokens whose probability reaches p
    min_p: float = 0.0  # keep tokens at least this times as probable as the likeliest
    min_tokens: int = 0  # no stop token before this many others
    stop_sequences: tuple[tuple[int, ...], ...] = ()  # each ends a response when its last tokens equal it
    stop_text: StopText | None = None  # ends a response with the token that completes it


@pytree
class Reading:
    """Where the rows stand: what has been read, and what predicts the next token."""

    cache: Cache
    hidden: Array  # [B, G, D] of the last token read
    length: Array  # int32 [B, G]: tokens read, the position of the next
    token: Array  # int32 [B, G]: sampled and not read yet
    unread: Array  # bool [B, G], False where there is no such token


@pytree
class DecodeState:
    """The carry of the decoding loop."""

    position: Array  # int32 []: tokens sampled so far, at least 1
    tokens: Array  # int32 [B, G, T]
    logp: Array  # float32 [B, G, T]
    sampled_logp: Array  # float32 [B, G, T]
    mask: Array  # bool [B, G, T]
    done: Array  # bool [B, G]: stop token sampled
    hidden: Array  # [B, G, D]
    total: Array  # float32 [B, G, D]: sum of the hidden states that tokens were sampled from
    cache: Cache


def prefill(config: DecoderConfig, params: Params, prompt: Array, prompt_length: Array) -> tuple[Array, Cache]:
    """Read prompts [B, P]: hidden state [B, D] of each last token, and the cache of the prompts (at G = 1)."""
    batch, width = prompt.shape
    position = jnp.broadcast_to(jnp.arange(width), (batch, 1, width))
    mask = position < prompt_length[:, None, None]
    hidden, cache = decoder.apply(config, params, prompt[:, None], position, mask)
    last = jnp.take_along_axis(hidden[:, 0], (prompt_length - 1)[:, None, None], axis=1)
    return last[:, 0], cache


def start(
    config: DecoderConfig, params: Params, group_size: int, width: int, prompt: Array, prompt_length: Array
) -> Reading:
    """Read prompts [B, P] once for ``group_size`` rows each, with room for ``width`` own tokens a row."""
    last, cache = prefill(config, params, prompt, prompt_length)
    shape = (prompt.shape[0], group_size)
    return Reading(
        cache=caches.share_prompt(cache, group_size, width),
        hidden=jnp.broadcast_to(last[:, None], (*shape, last.shape[-1])),
        length=jnp.broadcast_to(prompt_length[:, None], shape),
        token=jnp.zeros(shape, jnp.int32),
        unread=jnp.zeros(shape, bool),
    )


def read(config: DecoderConfig, params: Params, tokens: Array, position: Array, mask: Array, cache: Cache):
    """Read tokens [B, G, S] behind what a cache holds, READ_CHUNK at a time: hidden states [B, G, S, D], and the cache.

    The scores of all of them, against all that is held, are too much at once: 8 GiB a chip for 1,028 tokens of 16 rows behind
    17,000, with 7 heads.
    """
    parts = []
    for start in range(0, tokens.shape[-1], READ_CHUNK):
        chunk = slice(start, start + READ_CHUNK)
        rows = tokens[..., chunk], position[..., chunk], mask[..., chunk]
        hidden, cache = decoder.apply(config, params, *rows, cache)
        parts.append(hidden)
    return jnp.concatenate(parts, axis=2), cache


def extend(
    config: DecoderConfig, params: Params, reading: Reading, tokens: Array, count: Array, active: Array | None = None
) -> Reading:
    """Read given tokens int32 [B, G, S] behind what the rows hold, of which the first ``count`` [B, G] are real.

    A token that was sampled last and not read yet goes first, so S + 1 slots of the cache are used, behind those of the
    longest row: what rows that ended earlier left unused is used first.

    Args:
      active: bool [B, G], rows that go on; what the others hold is given up, and its slots with it. None for all.
    """
    held = reading.cache
    if active is not None:
        held = dataclasses.replace(held, mask=held.mask & active[..., None])
    given = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape) < count[..., None]
    tokens = jnp.concatenate([reading.token[..., None], tokens], axis=-1)
    mask = jnp.concatenate([reading.unread[..., None], given], axis=-1)
    position = reading.length[..., None] + jnp.cumsum(mask, axis=-1) - 1
    hidden, cache = read(config, params, tokens, position, mask, caches.compact(held))
    new = jnp.take_along_axis(hidden, count[..., None, None], axis=2)[:, :, 0]
    total = mask.sum(-1)
    return Reading(
        cache=cache,
        hidden=jnp.where((total > 0)[..., None], new, reading.hidden),
        length=reading.length + total,
        token=jnp.zeros_like(reading.token),
        unread=jnp.zeros_like(reading.unread),
    )


def truncate(logits: Array, top_k: int, top_p: float, min_p: float = 0.0) -> Array:
    """Set logits [..., V] outside the top k, the nucleus of mass p (arXiv 1904.09751), and min-p (arXiv 2407.01082) to -inf."""
    if min_p > 0.0:
        floor = logits.max(-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
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


def pick(logits: Array, tokens: Array) -> Array:
    """Return logits [..., V] at tokens [...]; a masked sum, since a gather would undo a vocabulary split over devices."""
    chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == tokens[..., None]
    return jnp.where(chosen, logits, 0.0).sum(-1)


def log_probability(logits: Array, tokens: Array) -> Array:
    """Return log-probs of tokens [...] under logits [..., V]."""
    return pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def draw(keys: Array, logits: Array) -> Array:
    """Sample tokens [B, G] from logits [B, G, V], as ``jax.random.categorical`` does with one key a row, by Gumbel's trick.

    The largest is found in plain reductions, as XLA's CPU backend fuses the noise into its argmax and takes thrice as long.
    """
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:])))(keys)
    noisy = jax.lax.optimization_barrier(logits + noise)
    index = jax.lax.broadcasted_iota(jnp.int32, noisy.shape, noisy.ndim - 1)
    return jnp.where(noisy == noisy.max(-1, keepdims=True), index, logits.shape[-1]).min(-1)


def choose(config: SamplingConfig, logits: Array, keys: Array, may_stop: Array) -> tuple[Array, Array, Array]:
    """Sample tokens [B, G] from logits [B, G, V] with one key a row.

    Returns:
      tokens; log-probs under the policy at this temperature, nothing cut off; log-probs under what was sampled from.
    """
    if config.stop_tokens and config.min_tokens:
        is_stop = jnp.zeros(logits.shape, bool).at[..., jnp.asarray(config.stop_tokens)].set(True)
        may_stop = jnp.broadcast_to(may_stop, logits.shape[:-1])
        allowed = jnp.where(is_stop & ~may_stop[..., None], -jnp.inf, logits)
    else:
        allowed = logits
    if config.temperature == 0:
        tokens = jnp.argmax(allowed, axis=-1)
        return tokens, log_probability(logits, tokens), jnp.zeros(tokens.shape, jnp.float32)
    whole = logits / config.temperature
    kept = truncate(allowed / config.temperature, config.top_k, config.top_p, config.min_p)
    tokens = draw(keys, kept)
    return tokens, log_probability(whole, tokens), log_probability(kept, tokens)


def ends(config: SamplingConfig, tokens: Array, position: Array) -> Array:
    """Return bool [B, G]: does the token at ``position`` (of all rows, or [B, G]) of tokens [B, G, T] end its row?"""
    position = jnp.broadcast_to(position, tokens.shape[:2])
    at = lambda index: jnp.take_along_axis(tokens, jnp.maximum(index, 0)[..., None], axis=2)[..., 0]
    ended = jnp.zeros(position.shape, bool)
    for stop in config.stop_tokens:
        ended = ended | (at(position) == stop)
    for sequence in config.stop_sequences:
        first = position - len(sequence) + 1
        equal = jnp.stack([at(first + i) == token for i, token in enumerate(sequence)])
        ended = ended | (equal.all(0) & (first >= 0))
    if config.stop_text:
        ended = ended | (config.stop_text.state(tokens, position) == len(config.stop_text.text))
    return ended


def generate(
    config: DecoderConfig,
    sampling: SamplingConfig,
    params: Params,
    reading: Reading,
    key: Array,
    active: Array | None = None,
    first_row: Array | int = 0,
) -> tuple[Reading, Rollouts]:
    """Sample on from what was read, until every row has ended or T tokens are out.

    The key of a token is folded from ``key``, its logical row (prompt · G + rollout) and its position, so the outcome
    depends neither on the number of devices nor on how long other rows run.

    Args:
      active: bool [B, G], rows that take part; the others sample nothing. None for all.
      first_row: logical row of the first, where these are a part of a larger batch.
    """
    batch, group_size = reading.length.shape
    width = sampling.max_tokens
    rows = first_row + jnp.arange(batch * group_size).reshape(batch, group_size)
    row_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))(key, rows)

    def record(state: DecodeState) -> DecodeState:
        """Sample the next token of every row that is not done."""
        t = state.position
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(row_keys, t)
        logits = decoder.logits(config, params, state.hidden)
        token, logp, sampled_logp = choose(sampling, logits, keys, t >= sampling.min_tokens)

        def put(array, value, otherwise):
            return jax.lax.dynamic_update_index_in_dim(array, jnp.where(state.done, otherwise, value), t, axis=2)

        tokens = put(state.tokens, token, 0)
        return dataclasses.replace(
            state,
            position=t + 1,
            tokens=tokens,
            logp=put(state.logp, logp, 0.0),
            sampled_logp=put(state.sampled_logp, sampled_logp, 0.0),
            mask=put(state.mask, True, False),
            done=state.done | ends(sampling, tokens, t),
            total=state.total + jnp.where(state.done[..., None], 0.0, state.hidden.astype(jnp.float32)),
        )

    def step(state: DecodeState) -> DecodeState:
        """Read the last token of every row, then sample the next."""
        t = state.position
        last = lambda array: jax.lax.dynamic_slice_in_dim(array, t - 1, 1, axis=2)
        position = reading.length[..., None] + t - 1
        real = last(state.mask)
        hidden, cache = decoder.apply(config, params, last(state.tokens), position, real, state.cache)
        hidden = jnp.where(real, hidden[:, :, 0], state.hidden)  # a row that has ended stays where it was
        return record(dataclasses.replace(state, hidden=hidden, cache=cache))

    shape = (batch, group_size, width)
    begin = DecodeState(
        position=jnp.int32(0),
        tokens=jnp.zeros(shape, jnp.int32),
        logp=jnp.zeros(shape, jnp.float32),
        sampled_logp=jnp.zeros(shape, jnp.float32),
        mask=jnp.zeros(shape, bool),
        done=jnp.zeros(shape[:2], bool) if active is None else ~active,
        hidden=reading.hidden,
        total=jnp.zeros(reading.hidden.shape, jnp.float32),
        cache=reading.cache,
    )
    end = record(begin)
    slots = reading.cache.mask.shape[-1]
    for stage in range(1, config.decode_stages + 1):
        end = while_within(-(-slots * stage // config.decode_stages), width, step, end)

    count = end.mask.sum(-1)
    newest = jnp.take_along_axis(end.tokens, jnp.maximum(count - 1, 0)[..., None], axis=2)[..., 0]
    unread = (count == end.position) & (count > 0)  # sampled in the last step, so that no step has read it
    reading = Reading(end.cache, end.hidden, reading.length + count - unread, newest, unread)
    rollouts = Rollouts(
        tokens=end.tokens,
        mask=end.mask,
        logp=end.logp,
        sampled_logp=end.sampled_logp,
        finished=end.done,
        hidden=end.total / jnp.maximum(count, 1)[..., None],
    )
    return reading, rollouts


def while_within(
    window: int, width: int, step: Callable[[DecodeState], DecodeState], state: DecodeState
) -> DecodeState:
    """Take steps until every row has ended, ``width`` tokens are out, or the next token's slot is beyond the first ``window``.

    Only that many slots are read: the memory's bandwidth is what decoding waits for, and slots that are not in use yet cost
    as much as others.
    """
    whole = state.cache.mask
    look = lambda state, mask: dataclasses.replace(state, cache=dataclasses.replace(state.cache, mask=mask))
    more = lambda state: (state.position < width) & (state.cache.used < window) & ~state.done.all()
    state = jax.lax.while_loop(more, step, look(state, whole[..., :window]))
    return look(state, whole.at[..., :window].set(state.cache.mask))


@pytree
class SlotState:
    """The carry of the loop that refills slots: g slots a prompt, G responses to come."""

    time: Array  # int32 []: steps so far
    row: Array  # int32 [B, g]: response in the slot, G where none is left
    position: Array  # int32 [B, g]: tokens of it
    taken: Array  # int32 [B]: responses begun
    hidden: Array  # [B, g, D]
    cache: Cache  # its own slots of keys are a ring: no response is longer
    rollouts: Rollouts  # [B, G, ...]; ``hidden`` is a sum


def sample_in_slots(
    config: DecoderConfig,
    sampling: SamplingConfig,
    group_size: int,
    num_slots: int,
    params: Params,
    prompt: Array,
    prompt_length: Array,
    key: Array,
) -> Rollouts:
    """Sample as ``sample`` does, the same tokens, in ``num_slots`` rows a prompt: one that has ended makes room for another.

    Without this, every row waits for the batch's longest. Refilling within a prompt keeps its keys and values shared.
    """
    batch, width = prompt.shape[0], sampling.max_tokens
    last, prompt_cache = prefill(config, params, prompt, prompt_length)
    first_hidden = jnp.broadcast_to(last[:, None], (batch, num_slots, last.shape[-1]))
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch * group_size))
    own = jnp.arange(group_size)[None, :, None]
    place = jnp.arange(width)[None, None]

    def record(state: SlotState) -> SlotState:
        """Sample the next token of every slot, end responses and begin others."""
        running = state.row < group_size
        logical = jnp.arange(batch)[:, None] * group_size + jnp.minimum(state.row, group_size - 1)
        keys = jax.vmap(jax.vmap(jax.random.fold_in))(row_keys[logical], state.position)
        logits = decoder.logits(config, params, state.hidden)
        token, logp, sampled_logp = choose(sampling, logits, keys, state.position >= sampling.min_tokens)
        out = state.rollouts

        # a response is in one slot at most, so a sum over slots picks its value
        of_slot = (own == state.row[:, None]) & running[:, None]  # [B, G, g]
        now = of_slot.any(-1)
        to_row = lambda value: jnp.where(of_slot, value[:, None], 0).sum(-1, dtype=value.dtype)
        here = now[..., None] & (place == to_row(state.position)[..., None])

        def put(array, value):
            return jnp.where(here, to_row(value)[..., None], array)

        hidden = jnp.einsum("bgs,bsd->bgd", of_slot.astype(jnp.float32), state.hidden.astype(jnp.float32))
        tokens = put(out.tokens, token)
        ended = now & ends(sampling, tokens, to_row(state.position))
        over = now & (ended | (to_row(state.position) + 1 >= width))
        out = Rollouts(
            tokens=tokens,
            mask=out.mask | here,
            logp=put(out.logp, logp),
            sampled_logp=put(out.sampled_logp, sampled_logp),
            finished=out.finished | ended,
            hidden=out.hidden + hidden,
        )
        free = running & (of_slot & over[..., None]).any(1)  # [B, g]
        refill = state.taken[:, None] + jnp.cumsum(free, axis=1) - 1
        return dataclasses.replace(
            state,
            row=jnp.where(free, jnp.minimum(refill, group_size), state.row),
            position=jnp.where(free, 0, state.position + 1),
            taken=state.taken + free.sum(1),
            rollouts=out,
        )

    def step(state: SlotState) -> SlotState:
        """Read the token that each slot's response has come to, unless it is yet to begin; then sample."""
        goes_on = (state.row < group_size) & (state.position > 0)
        at = jnp.minimum(state.row, group_size - 1)
        of_row = jnp.take_along_axis(state.rollouts.tokens, at[..., None], axis=1)  # [B, g, T]
        token = jnp.take_along_axis(of_row, jnp.maximum(state.position - 1, 0)[..., None], axis=2)
        kept = state.cache.mask & goes_on[..., None]  # what a slot held before belongs to another response
        cache = dataclasses.replace(state.cache, mask=kept, used=state.time % kept.shape[-1])
        position = (prompt_length[:, None] + state.position - 1)[..., None]
        hidden, cache = decoder.apply(config, params, token, position, goes_on[..., None], cache)
        hidden = jnp.where(goes_on[..., None], hidden[:, :, 0], first_hidden)
        return record(dataclasses.replace(state, time=state.time + 1, hidden=hidden, cache=cache))

    shape = (batch, group_size, width)
    blank = Rollouts(
        tokens=jnp.zeros(shape, jnp.int32),
        mask=jnp.zeros(shape, bool),
        logp=jnp.zeros(shape, jnp.float32),
        sampled_logp=jnp.zeros(shape, jnp.float32),
        finished=jnp.zeros(shape[:2], bool),
        hidden=jnp.zeros((*shape[:2], last.shape[-1]), jnp.float32),
    )
    slots = jnp.broadcast_to(jnp.arange(num_slots), (batch, num_slots))
    begin = SlotState(
        time=jnp.int32(0),
        row=slots,
        position=jnp.zeros_like(slots),
        taken=jnp.full(batch, num_slots),
        hidden=first_hidden,
        cache=dataclasses.replace(caches.share_prompt(prompt_cache, num_slots, max(width - 1, 1)), used=jnp.int32(0)),
        rollouts=blank,
    )
    rollouts = jax.lax.while_loop(lambda state: (state.row < group_size).any(), step, record(begin)).rollouts
    count = jnp.maximum(rollouts.mask.sum(-1), 1)
    return dataclasses.replace(rollouts, hidden=rollouts.hidden / count[..., None])


def sample(
    config: DecoderConfig,
    sampling: SamplingConfig,
    group_size: int,
    params: Params,
    prompt: Array,
    prompt_length: Array,
    key: Array,
    num_slots: int = 0,
) -> Rollouts:
    """Sample ``group_size`` responses to each prompt [B, P]; see ``generate``, and ``sample_in_slots`` for fewer slots."""
    if 0 < num_slots < group_size:
        return sample_in_slots(config, sampling, group_size, num_slots, params, prompt, prompt_length, key)
    room = max(sampling.max_tokens - 1, 1)  # the last token is not read
    reading = start(config, params, group_size, room, prompt, prompt_length)
    return generate(config, sampling, params, reading, key)[1]


def finite_share(rollouts: Rollouts) -> Array:
    """Return the share of the sampled tokens whose logits were finite, as their log-probs tell; float32 [], 1 of no tokens."""
    lost = (rollouts.mask & ~jnp.isfinite(rollouts.logp)).sum()
    return 1.0 - lost / jnp.maximum(rollouts.mask.sum(), 1)


def logprobs(
    config: DecoderConfig,
    temperature: float,
    token_chunk: int,
    params: Params,
    prompt: Array,
    prompt_length: Array,
    tokens: Array,
) -> tuple[Array, Array]:
    """Return log-probs of tokens [B, G, T] and the entropies they were sampled at, nats, float32 [B, G, T].

    Token t is predicted from the prompt and the tokens before it: the last prompt token gives the first. The prompt is
    read once a group. Values behind a response's end mean nothing; mask them.

    Logits of ``token_chunk`` positions of each row exist at once (0: of all), and the backward pass computes them anew.
    """
    batch, group_size, width = tokens.shape
    last, prompt_cache = prefill(config, params, prompt, prompt_length)
    hidden = jnp.broadcast_to(last[:, None, None], (batch, group_size, 1, last.shape[-1]))
    if width > 1:
        position = prompt_length[:, None, None] + jnp.broadcast_to(jnp.arange(width), tokens.shape)
        cache = caches.share_prompt(prompt_cache, group_size, 0)
        # nothing follows the last token; it is read so that the width can be split over devices
        rest, _ = decoder.apply(config, params, tokens, position, jnp.ones(tokens.shape, bool), cache)
        hidden = jnp.concatenate([hidden, rest[..., :-1, :]], axis=2)

    def score(hidden: Array, tokens: Array) -> tuple[Array, Array]:
        logits = decoder.logits(config, params, hidden) / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        probability = jnp.exp(logits - total[..., None])
        return pick(logits, tokens) - total, total - (probability * logits).sum(-1)

    if not token_chunk or token_chunk >= width:
        return score(hidden, tokens)
    padded = -width % token_chunk
    chunks = lambda x: jnp.moveaxis(
        jnp.pad(x, [(0, 0), (0, 0), (0, padded)] + [(0, 0)] * (x.ndim - 3)).reshape(
            batch, group_size, -1, token_chunk, *x.shape[3:]
        ),
        2,
        0,
    )
    together = lambda x: jnp.moveaxis(x, 0, 2).reshape(batch, group_size, -1)[..., :width]
    _, scores = jax.lax.scan(lambda _, xs: (None, jax.checkpoint(score)(*xs)), None, (chunks(hidden), chunks(tokens)))
    return jax.tree.map(together, scores)
