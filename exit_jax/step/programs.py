"""The programs of a run: the pieces of an iteration bound to policy, domain and mesh, then jitted with explicit shardings."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from exit_jax import domains
from exit_jax.algorithm.grpo import moved_share
from exit_jax.algorithm.iteration import init_state, iterate, learn
from exit_jax.algorithm.prompts import piece, render_by_mode
from exit_jax.algorithm.selection import select, stream
from exit_jax.config.schema import Config, EvalConfig, OptimizerConfig, StudyConfig
from exit_jax.domains.contract import with_values_checked
from exit_jax.domains.domain import ENDS, Domain, Environment, blank_grades
from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder, sampler
from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.sampler import Reading
from exit_jax.policy.shape import DecoderConfig
from exit_jax.step.episodes import Played, TurnPrograms, play
from exit_jax.step.requirements import require_checkpoint_fits, require_demonstrations
from exit_jax.types import (
    PIECES,
    Array,
    Grades,
    History,
    Instances,
    Metrics,
    Params,
    Rollouts,
    State,
    pytree,
)
from exit_jax.workdir.identity import digest


@pytree
class WarmState:
    """State of the supervised warm start."""

    params: Params
    opt_state: Any
    key: Array
    step: Array


@pytree
class Flight:
    """The state of a run that samples one batch ahead (``rollout_lag``); the batch is part of what a checkpoint holds."""

    state: State
    instances: Instances
    rollouts: Rollouts

    @property
    def step(self) -> Array:
        """Training iterations done."""
        return self.state.step


@pytree
class Given:
    """What a run is given and does not change."""

    tasks: History  # [M]: the training split's base tasks
    frozen: Params | None  # parameters that are not trained; None without LoRA


@dataclasses.dataclass(frozen=True)
class Parts:
    """The pieces of an iteration, ready to be composed and jitted in one program or in several."""

    select: Callable[..., Instances]  # (state), and a batch in flight, if there is one
    reshard: Callable[[Params], Params]  # of the learner to the sampler's form of the policy
    rollout: Callable[[Params, Instances, Array], Rollouts]
    learn: Callable[[State, Instances, Rollouts, Grades], tuple[State, Metrics]]


def decoder_config(config: Config) -> DecoderConfig:
    """Return the policy's shape with the vocabulary of its domain; of a larger one, the ids without a token are not used.

    Raises:
      ConfigError: if the policy's vocabulary is smaller than the domain's.
    """
    domain = domains.make(config.domain_name, config.domain)
    needed = domain.vocab_size
    size = config.policy.vocab_size or needed
    if size < needed:
        raise ConfigError(
            f"policy.vocab_size = {size}, but the domain {config.domain_name} has {needed} tokens; take a checkpoint that "
            "matches the domain's tokenizer"
        )
    padding = ((needed, size),) if size > needed else ()
    return dataclasses.replace(config.policy, vocab_size=size, unused_ids=domain.unused_ids + padding)


def tasks_digest(config: Config, split: str) -> str:
    """Return a hash of a split's tasks, with what their answers are held against; the same config may name other data later.

    Tasks that are too long for a prompt, which no policy sees whole, are no part of it.

    Raises:
      ConfigError: if a task asks nothing.
    """
    domain = domains.make(config.domain_name, config.domain)
    tasks, about = jax.device_get(domain.tasks(split)), domain.about_tasks(split)
    blank = int((tasks.lengths[:, 1] == 0).sum())
    if blank:
        raise ConfigError(
            f"{blank} of {tasks.lengths.shape[0]} tasks of {split} have a request of 0 tokens: the domain's tokenizer makes "
            "none of their text, or they have none; take the checkpoint's own tokenizer, or mend the data"
        )
    seen: Any = ~domain.too_long(split) if domain.too_long else np.ones(len(about), bool)
    arrays = [
        hashlib.sha256(array[seen].astype("<i4").tobytes()).hexdigest() for array in (tasks.tokens, tasks.lengths)
    ]
    return digest([arrays, [dict(row) for row, kept in zip(about, seen, strict=True) if kept]])


def split_params(config: Config, params: Params) -> tuple[Params, Params | None]:
    """Split parameters into those that are trained and those that are frozen, None without LoRA."""
    return decoder.split_adapters(params) if config.policy.lora.rank else (params, None)


def make_schedule(c: OptimizerConfig) -> optax.Schedule:
    """Return the learning rate by the number of optimiser steps done: linear warm-up and, if asked for, cosine decay."""
    if c.decay_steps:
        return optax.warmup_cosine_decay_schedule(0.0, c.learning_rate, c.warmup_steps, c.decay_steps)
    if c.warmup_steps:
        return optax.linear_schedule(0.0, c.learning_rate, c.warmup_steps)
    return optax.constant_schedule(c.learning_rate)


def make_optimizer(c: OptimizerConfig) -> optax.GradientTransformation:
    """Return the optimiser after global-norm clipping, with the rate of ``make_schedule``."""
    # a constant rate is no schedule, which would count steps in the state: finished runs have none there
    rate = make_schedule(c) if c.decay_steps or c.warmup_steps else c.learning_rate
    optimizer = {
        "adamw": lambda: optax.adamw(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay),
        "lion": lambda: optax.lion(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay),
        "adafactor": lambda: optax.adafactor(rate, weight_decay_rate=c.weight_decay or None),
    }[c.kind]()
    return optax.chain(optax.clip_by_global_norm(c.max_grad_norm), optimizer)


def sampling_config(config: Config, domain: Domain) -> SamplingConfig:
    """Return how training samples: without a repetition penalty, under which its log-probs would not be the policy's."""
    cut = config.sampling
    return SamplingConfig(
        max_tokens=domain.max_tokens,
        stop_tokens=domain.stop_tokens,
        stop_sequences=domain.stop_sequences,
        temperature=config.algorithm.temperature,
        top_k=cut.top_k,
        top_p=cut.top_p,
        min_p=cut.min_p,
        min_tokens=cut.min_tokens,
        stop_text=domain.stop_text,
    )


