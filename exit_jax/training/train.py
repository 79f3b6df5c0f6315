"""Training: checkpoints, signals and metrics around the programs of a run."""

import contextlib
import functools
import logging
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax import domains
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.config import learning
from exit_jax.config.schema import WARM_START_DEPENDS_ON, Config
from exit_jax.domains.domain import GradingError
from exit_jax.embedding import embed
from exit_jax.errors import ConfigError, Interrupted
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder
from exit_jax.step.finite import NonFiniteError, explain
from exit_jax.step.programs import Flight, Given, decoder_config, make_program, make_reshard, tasks_digest
from exit_jax.types import BASE, IMPROVE, History, Params, State
from exit_jax.workdir import identity, inputs
from exit_jax.workdir.checkpoint import Checkpoints
from exit_jax.workdir.metrics import MetricsWriter, Progress, Watch

log = logging.getLogger(__name__)
MAX_FAULTS = 3  # iterations in a row in which grading failed


def run_loop(
    title: str,
    call,
    like,
    make: Callable[[], Any],
    total: int,
    config: Config,
    folder: pathlib.Path,
    metrics_dir: pathlib.Path,
    describe,
):
    """Call a program until ``state.step`` reaches ``total``: restore, write metrics, save, stop at a signal.

    Args:
      call: state -> (state, metrics [steps]); its argument is donated.
      like: shapes and shardings of the state; it is restored into them, or made by ``make`` where nothing is saved.
      folder: of the checkpoints. A run that is restored from there continues exactly.
      metrics_dir: where ``<title>.jsonl`` and the TensorBoard events go.
      describe: the last row of metrics -> a short note for the progress line.

    Raises:
      Interrupted: after SIGINT or SIGTERM in the loop, once the state is saved. Until it begins there is nothing to save, and
        signals act as usual.
      NonFiniteError: if logits are not finite before anything was learnt.
      ConfigError: if training diverges, what is saved is beyond ``total``, or calls of ``run.steps_per_call`` do not end there.
      GradingError: if grading failed as a whole MAX_FAULTS times in a row.
    """
    with contextlib.closing(Checkpoints(folder, config.run.keep_checkpoints)) as checkpoints:
        state = checkpoints.restore_latest(like)
        state = make() if state is None else state
        step, stop = int(state.step), 0
        if step == total:
            return state
        if step > total:
            raise ConfigError(
                f"{folder} holds step {step}, beyond the {total} that are asked for; set run.num_iterations to {step} or more, "
                "or choose another --workdir"
            )
        if (total - step) % config.run.steps_per_call:
            raise ConfigError(
                f"{title} resumes at step {step}, from where calls of run.steps_per_call = {config.run.steps_per_call} "
                f"do not end at {total}; go on with a divisor of {total - step}"
            )
        with (
            _catch_signals() as caught,
            contextlib.closing(checkpoints),  # here, so that no signal cuts the last of them off
            contextlib.closing(MetricsWriter(metrics_dir, title, step)) as writer,
        ):
            progress, watch = Progress(title, step, total), Watch(title)
            first_call, faults = step, 0
            while step < total and not stop:
                profiled = config.run.profile and step == first_call + config.run.steps_per_call
                started = time.monotonic()
                with jax.profiler.trace(str(metrics_dir / "profile")) if profiled else contextlib.nullcontext():
                    state, metrics = call(state)
                    metrics = jax.device_get(metrics)
                secs = time.monotonic() - started
                done = len(next(iter(metrics.values())))
                _require_finite(
                    title, step, metrics, untrained=title == "warm_start" or not config.warm_start.num_steps
                )
                watch.look(step + 1, metrics)
                row = writer.write(step + 1, metrics, _rates(config, metrics, done / secs))
                step += done
                faults = faults + 1 if row.get("grading_faults") else 0
                if faults == MAX_FAULTS:
                    raise GradingError(
                        f"{title} stopped at step {step}: in {faults} iterations in a row responses could not be graded (the "
                        "log above says why); mend that, and the same command goes on from the newest checkpoint"
                    )
                stop = hosts.agree(caught[0] if caught else 0)  # a signal to any host stops all of them here
                if step % config.run.checkpoint_every == 0 or step >= total or stop:
                    checkpoints.save(step, state)
                progress.update(step, describe(row))
        stop = stop or hosts.agree(caught[0] if caught else 0)  # one that came during the last save
    if stop:
        raise Interrupted(stop, title, step)
    return state


