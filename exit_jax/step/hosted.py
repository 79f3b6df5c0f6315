"""The steps of an iteration with the host between their programs: it grades, and the environments of episodes live there."""

import concurrent.futures
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.algorithm import protocol, schedules
from exit_jax.algorithm.attempts import Second
from exit_jax.algorithm.streams import stream
from exit_jax.config.schema import Config
from exit_jax.domains.domain import ENDS, Domain, blank_grades
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.step.device import Constants, DeviceSteps
from exit_jax.step.embed import make_embed, make_embed_solutions
from exit_jax.step.episodes import Played, play
from exit_jax.step.turns import TurnPrograms, make_turns, num_lanes
from exit_jax.types import (
    CRITIQUE,
    IMPROVE,
    PIECES,
    Array,
    Grades,
    History,
    Instances,
    Metrics,
    Params,
    Rollouts,
    State,
)

Grade = Callable[[Instances, Rollouts], Grades]


@dataclasses.dataclass(frozen=True)
class StepPrograms:
    """The steps as separate jitted programs; the sampler's parameters and its cache are freed before the learner begins."""

    select: Callable[[Constants, State, tuple[Instances, ...]], tuple[Instances, Array]]
    reshard: Callable[[Constants, Params], Params]
    sample: Callable[[Constants, Params, Instances, Array], Rollouts]  # tasks of one turn
    turns: TurnPrograms | None  # tasks of several
    # what is asked after rollouts, in a mode
    follow: Callable[[Constants, Rollouts, Grades, int], tuple[Instances, Array]]
    sample_one: Callable[[Constants, Params, Instances, Array], Rollouts]  # a response to each of them
    learn: Callable[[Constants, State, Instances, Rollouts, Grades, Second | None], tuple[State, Metrics]]
    embed: Callable[[Rollouts], np.ndarray] | None  # embeddings by a foreign encoder, float32 [B, G, E]
    # embeddings by the policy, float32 [B, G, D]
    embed_solutions: Callable[[Constants, Params, History, int], Array] | None
    longest: Callable[[Array], Array]  # the largest of a batch's lengths, known to all hosts

    @classmethod
    def make(cls, config: Config, domain: Domain, mesh: jax.sharding.Mesh, state_shardings) -> "StepPrograms":
        """Jit the steps one by one."""
        steps = functools.partial(DeviceSteps, config, domain, mesh)
        same, by_row = meshes.replicated(mesh), meshes.by_row(mesh)

        def learn(constants, *args):
            return steps(constants).learn(*args)

        return cls(
            select=jax.jit(lambda constants, *args: steps(constants).select(*args), out_shardings=(by_row, same)),
            reshard=jax.jit(lambda constants, params: steps(constants).reshard(params)),
            sample=jax.jit(lambda constants, *args: steps(constants).sample(*args), out_shardings=by_row),
            turns=make_turns(config, domain, mesh),
            follow=jax.jit(
                lambda constants, *args: steps(constants).follow(*args), static_argnums=3, out_shardings=by_row
            ),
            sample_one=jax.jit(
                lambda constants, *args: steps(constants).sample(*args, group_size=1), out_shardings=by_row
            ),
            learn=jax.jit(learn, donate_argnums=1, out_shardings=(state_shardings, same)),
            embed=make_embed(config, domain, mesh),
            embed_solutions=make_embed_solutions(config, mesh),
            longest=jax.jit(jnp.max, out_shardings=same),
        )

    def shapes(self, constants: Constants, state: State) -> tuple[Params, Array, Instances, Rollouts]:
        """Return the shapes of the sampler's parameters, of a key, and of a batch."""
        instances, key = jax.eval_shape(self.select, constants, state, ())
        sampler_params = jax.eval_shape(self.reshard, constants, state.params)
        return sampler_params, key, instances, jax.eval_shape(self.sample, constants, sampler_params, instances, key)


@dataclasses.dataclass(frozen=True)
class Graded:
    """The grades of a batch, and what the host measured while it made them."""

    grades: Grades
    metrics: dict[str, float]


class EarlyGrading:
    """Grades batches that were sampled ahead in a thread of its own, one after the other as they were sampled.

    Of several processes each grades its own rows; they share them when the batch is learnt from, in one order on all.
    """

    def __init__(self):
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "grading")
        self._begun: list[tuple[Array, concurrent.futures.Future]] = []  # by a batch's tokens, the very array

    def begin(self, rollouts: Rollouts, grade: Callable[[], tuple[np.ndarray, Grades, bool]]) -> None:
        """Grade a batch when those before it are."""
        self._begun.append((rollouts.tokens, self._pool.submit(grade)))

    def take(self, rollouts: Rollouts) -> tuple[np.ndarray, Grades, bool] | None:
        """Return the numbers and grades of this process's rows, and whether grading failed; None if it was not begun."""
        for place, (tokens, future) in enumerate(self._begun):
            if tokens is rollouts.tokens:
                del self._begun[place]
                return future.result()
        return None

    def wait(self) -> None:
        """Wait until nothing is being graded: the domain is free for others."""
        concurrent.futures.wait([future for _, future in self._begun])

    def clear(self) -> None:
        """Forget what was begun, as a run does that ends, or goes on from a checkpoint."""
        self.wait()
        self._begun.clear()


