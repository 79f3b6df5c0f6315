"""The sampler: groups of responses to prompts, and their log-probs for the learner; both read a prompt the same way."""

import jax
import jax.numpy as jnp

from exit_jax.policy import cache as caches
from exit_jax.policy import decoder
from exit_jax.policy.choice import SamplingConfig, gather_logits
from exit_jax.policy.decode import generate
from exit_jax.policy.prefill import read_prompts, start
from exit_jax.policy.shape import DecoderConfig
from exit_jax.policy.slots import sample_in_slots
from exit_jax.types import Array, Params, Rollouts


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
    """Sample ``group_size`` responses to each prompt, by ``generate`` or, in fewer slots, by ``sample_in_slots``.

    Args:
      prompt: int32 [B, P], padded on the right.
      prompt_length: int32 [B].
      num_slots: rows a prompt that are sampled at once; 0 for all G = ``group_size``.

    Returns:
      ``Rollouts`` [B, G, T], T = ``sampling.max_tokens``.
    """
    if 0 < num_slots < group_size:
        return sample_in_slots(config, sampling, group_size, num_slots, params, prompt, prompt_length, key)
    room = max(sampling.max_tokens - 1, 1)  # the last token is not read
    cursor = start(config, params, group_size, room, prompt, prompt_length, sampling.counts_repeats)
    return generate(config, sampling, params, cursor, key)[1]


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
    read once a group. Values after a response's end mean nothing; mask them.

    Logits of ``token_chunk`` positions of each row exist at once (0: of all), and the backward pass computes them anew.
    """
    batch, group_size, width = tokens.shape
    prompt_length = jnp.minimum(prompt_length, prompt.shape[1])  # what did not fit is not read
    last, prompt_cache = read_prompts(config, params, prompt, prompt_length)
    hidden = jnp.broadcast_to(last[:, None, None], (batch, group_size, 1, last.shape[-1]))
    if width > 1:
        # nothing follows the last token; it is read where the width then is whole tiles, or can be split over devices
        mesh = jax.sharding.get_abstract_mesh()
        is_split = not mesh.empty and mesh.shape["tensor"] > 1
        read = tokens if is_split or width % 8 == 0 else tokens[..., :-1]
        position = prompt_length[:, None, None] + jnp.broadcast_to(jnp.arange(read.shape[-1]), read.shape)
        cache = caches.share_prompt(prompt_cache, group_size, 0)
        rest, _ = decoder.apply(config, params, read, position, jnp.ones(read.shape, bool), cache)
        hidden = jnp.concatenate([hidden, rest[..., : width - 1, :]], axis=2)

    def score(hidden: Array, tokens: Array) -> tuple[Array, Array]:
        logits = decoder.logits(config, params, hidden) / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        probability = jnp.exp(logits - total[..., None])
        return gather_logits(logits, tokens) - total, total - (probability * logits).sum(-1)

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
