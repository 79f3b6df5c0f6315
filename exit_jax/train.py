"""Training: the mesh, the compiled programs and the host loop around them."""

import contextlib
import dataclasses
import functools
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from exit_jax import config as configs
from exit_jax import domains
from exit_jax.algorithm.iteration import init_state, iterate, learn
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.algorithm.selection import select
from exit_jax.algorithm.types import Array, History, Metrics, Params, State, pytree
from exit_jax.checkpoint import Checkpoints
from exit_jax.config import Config, ConfigError, OptimizerConfig, RunConfig, StudyConfig
from exit_jax.domains.domain import Domain
from exit_jax.metrics import MetricsWriter, Progress
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder, sampler
from exit_jax.policy.decoder import DecoderConfig

make_domain = functools.lru_cache(domains.make)


class Interrupted(Exception):
    """A signal asked the run to stop, and its state was saved."""

    def __init__(self, signum: int, title: str, step: int):
        super().__init__(f"stopped at {title} step {step}; the same command resumes there")
        self.signum = signum


@pytree
class WarmState:
    """State of the supervised warm start."""

    params: Params
    opt_state: Any
    key: Array
    step: Array


@dataclasses.dataclass(frozen=True)
class Parts:
    """The pieces of an iteration, ready to be composed and jitted in one program or in several."""

    select: Callable[[History, State], Any]
    rollout: Callable[..., Any]
    grade: Callable[..., Any]
    learn: Callable[..., tuple[State, Metrics]]


def decoder_config(config: Config) -> DecoderConfig:
    """Return the policy's shape with the vocabulary of its domain."""
    return dataclasses.replace(config.policy, vocab_size=make_domain(config.domain_name, config.domain).vocab_size)


def make_optimizer(c: OptimizerConfig) -> optax.GradientTransformation:
    """Return Adam after global-norm clipping, with linear warm-up and, if asked for, cosine decay."""
    if c.decay_steps:
        rate = optax.warmup_cosine_decay_schedule(0.0, c.learning_rate, c.warmup_steps, c.decay_steps)
    else:
        rate = optax.linear_schedule(0.0, c.learning_rate, c.warmup_steps) if c.warmup_steps else c.learning_rate
    adam = optax.adamw(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay)
    return optax.chain(optax.clip_by_global_norm(c.max_grad_norm), adam)


