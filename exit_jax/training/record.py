"""What a run leaves of its task space for the report."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax import domains
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.config.schema import Config
from exit_jax.embedding import embed
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder
from exit_jax.step.policy import decoder_config, make_reshard
from exit_jax.step.program import make_program
from exit_jax.types import BASE, IMPROVE, History, Params, State
from exit_jax.workdir import identity


def record_buffer(config: Config, state: State, params: Params, workdir: pathlib.Path) -> None:
    """Write what the report shows of the task space: ``buffer_scores.json``, and embeddings in ``instances.npz``.

    The latter are of the final buffer's instances and of a sample of the solutions that training started from, by
    ``config.encoder``, or else as the mean of the final policy's hidden states over the prompt.
    """
    held = jax.device_get(state.buffer.history)
    full = held.id >= 0
    score, history = jax.device_get(state.buffer.score)[full], jax.tree.map(lambda leaf: leaf[full], held)
    starts = jax.device_get(state.starts)
    started = jax.tree.map(lambda leaf: leaf[starts.lot >= 0], starts.history)
    both = jax.tree.map(lambda *leaves: np.concatenate(leaves), history, started)  # one program embeds them
    embedding, start_embedding = np.split(embed_histories(config, params, both), [full.sum()])
    if not hosts.is_lead():
        return
    content = {"score": score.tolist(), "depth": (history.step + 1).tolist()}
    identity.write_json(workdir / "buffer_scores.json", content)
    mode = np.where(history.step < 0, BASE, IMPROVE)
    arrays = {"iteration": history.born, "step": history.step, "mode": mode, "embedding": embedding.astype(np.float16)}
    arrays |= {"start_task": started.task, "start_embedding": start_embedding.astype(np.float16)}
    with (workdir / "instances.npz").open("wb") as file:
        np.savez_compressed(file, **arrays)


def embed_histories(config: Config, params: Params, history: History) -> np.ndarray:
    """Return vectors float32 [n, E] of histories [n]; [0, 1] of none."""
    if not history.id.size:
        return np.zeros((0, 1), np.float32)
    domain, policy = domains.make(config.domain_name, config.domain), decoder_config(config)
    mesh = make_program(config).mesh
    if config.encoder.checkpoint and domain.decode:
        texts = [domain.decode(row[:length]) for row, length in zip(history.tokens, history.lengths.sum(-1))]
        return embed.make_embed(config.encoder, mesh)(texts)
    reshard = make_reshard(policy, mesh)

    @jax.jit
    def mean_hidden(sampler_params, history):
        mode = jnp.where(history.step < 0, BASE, IMPROVE)
        prompt, length = render_by_mode(domain.templates, history, mode, domain.prompt_width)
        position = jnp.broadcast_to(jnp.arange(domain.prompt_width), prompt.shape)
        mask = position < length[:, None]
        with meshes.use(mesh):
            hidden, _ = decoder.apply(policy, sampler_params, prompt[:, None], position[:, None], mask[:, None])
        total = jnp.where(mask[..., None], hidden[:, 0].astype(jnp.float32), 0.0).sum(1)
        return jax.lax.with_sharding_constraint(total / mask.sum(1, keepdims=True), meshes.replicated(mesh))

    sampler_params, size, count = jax.jit(reshard)(params), config.eval.batch_size, history.id.size
    batches = []
    for start in range(0, count, size):
        rows = np.resize(np.arange(start, min(start + size, count)), size)  # one width of batch, one program
        batch = jax.device_put(jax.tree.map(lambda leaf, rows=rows: leaf[rows], history), meshes.by_row(mesh))
        batches.append(np.asarray(mean_hidden(sampler_params, batch))[: count - start])
    return np.concatenate(batches)
