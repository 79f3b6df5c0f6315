"""A turn of an episode as jitted programs: read a prompt, sample a response, read what the environment observed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from exit_jax.config.schema import Config
from exit_jax.domains.domain import Domain, Environment
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decode, prefill
from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.prefill import DecodeCursor
from exit_jax.policy.shape import DecoderConfig
from exit_jax.step.policy import decoder_config, sampling_config
from exit_jax.types import Array, Instances, Params, Rollouts

HEAD_AXIS = {"prompt_key": 1, "prompt_value": 1, "key": 2, "value": 2}  # the axis of the heads in a layer's cache


@dataclasses.dataclass(frozen=True)
class TurnPrograms:
    """The parts of a turn, jitted; the last two may be given a cursor to reuse."""

    part: Callable[[Instances, int, int], Instances]  # (instances [B], first, count) -> a lane's instances
    start: Callable[[Params, Array, Array], DecodeCursor]  # (sampler_params, prompt [b, P], its length [b])
    # (sampler_params, cursor, key, active [b, G], first logical row) -> rows with responses of up to M tokens
    generate: Callable[[Params, DecodeCursor, Array, Any, Any], tuple[DecodeCursor, Rollouts]]
    # (sampler_params, cursor, tokens [b, G, S], count [b, G], active [b, G]); rows that are not active are forgotten
    extend: Callable[[Params, DecodeCursor, Any, Any, Any], DecodeCursor]


def turn_programs(
    policy: DecoderConfig,
    sampling: SamplingConfig,
    mesh: jax.sharding.Mesh,
    group_size: int,
    room: int,
    may_reuse: bool,
) -> TurnPrograms:
    """Jit the parts of a turn.

    Args:
      room: slots of the cache for each row's own tokens.
      may_reuse: whether cursors are given away; otherwise what was read can be read on from again.
    """
    by_row, reused = meshes.by_row(mesh), 1 if may_reuse else None

    def start(sampler_params, prompt, length):
        with meshes.use(mesh):
            cursor = prefill.start(policy, sampler_params, group_size, room, prompt, length, sampling.counts_repeats)
            return shard_cursor(mesh, cursor)

    def extend(sampler_params, *args):
        with meshes.use(mesh):
            return shard_cursor(mesh, prefill.extend(policy, sampler_params, *args))

    def generate(sampler_params, *args):
        with meshes.use(mesh):
            cursor, rollouts = decode.generate(policy, sampling, sampler_params, *args)
            return shard_cursor(mesh, cursor), meshes.shard_batch(mesh, rollouts)

    part = lambda tree, first, count: jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, count), tree)
    return TurnPrograms(
        part=jax.jit(part, static_argnums=2, out_shardings=by_row),
        start=jax.jit(start),
        generate=jax.jit(generate, donate_argnums=reused),
        extend=jax.jit(extend, donate_argnums=reused),
    )


def shard_cursor(mesh: jax.sharding.Mesh, cursor: DecodeCursor) -> DecodeCursor:
    """Split a cursor by rows, and its keys and values by heads, too; use inside jit.

    Between programs, XLA would keep copies of it on all devices: 25 GiB, for Qwen2.5-7B and transcripts of 6,000 tokens.
    """
    cache = cursor.cache

    def split(array, heads: int):
        axes = [None] * array.ndim
        axes[0] = meshes.BATCH
        if array.shape[heads] % mesh.shape["tensor"] == 0:
            axes[heads] = "tensor"
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.lax.with_sharding_constraint(array, where)

    layers = tuple(
        dataclasses.replace(layer, **{name: split(getattr(layer, name), heads) for name, heads in HEAD_AXIS.items()})
        for layer in cache.layers
    )
    rows = meshes.shard_batch(mesh, dataclasses.replace(cursor, cache=(cache.prompt_mask, cache.mask)))
    prompt_mask, mask = rows.cache
    cache = dataclasses.replace(cache, layers=layers, prompt_mask=prompt_mask, mask=mask)
    return dataclasses.replace(rows, cache=cache)


def transcript_room(environment: Environment) -> int:
    """Return the slots that rows need which go on: a transcript, the next observation, and the token that is read with it."""
    return environment.max_transcript + environment.max_observation + len(environment.generation_prompt) + 1


def make_turns(config: Config, domain: Domain, mesh: jax.sharding.Mesh) -> TurnPrograms | None:
    """Return the parts of a turn in training; None for a domain without an environment."""
    if domain.environment is None:
        return None
    sampling = sampling_config(config, domain, domain.environment.max_tokens)
    room = transcript_room(domain.environment)
    return turn_programs(decoder_config(config), sampling, mesh, config.algorithm.group_size, room, may_reuse=True)


def num_lanes(config: Config) -> int:
    """Return into how many lanes a batch of episodes is split: two, if both can be dealt to all devices."""
    return 1 if config.algorithm.num_prompts % (2 * config.run.mesh.num_batch_shards) else 2