def _require_finite(title: str, step: int, metrics, untrained: bool) -> None:
    """Raise ConfigError if metrics of the steps after ``step`` say that the parameters are no longer finite.

    Raises:
      NonFiniteError: if they say so of the very first step of an ``untrained`` policy, which no update can have spoilt.
    """
    fine = {name: np.isfinite(metrics[name]) for name in ("warm_start/loss", "grad_norm") if name in metrics}
    if "finite_logits" in metrics:
        fine["finite_logits"] = metrics["finite_logits"] == 1.0
    if untrained and step == 0 and not all(fine[name][0] for name in fine if name != "grad_norm"):
        raise NonFiniteError
    for name, holds in fine.items():
        if not holds.all():
            raise ConfigError(
                f"{title} diverged by step {step + len(holds)}: {name} is not finite; a lower learning rate may help, in "
                "another --workdir"
            )


def _rates(config: Config, metrics, per_sec: float) -> dict[str, float]:
    rates = {"time/steps_per_sec": per_sec, "time/secs_per_step": 1.0 / per_sec}
    if "response_length" in metrics:
        rollouts = config.algorithm.num_prompts * config.algorithm.group_size
        rates["time/tokens_per_sec"] = per_sec * rollouts * float(metrics["response_length"].mean())
    if "time/device_wait_secs" in metrics:
        rates["time/device_wait_share"] = per_sec * float(metrics["time/device_wait_secs"].mean())
    return rates


@contextlib.contextmanager
def _catch_signals():
    """Collect SIGINT and SIGTERM in a list instead of dying; a second one acts as usual."""
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.getsignal(number) for number in signals}

        def handler(number, _):
            caught.append(number)
            for each in signals:
                signal.signal(each, before[each])

        for number in signals:
            signal.signal(number, handler)
    except ValueError:  # not the main thread, as in some notebooks: signals stay as they are
        yield caught
        return
    try:
        yield caught
    finally:
        for number in signals:
            signal.signal(number, before[number])


def first_seed(config: Config) -> int:
    """Return the seed of all that is before RL: fresh parameters, trained or frozen, and demonstrations."""
    return config.warm_start.seed if config.warm_start.seed >= 0 else config.seed


def untrained(config: Config) -> Params:
    """Return the parameters before any training, without adapters: fresh ones, or those of ``config.checkpoint``.

    Raises:
      ConfigError: if the checkpoint cannot be loaded.
    """
    program = make_program(config)
    if not config.checkpoint:
        return decoder.split_adapters(program.init_params(first_seed(config)))[1]
    from exit_jax.policy.hf.config import resolve
    from exit_jax.policy.hf.load import load

    where = jax.tree.map(lambda leaf: leaf.sharding, program.params)
    try:
        return load(resolve(config.checkpoint), decoder_config(config), where)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def frozen_params(config: Config) -> Params | None:
    """Return the parameters that are not trained: all but the adapters with LoRA, else None."""
    return untrained(config) if config.policy.lora.rank else None


def initial_params(config: Config) -> Params:
    """Return the parameters that are trained, as they are at first: fresh adapters with LoRA, else ``untrained``."""
    if not config.policy.lora.rank:
        return untrained(config)
    program = make_program(config)
    where = jax.tree.map(lambda leaf: leaf.sharding, program.state.params)
    fresh = jax.jit(lambda seed: decoder.split_adapters(program.init_params(seed))[0], out_shardings=where)
    return fresh(first_seed(config))


def warm_start(config: Config, workdir: pathlib.Path, frozen: Params | None) -> Params:
    """Return the parameters that RL starts to train: the initial ones, or those of the supervised phase.

    The phase is a run of its own, whose folder is named by a hash of what determines it; once finished, it serves every run
    that shares ``run.warm_start_dir``.
    """
    if not config.warm_start.num_steps:
        return initial_params(config)
    program, seed = make_program(config), first_seed(config)
    recipe = identity.scientific(config) | {"seed": seed, "warm_start.seed": -1}  # whichever of the two fields gave it
    recipe = {name: recipe[name] for name in recipe if name.partition(".")[0] in WARM_START_DEPENDS_ON}
    recipe["demonstrations"] = domains.make(config.domain_name, config.domain).demonstrations_id
    recipe["tasks"] = tasks_digest(config, "train")
    root = pathlib.Path(config.run.warm_start_dir or workdir / "warm_start").expanduser().absolute()
    folder = root / identity.digest(recipe)
    inputs.check(config, folder, any(folder.glob("checkpoints/*")), "run.warm_start_dir", of_run=False)
    with explain(config, lambda: untrained(config), None):
        state = run_loop(
            "warm_start",
            functools.partial(program.warm, frozen),
            program.warm_state,
            lambda: program.init_warm(initial_params(config), seed),
            config.warm_start.num_steps,
            config,
            folder / "checkpoints",
            folder,
            lambda row: f"loss {row['warm_start/loss']:.3f}",
        )
    return state.params


