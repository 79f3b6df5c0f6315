"""Training: the mesh, the compiled programs and the host loop around them."""

import contextlib
import dataclasses
import functools
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from exit_jax import config as configs
from exit_jax import domains
from exit_jax.algorithm.iteration import init_state, iterate, learn
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.algorithm.selection import select, stream
from exit_jax.algorithm.types import Array, Grades, History, Instances, Metrics, Params, Rollouts, State, pytree
from exit_jax.checkpoint import Checkpoints
from exit_jax.config import Config, ConfigError, OptimizerConfig, StudyConfig
from exit_jax.domains.domain import Domain, blank_grades
from exit_jax.metrics import MetricsWriter, Progress
from exit_jax.parallel import hosts
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


@pytree
class Given:
    """What a run is given and does not change."""

    tasks: History  # [M]: the training split's base tasks
    frozen: Params | None  # parameters that are not trained; None without LoRA


@dataclasses.dataclass(frozen=True)
class Parts:
    """The pieces of an iteration, ready to be composed and jitted in one program or in several."""

    select: Callable[[State], Instances]
    reshard: Callable[[Params], Params]  # of the learner to the sampler's form of the policy
    rollout: Callable[[Params, Instances, Array], Rollouts]
    learn: Callable[[State, Instances, Rollouts, Grades], tuple[State, Metrics]]


def decoder_config(config: Config) -> DecoderConfig:
    """Return the policy's shape with the vocabulary of its domain, unless it has a larger one.

    Raises:
      ConfigError: if the policy's vocabulary is smaller than the domain's.
    """
    needed = make_domain(config.domain_name, config.domain).vocab_size
    size = config.policy.vocab_size or needed
    if size < needed:
        raise ConfigError(
            f"policy.vocab_size = {size}, but the domain {config.domain_name} has {needed} tokens; take a checkpoint that "
            "matches the domain's tokenizer"
        )
    return dataclasses.replace(config.policy, vocab_size=size)


def split_params(config: Config, params: Params) -> tuple[Params, Params | None]:
    """Split parameters into those that are trained and those that are frozen, None without LoRA."""
    return decoder.split_adapters(params) if config.policy.lora.rank else (params, None)


def make_optimizer(c: OptimizerConfig) -> optax.GradientTransformation:
    """Return the optimiser after global-norm clipping, with linear warm-up and, if asked for, cosine decay."""
    if c.decay_steps:
        rate = optax.warmup_cosine_decay_schedule(0.0, c.learning_rate, c.warmup_steps, c.decay_steps)
    else:
        rate = optax.linear_schedule(0.0, c.learning_rate, c.warmup_steps) if c.warmup_steps else c.learning_rate
    optimizer = {
        "adamw": lambda: optax.adamw(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay),
        "lion": lambda: optax.lion(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay),
        "adafactor": lambda: optax.adafactor(rate, weight_decay_rate=c.weight_decay or None),
    }[c.kind]()
    return optax.chain(optax.clip_by_global_norm(c.max_grad_norm), optimizer)


def sampling_config(config: Config, domain: Domain) -> sampler.SamplingConfig:
    """Return how training samples."""
    cut = config.sampling
    return sampler.SamplingConfig(
        domain.max_tokens,
        domain.stop_tokens,
        config.algorithm.temperature,
        cut.top_k,
        cut.top_p,
        cut.min_p,
        cut.min_tokens,
        domain.stop_sequences,
    )


def make_reshard(policy: DecoderConfig, mesh: jax.sharding.Mesh) -> Callable[[Params], Params]:
    """Return what makes the sampler's copy: adapters merged, cast, a tuple of layers, split by the sampler's rules."""

    def reshard(params: Params) -> Params:
        merged = decoder.cast(decoder.merge_adapters(policy, params), policy.dtype)
        params = decoder.unstack(policy, merged)
        where = meshes.shardings(mesh, decoder.logical_axes(params), params, meshes.SAMPLER)
        return jax.lax.with_sharding_constraint(params, where)

    return reshard


