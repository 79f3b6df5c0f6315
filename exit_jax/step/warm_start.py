"""The supervised warm start: one step over demonstrations."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from exit_jax.algorithm.grpo import moved_share
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.config.schema import Config
from exit_jax.domains.domain import Domain
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder, sampler
from exit_jax.step.optimizer import make_schedule
from exit_jax.step.policy import decoder_config
from exit_jax.types import Array, Metrics, Params, pytree


@pytree
class WarmState:
    """State of the supervised warm start."""

    params: Params
    opt_state: Any
    key: Array
    step: Array


def make_warm_step(config: Config, domain: Domain, mesh: jax.sharding.Mesh, optimizer: optax.GradientTransformation):
    """Return a supervised step: (frozen parameters, WarmState, a batch of demonstrations) -> WarmState, metrics."""
    policy, schedule = decoder_config(config), make_schedule(config.warm_start.optimizer)

    def warm_step(frozen: Params | None, state: WarmState, batch):
        history, mode, tokens, mask = meshes.shard_batch(mesh, batch)
        prompt, length = render_by_mode(domain.templates, history, mode, domain.prompt_width)

        def loss(trained):
            params = decoder.cast(decoder.join(trained, frozen), policy.dtype)
            with meshes.use(mesh):
                logp, _ = sampler.logprobs(policy, 1.0, config.run.token_chunk, params, prompt, length, tokens)
            return -jnp.where(mask, logp, 0.0).sum() / mask.sum()

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "warm_start/loss": value,
            "warm_start/learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "warm_start/params_moved": moved_share(state.params, params),
        }
        return WarmState(params, opt_state, state.key, state.step + 1), metrics

    return warm_step


def make_warm(
    config: Config, domain: Domain, mesh: jax.sharding.Mesh, optimizer: optax.GradientTransformation, shardings
) -> Callable[[Params | None, WarmState], tuple[WarmState, Metrics]]:
    """Jit (frozen parameters, WarmState) -> WarmState, metrics: ``run.steps_per_call`` steps, or one with demonstrations
    that the host makes.
    """
    warm_step, settings = make_warm_step(config, domain, mesh, optimizer), config.warm_start
    jit = functools.partial(jax.jit, donate_argnums=1, out_shardings=(shardings, meshes.replicated(mesh)))

    def demonstrate(state: WarmState):
        assert domain.demonstrations is not None  # `require_demonstrations` has seen to it
        return domain.demonstrations(state.key, state.step, settings.num_states, settings.group_size)

    @jit
    def several(frozen, state):
        step = lambda state, _: warm_step(frozen, state, demonstrate(state))
        return jax.lax.scan(step, state, length=config.run.steps_per_call)

    @jit
    def one(frozen, state, batch):
        state, metrics = warm_step(frozen, state, batch)
        return state, jax.tree.map(lambda value: value[None], metrics)

    if domain.on_host:
        return lambda frozen, state: one(frozen, state, demonstrate(state))
    return several
