"""Replay of whole groups (TRL's GRPOWithReplayBufferTrainer): those whose rewards differ take the places of those whose do not.

A group without variance has no advantage, and GRPO learns nothing from it. Groups that have some are kept, those of the highest
scores, with the advantages that they had and the log-probs that they were sampled with. The score is the sum of the group's
absolute advantages, times the standard deviation of its rewards. Those of a batch are added before any is drawn.
"""

import jax
import jax.numpy as jnp

from exit_jax.algorithm.draws import draw_by_weight
from exit_jax.algorithm.pool import Groups, blank, widened
from exit_jax.types import Array, KeptGroups, Metrics


def create(groups: Groups, size: int) -> KeptGroups:
    """Return places for ``size`` groups of the shapes of groups [B], which must be the widest there are."""
    return KeptGroups(blank(groups, size), jnp.zeros(size, jnp.float32))


def exchange(kept: KeptGroups, groups: Groups, key: Array) -> tuple[KeptGroups, Groups, Metrics]:
    """Keep those of groups [B] whose rewards differ, and put kept ones into the places of the others.

    Of equal scores the older stays. Where nothing is kept, nothing is replaced. Narrower arrays are padded with zeros.
    """
    differ = groups.reward.max(1) > groups.reward.min(1)
    groups = jax.tree.map(widened, groups, kept.groups)
    score = jnp.where(differ, jnp.abs(groups.advantage).sum(1) * groups.reward.std(1), 0.0)
    score, row = jax.lax.top_k(jnp.concatenate([kept.score, score]), kept.score.size)
    held = jax.tree.map(lambda old, new: jnp.concatenate([old, new])[row], kept.groups, groups)
    replaced = ~differ & (score > 0).any()
    drawn = draw(score, (~differ).sum(), differ.size, key)[jnp.cumsum(~differ) - 1]

    def put(new: Array, old: Array) -> Array:
        return jnp.where(replaced.reshape(-1, *(1,) * (new.ndim - 1)), old[drawn], new)

    metrics = {"regroup/replaced": replaced.mean(), "regroup/kept": (score > 0).sum()}
    return KeptGroups(held, score), jax.tree.map(put, groups, held), metrics


def draw(score: Array, count: Array, most: int, key: Array) -> Array:
    """Draw indices int32 [most] of which the first ``count`` are used, P(i) ∝ score[i] of float32 [K], none below 0.

    No index comes twice among the first ``count``, unless fewer scores are above 0: then each draw is by itself.
    """
    once_key, again_key = jax.random.split(key)
    # the highest of log P + Gumbel noise are draws without replacement, one after the other
    order = jax.lax.top_k(jnp.log(score) + jax.random.gumbel(once_key, score.shape), min(most, score.size))[1]
    once = jnp.pad(order, (0, most - order.size))
    return jnp.where(count <= (score > 0).sum(), once, draw_by_weight(score, again_key, most))