def landed(carry: State | Flight) -> State:
    """Return the state without a batch that is in flight."""
    return carry.state if isinstance(carry, Flight) else carry


def base_tasks(config: Config, split: str) -> History:
    """Return the device table of a split's base tasks, replicated on the run's mesh."""
    tasks = domains.make(config.domain_name, config.domain).tasks(split)
    return jax.device_put(tasks, meshes.replicated(make_program(config).mesh))


def restore_params(config: Config, workdir: pathlib.Path) -> Params | None:
    """Return all parameters of the newest policy that training left in the workdir, or None."""
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep=None)) as checkpoints:
        carry = checkpoints.restore_latest(make_program(config).carry)
    return None if carry is None else decoder.join(landed(carry).params, frozen_params(config))


def train(config: Config, workdir: pathlib.Path) -> tuple[State, Params]:
    """Train, or go on training, in ``workdir``; returns the final state and all parameters of its policy."""
    program = make_program(config)
    require_learnable(config)
    frozen = frozen_params(config)
    given = Given(base_tasks(config, "train"), frozen)
    with explain(config, lambda: untrained(config), None):
        carry = run_loop(
            "train",
            functools.partial(program.train, given),
            program.carry,
            lambda: program.begin(given, program.init(warm_start(config, workdir, frozen), config.seed)),
            config.run.num_iterations,
            config,
            workdir / "checkpoints",
            workdir,
            lambda row: f"quality {row['quality']:.3f}  depth {row['start_depth']:.1f}",
        )
    state = landed(carry)
    return state, decoder.join(state.params, frozen)


def require_learnable(config: Config) -> None:
    """Refuse a domain of which nothing could be learnt under this config, and warn of a buffer that this run never draws from.

    Raises:
      ConfigError: before anything is compiled.
    """
    if not config.run.num_iterations:
        return
    domain, a = domains.make(config.domain_name, config.domain), config.algorithm
    faults = learning.response_faults(config, (domain.environment or domain).max_tokens)
    num_tasks = domain.tasks("train").task.shape[0]
    has_children = a.self_iteration or domain.environment is not None
    unready, never = learning.buffer_fault(
        a, config.run.num_iterations, num_tasks, domain.num_children if has_children else 0
    )
    if faults or never:
        raise ConfigError("; ".join([*faults, *([unready] if never else [])]))
    if unready and hosts.is_lead():
        log.warning("%s", unready)


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
    if config.encoder.checkpoint and domain.decode:
        texts = [domain.decode(row[:length]) for row, length in zip(history.tokens, history.lengths.sum(-1))]
        return embed.make_embed(config.encoder, make_program(config).mesh)(texts)
    mesh = make_program(config).mesh
    reshard = make_reshard(policy, mesh)

    @jax.jit
    def mean_hidden(copy, history):
        mode = jnp.where(history.step < 0, BASE, IMPROVE)
        prompt, length = render_by_mode(domain.templates, history, mode, domain.prompt_width)
        position = jnp.broadcast_to(jnp.arange(domain.prompt_width), prompt.shape)
        mask = position < length[:, None]
        with meshes.use(mesh):
            hidden, _ = decoder.apply(policy, copy, prompt[:, None], position[:, None], mask[:, None])
        total = jnp.where(mask[..., None], hidden[:, 0].astype(jnp.float32), 0.0).sum(1)
        return jax.lax.with_sharding_constraint(total / mask.sum(1, keepdims=True), meshes.replicated(mesh))

    copy, size, count = jax.jit(reshard)(params), config.eval.batch_size, history.id.size
    batches = []
    for start in range(0, count, size):
        rows = np.resize(np.arange(start, min(start + size, count)), size)  # one width of batch, one program
        batch = jax.device_put(jax.tree.map(lambda leaf, rows=rows: leaf[rows], history), meshes.by_row(mesh))
        batches.append(np.asarray(mean_hidden(copy, batch))[: count - start])
    return np.concatenate(batches)
