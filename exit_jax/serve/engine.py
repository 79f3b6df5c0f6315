"""Rows that responses are decoded in, each at its own pace: a prompt may enter a row while the others go on.

Every row has a cache of its own, filled from its first slot, and its own key, temperature and cuts. What is sampled in a row so
depends neither on which row it is nor on what the others hold. Programs: one that decodes, and one for each width of prompts.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder
from exit_jax.policy.cache import Cache, LayerCache
from exit_jax.policy.choice import SamplingConfig, allow, ends, gumbel_argmax, log_probability, mark
from exit_jax.policy.shape import DecoderConfig
from exit_jax.step.policy import make_reshard
from exit_jax.types import Array, Params, pytree

NARROWEST = 64  # tokens of the smallest width of prompts; each further one is twice as wide


@dataclasses.dataclass(frozen=True)
class Cuts:
    """How one response is sampled; what is not here is the same for all."""

    temperature: float = 1.0  # 0 for greedy
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@pytree
class Rows:
    """The state of R rows, on the device."""

    layers: Any  # a tuple of LayerCache [R, 1, 1, K, W, h]
    used: Array  # int32 [R]: tokens in the cache
    hidden: Array  # [R, 1, D] of the last token read
    tokens: Array  # int32 [R, 1, W]: sampled
    logp: Array  # float32 [R, 1, W]: nats, of the policy's own distribution: at temperature 1, nothing cut off
    count: Array  # int32 [R]: tokens sampled
    limit: Array  # int32 [R]: most of them
    ended: Array  # bool [R]: by a stop token
    alive: Array  # bool [R]: goes on
    key: Array  # uint32 [R, 2]
    temperature: Array  # float32 [R]
    top_p: Array  # float32 [R]
    top_k: Array  # int32 [R]
    min_p: Array  # float32 [R]
    seen: Any  # bool [R, 1, V], as in DecodeCursor


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What the rows have come to, in NumPy."""

    tokens: np.ndarray  # int32 [R, W]
    logp: np.ndarray  # float32 [R, W]
    count: np.ndarray  # int32 [R]
    ended: np.ndarray  # bool [R]
    alive: np.ndarray  # bool [R]


