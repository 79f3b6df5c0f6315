"""The jitted programs of an evaluation: the steps of chains, and the turns of evaluated episodes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from exit_jax import domains
from exit_jax.algorithm.prompts import Template, render, render_by_mode
from exit_jax.config.schema import Config, EvalConfig
from exit_jax.domains.domain import Domain
from exit_jax.evaluation.outcome import Chains, Table
from exit_jax.evaluation.scaffolds import chosen
from exit_jax.evaluation.scaffolds.archive import add, start, take
from exit_jax.evaluation.scaffolds.scaffold import chooser
from exit_jax.parallel import mesh as meshes
from exit_jax.parallel.settings import MeshConfig
from exit_jax.policy import sampler
from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.shape import DecoderConfig
from exit_jax.step.policy import decoder_config, evaluation_sampling, make_reshard
from exit_jax.step.turns import TurnPrograms, transcript_room, turn_programs
from exit_jax.types import BASE, IMPROVE, MODES, Array, Grades, History, Instances, Params, Rollouts


class Setup(NamedTuple):
    """What the programs of an evaluation depend on; evaluations of an equal one share them within a process."""

    domain_name: str
    fields: Any  # the domain's settings
    policy: DecoderConfig
    settings: EvalConfig
    mesh_config: MeshConfig

    @property
    def domain(self) -> Domain:
        """The domain, made once."""
        return domains.make(self.domain_name, self.fields)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh of devices."""
        return meshes.make_mesh(self.mesh_config)


def setup_of(config: Config) -> Setup:
    """Return what of a config its evaluation depends on."""
    return Setup(config.domain_name, config.domain, decoder_config(config), config.eval, config.run.mesh)


def sampling_key(config: Config) -> Array:
    """Return the root key of an evaluation, another one for each seed: a spread over seeds has the noise of sampling, too."""
    return jax.random.fold_in(jax.random.key(config.eval.seed), config.seed)


def record(
    domain: Domain, instances: Instances, rollouts: Rollouts, grades: Grades, node: Table
) -> tuple[History, Chains]:
    """Return the histories that responses to ``node`` [R] lead to [R], and the same as one row of ``Chains`` without them."""
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
        history=None,
        parent=node - 1,
    )
    return child, chains


class Responder(NamedTuple):
    """What the program of a response depends on: of a domain no more than its prompts and where responses end."""

    policy: DecoderConfig
    sampling: SamplingConfig
    templates: tuple[tuple[str, Template], ...]  # by mode
    width: int  # of prompts
    mesh: jax.sharding.Mesh


def responder_of(setup: Setup, improve: str = "improve") -> Responder:
    """Return what of a setup the program of a response depends on; other tasks with prompts of the same form share it.

    Args:
      improve: the mode whose prompt what holds a response is put by.
    """
    domain = setup.domain
    sampling = evaluation_sampling(setup.settings, domain, domain.max_tokens)
    fixed = lambda template: tuple(item if isinstance(item, str) else tuple(item) for item in template)
    prompts = {mode: domain.templates[improve if mode == "improve" else mode] for mode in MODES}
    templates = tuple((mode, fixed(template)) for mode, template in prompts.items())
    return Responder(setup.policy, sampling, templates, domain.prompt_width, setup.mesh)


@functools.lru_cache
def reshard(policy: DecoderConfig, mesh: jax.sharding.Mesh) -> Callable[[Params], Params]:
    """Jit what makes the sampler's parameters of the learner's."""
    return jax.jit(make_reshard(policy, mesh))


@functools.lru_cache
def respond(responder: Responder) -> Callable[[Params, History, Array, Array], tuple[Instances, Rollouts]]:
    """Jit (sampler_params, histories [R], key, k) -> instances and one response to each; the same for all scaffolds."""
    return jax.jit(_make_respond(responder), out_shardings=meshes.by_row(responder.mesh))


def _make_respond(responder: Responder) -> Callable[[Params, History, Array, Array], tuple[Instances, Rollouts]]:
    policy, sampling, templates, width, mesh = responder

    def respond_to(sampler_params: Params, history: History, key: Array, k: Array) -> tuple[Instances, Rollouts]:
        mode = jnp.where(history.step < 0, BASE, IMPROVE)
        prompt, length = render_by_mode(dict(templates), history, mode, width)
        step_key = jax.random.fold_in(key, k)
        with meshes.use(mesh):
            rollouts = sampler.sample(policy, sampling, 1, sampler_params, prompt, length, step_key)
        blank = jnp.zeros_like(mode, bool)
        return Instances(history, mode, blank, blank, prompt, length), rollouts

    return respond_to


@functools.lru_cache
def whole_chain(setup: Setup) -> Callable[[Params, History, Array, Array], tuple[Chains, Array]]:
    """Jit all steps of chains whose domain is graded on the device.

    It maps parameters, base tasks [R], a key and the place of a scaffold among those chosen to the chains [K + 1, R], and the
    share of logits that were finite at each k.
    """
    domain, mesh, settings = setup.domain, setup.mesh, setup.settings
    to_sampler, respond_to = make_reshard(setup.policy, mesh), _make_respond(responder_of(setup))
    choosers, num_responses = [chooser(settings, scaffold) for scaffold in chosen(settings)], max(settings.steps) + 1

    def whole(params: Params, tasks: History, key: Array, place: Array) -> tuple[Chains, Array]:
        tasks, sampler_params = meshes.shard_batch(mesh, tasks), to_sampler(params)

        def step(archive, k):
            node = jax.lax.switch(place, choosers, archive, key, k)
            instances, rollouts = respond_to(sampler_params, take(archive, node), key, k)
            child, chains = record(domain, instances, rollouts, domain.grade(instances, rollouts), node)
            archive = add(archive, node, child, chains.valid, chains.tokens, k)
            return archive, (chains, sampler.finite_share(rollouts))

        archive, (chains, finite) = jax.lax.scan(step, start(tasks, num_responses), jnp.arange(num_responses))
        by_response = jax.tree.map(lambda leaf: jnp.moveaxis(leaf[:, 1:], 1, 0), archive.history)
        return dataclasses.replace(chains, history=by_response), finite

    return jax.jit(whole, out_shardings=meshes.replicated(mesh))


@functools.lru_cache
def conversations(setup: Setup) -> Callable[[History], tuple[Array, Array]]:
    """Jit histories [R] of episodes -> the conversations so far int32 [R, P], and their lengths."""

    def context(history: History) -> tuple[Array, Array]:
        return render(("context",), history, setup.domain.prompt_width)

    return jax.jit(context, out_shardings=meshes.by_row(setup.mesh))


@functools.lru_cache
def turns(setup: Setup) -> TurnPrograms:
    """Jit the turns of evaluated episodes."""
    environment = setup.domain.test_environment
    assert environment is not None
    sampling = evaluation_sampling(setup.settings, setup.domain, environment.max_tokens)
    room = transcript_room(environment) + environment.max_ask + environment.max_tokens
    return turn_programs(setup.policy, sampling, setup.mesh, 1, room, may_reuse=False)