def make_parts(config: Config, domain: Domain, mesh: jax.sharding.Mesh, given: Given) -> Parts:
    """Bind settings, policy, domain and mesh into the functions of ``algorithm.iteration.iterate``."""
    algorithm, policy = config.algorithm, decoder_config(config)
    sampling, plain = sampling_config(config, domain), decoder.without_adapters(policy)
    shard = functools.partial(meshes.shard_batch, mesh)
    reshard = make_reshard(policy, mesh)

    def rollout(params, instances, key):
        prompt, length = shard((instances.prompt, instances.prompt_length))
        with meshes.use(mesh):
            return shard(sampler.sample(plain, sampling, algorithm.group_size, params, prompt, length, key))

    def logprobs(trained, prompt, prompt_length, tokens):
        params = decoder.cast(decoder.join(trained, given.frozen), policy.dtype)
        arrays = shard((prompt, prompt_length, tokens))
        with meshes.use(mesh):
            return sampler.logprobs(policy, algorithm.temperature, config.run.token_chunk, params, *arrays)

    optimizer = make_optimizer(config.optimizer)
    return Parts(
        select=functools.partial(select, algorithm, domain.templates, domain.prompt_width, given.tasks),
        reshard=lambda trained: reshard(decoder.join(trained, given.frozen)),
        rollout=rollout,
        learn=functools.partial(learn, algorithm, logprobs, optimizer, config.run.num_microbatches, domain.max_tokens),
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run executes on the devices; one XLA program a field, or several for a domain that is graded on the host."""

    mesh: jax.sharding.Mesh
    params: Params  # shapes, dtypes and shardings of all parameters
    state: State  # the same of the state that is trained
    warm_state: WarmState
    init_params: Callable[[int], Params]  # of a seed
    init_warm: Callable[[Params, int], WarmState]
    warm: Callable[[Params | None, WarmState], tuple[WarmState, Metrics]]
    init: Callable[[Params, int], State]
    train: Callable[[Given, State], tuple[State, Metrics]]
    steps: "StepPrograms"  # the same iteration in parts, which are traced and compiled only where they are called


def shared(config: Config) -> Config:
    """Return the config without what changes no compiled program; within a process, runs share the programs of equal ones."""
    r = config.run
    run = dataclasses.replace(
        r,
        num_iterations=0,
        checkpoint_every=1,
        keep_checkpoints=1,
        warm_start_dir="",
        export_dtype="",
        profile=False,
    )
    return dataclasses.replace(config, name="", variant="", seed=0, checkpoint="", run=run, study=StudyConfig((), ()))


def make_program(config: Config, devices: Sequence[Any] | None = None) -> Program:
    """Jit the programs of a run, for the first devices, or for ``devices`` of a topology that is only compiled for."""
    return _make_program(shared(config), devices and tuple(devices))


@functools.lru_cache
def _make_program(config: Config, devices: tuple[Any, ...] | None) -> Program:
    mesh = meshes.make_mesh(config.run.mesh, devices)
    domain = make_domain(config.domain_name, config.domain)
    policy = decoder_config(config)
    optimizer, warm_optimizer = make_optimizer(config.optimizer), make_optimizer(config.warm_start.optimizer)
    shard = functools.partial(meshes.shard_batch, mesh)

    def warm_step(frozen: Params | None, state: WarmState):
        key = jax.random.fold_in(state.key, state.step)
        batch = domain.demonstrations(key, config.warm_start.num_states, config.warm_start.group_size)
        history, mode, tokens, mask = shard(batch)
        prompt, length = render_by_mode(domain.templates, history, mode, domain.prompt_width)

        def loss(trained):
            params = decoder.cast(decoder.join(trained, frozen), policy.dtype)
            with meshes.use(mesh):
                logp, _ = sampler.logprobs(policy, 1.0, config.run.token_chunk, params, prompt, length, tokens)
            return -jnp.where(mask, logp, 0.0).sum() / mask.sum()

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = warm_optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return WarmState(params, opt_state, state.key, state.step + 1), {"warm_start/loss": value}

    def key_of(seed, use: int):  # parameters, demonstrations and RL draw from keys of their own
        return jax.random.fold_in(jax.random.key(seed), use)

    def init_params(seed):
        return decoder.init(policy, key_of(seed, 0))

    def init_warm(params, seed):
        return WarmState(params, warm_optimizer.init(params), key_of(seed, 1), jnp.int32(0))

    def init(params, seed):
        return init_state(config.algorithm, params, optimizer.init(params), key_of(seed, 2), domain.history_width)

    def repeat(step, state):
        return jax.lax.scan(lambda state, _: step(state), state, length=config.run.steps_per_call)

    def fused(given: Given, state: State):
        parts = make_parts(config, domain, mesh, given)
        rollout = lambda params, *args: parts.rollout(parts.reshard(params), *args)
        return repeat(functools.partial(iterate, parts.select, rollout, domain.grade, parts.learn), state)

    params = jax.eval_shape(init_params, 0)
    trained, _ = split_params(config, params)
    state, warm_state = jax.eval_shape(init, trained, 0), jax.eval_shape(init_warm, trained, 0)
    place = functools.partial(_place, mesh)
    params_like, state_like = place(params, params), place(state, trained, optimizer)
    warm_like = place(warm_state, trained, warm_optimizer)
    same = meshes.replicated(mesh)
    where = lambda like: jax.tree.map(lambda leaf: leaf.sharding, like)
    steps = StepPrograms.make(config, domain, mesh, where(state_like))
    whole = jax.jit(fused, donate_argnums=1, out_shardings=(where(state_like), same))
    return Program(
        mesh=mesh,
        params=params_like,
        state=state_like,
        warm_state=warm_like,
        init_params=jax.jit(init_params, out_shardings=where(params_like)),
        init_warm=jax.jit(init_warm, out_shardings=where(warm_like)),
        warm=jax.jit(
            lambda frozen, state: repeat(functools.partial(warm_step, frozen), state),
            donate_argnums=1,
            out_shardings=(where(warm_like), same),
        ),
        init=jax.jit(init, out_shardings=where(state_like)),
        train=steps.iterate if domain.on_host else whole,
        steps=steps,
    )


def _place(mesh: jax.sharding.Mesh, tree, params: Params, optimizer: optax.GradientTransformation | None = None):
    """Add shardings to shapes: parameters, and what has one value for each, by the learner's rules; copies of the rest."""
    by_rule = meshes.shardings(mesh, decoder.logical_axes(params), params, meshes.LEARNER)
    same = meshes.replicated(mesh)
    put = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    if optimizer is None:
        return jax.tree.map(put, tree, by_rule)

    def like_param(leaf, param, sharding):  # factored moments have shapes of their own
        return put(leaf, sharding if leaf.shape == param.shape else same)

    placed = jax.tree.map(lambda leaf: put(leaf, same), dataclasses.replace(tree, params=None, opt_state=None))
    opt_state = optax.tree.map_params(
        optimizer,
        like_param,
        tree.opt_state,
        params,
        by_rule,
        transform_non_params=lambda leaf: put(leaf, same),
    )
    placed = dataclasses.replace(placed, params=jax.tree.map(put, tree.params, by_rule), opt_state=opt_state)
    if getattr(tree, "reference", None) is not None:
        placed = dataclasses.replace(placed, reference=placed.params)
    return placed


@dataclasses.dataclass(frozen=True)
class StepPrograms:
    """One iteration as separate programs, with the host between them to grade."""

    select: Callable[[Given, State], Instances]
    reshard: Callable[[Given, Params], Params]
    rollout: Callable[[Given, Params, State, Instances], Rollouts]
    learn: Callable[[Given, State, Instances, Rollouts, Grades], tuple[State, Metrics]]
    grade: Callable[[Instances, Rollouts], tuple[Grades, bool]]
    longest: Callable[[Array], Array]  # of a batch's lengths
    prompt_buckets: tuple[int, ...]
    response_buckets: tuple[int, ...]

    @classmethod
    def make(cls, config: Config, domain: Domain, mesh: jax.sharding.Mesh, state_shardings) -> "StepPrograms":
        """Jit the parts one by one; the sampler's copy and its cache are freed before the learner begins."""
        parts = functools.partial(make_parts, config, domain, mesh)
        same, by_row = meshes.replicated(mesh), meshes.by_row(mesh)
        key = lambda state: stream(state.key, "sample", state.step)
        return cls(
            select=jax.jit(lambda given, state: parts(given).select(state), out_shardings=by_row),
            reshard=jax.jit(lambda given, params: parts(given).reshard(params)),
            rollout=jax.jit(
                lambda given, params, state, inst: parts(given).rollout(params, inst, key(state)), out_shardings=by_row
            ),
            learn=jax.jit(
                lambda given, *args: parts(given).learn(*args), donate_argnums=1, out_shardings=(state_shardings, same)
            ),
            grade=lambda instances, rollouts: hosts.on_own_rows(
                domain.grade, functools.partial(blank_grades, domain), instances, rollouts
            ),
            longest=jax.jit(jnp.max, out_shardings=same),
            prompt_buckets=(*config.run.prompt_buckets, domain.prompt_width),
            response_buckets=(*config.run.response_buckets, domain.max_tokens),
        )

    def iterate(self, given: Given, state: State) -> tuple[State, Metrics]:
        """Run one iteration; metrics have a leading 1, as those of a program of one step.

        Prompts and responses are cut to the smallest bucket that holds the longest of the batch; each is a program of its own.
        """
        instances = self.select(given, state)
        width = self._fit(instances.prompt_length, self.prompt_buckets)
        instances = dataclasses.replace(instances, prompt=instances.prompt[:, :width])
        rollouts = self.rollout(given, self.reshard(given, state.params), state, instances)
        grades, failed = self.grade(instances, rollouts)
        width = self._fit(rollouts.mask.sum(-1), self.response_buckets)
        rollouts = jax.tree.map(lambda leaf: leaf[:, :, :width] if leaf.ndim == 3 else leaf, rollouts)
        state, metrics = self.learn(given, state, instances, rollouts, grades)
        metrics["grading_faults"] = jnp.int32(hosts.agree(failed))
        return state, jax.tree.map(lambda value: value[None], metrics)

    def _fit(self, lengths: Array, buckets: tuple[int, ...]) -> int:
        """Return the smallest bucket that holds the longest of the batch, or the largest; all hosts find the same."""
        longest = int(self.longest(lengths)) if len(buckets) > 1 else 0
        return min((bucket for bucket in buckets if bucket >= longest), default=max(buckets))


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
      Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    checkpoints = Checkpoints(folder, config.run.keep_checkpoints)
    with contextlib.closing(checkpoints), _catch_signals() as caught:
        state = checkpoints.restore_latest(like)
        state = make() if state is None else state
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
            first_call, stop = step, 0
            while step < total and not stop:
                profiled = config.run.profile and step == first_call + config.run.steps_per_call
                started = time.monotonic()
                with jax.profiler.trace(str(metrics_dir / "profile")) if profiled else contextlib.nullcontext():
                    state, metrics = call(state)
                    metrics = jax.device_get(metrics)
                secs = time.monotonic() - started
                done = len(next(iter(metrics.values())))
                row = writer.write(step + 1, metrics, _rates(config, metrics, done / secs))
                step += done
                stop = hosts.agree(caught[0] if caught else 0)  # a signal to any host stops all of them here
                if step % config.run.checkpoint_every == 0 or step >= total or stop:
                    checkpoints.save(step, state)
                progress.update(step, describe(row))
        if stop:
            raise Interrupted(stop, title, step)
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


def untrained(config: Config) -> Params:
    """Return the parameters before any training, without adapters: fresh ones, or those of ``config.checkpoint``.

    Raises:
      ConfigError: if the checkpoint cannot be loaded.
    """
    program = make_program(config)
    if not config.checkpoint:
        return decoder.split_adapters(program.init_params(config.seed))[1]
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
    return jax.jit(lambda seed: decoder.split_adapters(program.init_params(seed))[0], out_shardings=where)(config.seed)


def warm_start(config: Config, workdir: pathlib.Path, frozen: Params | None) -> Params:
    """Return the parameters that RL starts to train: the initial ones, or those of the supervised phase.

    The phase is a run of its own, whose folder is named by a hash of what determines it; once finished, it serves every run
    that shares ``run.warm_start_dir``.
    """
    if not config.warm_start.num_steps:
        return initial_params(config)
    program = make_program(config)
    recipe = configs.scientific(config)
    recipe = {name: recipe[name] for name in recipe if name.partition(".")[0] in configs.WARM_START_DEPENDS_ON}
    recipe["demonstrations"] = make_domain(config.domain_name, config.domain).demonstrations_id
    root = pathlib.Path(config.run.warm_start_dir or workdir / "warm_start").expanduser().absolute()
    folder = root / configs.digest(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    state = run_loop(
        "warm_start",
        functools.partial(program.warm, frozen),
        program.warm_state,
        lambda: program.init_warm(initial_params(config), config.seed),
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
    return jax.device_put(tasks, meshes.replicated(make_program(config).mesh))


def restore_params(config: Config, workdir: pathlib.Path) -> Params | None:
    """Return all parameters of the newest policy that training left in the workdir, or None."""
    with contextlib.closing(Checkpoints(workdir / "checkpoints", config.run.keep_checkpoints)) as checkpoints:
        state = checkpoints.restore_latest(make_program(config).state)
    return None if state is None else decoder.join(state.params, frozen_params(config))


def train(config: Config, workdir: pathlib.Path) -> tuple[State, Params]:
    """Train, or go on training, in ``workdir``; returns the final state and all parameters of its policy."""
    program, frozen = make_program(config), frozen_params(config)
    state = run_loop(
        "train",
        functools.partial(program.train, Given(base_tasks(config, "train"), frozen)),
        program.state,
        lambda: program.init(warm_start(config, workdir, frozen), config.seed),
        config.run.num_iterations,
        config,
        workdir / "checkpoints",
        workdir,
        lambda row: f"quality {row['quality']:.3f}  depth {row['start_depth']:.1f}",
    )
    return state, decoder.join(state.params, frozen)


def record_buffer(state: State, workdir: pathlib.Path) -> None:
    """Write scores and depths of the buffer's entries to ``buffer_scores.json``, for the report's histogram."""
    if not hosts.is_lead():
        return
    held = jax.device_get(state.buffer)
    full = held.history.id >= 0
    depth = held.history.step[full] + 1
    configs.write_json(workdir / "buffer_scores.json", {"score": held.score[full].tolist(), "depth": depth.tolist()})