def evaluation_sampling(settings: EvalConfig, domain: Domain, max_tokens: int) -> SamplingConfig:
    """Return how evaluation samples responses of up to ``max_tokens``: where one ends is the domain's, as in training."""
    return SamplingConfig(
        max_tokens=max_tokens,
        stop_tokens=domain.stop_tokens,
        stop_sequences=domain.stop_sequences,
        stop_text=domain.stop_text,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        min_tokens=settings.min_tokens,
        repetition_penalty=settings.repetition_penalty,
        suppress_tokens=settings.suppress_tokens,
    )


def make_reshard(policy: DecoderConfig, mesh: jax.sharding.Mesh, int8: bool = False) -> Callable[[Params], Params]:
    """Return what makes the sampler's copy: cast, a tuple of layers, split by the sampler's rules.

    Adapters stay beside their kernels: merged into kernels of bfloat16, most of what they learn in the first iterations
    would be rounded away (docs/language_models.md has the figures). With ``int8``, the kernels of the layers are rounded to
    int8 before they travel.
    """

    def reshard(params: Params) -> Params:
        params = decoder.cast(params, policy.dtype, adapters=True)
        params = decoder.unstack(policy, decoder.quantise(params) if int8 else params)
        where = meshes.shardings(mesh, decoder.logical_axes(params), params, meshes.SAMPLER)
        return jax.lax.with_sharding_constraint(params, where)

    return reshard


def make_parts(config: Config, domain: Domain, mesh: jax.sharding.Mesh, given: Given) -> Parts:
    """Bind settings, policy, domain and mesh into the functions of ``algorithm.iteration.iterate``."""
    algorithm, policy = config.algorithm, decoder_config(config)
    sampling = sampling_config(config, domain)
    shard = functools.partial(meshes.shard_batch, mesh)
    reshard = make_reshard(policy, mesh, config.sampling.int8)

    def rollout(params, instances, key):
        prompt, length = shard((instances.prompt, instances.prompt_length))
        with meshes.use(mesh):
            sample = functools.partial(sampler.sample, policy, sampling, algorithm.group_size)
            return shard(sample(params, prompt, length, key, config.run.sampler_slots))

    def logprobs(trained, prompt, prompt_length, tokens):
        params = decoder.cast(decoder.join(trained, given.frozen), policy.dtype)
        arrays = shard((prompt, prompt_length, tokens))
        with meshes.use(mesh):
            return sampler.logprobs(policy, algorithm.temperature, config.run.token_chunk, params, *arrays)

    optimizer, schedule = make_optimizer(config.optimizer), make_schedule(config.optimizer)
    difficulty = domain.difficulty("train")

    def learn_batch(state, instances, rollouts, grades):
        args = state, instances, rollouts, grades
        steps_done = state.step * algorithm.num_epochs + jnp.arange(algorithm.num_epochs)
        state, metrics = learn(algorithm, logprobs, optimizer, config.run.num_microbatches, domain.max_tokens, *args)
        metrics["learning_rate"] = jnp.mean(jax.vmap(schedule)(steps_done))
        metrics["finite_logits"] = sampler.finite_share(rollouts)
        drawn = {name: jnp.asarray(level)[instances.history.task].mean() for name, level in difficulty.items()}
        return state, metrics | {f"task/{name}": mean for name, mean in drawn.items()}

    return Parts(
        select=functools.partial(select, algorithm, domain.templates, domain.prompt_width, given.tasks),
        reshard=lambda trained: reshard(decoder.join(trained, given.frozen)),
        rollout=rollout,
        learn=learn_batch,
    )