def make_parts(config: Config, domain: Domain, mesh: jax.sharding.Mesh) -> Parts:
    """Bind settings, policy, domain and mesh into the four functions of ``algorithm.iteration.iterate``."""
    algorithm, policy = config.algorithm, decoder_config(config)
    sampling = sampler.SamplingConfig(domain.max_tokens, domain.stop_token, algorithm.temperature)
    shard = functools.partial(meshes.shard_batch, mesh)

    def rollout(params, instances, key):
        prompt, length = shard((instances.prompt, instances.prompt_length))
        return shard(sampler.sample(policy, sampling, algorithm.group_size, params, prompt, length, key))

    def logprobs(params, prompt, prompt_length, tokens):
        arrays = shard((prompt, prompt_length, tokens))
        return sampler.logprobs(policy, algorithm.temperature, params, *arrays)

    return Parts(
        select=functools.partial(select, algorithm, domain.templates, domain.prompt_width),
        rollout=rollout,
        grade=domain.grade,
        learn=functools.partial(learn, algorithm, logprobs, make_optimizer(config.optimizer)),
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run executes on the devices; one XLA program a field."""

    init_params: Callable[[int], Params]  # of a seed
    init_warm: Callable[[Params, int], WarmState]
    warm: Callable[[WarmState], tuple[WarmState, Metrics]]
    init: Callable[[Params, int], State]
    train: Callable[[History, State], tuple[State, Metrics]]


def make_program(config: Config) -> Program:
    """Jit the programs of a run; within a process, runs share them that differ in nothing that is compiled."""
    run = RunConfig(0, config.run.num_devices, config.run.steps_per_call, 1, 1, "", False)
    unnamed = dataclasses.replace(config, name="", variant="", seed=0, run=run, study=StudyConfig((), ()))
    return _make_program(unnamed)


@functools.lru_cache
def _make_program(config: Config) -> Program:
    mesh = meshes.make_mesh(config.run.num_devices)
    domain = make_domain(config.domain_name, config.domain)
    policy = decoder_config(config)
    parts = make_parts(config, domain, mesh)
    optimizer, warm_optimizer = make_optimizer(config.optimizer), make_optimizer(config.warm_start.optimizer)
    shard = functools.partial(meshes.shard_batch, mesh)
    jit = functools.partial(jax.jit, out_shardings=meshes.replicated(mesh))

    def warm_step(state: WarmState):
        key = jax.random.fold_in(state.key, state.step)
        batch = domain.demonstrations(key, config.warm_start.num_states, config.warm_start.group_size)
        history, mode, tokens, mask = shard(batch)
        prompt, length = render_by_mode(domain.templates, history, mode, domain.prompt_width)

        def loss(params):
            logp, _ = sampler.logprobs(policy, 1.0, params, prompt, length, tokens)
            return -jnp.where(mask, logp, 0.0).sum() / mask.sum()

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = warm_optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return WarmState(params, opt_state, state.key, state.step + 1), {"warm_start/loss": value}

    def key_of(seed, use: int):  # parameters, demonstrations and RL draw from keys of their own
        return jax.random.fold_in(jax.random.key(seed), use)

    def init_warm(params, seed):
        return WarmState(params, warm_optimizer.init(params), key_of(seed, 1), jnp.int32(0))

    def init(params, seed):
        return init_state(config.algorithm, params, optimizer.init(params), key_of(seed, 2), domain.history_width)

    def train_step(tasks: History, state: State):
        select = functools.partial(parts.select, tasks)
        return iterate(select, parts.rollout, parts.grade, parts.learn, state)

    def repeat(step, state):
        return jax.lax.scan(lambda state, _: step(state), state, length=config.run.steps_per_call)

    return Program(
        init_params=jit(lambda seed: decoder.init(policy, key_of(seed, 0))),
        init_warm=jit(init_warm),
        warm=jit(functools.partial(repeat, warm_step), donate_argnums=0),
        init=jit(init),
        train=jit(lambda tasks, state: repeat(functools.partial(train_step, tasks), state), donate_argnums=1),
    )


def run_loop(
    title: str, call, state, total: int, config: Config, folder: pathlib.Path, metrics_dir: pathlib.Path, describe
):
    """Call a program until ``state.step`` reaches ``total``: restore, write metrics, save, stop at a signal.

    Args:
      call: state -> (state, metrics [steps_per_call]); its argument is donated.
      folder: of the checkpoints. A run that is restored from there continues exactly.
      metrics_dir: where ``<title>.jsonl`` and the TensorBoard events go.
      describe: the last row of metrics -> a short note for the progress line.

    Raises:
      Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    checkpoints = Checkpoints(folder, config.run.keep_checkpoints)
    with contextlib.closing(checkpoints), _catch_signals() as caught:
        state = checkpoints.restore_latest(state) or state
        step = int(state.step)
        if step >= total:
            return state
        if (total - step) % config.run.steps_per_call:
            raise ConfigError(
                f"{title} resumes at step {step}, from where calls of run.steps_per_call = {config.run.steps_per_call} "
                f"do not end at {total}; go on with a divisor of {total - step}"
            )
        with contextlib.closing(MetricsWriter(metrics_dir, title, step)) as writer:
            progress = Progress(title, step, total)
            first_call = step
            while step < total and not caught:
                profiled = config.run.profile and step == first_call + config.run.steps_per_call
                started = time.monotonic()
                with jax.profiler.trace(str(metrics_dir / "profile")) if profiled else contextlib.nullcontext():
                    state, metrics = call(state)
                    metrics = jax.device_get(metrics)
                secs = time.monotonic() - started
                done = len(next(iter(metrics.values())))
                row = writer.write(step + 1, metrics, _rates(config, metrics, done / secs))
                step += done
                if step % config.run.checkpoint_every == 0 or step >= total or caught:
                    checkpoints.save(step, state)
                progress.update(step, describe(row))
        if caught:
            raise Interrupted(caught[0], title, step)
    return state


def _rates(config: Config, metrics, per_sec: float) -> dict[str, float]:
    rates = {"time/steps_per_sec": per_sec, "time/secs_per_step": 1.0 / per_sec}
    if "response_length" in metrics:
        rollouts = config.algorithm.num_prompts * config.algorithm.group_size
        rates["time/tokens_per_sec"] = per_sec * rollouts * float(metrics["response_length"].mean())
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


def warm_start(config: Config, workdir: pathlib.Path) -> Params:
    """Return the parameters that RL starts from: fresh ones, or those of the supervised phase.

    The phase is a run of its own, whose folder is named by a hash of what determines it; once finished, it serves every run
    that shares ``run.warm_start_dir``.
    """
    program = make_program(config)
    params = program.init_params(config.seed)
    if not config.warm_start.num_steps:
        return params
    recipe = configs.to_dict(config)
    recipe = {name: recipe[name] for name in ("seed", "policy", "warm_start", "domain_name")}
    recipe["demonstrations"] = make_domain(config.domain_name, config.domain).demonstrations_id
    root = pathlib.Path(config.run.warm_start_dir or workdir / "warm_start").expanduser().absolute()
    folder = root / configs.digest(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    state = run_loop(
        "warm_start",
        program.warm,
        program.init_warm(params, config.seed),
        config.warm_start.num_steps,
        config,
        folder / "checkpoints",
        folder,
        lambda row: f"loss {row['warm_start/loss']:.3f}",
    )
    return state.params


def base_tasks(config: Config, split: str) -> History:
    """Return the device table of a split's base tasks, replicated on the run's mesh."""
    tasks = make_domain(config.domain_name, config.domain).tasks(split)
    return jax.device_put(tasks, meshes.replicated(meshes.make_mesh(config.run.num_devices)))


def initial_state(config: Config, params: Params) -> State:
    """Return the state before the first iteration of RL."""
    return make_program(config).init(params, config.seed)


def restore(config: Config, workdir: pathlib.Path) -> State | None:
    """Return the newest state that training left in the workdir, or None."""
    with contextlib.closing(Checkpoints(workdir / "checkpoints", config.run.keep_checkpoints)) as checkpoints:
        program = make_program(config)
        return checkpoints.restore_latest(initial_state(config, program.init_params(config.seed)))


def train(config: Config, workdir: pathlib.Path) -> State:
    """Train, or go on training, in ``workdir``, and return the final state."""
    program = make_program(config)
    tasks = base_tasks(config, "train")
    return run_loop(
        "train",
        functools.partial(program.train, tasks),
        initial_state(config, warm_start(config, workdir)),
        config.run.num_iterations,
        config,
        workdir / "checkpoints",
        workdir,
        lambda row: f"quality {row['quality']:.3f}  depth {row['start_depth']:.1f}",
    )


def record_buffer(state: State, workdir: pathlib.Path) -> None:
    """Write scores and depths of the buffer's entries to ``buffer_scores.json``, for the report's histogram."""
    held = jax.device_get(state.buffer)
    full = held.history.id >= 0
    depth = held.history.step[full] + 1
    configs.write_json(workdir / "buffer_scores.json", {"score": held.score[full].tolist(), "depth": depth.tolist()})
