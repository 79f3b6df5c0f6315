"""Embeddings of a batch's responses, where the diversity bonus asks for others than the policy's own states."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.algorithm.prompts import piece
from exit_jax.config.schema import Config
from exit_jax.domains.domain import Domain
from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder
from exit_jax.step.device import Constants
from exit_jax.step.policy import decoder_config
from exit_jax.types import Array, History, Params, Rollouts


def make_embed(config: Config, domain: Domain, mesh: jax.sharding.Mesh) -> Callable[[Rollouts], np.ndarray] | None:
    """Return what embeds the responses of a batch by ``config.encoder``, as float32 [B, G, E]; None without one."""
    if not config.encoder.checkpoint:
        return None
    from exit_jax.embedding import embed

    texts = domain.texts
    if texts is None:
        raise ConfigError(
            f"encoder.checkpoint = {config.encoder.checkpoint!r}, but responses of the domain {config.domain_name} are no "
            'text; set it to ""'
        )
    encode = embed.make_embed(config.encoder, mesh)

    def embed_own(rollouts: Rollouts) -> np.ndarray:
        (tokens, mask), numbers = hosts.local_rows((rollouts.tokens, rollouts.mask))
        vectors = encode(texts(tokens, mask)).reshape(*mask.shape[:2], -1)
        return hosts.exchange_rows(vectors, numbers, rollouts.tokens.shape[0])

    return embed_own


def make_embed_solutions(config: Config, mesh: jax.sharding.Mesh) -> Callable[..., Array] | None:
    """Jit (constants, trained parameters, children [B, G, 1], width) -> what the policy makes of their solutions, [B, G, D].

    It is the mean of its final states, float32, over a solution that is read by itself; zeros for none. None where the
    diversity bonus does not ask for it.
    """
    if config.algorithm.diversity_embedding != "solution" or not config.algorithm.diversity_bonus:
        return None
    policy = decoder_config(config)

    def embed(constants: Constants, trained: Params, children: History, width: int) -> Array:
        params = decoder.cast(decoder.join(trained, constants.frozen), policy.dtype)

        def read(rows: History) -> Array:
            tokens, length = meshes.shard_batch(mesh, piece(rows, "solution", width))
            position = jnp.broadcast_to(jnp.arange(width), tokens.shape)
            mask = position < length[..., None]
            with meshes.use(mesh):
                hidden, _ = decoder.apply(policy, params, tokens, position, mask)
            total = jnp.where(mask[..., None], hidden.astype(jnp.float32), 0.0).sum(2)
            return total / jnp.maximum(length, 1)[..., None]

        num = config.run.num_microbatches
        rows = jax.tree.map(lambda leaf: leaf[:, :, 0].reshape(num, -1, *leaf.shape[1:2], *leaf.shape[3:]), children)
        states = jax.lax.map(read, rows)
        return states.reshape(-1, *states.shape[2:])

    return jax.jit(embed, static_argnums=3, out_shardings=meshes.by_row(mesh))