def turn_programs(
    policy: DecoderConfig,
    sampling: SamplingConfig,
    mesh: jax.sharding.Mesh,
    group_size: int,
    room: int,
    may_reuse: bool,
) -> TurnPrograms:
    """Jit the parts of a turn.

    Args:
      room: slots of the cache for each row's own tokens.
      may_reuse: whether readings are given away; otherwise what was read can be read on from again.
    """
    by_row, reused = meshes.by_row(mesh), 1 if may_reuse else None

    def start(copy, prompt, length):
        with meshes.use(mesh):
            reading = sampler.start(policy, copy, group_size, room, prompt, length, sampling.counts_repeats)
            return shard_reading(mesh, reading)

    def extend(copy, *args):
        with meshes.use(mesh):
            return shard_reading(mesh, sampler.extend(policy, copy, *args))

    def generate(copy, *args):
        with meshes.use(mesh):
            reading, rollouts = sampler.generate(policy, sampling, copy, *args)
            return shard_reading(mesh, reading), meshes.shard_batch(mesh, rollouts)

    part = lambda tree, first, count: jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, count), tree)
    return TurnPrograms(
        part=jax.jit(part, static_argnums=2, out_shardings=by_row),
        start=jax.jit(start),
        generate=jax.jit(generate, donate_argnums=reused),
        extend=jax.jit(extend, donate_argnums=reused),
    )


def shard_reading(mesh: jax.sharding.Mesh, reading: Reading) -> Reading:
    """Split a reading by rows, and its keys and values by heads, too; use inside jit.

    Between programs, XLA would keep copies of it on all devices: 25 GiB, for Qwen2.5-7B and transcripts of 6,000 tokens.
    """
    cache = reading.cache
    places = {"prompt_key": 1, "prompt_value": 1, "key": 2, "value": 2}  # of the heads among the dimensions

    def split(array, heads: int):
        axes = [None] * array.ndim
        axes[0] = meshes.BATCH
        if array.shape[heads] % mesh.shape["tensor"] == 0:
            axes[heads] = "tensor"
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.lax.with_sharding_constraint(array, where)

    layers = tuple(
        dataclasses.replace(layer, **{name: split(getattr(layer, name), heads) for name, heads in places.items()})
        for layer in cache.layers
    )
    rows = meshes.shard_batch(mesh, dataclasses.replace(reading, cache=(cache.prompt_mask, cache.mask)))
    prompt_mask, mask = rows.cache
    cache = dataclasses.replace(cache, layers=layers, prompt_mask=prompt_mask, mask=mask)
    return dataclasses.replace(rows, cache=cache)


def transcript_room(environment: Environment) -> int:
    """Return the slots that rows need which go on: a transcript, the next observation, and the token that is read with it."""
    return environment.max_transcript + environment.max_observation + len(environment.generation_prompt) + 1


def make_turns(config: Config, domain: Domain, mesh: jax.sharding.Mesh) -> TurnPrograms | None:
    """Return the parts of a turn in training; None for a domain without an environment."""
    if domain.environment is None:
        return None
    sampling = dataclasses.replace(sampling_config(config, domain), max_tokens=domain.environment.max_tokens)
    room = transcript_room(domain.environment)
    return turn_programs(decoder_config(config), sampling, mesh, config.algorithm.group_size, room, may_reuse=True)


