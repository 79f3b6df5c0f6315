"""The pool in which admitted groups wait until there is a batch of them, and the update that learns from it, or at once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from exit_jax.algorithm.admission import ADMISSIONS
from exit_jax.algorithm.grpo import mix_reference
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import Array, Instances, Metrics, Params, Pool, Rollouts, State, pytree


@pytree
class Groups:
    """What is learnt from: groups of rollouts [B] with what is known of them."""

    prompt: Array  # int32 [B, P]
    prompt_length: Array  # int32 [B]
    rollouts: Rollouts  # without hidden states
    advantage: Array  # float32 [B, G]
    reward: Array  # float32 [B, G]
    right: Array  # bool [B, G]

    @classmethod
    def of(cls, instances: Instances, rollouts: Rollouts, advantage: Array, reward: Array, right: Array) -> "Groups":
        """Return a batch's."""
        prompt, rollouts = instances.prompt, dataclasses.replace(rollouts, hidden=None)
        return cls(prompt, instances.prompt_length, rollouts, advantage, reward, right)


Policy = tuple[Params, Params, optax.OptState]  # what an update changes: parameters, reference, state of the optimiser


def improve(
    config: ExItConfig, update: Callable[..., Any], state: State, instances: Instances, groups: Groups
) -> tuple[Policy, Pool | None, Metrics]:
    """Learn from the groups that are admitted, at once or when there are B of them.

    Args:
      update: ``grpo.update`` of this run.
      instances: whose prompts the groups have.
    """
    admitted, told = admit(config, groups)
    policy = state.params, state.reference, state.opt_state

    def learn(policy: Policy, groups: Groups, number: Array, admitted: Array | None) -> tuple[Policy, Metrics]:
        (params, reference, opt_state), metrics = learn_from(update, policy, instances, groups, admitted)
        reference = mix_reference(reference, params, number, config.reference_every, config.reference_mix)
        return (params, reference, opt_state), metrics

    if state.pool is None:
        policy, metrics = learn(policy, groups, state.step + 1, admitted if told else None)
        return policy, None, metrics | told
    pool = add(state.pool, groups, admitted)
    whole = lambda policy: learn(policy, first_batch(pool), pool.updates + 1, None)
    idle = jax.eval_shape(whole, policy)[1]
    ready = pool.count >= config.num_prompts
    policy, metrics = jax.lax.cond(ready, whole, lambda policy: (policy, nothing_learnt(idle)), policy)
    pool = after_learning(pool, ready)
    return policy, pool, metrics | told | {"pool/waiting": pool.count, "pool/updates": pool.updates}


def admit(config: ExItConfig, groups: Groups) -> tuple[Array, Metrics]:
    """Return which groups may be learnt from, bool [B], and their share, where it is not all of them by rule."""
    admitted = ADMISSIONS[config.admission](config, groups.reward)
    return admitted, {} if config.admission == "all" else {"admitted": admitted.mean()}


def learn_from(
    update: Callable[..., Any], policy: Policy, instances: Instances, groups: Groups, admitted: Array | None
) -> tuple[Policy, Metrics]:
    """Return the policy after an update by those of groups [B] that are admitted, all where that is None."""
    params, reference, opt_state = policy
    params, opt_state, metrics = update(
        params=params,
        reference=reference,
        opt_state=opt_state,
        instances=dataclasses.replace(instances, prompt=groups.prompt, prompt_length=groups.prompt_length),
        rollouts=groups.rollouts,
        advantage=groups.advantage,
        reward=groups.reward,
        right=groups.right,
        admitted=admitted,
    )
    return (params, reference, opt_state), metrics


def blank(groups: Groups, size: int) -> Groups:
    """Return ``size`` groups of zeros, of the shapes of groups [B], which must be the widest there are."""
    return jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape[1:]), leaf.dtype), groups)


def create(groups: Groups, batches: int = 2) -> Pool:
    """Return an empty pool with places for so many batches of groups [B], whose shapes must be the widest there are."""
    return Pool(blank(groups, batches * groups.advantage.shape[0]), jnp.int32(0), jnp.int32(0))


def widened(new: Array, held: Array) -> Array:
    """Return an array [n, ...] padded with zeros to the trailing dimensions of another [m, ...]."""
    missing = [(0, 0), *((0, wide - narrow) for wide, narrow in zip(held.shape[1:], new.shape[1:], strict=True))]
    return jnp.pad(new, missing)


def add(pool: Pool, groups: Groups, admitted: Array) -> Pool:
    """Append the admitted ones of groups [B] to a pool with B places left; narrower arrays are padded with zeros."""
    size = pool.groups.advantage.shape[0]
    place = pool.count + jnp.cumsum(admitted, dtype=jnp.int32) - 1

    def put(held: Array, new: Array) -> Array:
        return held.at[jnp.where(admitted, place, size)].set(widened(new, held), mode="drop")

    groups = jax.tree.map(put, pool.groups, groups)
    return dataclasses.replace(pool, groups=groups, count=pool.count + admitted.sum(dtype=jnp.int32))


def first_batch(pool: Pool) -> Groups:
    """Return the B groups that have waited longest."""
    return jax.tree.map(lambda leaf: leaf[: leaf.shape[0] // 2], pool.groups)


def after_learning(pool: Pool, learnt: Array) -> Pool:
    """Return the pool without its first B groups if they were learnt from."""
    half = pool.groups.advantage.shape[0] // 2
    groups = jax.tree.map(lambda leaf: jnp.where(learnt, jnp.roll(leaf, -half, axis=0), leaf), pool.groups)
    return Pool(groups, jnp.where(learnt, pool.count - half, pool.count), pool.updates + learnt)


def nothing_learnt(metrics: Any) -> Any:
    """Return the metrics of an iteration that only adds to the pool: NaN, but for what did not happen, which is 0."""
    happened = ("grad_norm", "params_moved")
    return {name: jnp.full(m.shape, 0.0 if name in happened else jnp.nan, m.dtype) for name, m in metrics.items()}
