"""The programs of a run: the steps of an iteration bound to policy, domain and mesh, then jitted with explicit shardings."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from exit_jax import domains
from exit_jax.algorithm import pool, regroup, replay
from exit_jax.algorithm.in_flight import Batch, Carry, InFlight
from exit_jax.algorithm.iteration import init_state, iterate, sample
from exit_jax.algorithm.pool import Groups
from exit_jax.config.schema import Config, EvalConfig, StudyConfig
from exit_jax.domains.contract import with_values_checked
from exit_jax.domains.domain import Domain
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder
from exit_jax.step.device import Constants, DeviceSteps
from exit_jax.step.hosted import EarlyGrading, HostedSteps, StepPrograms
from exit_jax.step.optimizer import make_optimizer
from exit_jax.step.policy import decoder_config, split_params
from exit_jax.step.requirements import (
    require_checkpoint_fits,
    require_critiques,
    require_demonstrations,
    require_one_turn,
)
from exit_jax.step.starts import first_levels, gold_of, require_start
from exit_jax.step.units import curriculum_units
from exit_jax.step.warm_start import WarmState, make_warm
from exit_jax.types import Array, Metrics, Params, Rollouts, State


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run executes on the devices; one XLA program a field, or several for a domain that is graded on the host."""

    mesh: jax.sharding.Mesh
    params: Params  # shapes, dtypes and shardings of all parameters
    state: State  # the same of the state that is trained
    carry: Carry  # the same of what goes from one iteration to the next, and into checkpoints
    warm_state: WarmState
    init_params: Callable[[int], Params]  # seed -> fresh parameters
    init_warm: Callable[[Params, int], WarmState]
    warm: Callable[[Params | None, WarmState], tuple[WarmState, Metrics]]
    init: Callable[[Params, int], State]
    begin: Callable[[Constants, State], Carry]
    train: Callable[[Constants, Carry], tuple[Carry, Metrics]]  # metrics have a leading axis of steps
    steps: StepPrograms  # the same iteration in parts, which are traced and compiled only where they are called
    early: EarlyGrading | None = None  # what grades batches that are sampled more than one ahead


def compile_key(config: Config) -> Config:
    """Return the config without what changes no compiled program; within a process, runs share the programs of equal ones."""
    run = dataclasses.replace(
        config.run,
        num_iterations=0,
        checkpoint_every=1,
        keep_checkpoints=1,
        warm_start_dir="",
        export_dtype="",
        profile=False,
        trackers=(),
        rollouts_every=min(config.run.rollouts_every, 1),
        rollouts_kept=config.run.rollouts_kept if config.run.rollouts_every else 1,
        rollouts_max_mb=1,
        stall_secs=0.0,
        eval_every=0,
        eval_tasks=1,
        eval_splits=(),
        keep_best="",
    )
    rest = {"run": run, "eval": EvalConfig(), "study": StudyConfig((), ())}
    return dataclasses.replace(config, name="", variant="", seed=0, checkpoint="", **rest)


def make_program(config: Config, devices: Sequence[Any] | None = None) -> Program:
    """Jit the programs of a run, for the first devices, or for ``devices`` of a topology that is only compiled for.

    Raises:
      UserError: if config, domain and checkpoint do not fit each other.
    """
    _check_checkpoint(config)
    return _make_program(compile_key(config), devices and tuple(devices))


@functools.lru_cache
def _check_checkpoint(config: Config) -> None:
    require_checkpoint_fits(config, domains.make(config.domain_name, config.domain))