def num_lanes(config: Config) -> int:
    """Return into how many lanes a batch of episodes is split: two, if both can be dealt to all devices."""
    return 1 if config.algorithm.num_prompts % (2 * config.run.mesh.num_batch_shards) else 2


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
    """Jit (given, trained parameters, children [B, G, 1], width) -> what the policy makes of their solutions, [B, G, D].

    It is the mean of its final states, float32, over a solution that is read by itself; zeros for none. None where the
    diversity bonus does not ask for it.
    """
    if config.algorithm.diversity_embedding != "solution" or not config.algorithm.diversity_bonus:
        return None
    policy = decoder_config(config)

    def embed(given: Given, trained: Params, children: History, width: int) -> Array:
        params = decoder.cast(decoder.join(trained, given.frozen), policy.dtype)

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


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run executes on the devices; one XLA program a field, or several for a domain that is graded on the host."""

    mesh: jax.sharding.Mesh
    params: Params  # shapes, dtypes and shardings of all parameters
    state: State  # the same of the state that is trained
    carry: State | Flight  # the same of what goes from one iteration to the next, and into checkpoints
    warm_state: WarmState
    init_params: Callable[[int], Params]  # of a seed
    init_warm: Callable[[Params, int], WarmState]
    warm: Callable[[Params | None, WarmState], tuple[WarmState, Metrics]]
    init: Callable[[Params, int], State]
    begin: Callable[[Given, State], State | Flight]  # the first carry
    train: Callable[[Given, Any], tuple[Any, Metrics]]  # of a carry
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
    """Jit the programs of a run, for the first devices, or for ``devices`` of a topology that is only compiled for.

    Raises:
      UserError: if config, domain and checkpoint do not fit each other.
    """
    _check_checkpoint(config)
    return _make_program(shared(config), devices and tuple(devices))


@functools.lru_cache
def _check_checkpoint(config: Config) -> None:
    require_checkpoint_fits(config, domains.make(config.domain_name, config.domain))


def make_warm_step(config: Config, domain: Domain, mesh: jax.sharding.Mesh, optimizer: optax.GradientTransformation):
    """Return a supervised step: (frozen parameters, WarmState, a batch of demonstrations) -> WarmState, metrics."""
    policy, schedule = decoder_config(config), make_schedule(config.warm_start.optimizer)

    def warm_step(frozen: Params | None, state: WarmState, batch):
        history, mode, tokens, mask = meshes.shard_batch(mesh, batch)
        prompt, length = render_by_mode(domain.templates, history, mode, domain.prompt_width)

        def loss(trained):
            params = decoder.cast(decoder.join(trained, frozen), policy.dtype)
            with meshes.use(mesh):
                logp, _ = sampler.logprobs(policy, 1.0, config.run.token_chunk, params, prompt, length, tokens)
            return -jnp.where(mask, logp, 0.0).sum() / mask.sum()

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "warm_start/loss": value,
            "warm_start/learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "warm_start/params_moved": moved_share(state.params, params),
        }
        return WarmState(params, opt_state, state.key, state.step + 1), metrics

    return warm_step


@functools.lru_cache
def _make_program(config: Config, devices: tuple[Any, ...] | None) -> Program:
    mesh = meshes.make_mesh(config.run.mesh, devices)
    domain = domains.make(config.domain_name, config.domain)
    require_demonstrations(config, domain)
    if config.run.check_grades and not domain.on_host:
        domain = with_values_checked(domain)
    policy = decoder_config(config)
    optimizer, warm_optimizer = make_optimizer(config.optimizer), make_optimizer(config.warm_start.optimizer)
    warm_step = make_warm_step(config, domain, mesh, warm_optimizer)
    demonstrate = lambda state: domain.demonstrations(
        state.key, state.step, config.warm_start.num_states, config.warm_start.group_size
    )

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
    warm_out = (where(warm_like), same)
    warm_whole = lambda frozen, state: repeat(lambda state: warm_step(frozen, state, demonstrate(state)), state)
    warm_jit = functools.partial(jax.jit, donate_argnums=1, out_shardings=warm_out)

    @warm_jit
    def warm_batch(frozen, state, batch):
        state, metrics = warm_step(frozen, state, batch)
        return state, jax.tree.map(lambda value: value[None], metrics)

    carry_like: State | Flight = state_like
    if config.algorithm.rollout_lag:
        given = Given(domain.tasks("train"), split_params(config, params_like)[1])
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=meshes.by_row(mesh)),
            steps.shapes(given, state_like)[2:],
        )
        carry_like = Flight(state_like, *batch)
    return Program(
        mesh=mesh,
        params=params_like,
        state=state_like,
        carry=carry_like,
        warm_state=warm_like,
        init_params=jax.jit(init_params, out_shardings=where(params_like)),
        init_warm=jax.jit(init_warm, out_shardings=where(warm_like)),
        warm=(lambda frozen, state: warm_batch(frozen, state, demonstrate(state)))
        if domain.on_host
        else warm_jit(warm_whole),
        init=jax.jit(init, out_shardings=where(state_like)),
        begin=steps.begin if config.algorithm.rollout_lag else lambda _, state: state,
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


def ahead(state: State, flight: Instances | None) -> State:
    """Return what selection is to see of a state while a batch is in flight: the next step, the next base tasks."""
    if flight is None:
        return state
    drawn = (~flight.from_buffer).sum(dtype=state.cursor.dtype)
    return dataclasses.replace(state, step=state.step + 1, cursor=state.cursor + drawn)


def grade_rows(domain: Domain, instances: Instances, rollouts: Rollouts, played: Played | None) -> tuple[Grades, bool]:
    """Grade the rows that this process owns and share the grades; see ``hosts.on_own_rows``."""
    blank = functools.partial(blank_grades, domain)
    if played is None:
        return hosts.on_own_rows(domain.grade, blank, instances, rollouts)
    whole = hosts.all_rows(instances), played.rollouts
    own = jax.tree.map(lambda leaf: leaf[played.rows], whole)
    grade = lambda *own: domain.grade(*own, played.episodes)
    return hosts.on_rows(grade, blank, own, played.rows, played.end.shape[0])


@dataclasses.dataclass(frozen=True)
class StepPrograms:
    """One iteration as separate programs, with the host between them to grade."""

    select: Callable[[Given, State, Instances | None], tuple[Instances, Array]]  # and the key to sample them with
    reshard: Callable[[Given, Params], Params]
    rollout: Callable[[Given, Params, Array, Instances], Rollouts]  # of tasks of one turn
    turns: TurnPrograms | None  # of several
    play: Callable[[Params, Array, Instances], Played]  # episodes of these
    learn: Callable[[Given, State, Instances, Rollouts, Grades], tuple[State, Metrics]]
    grade: Callable[..., tuple[Grades, bool]]  # (instances, rollouts) and, where episodes were played, these
    embed: Callable[[Rollouts], np.ndarray] | None  # by a foreign encoder, float32 [B, G, E]
    embed_solutions: Callable[[Given, Params, History, int], Array] | None  # by the policy, float32 [B, G, D]
    ends: Callable[[Array], Array]  # a mask [B, G, T] -> the places behind the last tokens sampled
    longest: Callable[[Array], Array]  # of a batch's lengths
    by_row: Any  # sharding
    prompt_buckets: tuple[int, ...]
    response_buckets: tuple[int, ...]

    @classmethod
    def make(cls, config: Config, domain: Domain, mesh: jax.sharding.Mesh, state_shardings) -> "StepPrograms":
        """Jit the parts one by one; the sampler's copy and its cache are freed before the learner begins."""
        parts = functools.partial(make_parts, config, domain, mesh)
        turns: Any = make_turns(config, domain, mesh)
        environment: Any = domain.environment
        same, by_row = meshes.replicated(mesh), meshes.by_row(mesh)

        def select(given, state, flight):
            state = ahead(state, flight)
            return parts(given).select(state, flight), stream(state.key, "sample", state.step)

        return cls(
            select=jax.jit(select, out_shardings=(by_row, same)),
            reshard=jax.jit(lambda given, params: parts(given).reshard(params)),
            rollout=jax.jit(
                lambda given, params, key, inst: parts(given).rollout(params, inst, key), out_shardings=by_row
            ),
            turns=turns,
            play=lambda copy, key, instances: play(
                turns, environment, config.algorithm.group_size, copy, instances, key, num_lanes(config)
            ),
            learn=jax.jit(
                lambda given, *args: parts(given).learn(*args), donate_argnums=1, out_shardings=(state_shardings, same)
            ),
            grade=functools.partial(grade_rows, domain),
            embed=make_embed(config, domain, mesh),
            embed_solutions=make_embed_solutions(config, mesh),
            ends=jax.jit(lambda mask: jnp.where(mask.any(-1), mask.shape[-1] - jnp.argmax(mask[..., ::-1], -1), 0)),
            longest=jax.jit(jnp.max, out_shardings=same),
            by_row=by_row,
            prompt_buckets=(*config.run.prompt_buckets, domain.prompt_width),
            response_buckets=(*config.run.response_buckets, domain.max_tokens),
        )

    def iterate(self, given: Given, carry: State | Flight) -> tuple[State | Flight, Metrics]:
        """Run one iteration; metrics have a leading 1, as those of a program of one step.

        With a lag, the batch that is graded and learnt from was sampled during the iteration before, and the next one is
        sampled while the host grades; its log-probs are those it was sampled with, so the ratio is exact (ExIt App. A).
        """
        if isinstance(carry, Flight):
            state, instances, rollouts, played = carry.state, carry.instances, carry.rollouts, None
            following = self.expand(given, state, instances)[:2]
            busy = following[1]
        else:
            state, following = carry, None
            instances, rollouts, played = self.expand(given, state, None)
            busy = rollouts
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            jax.block_until_ready(rollouts)
            started = time.monotonic()
            sampled = pool.submit(lambda: (jax.block_until_ready(busy), time.monotonic())[1])
            grades, failed = self.grade(instances, rollouts, played)
            graded = time.monotonic()
            waited = max(graded - sampled.result(), 0.0)
        if self.embed:
            grades = dataclasses.replace(grades, embedding=self.embed(rollouts))
        if self.embed_solutions:
            lengths = grades.children.lengths[..., PIECES.index("solution")]
            width = self._fit(lengths, self.response_buckets)
            embedding = self.embed_solutions(given, state.params, grades.children, width)
            grades = dataclasses.replace(grades, embedding=embedding)
        instances = self._short(instances)
        width = self._fit(self.ends(rollouts.mask), self.response_buckets)
        by_token = {name: getattr(rollouts, name) for name in ("tokens", "mask", "logp", "sampled_logp", "ended")}
        rollouts = dataclasses.replace(rollouts, **jax.tree.map(lambda array: array[:, :, :width], by_token))
        state, metrics = self.learn(given, state, instances, rollouts, grades)
        failed = failed or (played is not None and played.failed)
        told = {"grading_faults": hosts.agree(failed), "time/grading_secs": graded - started}
        told |= {"time/device_wait_secs": waited}
        if played:
            told["time/device_wait_secs"] += played.idle_secs
            told["turns"] = played.num_turns.mean()
            told |= {f"end/{name}": (played.end == index).mean() for index, name in enumerate(ENDS)}
        metrics |= {name: jnp.float32(value) for name, value in told.items()}
        metrics = jax.tree.map(lambda value: value[None], metrics)
        return (Flight(state, *following) if following else state), metrics

    def expand(self, given: Given, state: State, flight: Instances | None) -> tuple[Instances, Rollouts, Played | None]:
        """Select instances, beside a batch in flight, and sample their rollouts, of which nothing is waited for, or play."""
        instances, key = self.select(given, state, flight)
        copy = self.reshard(given, state.params)
        if self.turns is None:
            return instances, self.rollout(given, copy, key, self._short(instances)), None
        played = self.play(copy, key, self._short(instances))
        return instances, jax.device_put(played.rollouts, self.by_row), played

    def begin(self, given: Given, state: State) -> Flight:
        """Send the first batch on its way."""
        return Flight(state, *self.expand(given, state, None)[:2])

    def shapes(self, given: Given, state: State) -> tuple[Params, Array, Instances, Rollouts]:
        """Return the shapes of the sampler's copy of the policy, of a key, and of a batch."""
        instances, key = jax.eval_shape(self.select, given, state, None)
        copy = jax.eval_shape(self.reshard, given, state.params)
        return copy, key, instances, jax.eval_shape(self.rollout, given, copy, key, instances)

    def _short(self, instances: Instances) -> Instances:
        """Cut prompts to the smallest bucket that holds the longest of the batch."""
        width = self._fit(instances.prompt_length, self.prompt_buckets)
        return dataclasses.replace(instances, prompt=instances.prompt[:, :width])

    def _fit(self, lengths: Array, buckets: tuple[int, ...]) -> int:
        """Return the smallest bucket that holds the longest of the batch, or the largest; all hosts find the same."""
        longest = int(self.longest(lengths)) if len(buckets) > 1 else 0
        return min((bucket for bucket in buckets if bucket >= longest), default=max(buckets))
