"""Rounds: several iterations sample without an update, then all that was admitted is learnt from (STaR, ReST-EM).

STaR (arXiv 2203.14465) and ReST-EM (arXiv 2312.06585) collect right responses, then maximise their likelihood, each time from
the parameters of the very beginning, and sample the next round with what came of it. Here a round is learnt from in batches of
B groups, ``num_epochs`` times, in an order that is drawn anew each time. The objective and the admission are the run's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from exit_jax.algorithm import pool as pools
from exit_jax.algorithm.grpo import mix_reference
from exit_jax.algorithm.pool import Groups, Policy
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.algorithm.streams import stream
from exit_jax.types import Array, Instances, Metrics, Pool, State

BASE, LAST = "base", "last"


def at_most(right: Array, most: int) -> Array:
    """Return the first ``most`` right responses of each group, bool [B, G]; all for 0."""
    return right & (jnp.cumsum(right, axis=1) <= most) if most else right


def improve(
    optimizer: optax.GradientTransformation,
    config: ExItConfig,
    update: Callable[..., Any],
    state: State,
    instances: Instances,
    groups: Groups,
) -> tuple[Policy, Pool, Metrics]:
    """Add the groups that are admitted to the round; at its end learn from all of it, if there is any, and empty it.

    Args:
      update: ``grpo.update`` of this run, with an epoch for each batch.
      instances: whose prompts the groups have.
    """
    admitted, told = pools.admit(config, groups)
    pool, policy = pools.add(state.pool, groups, admitted), (state.params, state.reference, state.opt_state)
    over = (state.step + 1) % config.rounds.iterations == 0
    due, per_epoch = over & (pool.count > 0), -(-pool.count // config.num_prompts)
    key = stream(state.key, "rounds", state.step)

    def one_batch(policy: Policy, number: Array) -> tuple[Policy, Metrics]:
        epoch, batch = number // per_epoch, number % per_epoch
        row, there = batch_of(pool.count, pool.groups.advantage.shape[0], config.num_prompts, batch, key, epoch)
        chosen = jax.tree.map(lambda leaf: leaf[row], pool.groups)
        return pools.learn_from(update, policy, instances, chosen, there)

    idle = jax.eval_shape(one_batch, policy, jnp.int32(0))[1]

    def learn(policy: Policy) -> tuple[Policy, Metrics]:
        if config.rounds.restart == BASE:
            policy = state.initial, policy[1], optimizer.init(state.initial)
        count = config.num_epochs * per_epoch

        def step(number: Array, carry: tuple[Policy, Metrics]) -> tuple[Policy, Metrics]:
            policy, total = carry
            policy, metrics = one_batch(policy, number)
            return policy, jax.tree.map(jnp.add, total, metrics)

        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), idle)
        (params, reference, opt_state), total = jax.lax.fori_loop(0, count, step, (policy, nothing))
        number = pool.updates + 1
        reference = mix_reference(reference, params, number, config.reference_every, config.reference_mix)
        return (params, reference, opt_state), jax.tree.map(lambda leaf: leaf / count, total)

    policy, metrics = jax.lax.cond(due, learn, lambda policy: (policy, pools.nothing_learnt(idle)), policy)
    pool = Pool(pool.groups, jnp.where(over, 0, pool.count), pool.updates + due)
    return policy, pool, metrics | told | {"pool/waiting": pool.count, "pool/updates": pool.updates}


def batch_of(count: Array, size: int, batch_size: int, batch: Array, key: Array, epoch: Array) -> tuple[Array, Array]:
    """Return the places int32 [batch_size] of a batch of an epoch over the first ``count`` of ``size``, and which are there.

    Each of them is in one batch of the epoch; the last batch has those that are left, and places that stand for none.
    """
    priority = jax.random.uniform(jax.random.fold_in(key, epoch), (size,))
    order = jnp.argsort(jnp.where(jnp.arange(size) < count, priority, 2.0))
    place = batch * batch_size + jnp.arange(batch_size)
    return order[jnp.minimum(place, size - 1)].astype(jnp.int32), place < count
