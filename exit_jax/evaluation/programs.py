"""The jitted programs of an evaluation: the steps of chains, and the turns of evaluated episodes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from exit_jax import domains
from exit_jax.algorithm.prompts import render, render_by_mode
from exit_jax.config.schema import Config, EvalConfig
from exit_jax.domains.domain import Domain
from exit_jax.evaluation.outcome import Chains
from exit_jax.evaluation.scaffolds import chosen
from exit_jax.parallel import mesh as meshes
from exit_jax.parallel.mesh import MeshConfig
from exit_jax.policy import sampler
from exit_jax.policy.shape import DecoderConfig
from exit_jax.step.episodes import TurnPrograms
from exit_jax.step.policy import evaluation_sampling, make_reshard
from exit_jax.step.turns import transcript_room, turn_programs
from exit_jax.types import BASE, IMPROVE, Array, Grades, History, Instances, Params, Rollouts


@dataclasses.dataclass(frozen=True)
class ChainPrograms:
    """What a chain's step consists of, jitted; ``whole`` runs all steps where the domain is graded on the device."""

    reshard: Callable[[Params], Params]
    respond: Callable[[Params, History, Array, Array], tuple[Instances, Rollouts]]  # (sampler's copy, held, key, k)
    # (params, base tasks [R], key, place of the scaffold among those chosen) -> chains, finite_share at each k
    whole: Callable[[Params, History, Array, Array], tuple[Chains, Array]]


@dataclasses.dataclass(frozen=True)
class EpisodePrograms:
    """What evaluated episodes consist of, jitted."""

    reshard: Callable[[Params], Params]
    context: Callable[
        [History], tuple[Array, Array]
    ]  # histories [R] -> the conversations so far [R, P] and their lengths
    turns: TurnPrograms


def sampling_key(config: Config) -> Array:
    """Return the root key of an evaluation, another one for each seed: a spread over seeds has the noise of sampling, too."""
    return jax.random.fold_in(jax.random.key(config.eval.seed), config.seed)


def record(domain: Domain, instances: Instances, rollouts: Rollouts, grades: Grades) -> tuple[History, Chains]:
    """Return the histories that responses lead to [R], and the same as one row of ``Chains``."""
    history = instances.history
    child = jax.tree.map(lambda leaf: leaf[:, 0, 0], grades.children)
    chains = Chains(
        quality=child.quality,
        unchanged=(child.tokens == history.tokens).all(-1) & (history.step >= 0),
        valid=grades.valid[:, 0],
        complete=domain.complete(child) if domain.complete else jnp.zeros_like(child.quality, bool),
        tokens=rollouts.mask.sum((1, 2)),
        mode=instances.mode,
        notes={name: values[:, 0] for name, values in grades.notes.items()},
        history=child,
    )
    return child, chains


@functools.lru_cache
def chain_programs(
    domain_name: str, fields: Any, policy: DecoderConfig, settings: EvalConfig, mesh_config: MeshConfig
) -> ChainPrograms:
    """Jit the steps of a chain; the same for all splits, batches and scaffolds."""
    domain, mesh = domains.make(domain_name, fields), meshes.make_mesh(mesh_config)
    reshard, sampling = make_reshard(policy, mesh), evaluation_sampling(settings, domain, domain.max_tokens)
    scaffolds = chosen(settings)
    starts = [functools.partial(scaffold.start, settings) for scaffold in scaffolds]
    keeps = [scaffold.keep for scaffold in scaffolds]

    def respond(copy: Params, history: History, key: Array, k: Array):
        mode = jnp.where(history.step < 0, BASE, IMPROVE)
        prompt, length = render_by_mode(domain.templates, history, mode, domain.prompt_width)
        with meshes.use(mesh):
            rollouts = sampler.sample(policy, sampling, 1, copy, prompt, length, jax.random.fold_in(key, k))
        blank = jnp.zeros_like(mode, bool)
        return Instances(history, mode, blank, blank, prompt, length), rollouts

    def whole(params, tasks, key, place):
        tasks, copy = meshes.shard_batch(mesh, tasks), reshard(params)

        def step(held, k):
            begun = jax.lax.switch(place, starts, tasks, held, k)
            instances, rollouts = respond(copy, begun, key, k)
            child, chains = record(domain, instances, rollouts, domain.grade(instances, rollouts))
            return jax.lax.switch(place, keeps, begun, child), (chains, sampler.finite_share(rollouts))

        return jax.lax.scan(step, tasks, jnp.arange(max(settings.steps) + 1))[1]

    same, by_row = meshes.replicated(mesh), meshes.by_row(mesh)
    return ChainPrograms(
        reshard=jax.jit(reshard),
        respond=jax.jit(respond, out_shardings=by_row),
        whole=jax.jit(whole, out_shardings=same),
    )


@functools.lru_cache
def episode_programs(
    domain_name: str, fields: Any, policy: DecoderConfig, settings: EvalConfig, mesh_config: MeshConfig
) -> EpisodePrograms:
    """Jit the parts of evaluated episodes: the sampler's copy, the conversations so far, and a turn."""
    domain, mesh = domains.make(domain_name, fields), meshes.make_mesh(mesh_config)
    environment = domain.test_environment
    assert environment is not None
    sampling = evaluation_sampling(settings, domain, environment.max_tokens)
    room = transcript_room(environment) + environment.max_ask + environment.max_tokens

    def context(history: History) -> tuple[Array, Array]:
        return render(("context",), history, domain.prompt_width)

    return EpisodePrograms(
        reshard=jax.jit(make_reshard(policy, mesh)),
        context=jax.jit(context, out_shardings=meshes.by_row(mesh)),
        turns=turn_programs(policy, sampling, mesh, 1, room, may_reuse=False),
    )