def truncate_rows(logits: Array, top_k: Array, top_p: Array, min_p: Array) -> Array:
    """Do as ``choice.truncate`` to logits [R, 1, V], with cuts [R] of each row's own; 0, 1.0 and 0.0 cut nothing."""
    vocab_size, column = logits.shape[-1], lambda x: x[:, None, None]

    def cut(logits: Array) -> Array:
        descending = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        place = jnp.arange(vocab_size)[None, None]
        k = column(jnp.where(top_k > 0, jnp.minimum(top_k, vocab_size), vocab_size))
        kept = jnp.where(place < k, descending, -jnp.inf)
        probability = jax.nn.softmax(kept, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        within = (place < k) & ((before < column(top_p)) | (column(top_p) >= 1.0))
        smallest = jnp.where(within, descending, jnp.inf).min(-1, keepdims=True)
        return jnp.where(logits < smallest, -jnp.inf, logits)

    logits = jax.lax.cond(((top_k > 0) | (top_p < 1.0)).any(), cut, lambda logits: logits, logits)
    floor = logits.max(-1, keepdims=True) + jnp.log(column(min_p))
    return jnp.where((column(min_p) > 0) & (logits < floor), -jnp.inf, logits)


class Engine:
    """The rows of a policy and the programs that fill and decode them; for one thread."""

    def __init__(
        self,
        config: DecoderConfig,
        sampling: SamplingConfig,
        params: Params,
        mesh: jax.sharding.Mesh,
        num_rows: int,
        context: int,
        tokens_per_call: int,
    ):
        """Make the sampler's parameters and blank rows.

        Args:
          sampling: stop tokens and the rules that hold for all rows; its cuts and ``max_tokens`` are not looked at.
          params: of the learner, all of them.
          context: W, tokens of a prompt and its response.
          tokens_per_call: tokens that ``step`` samples a row, at most.
        """
        self.config, self.sampling, self.mesh = config, sampling, mesh
        self.num_rows, self.context, self.tokens_per_call = num_rows, context, tokens_per_call
        self.params = jax.jit(make_reshard(config, mesh))(params)
        self._admit = jax.jit(self._make_admit, donate_argnums=1)
        self._step = jax.jit(self._make_step, donate_argnums=1)
        self.rows = jax.jit(self._blank)()

    @functools.cached_property
    def widths(self) -> tuple[int, ...]:
        """The widths that prompts are padded to."""
        found = [NARROWEST]
        while found[-1] < self.context:
            found.append(2 * found[-1])
        return (*(width for width in found if width < self.context), self.context)

    def compile(self) -> None:
        """Compile all programs, so that no request waits for one."""
        for width in self.widths:
            self.admit(0, np.zeros(width, np.int32), Cuts(), 0, (0, 0))
        self.step(np.zeros(self.num_rows, bool))

    def admit(self, row: int, prompt: Any, cuts: Cuts, limit: int, key: Any) -> None:
        """Read a prompt into a row, whose response is to have up to ``limit`` tokens.

        Args:
          prompt: ids, at least one and, with ``limit``, no more than the context.
          key: two uint32.
        """
        width = next(width for width in self.widths if width >= len(prompt))
        padded = np.zeros(width, np.int32)
        padded[: len(prompt)] = prompt
        given = {name: np.asarray(value, np.float32) for name, value in vars(cuts).items()}
        given |= {"top_k": np.int32(cuts.top_k), "limit": np.int32(limit), "key": np.asarray(key, np.uint32)}
        self.rows = self._admit(self.params, self.rows, np.int32(row), padded, np.int32(len(prompt)), given)

    def step(self, keep: np.ndarray) -> Snapshot:
        """Sample up to ``tokens_per_call`` tokens in each row that goes on and is to be kept, bool [R]; the others end."""
        self.rows = self._step(self.params, self.rows, keep)
        r = self.rows
        tokens, logp, *rest = jax.device_get((r.tokens, r.logp, r.count, r.ended, r.alive))
        return Snapshot(tokens[:, 0], logp[:, 0], *rest)

    def _blank(self) -> Rows:
        c, R, W = self.config, self.num_rows, self.context
        slots = jnp.zeros((R, 1, 1, c.num_kv_heads, W, c.head_dim), c.dtype)
        zeros = lambda dtype: jnp.zeros(R, dtype)
        return Rows(
            layers=tuple(LayerCache(key=slots, value=slots) for _ in range(c.num_layers)),
            used=zeros(jnp.int32),
            hidden=jnp.zeros((R, 1, c.embed_dim), c.dtype),
            tokens=jnp.zeros((R, 1, W), jnp.int32),
            logp=jnp.zeros((R, 1, W), jnp.float32),
            count=zeros(jnp.int32),
            limit=zeros(jnp.int32),
            ended=zeros(bool),
            alive=zeros(bool),
            key=jnp.zeros((R, 2), jnp.uint32),
            temperature=zeros(jnp.float32),
            top_p=zeros(jnp.float32) + 1.0,
            top_k=zeros(jnp.int32),
            min_p=zeros(jnp.float32),
            seen=jnp.zeros((R, 1, c.vocab_size), bool) if self.sampling.counts_repeats else None,
        )

    def _make_admit(self, params: Params, rows: Rows, row: Array, prompt: Array, length: Array, given: Any) -> Rows:
        tokens = prompt[None, None]
        position = jnp.arange(prompt.size)[None, None]
        real = position < length
        with meshes.use(self.mesh):
            hidden, cache = decoder.apply(self.config, params, tokens, position, real)
        last = jax.lax.dynamic_index_in_dim(hidden[0, 0], length - 1, keepdims=False)

        def put(slots: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice(slots, new[None].astype(slots.dtype), (row, 0, 0, 0, 0, 0))

        layers = tuple(
            LayerCache(key=put(held.key, new.key), value=put(held.value, new.value))
            for held, new in zip(rows.layers, cache.layers)
        )
        seen = rows.seen
        if seen is not None:
            in_prompt = mark(jnp.zeros((1, 1, self.config.vocab_size), bool), tokens, real)
            seen = seen.at[row].set(in_prompt[0])
        own = {name: getattr(rows, name).at[row].set(value) for name, value in given.items()}
        return dataclasses.replace(
            rows,
            layers=layers,
            used=rows.used.at[row].set(length),
            hidden=rows.hidden.at[row, 0].set(last.astype(rows.hidden.dtype)),
            count=rows.count.at[row].set(0),
            ended=rows.ended.at[row].set(False),
            alive=rows.alive.at[row].set(given["limit"] > 0),
            seen=seen,
            **own,
        )

    def _make_step(self, params: Params, rows: Rows, keep: Array) -> Rows:
        rows = dataclasses.replace(rows, alive=rows.alive & keep)
        more = lambda held: (held[0] < self.tokens_per_call) & held[1].alive.any()
        once = lambda held: (held[0] + 1, self._read(params, self._record(params, held[1])))
        return jax.lax.while_loop(more, once, (jnp.int32(0), rows))[1]

    def _record(self, params: Params, rows: Rows) -> Rows:
        """Sample the next token of every row that goes on."""
        at, alive = rows.count[:, None], rows.alive[:, None]
        keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.key), rows.count)
        logits = decoder.logits(self.config, params, rows.hidden)
        allowed = allow(self.sampling, logits, rows.tokens, at, rows.seen)
        greedy = (rows.temperature == 0)[:, None]
        scaled = allowed / jnp.where(greedy, 1.0, rows.temperature[:, None])[..., None]
        drawn = gumbel_argmax(keys[:, None], truncate_rows(scaled, rows.top_k, rows.top_p, rows.min_p))
        token = jnp.where(greedy, jnp.argmax(allowed, axis=-1), drawn)
        here = alive[..., None] & (jnp.arange(self.context)[None, None] == at[..., None])
        tokens = jnp.where(here, token[..., None], rows.tokens)
        ended = jnp.where(rows.alive, ends(self.sampling, tokens, at)[:, 0], rows.ended)
        count = rows.count + rows.alive
        return dataclasses.replace(
            rows,
            tokens=tokens,
            logp=jnp.where(here, log_probability(logits, token)[..., None], rows.logp),
            count=count,
            ended=ended,
            alive=rows.alive & ~ended & (count < rows.limit),
            seen=None if rows.seen is None else mark(rows.seen, token[..., None], alive[..., None]),
        )

    def _read(self, params: Params, rows: Rows) -> Rows:
        """Read the last token of every row that goes on; each row writes to the slot that its own tokens have come to."""
        last = jnp.take_along_axis(rows.tokens, jnp.maximum(rows.count - 1, 0)[:, None, None], axis=2)

        def one(token: Array, alive: Array, used: Array, layers: Any) -> tuple[Array, Any]:
            held = (jnp.arange(self.context) < used)[None, None]
            cache = Cache(layers, None, held, used)
            real = alive[None, None, None]
            hidden, cache = decoder.apply(self.config, params, token[None], used[None, None, None], real, cache)
            return hidden[0, :, 0], cache.layers

        with meshes.use(self.mesh):
            hidden, layers = jax.vmap(one)(last, rows.alive, rows.used, rows.layers)
        hidden = jnp.where(rows.alive[:, None, None], hidden, rows.hidden)
        return dataclasses.replace(rows, layers=layers, hidden=hidden, used=rows.used + rows.alive)
