"""The programs of an iteration, each with all that is in memory beside it.

What stays in memory beside a program's own arguments is handed to it as further arguments, so that the compiler itself
decides whether all of it fits.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax import domains
from exit_jax.config.schema import Config
from exit_jax.domains.domain import blank_grades
from exit_jax.fit import roofline
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder, prefill
from exit_jax.step.device import Constants
from exit_jax.step.policy import split_params
from exit_jax.step.program import Program
from exit_jax.step.turns import TurnPrograms, num_lanes, shard_cursor, transcript_room


def bytes_per_chip(tree) -> int:
    """Return the bytes that one device holds of arrays, or of their shapes with shardings; a copy where there is none."""

    def size(leaf):
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def _put(tree, sharding):
    """Add a sharding, or a tree of them, to shapes."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, sharding
    )


def gathered(config: Config, mesh: jax.sharding.Mesh, params):
    """Return the shapes of the learner's parameters as it computes with them: cast, and gathered over fsdp."""
    shapes = jax.eval_shape(lambda params: decoder.cast(params, config.policy.dtype), params)
    return _put(shapes, meshes.shardings(mesh, decoder.logical_axes(shapes), shapes, meshes.SAMPLER))


def cache_bytes(config: Config, copy) -> tuple[int, int]:
    """Return a chip's bytes of the prompts' keys and values, and of the rollouts' own."""
    domain = domains.make(config.domain_name, config.domain)
    mesh, a = config.run.mesh, config.algorithm
    policy = dataclasses.replace(config.policy, attention="xla")  # shapes are the same, and no mesh is needed
    room = transcript_room(domain.environment) if domain.environment else max(domain.max_tokens - 1, 1)

    def start(params):
        prompt = jnp.zeros((a.num_prompts, domain.prompt_width), jnp.int32)
        rows = config.run.sampler_slots or a.group_size
        return prefill.start(policy, params, rows, room, prompt, jnp.ones(a.num_prompts, jnp.int32))

    cursor = jax.eval_shape(start, copy)
    layers, split = cursor.cache.layers, mesh.num_batch_shards * mesh.tensor
    size = lambda pick: sum(math.prod(x.shape) * x.dtype.itemsize for layer in layers for x in pick(layer)) // split
    return size(lambda layer: (layer.prompt_key, layer.prompt_value)), size(lambda layer: (layer.key, layer.value))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The programs of an iteration, each with all that is in memory when it begins, and how large all of it is."""

    programs: Mapping[str, tuple[Any, tuple]]  # name -> (jitted function, shapes of its arguments)
    parts: Mapping[str, Mapping[str, int]]  # name -> what a chip holds
    sizes: roofline.Sizes


def plan(config: Config, program: Program) -> Plan:
    """Lay out the programs of ``algorithm.iteration.iterate``, or the one program of a domain that is graded on the device."""
    domain, mesh, steps = domains.make(config.domain_name, config.domain), program.mesh, program.steps
    state, rows = program.state, meshes.by_row(mesh)
    frozen = split_params(config, program.params)[1]
    tasks = _put(domain.tasks("train"), meshes.replicated(mesh))
    constants = Constants(tasks, frozen)

    copy, key, instances, rollouts = steps.shapes(constants, state)
    copy = _put(copy, meshes.shardings(mesh, decoder.logical_axes(copy), copy, meshes.SAMPLER))
    prompt_cache, own_cache = cache_bytes(config, copy)
    sizes = roofline.Sizes(
        params=bytes_per_chip(program.params),
        trained=bytes_per_chip(state.params),
        optimizer=bytes_per_chip(state.opt_state),
        copy=bytes_per_chip(copy),
        gathered=bytes_per_chip(gathered(config, mesh, program.params)),
        gathered_trained=bytes_per_chip(gathered(config, mesh, state.params)),
        unread=0 if config.policy.tie_embeddings else bytes_per_chip(copy["embedding"]),
        prompt_cache=prompt_cache,
        own_cache=own_cache,
    )
    stays = {
        "parameters": sizes.params,
        "reference": bytes_per_chip((state.reference, state.initial)),
        "optimiser": sizes.optimizer,
    }

    held = state.pool, state.replay, state.regroup

    def parts(*batch, copy=0, cache=0):
        return stays | {
            "sampler": copy,
            "cache": cache,
            "batch": bytes_per_chip((tasks, state.buffer, state.starts, held, batch)),
        }

    if not domain.on_host:
        whole = {"iteration": (program.train, (constants, state))}
        return Plan(whole, {"iteration": parts(copy=sizes.copy, cache=prompt_cache + own_cache)}, sizes)

    key, instances, rollouts = _put(key, meshes.replicated(mesh)), _put(instances, rows), _put(rollouts, rows)
    blank = lambda tree: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
    grades = blank_grades(domain, blank(instances), blank(rollouts))
    grades = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), grades)

    def beside(function: Callable):
        """Let what a program does not use stay among its arguments: it is in memory all the same."""
        return jax.jit(function, keep_unused=True)

    cache = prompt_cache + own_cache
    if steps.turns:
        rollout = turn_plan(config, steps.turns, (constants, state, instances), copy, key)
    else:
        sample = beside(lambda constants, copy, _, *args: steps.sample(constants, copy, *args))
        rollout = {"rollout": (sample, (constants, copy, state, instances, key))}
    programs = {
        "select": (beside(lambda constants, state: steps.select(constants, state, ())), (constants, state)),
        "reshard": (
            beside(lambda constants, state, _: steps.reshard(constants, state.params)),
            (constants, state, instances),
        ),
        **rollout,
        "learn": (steps.learn, (constants, state, instances, rollouts, grades)),
    }
    if embed := steps.embed_solutions:
        read = beside(
            lambda constants, state, *batch: embed(constants, state.params, batch[-1].children, domain.max_tokens)
        )
        programs["embed"] = (read, programs["learn"][1])
    held = {
        "select": parts(),
        "reshard": parts(instances, copy=sizes.copy),
        **{name: parts(instances, copy=sizes.copy, cache=cache) for name in rollout},
        **{name: parts(instances, rollouts, grades) for name in ("embed", "learn")},
    }
    return Plan(programs, held, sizes)


def turn_plan(config: Config, turns: TurnPrograms, held: tuple, copy, key) -> dict[str, tuple[Any, tuple]]:
    """Return the programs of a turn: read the prompts of a lane, sample responses, read observations; the last in place.

    Args:
      held: what is in memory all the while; while one lane is sampled, the cache of the other is, too.
    """
    domain, group = domains.make(config.domain_name, config.domain), config.algorithm.group_size
    environment, instances, lanes = domain.environment, held[-1], num_lanes(config)
    assert environment is not None
    count = config.algorithm.num_prompts // lanes
    lane = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding),
        (instances.prompt, instances.prompt_length),
    )
    mesh = instances.prompt.sharding.mesh
    where = jax.jit(lambda cursor: shard_cursor(mesh, cursor)).lower(jax.eval_shape(turns.start, copy, *lane))
    cursor = _put(where.out_info, where.compile().output_shardings)
    others = (cursor,) * (lanes - 1)
    array = lambda kind, *more: jax.ShapeDtypeStruct((count, group, *more), kind)
    width = environment.max_observation + len(environment.generation_prompt)

    def in_place(function: Callable):
        return jax.jit(lambda copy, cursor, _, *args: function(copy, cursor, *args), donate_argnums=1, keep_unused=True)

    row = jax.ShapeDtypeStruct((), jnp.int32)
    read = jax.jit(lambda copy, _, *prompt: turns.start(copy, *prompt), keep_unused=True)
    beside = (held, others)
    return {
        "read": (read, (copy, beside, *lane)),
        "sample": (in_place(turns.generate), (copy, cursor, beside, key, array(bool), row)),
        "observe": (
            in_place(turns.extend),
            (copy, cursor, beside, array(jnp.int32, width), array(jnp.int32), array(bool)),
        ),
    }