@functools.lru_cache
def _make_program(config: Config, devices: tuple[Any, ...] | None) -> Program:
    mesh = meshes.make_mesh(config.run.mesh, devices)
    domain = domains.make(config.domain_name, config.domain)
    require_demonstrations(config, domain)
    require_one_turn(config, domain)
    require_critiques(config, domain)
    require_start(config.algorithm.starts, domain)
    curriculum_units(config.algorithm.curriculum, domain)  # raises now what it would while a program is traced
    if config.run.check_grades and not domain.on_host:
        domain = with_values_checked(domain)
    policy = decoder_config(config)
    optimizer, warm_optimizer = make_optimizer(config.optimizer), make_optimizer(config.warm_start.optimizer)

    def init_params(seed):
        return decoder.init(policy, key_of(seed, "params"))

    def init_warm(params, seed):
        return WarmState(params, warm_optimizer.init(params), key_of(seed, "demonstrations"), jnp.int32(0))

    def init(params, seed):
        algorithm, opt_state, key = config.algorithm, optimizer.init(params), key_of(seed, "train")
        units, held = curriculum_units(algorithm.curriculum, domain), what_is_held(config, domain)
        return init_state(algorithm, params, opt_state, key, domain.history_width, units, **held)

    params = jax.eval_shape(init_params, 0)
    trained, _ = split_params(config, params)
    place = functools.partial(_place, mesh)
    params_like = place(params, params)
    state_like = place(jax.eval_shape(init, trained, 0), trained, optimizer)
    warm_like = place(jax.eval_shape(init_warm, trained, 0), trained, warm_optimizer)
    state_shardings, warm_shardings = _shardings(state_like), _shardings(warm_like)
    programs = StepPrograms.make(config, domain, mesh, state_shardings)

    early = EarlyGrading() if config.algorithm.rollout_lag > 1 else None

    def hosted(constants: Constants) -> HostedSteps:
        return HostedSteps(config, domain, mesh, programs, constants, early)

    def begin(constants: Constants, state: State) -> Carry:
        ahead: list[Batch] = []
        for _ in range(config.algorithm.rollout_lag):
            ahead.append(sample(hosted(constants), state, tuple(asked for asked, _ in ahead)))
        return InFlight.of(state, ahead) if ahead else state

    def train_hosted(constants: Constants, carry: Carry) -> tuple[Carry, Metrics]:
        carry, metrics = iterate(hosted(constants), carry)
        return carry, jax.tree.map(lambda value: value[None], metrics)

    @functools.partial(jax.jit, donate_argnums=1, out_shardings=(state_shardings, meshes.replicated(mesh)))
    def train_on_devices(constants: Constants, carry: Carry) -> tuple[Carry, Metrics]:
        step = functools.partial(iterate, DeviceSteps(config, domain, mesh, constants))
        return jax.lax.scan(lambda carry, _: step(carry), carry, length=config.run.steps_per_call)

    carry_like: Carry = state_like
    if config.algorithm.rollout_lag:
        gold = gold_of(config.algorithm.starts, domain)
        constants = Constants(domain.tasks("train"), split_params(config, params_like)[1], gold)
        batch = _with_sharding(programs.shapes(constants, state_like)[2:], meshes.by_row(mesh))
        carry_like = InFlight.of(state_like, [batch] * config.algorithm.rollout_lag)
    return Program(
        mesh=mesh,
        params=params_like,
        state=state_like,
        carry=carry_like,
        warm_state=warm_like,
        init_params=jax.jit(init_params, out_shardings=_shardings(params_like)),
        init_warm=jax.jit(init_warm, out_shardings=warm_shardings),
        warm=make_warm(config, domain, mesh, warm_optimizer, warm_shardings),
        init=jax.jit(init, out_shardings=state_shardings),
        begin=begin,
        train=train_hosted if domain.on_host else train_on_devices,
        steps=programs,
        early=early,
    )


def what_is_held(config: Config, domain: Domain) -> dict[str, Any]:
    """Return the fields of ``State`` that a run has by its settings and its domain: levels of starts, and empty places."""
    algorithm = config.algorithm
    held: dict[str, Any] = {"start_level": first_levels(algorithm.starts, domain)}
    batches = algorithm.rounds.iterations or 2 * algorithm.refill
    if batches:
        held["pool"] = pool.create(blank_groups(config, domain), batches)
    if algorithm.replay.size:
        held["replay"] = replay.create(algorithm.replay, domain.prompt_width, domain.max_tokens)
    if algorithm.regroup:
        held["regroup"] = regroup.create(blank_groups(config, domain), algorithm.regroup)
    return held


def blank_groups(config: Config, domain: Domain) -> Groups:
    """Return groups [B] of zeros, wide enough for all of the domain's."""
    group = config.algorithm.num_prompts, config.algorithm.group_size
    zeros = lambda dtype, *more: jnp.zeros((*group, *more), dtype)
    by_response = domain.environment is not None and domain.environment.by_response
    rollouts = Rollouts(
        tokens=zeros(jnp.int32, domain.max_tokens),
        mask=zeros(bool, domain.max_tokens),
        logp=zeros(jnp.float32, domain.max_tokens),
        sampled_logp=zeros(jnp.float32, domain.max_tokens),
        finished=zeros(bool),
        hidden=None,  # type: ignore[arg-type]
        ended=zeros(bool, domain.max_tokens) if by_response else None,
    )
    prompt, length = jnp.zeros((group[0], domain.prompt_width), jnp.int32), jnp.zeros(group[:1], jnp.int32)
    return Groups(prompt, length, rollouts, zeros(jnp.float32), zeros(jnp.float32), zeros(bool))


def key_of(seed, use: str) -> Array:
    """Return the key that parameters, demonstrations or RL draw from; independent of the others'."""
    return jax.random.fold_in(jax.random.key(seed), ("params", "demonstrations", "train").index(use))


def _shardings(like):
    return jax.tree.map(lambda leaf: leaf.sharding, like)


def _with_sharding(like, sharding: jax.sharding.Sharding):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)


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
    copies = [name for name in ("reference", "initial") if getattr(tree, name, None) is not None]
    return dataclasses.replace(placed, **dict.fromkeys(copies, placed.params))
