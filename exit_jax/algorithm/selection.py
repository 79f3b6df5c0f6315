"""Selection: which instances the next iteration trains on (Algorithm 1, line "Selection"; ExIt §4.1)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from exit_jax.algorithm import buffer as buffers
from exit_jax.algorithm.prompts import Template, render_by_mode
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import BASE, DIVERGE, IMPROVE, Array, History, Instances, State, TaskBuffer

STREAMS = ("select", "sample", "expand", "epochs", "starts", "curriculum", "clip_cov")


def stream(root: Array, name: str, index: Array | int) -> Array:
    """Return the PRNG key of one named stream at one iteration (or epoch); independent of all others."""
    return jax.random.fold_in(jax.random.fold_in(root, index), STREAMS.index(name))


def draw_base(root: Array, cursor: Array, count: int, num_tasks: int) -> Array:
    """Return the tasks int32 [count] at positions cursor, cursor + 1, ... of an endless series of shuffled epochs."""
    first_epoch = cursor // num_tasks
    num_epochs = -(-count // num_tasks) + 1  # as many as the batch can touch
    permutations = jax.vmap(lambda epoch: jax.random.permutation(stream(root, "epochs", epoch), num_tasks))(
        first_epoch + jnp.arange(num_epochs)
    )
    return permutations.reshape(-1)[cursor % num_tasks + jnp.arange(count)]


def draw_buffer(config: ExItConfig, buffer: TaskBuffer, key: Array, count: int) -> Array:
    """Draw slots int32 [count], with replacement, P(i) ∝ exp(κ S_i) over the filled slots (uniform if so configured).

    One softmax and a binary search a draw. An empty buffer gives the last slot, which the caller must not use.
    """
    temperature = config.score_temperature if config.selection == "softmax" else 0.0
    full = buffers.filled(buffer)
    logits = jnp.where(full, temperature * jnp.where(full, buffer.score, 0.0), -jnp.inf)
    weight = jnp.where(full, jnp.exp(logits - jnp.where(full.any(), logits.max(), 0.0)), 0.0)
    # a parallel sum may grow by an ulp over slots of zero weight, which must stay out of reach
    cumulative = jax.lax.cummax(jnp.where(full, jnp.cumsum(weight), 0.0))
    target = jax.random.uniform(key, (count,)) * cumulative[-1]
    target = jnp.minimum(target, jnp.nextafter(cumulative[-1], 0.0))  # u · total may round up to the total
    slot = jnp.searchsorted(cumulative, target, side="right")  # right: slots of zero weight are passed over
    return jnp.clip(slot, 0, buffer.score.size - 1).astype(jnp.int32)


def select(
    config: ExItConfig,
    templates: Mapping[str, Template],
    prompt_width: int,
    tasks: History,
    state: State,
    in_flight: Instances | None = None,
) -> Instances:
    """Select B instances: a coin each of probability p for the buffer, else the next base task of the epoch.

    Every per-turn partial history is an entry of its own, so one draw selects history and turn prefix together. An
    instance that holds no response gets the plain prompt; of the others, drawn from the buffer, a share p_div diverges.

    Args:
      tasks: [M], the device table of base tasks.
      in_flight: a batch that is drawn already, and not learnt from yet; its entries are no longer fresh.
    """
    coin_key, slot_key, mode_key = jax.random.split(stream(state.key, "select", state.step), 3)
    count, buffer, num_tasks = config.num_prompts, state.buffer, tasks.task.shape[0]
    ready = buffers.filled(buffer).sum() >= config.min_buffer_size
    from_buffer = ready & (jax.random.uniform(coin_key, (count,)) < config.selection_prob)

    slot = draw_buffer(config, buffer, slot_key, count)
    nth_base = jnp.cumsum(~from_buffer) - 1  # the k-th base draw of the batch takes the k-th task after the cursor
    task = draw_base(state.key, state.cursor, count, num_tasks)[jnp.maximum(nth_base, 0)]

    def choose(held, base):
        rows = from_buffer.reshape((count,) + (1,) * (held.ndim - 1))
        return jnp.where(rows, held[slot], base[task])

    history = jax.tree.map(choose, buffer.history, tasks)
    diverges = from_buffer & (jax.random.uniform(mode_key, (count,)) < config.divergence_prob)
    mode = jnp.where(history.step < 0, BASE, jnp.where(diverges, DIVERGE, IMPROVE))
    first_epoch = state.cursor + nth_base < num_tasks
    never_drawn = (buffer.num_draws[slot] == 0) & ~buffers.is_base_task(history)
    if in_flight is not None:
        never_drawn = never_drawn & ~(history.id[:, None] == in_flight.history.id[None]).any(1)
    prompt, length = render_by_mode(templates, history, mode, prompt_width)
    return Instances(
        history=history,
        mode=mode,
        from_buffer=from_buffer,
        fresh=jnp.where(from_buffer, never_drawn, first_epoch),
        prompt=prompt,
        prompt_length=length,
    )
