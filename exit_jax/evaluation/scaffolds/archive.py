"""What chains have sampled so far, as trees that scaffolds choose the next parent from."""

import jax
import jax.numpy as jnp

from exit_jax.evaluation.outcome import Table
from exit_jax.types import Array, History, pytree

CHOICES = 2**31 - 1  # folded into a batch's key for choices; the responses fold in their ordinals, from 0


@pytree
class Archive:
    """The tree of one chain: node 0 is the base task, node k + 1 the k-th response. N = K + 2 nodes.

    Shapes are those that a scaffold's ``choose`` sees; ``start`` and what it returns have the chains [R] in front of them.
    """

    history: History  # [N]; the base task, too, where a response is yet to come
    # float32 [N]: quality of a response; -inf where it is yet to come, and of a base task that holds no solution
    score: Array
    valid: Array  # bool [N]: a response that could be used
    tokens: Array  # int32 [N]: sampled for a response
    parent: (
        Array  # int32 [N]: node that a response started from; -1 for the base task and where a response is yet to come
    )
    lineage: Array  # bool [N, N]: [n, a] says whether a is n or what n goes back to; False where n is yet to come

    @property
    def responses(self) -> Array:
        """Which nodes are responses, bool [N]."""
        return self.parent >= 0

    @property
    def failing(self) -> Array:
        """Which nodes are responses that are invalid or of quality 0, bool [N]."""
        return self.responses & ~(self.valid & (self.score > 0))

    @property
    def good(self) -> Array:
        """Which nodes are the other responses, bool [N]."""
        return self.responses & ~self.failing

    @property
    def children(self) -> Array:
        """How many responses started from each node, int32 [N]."""
        return (self.parent[:, None] == jnp.arange(self.parent.size)[None]).sum(0)

    @property
    def depth(self) -> Array:
        """How many responses lead to each node, itself included, int32 [N]; 0 for the base task."""
        return self.lineage.sum(1) - 1

    @property
    def debug_depth(self) -> Array:
        """How many failing responses, one after the other, lead to each response, int32 [N]; AIDE's ``debug_depth``."""
        before = self.lineage & ~jnp.eye(self.parent.size, dtype=bool)
        last_sound = jnp.where(before & ~self.failing[None], self.depth[None], 0).max(1)
        return self.depth - 1 - last_sound

    def sum_below(self, values: Array) -> Array:
        """Return the sum of values [N] over each node and all that goes back to it, [N]."""
        return jnp.where(self.lineage, values[:, None], 0).sum(0)


def start(tasks: History, num_responses: int) -> Archive:
    """Return the archives of chains that have no response yet, from their base tasks [R]."""
    chains, nodes = tasks.step.shape[0], num_responses + 1
    full = lambda value, dtype: jnp.full((chains, nodes), value, dtype)
    return Archive(
        history=jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[:, None], nodes, axis=1), tasks),
        score=full(-jnp.inf, jnp.float32).at[:, 0].set(jnp.where(tasks.step >= 0, tasks.quality, -jnp.inf)),
        valid=full(False, bool),
        tokens=full(0, jnp.int32),
        parent=full(-1, jnp.int32),
        lineage=jnp.zeros((chains, nodes, nodes), bool).at[:, 0, 0].set(True),
    )


def take(archive: Archive, node: Table) -> History:
    """Return the histories [R] of one node [R] of each chain."""
    return jax.vmap(lambda history, n: jax.tree.map(lambda leaf: leaf[n], history))(archive.history, node)


def add(archive: Archive, node: Table, child: History, valid: Table, tokens: Table, k: Table) -> Archive:
    """Return the archives with the k-th responses, which started from ``node`` [R] and led to ``child`` [R]."""
    return jax.vmap(_add, in_axes=(0, 0, 0, 0, 0, None))(archive, node, child, valid, tokens, k)


def _add(archive: Archive, node: Table, child: History, valid: Table, tokens: Table, k: Table) -> Archive:
    """Do it for one chain."""
    at = k + 1
    itself = jnp.arange(archive.parent.size) == at
    return Archive(
        history=jax.tree.map(lambda leaf, new: leaf.at[at].set(new), archive.history, child),
        score=archive.score.at[at].set(child.quality),
        valid=archive.valid.at[at].set(valid),
        tokens=archive.tokens.at[at].set(tokens),
        parent=archive.parent.at[at].set(node),
        lineage=archive.lineage.at[at].set(archive.lineage[node] | itself),
    )


def draw(key: Array, among: Array) -> Array:
    """Return one of the nodes that ``among`` [N] has, each as likely, int32 []; any node where it has none."""
    return jax.random.categorical(key, jnp.where(among, 0.0, -jnp.inf))


def best(archive: Archive, among: Array) -> Array:
    """Return the best of the nodes that ``among`` [N] has, the oldest where they tie, int32 []; node 0 if it has none."""
    return jnp.argmax(jnp.where(among, archive.score, -jnp.inf))
