"""Selection: which instances the next iteration trains on (Algorithm 1, line "Selection"; ExIt §4.1)."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from exit_jax.algorithm import buffer as buffers
from exit_jax.algorithm import curricula, schedules, start_levels
from exit_jax.algorithm.buffer_draws import DRAWS
from exit_jax.algorithm.curricula.core import Units
from exit_jax.algorithm.method_settings import StartsConfig
from exit_jax.algorithm.prompts import Template, render_by_mode
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.algorithm.streams import stream
from exit_jax.types import BASE, DIVERGE, GENERATED, IMPROVE, Array, History, Instances, State

# (histories [B], level float32 [B], key) -> histories, and which of them could be started so
Start = Callable[[History, Array, Array], tuple[History, Array]]


def draw_base(root: Array, cursor: Array, count: int, num_tasks: int) -> Array:
    """Return the tasks int32 [count] at positions cursor, cursor + 1, ... of an endless series of shuffled epochs."""
    first_epoch = cursor // num_tasks
    num_epochs = -(-count // num_tasks) + 1  # as many as the batch can touch
    permutations = jax.vmap(lambda epoch: jax.random.permutation(stream(root, "epochs", epoch), num_tasks))(
        first_epoch + jnp.arange(num_epochs)
    )
    return permutations.reshape(-1)[cursor % num_tasks + jnp.arange(count)]


def select(
    config: ExItConfig,
    templates: Mapping[str, Template],
    prompt_width: int,
    tasks: History,
    state: State,
    in_flight: Sequence[Instances] = (),
    units: Units | None = None,
    start: Start | None = None,
) -> Instances:
    """Select B instances: a coin each of probability p for the buffer, else the next base task of the epoch.

    Every per-turn partial history is an entry of its own, so one draw selects history and turn prefix together. An
    instance that holds no response gets the plain prompt; of the others, drawn from the buffer, a share p_div diverges.

    Args:
      tasks: [M], the device table of base tasks.
      in_flight: batches that are drawn already, and not learnt from yet; their entries are no longer fresh.
      units: what a curriculum chooses base tasks by; None without one, where they come in shuffled epochs.
      start: (histories [B], level [B], key) -> the same, started with some of their gold solution, and which could be.
    """
    config = schedules.at(config, state.step)
    coin_key, slot_key, mode_key = jax.random.split(stream(state.key, "select", state.step), 3)
    count, buffer, num_tasks = config.num_prompts, state.buffer, tasks.task.shape[0]
    ready = buffers.filled(buffer).sum() >= config.min_buffer_size
    from_buffer = ready & (jax.random.uniform(coin_key, (count,)) < config.selection_prob)

    slot = DRAWS[config.selection](config, buffer, state.step, slot_key, count)
    nth_base = jnp.cumsum(~from_buffer) - 1  # the k-th base draw of the batch takes the k-th task after the cursor
    if units is None:
        task, never_trained = (
            draw_base(state.key, state.cursor, count, num_tasks),
            state.cursor + jnp.arange(count) < num_tasks,
        )
    else:
        task, never_trained = curricula.draw(config.curriculum, units, state.curriculum, state.key, state.step, count)
    task, never_trained = task[jnp.maximum(nth_base, 0)], never_trained[jnp.maximum(nth_base, 0)]

    at = lambda histories, place: jax.tree.map(lambda leaf: leaf[place], histories)
    history = replace_where(from_buffer, at(buffer.history, slot), at(tasks, task))
    origin = None
    if start:
        started = start_base_tasks(config.starts, start, state, history)
        # a task that was made just now has no other form
        history, origin = started, replace_where(started.task >= GENERATED, started, history)
    diverges = from_buffer & (jax.random.uniform(mode_key, (count,)) < config.divergence_prob)
    mode = jnp.where(history.step < 0, BASE, jnp.where(diverges, DIVERGE, IMPROVE))
    never_drawn = (buffer.num_draws[slot] == 0) & ~buffers.is_base_task(history)
    for drawn in in_flight:
        never_drawn = never_drawn & ~(history.id[:, None] == drawn.history.id[None]).any(1)
    prompt, length = render_by_mode(templates, history, mode, prompt_width)
    plain = (
        render_by_mode(templates, origin, mode, prompt_width) if origin is not None and config.starts.forget else None
    )
    return Instances(
        history=history,
        mode=mode,
        from_buffer=from_buffer,
        fresh=jnp.where(from_buffer, never_drawn, never_trained),
        prompt=prompt,
        prompt_length=length,
        origin=origin,
        learnt_prompt=plain,
    )


def start_base_tasks(config: StartsConfig, start: Start, state: State, history: History) -> History:
    """Start the base tasks among histories [B] at their levels."""
    level_key, start_key = jax.random.split(stream(state.key, "start_levels", state.step))
    level = start_levels.draw(config, state.start_level, history.task, state.step, level_key)
    return start(history, jnp.where(buffers.is_base_task(history), level, 0.0), start_key)[0]


def replace_where(where: Array, new: History, old: History) -> History:
    """Return the new histories [B] where ``where``, else the old ones."""
    rows = lambda leaf: where.reshape(where.shape + (1,) * (leaf.ndim - 1))
    return jax.tree.map(lambda new, old: jnp.where(rows(new), new, old), new, old)