class HostedSteps:
    """The ``Steps`` of a config whose domain is graded on the host, for one iteration.

    Rollouts of episodes are ``Played``, and grades are ``Graded``, on their way from one step to the next. Programs are
    compiled for buckets of widths: prompts and responses are cut to the smallest that holds the longest of the batch.
    """

    def __init__(
        self,
        config: Config,
        domain: Domain,
        mesh: jax.sharding.Mesh,
        programs: StepPrograms,
        constants: Constants,
        early: EarlyGrading | None = None,
    ):
        """Bind the steps; ``early`` grades what is sampled more than one batch ahead."""
        self.config, self.domain, self.mesh, self.programs, self.constants = config, domain, mesh, programs, constants
        self.environment = domain.environment  # with the turns that the next batch may have
        self.newest: Any = None  # what the devices were given last
        self.early = early

    def select(self, state: State, in_flight: tuple[Instances, ...] = ()) -> tuple[Instances, Array]:
        """Return the next batch's instances, and the key that its rollouts are sampled with."""
        algorithm, environment = self.config.algorithm, self.domain.environment
        if environment and (algorithm.turn_limit or algorithm.schedules):
            limit = schedules.at(algorithm, int(state.step) + len(in_flight)).turn_limit
            limit = min(int(limit) or math.inf, environment.max_turns)
            self.environment = dataclasses.replace(environment, max_turns=limit)
        return self.programs.select(self.constants, state, in_flight)

    def rollout(self, params: Params, instances: Instances, key: Array) -> Rollouts | Played:
        """Send rollouts on their way, of which nothing is waited for; or play episodes."""
        sampler_params, asked = self.programs.reshard(self.constants, params), self.cut_prompts(instances)
        environment, turns = self.environment, self.programs.turns
        if environment is None or turns is None:
            self.newest = rollouts = self.programs.sample(self.constants, sampler_params, asked, key)
            if self.early:
                self.early.begin(rollouts, functools.partial(grade_local_rows, self.domain, instances, rollouts))
            return rollouts
        group_size, lanes = self.config.algorithm.group_size, num_lanes(self.config)
        return play(turns, environment, group_size, sampler_params, asked, key, lanes)

    def grade(self, instances: Instances, rollouts: Rollouts | Played) -> Graded:
        """Grade the rows that this process owns and share the grades; time it, and how long the devices wait for it."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            jax.block_until_ready(rollouts)
            started = time.monotonic()
            sampled = pool.submit(lambda: (jax.block_until_ready(self.newest), time.monotonic())[1])
            begun = self.early.take(rollouts) if self.early and isinstance(rollouts, Rollouts) else None
            if begun:
                numbers, own, failed = begun
                grades = hosts.exchange_rows(own, numbers, instances.mode.shape[0])
            else:
                grades, failed = grade_rows(self.domain, instances, rollouts)
            graded = time.monotonic()
            waited = max(graded - sampled.result(), 0.0)
        metrics = {"time/grading_secs": graded - started, "time/device_wait_secs": waited}
        if isinstance(rollouts, Played):
            failed = failed or rollouts.failed
            metrics["time/device_wait_secs"] += rollouts.idle_secs
            metrics["turns"] = rollouts.num_turns.mean()
            metrics |= {f"end/{name}": (rollouts.end == index).mean() for index, name in enumerate(ENDS)}
        return Graded(grades, metrics | {"grading_faults": hosts.agree(failed)})

    def attempt_again(self, state: State, rollouts: Rollouts | Played, grades: Graded) -> Second | None:
        """Return second attempts, graded; None where a rollout is one attempt."""
        if self.config.algorithm.protocol == protocol.SINGLE or isinstance(rollouts, Played):
            return None
        sampler_params = self.programs.reshard(self.constants, state.params)

        def go_on(rollouts: Rollouts, graded: Grades, mode: int, name: str, grade: Grade) -> Second:
            """Have a response in a mode follow each of rollouts [B, G], by the random numbers of ``name``."""
            instances, made = self.programs.follow(self.constants, rollouts, graded, mode)
            instances, key = self.cut_prompts(instances), stream(state.key, name, state.step)
            again = self.programs.sample_one(self.constants, sampler_params, instances, key)
            graded, failed = hosts.on_own_rows(grade, functools.partial(blank_grades, self.domain), instances, again)
            grades.metrics["grading_faults"] = grades.metrics["grading_faults"] or hosts.agree(failed)
            return Second(instances, again, graded, made)

        critique, before = None, (rollouts, grades.grades)
        if self.config.algorithm.protocol == protocol.CRITIQUE:
            assert self.domain.critique  # step.requirements
            critique = go_on(*before, CRITIQUE, "critique", self.domain.critique)
            before = critique.rollouts, critique.grades
        return dataclasses.replace(go_on(*before, IMPROVE, "second", self.domain.grade), critique=critique)

    def learn(
        self,
        state: State,
        instances: Instances,
        rollouts: Rollouts | Played,
        grades: Graded,
        second: Second | None = None,
    ) -> tuple[State, Metrics]:
        """Update policy and buffer."""
        played = isinstance(rollouts, Played)
        sampled: Rollouts = jax.device_put(rollouts.rollouts, meshes.by_row(self.mesh)) if played else rollouts
        embedded = self.with_embedding(state.params, sampled, grades.grades)
        batch = self.cut_prompts(instances), self.cut_responses(sampled), embedded
        state, metrics = self.programs.learn(self.constants, state, *batch, second)
        return state, metrics | {name: jnp.float32(value) for name, value in grades.metrics.items()}

    def with_embedding(self, params: Params, rollouts: Rollouts, grades: Grades) -> Grades:
        """Put the embedding that the diversity bonus asks for into the grades: an encoder's, or the policy's of solutions."""
        programs, embedding = self.programs, grades.embedding
        if programs.embed:
            embedding = programs.embed(rollouts)
        if programs.embed_solutions:
            lengths = grades.children.lengths[..., PIECES.index("solution")]
            width = self.bucket_of(lengths, self.config.run.response_buckets, self.domain.max_tokens)
            embedding = programs.embed_solutions(self.constants, params, grades.children, width)
        return dataclasses.replace(grades, embedding=embedding)

    def cut_prompts(self, instances: Instances) -> Instances:
        """Cut prompts to a bucket."""
        width = self.bucket_of(instances.prompt_length, self.config.run.prompt_buckets, self.domain.prompt_width)
        learnt = instances.learnt_prompt and (instances.learnt_prompt[0][:, :width], instances.learnt_prompt[1])
        return dataclasses.replace(instances, prompt=instances.prompt[:, :width], learnt_prompt=learnt)

    def cut_responses(self, rollouts: Rollouts) -> Rollouts:
        """Cut what rollouts have by token to a bucket."""
        lengths = response_lengths(rollouts.mask)
        width = self.bucket_of(lengths, self.config.run.response_buckets, self.domain.max_tokens)
        by_token = {name: getattr(rollouts, name) for name in ("tokens", "mask", "logp", "sampled_logp", "ended")}
        return dataclasses.replace(rollouts, **jax.tree.map(lambda array: array[:, :, :width], by_token))

    def bucket_of(self, lengths: Array, buckets: tuple[int, ...], largest: int) -> int:
        """Return the smallest bucket that holds the longest of the batch, or the largest; all hosts find the same."""
        longest, buckets = int(self.programs.longest(lengths)) if buckets else 0, (*buckets, largest)
        return min((bucket for bucket in buckets if bucket >= longest), default=max(buckets))


@jax.jit
def response_lengths(mask: Array) -> Array:
    """Return the positions after the last tokens sampled, int32 [B, G], by a mask [B, G, T]."""
    return jnp.where(mask.any(-1), mask.shape[-1] - jnp.argmax(mask[..., ::-1], -1), 0)


def grade_local_rows(domain: Domain, instances: Instances, rollouts: Rollouts) -> tuple[np.ndarray, Grades, bool]:
    """Grade the rows that this process owns: their numbers, grades and whether it failed."""
    local, numbers = hosts.local_rows((instances, rollouts))
    return numbers, *hosts.on_local_rows(domain.grade, functools.partial(blank_grades, domain), local, numbers)


def grade_rows(domain: Domain, instances: Instances, rollouts: Rollouts | Played) -> tuple[Grades, bool]:
    """Grade the rows that this process owns and share the grades; see ``hosts.on_own_rows``."""
    blank = functools.partial(blank_grades, domain)
    if not isinstance(rollouts, Played):
        return hosts.on_own_rows(domain.grade, blank, instances, rollouts)
    played = rollouts
    own = jax.tree.map(lambda leaf: leaf[played.rows], (hosts.all_rows(instances), played.rollouts))

    def grade(instances: Instances, rollouts: Rollouts) -> Grades:
        return domain.grade(instances, rollouts, played.episodes)

    return hosts.on_rows(grade, blank, own, played.rows, played.end.shape[0])
