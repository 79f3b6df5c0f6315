"""The steps of an iteration on the devices: pure functions of arrays, to be traced in one program or in several."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from exit_jax.algorithm import attempts, iteration, protocol
from exit_jax.algorithm.attempts import Second
from exit_jax.algorithm.in_flight import state_for_next_selection
from exit_jax.algorithm.prompts import render
from exit_jax.algorithm.selection import select
from exit_jax.algorithm.streams import stream
from exit_jax.config.schema import Config
from exit_jax.domains.domain import Domain
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder, sampler
from exit_jax.step.optimizer import make_optimizer, make_schedule
from exit_jax.step.policy import decoder_config, make_reshard, sampling_config
from exit_jax.step.starts import make_start, templates_of
from exit_jax.step.units import curriculum_units
from exit_jax.types import IMPROVE, Array, Grades, History, Instances, Metrics, Params, Rollouts, State, pytree


@pytree
class Constants:
    """What a run is given and does not change; arguments of its programs."""

    tasks: History  # [M]: the training split's base tasks
    frozen: Params | None  # parameters that are not trained; None without LoRA
    gold: Any = None  # what starts look up of the training split; None without starts


@dataclasses.dataclass(frozen=True)
class DeviceSteps:
    """The ``Steps`` of a config, bound to its policy, domain and mesh."""

    config: Config
    domain: Domain
    mesh: jax.sharding.Mesh
    constants: Constants

    def select(self, state: State, in_flight: tuple[Instances, ...] = ()) -> tuple[Instances, Array]:
        """Return the next batch's instances, and the key that its rollouts are sampled with."""
        algorithm, domain = self.config.algorithm, self.domain
        units = curriculum_units(algorithm.curriculum, domain)
        state = state_for_next_selection(state, in_flight, units)
        start = make_start(algorithm.starts, domain, self.constants.gold)
        prompts = templates_of(algorithm.starts, domain), domain.prompt_width
        instances = select(algorithm, *prompts, self.constants.tasks, state, in_flight, units, start)
        return instances, stream(state.key, "sample", state.step)

    def reshard(self, params: Params) -> Params:
        """Return the sampler's form of the policy."""
        policy = decoder_config(self.config)
        return make_reshard(policy, self.mesh, self.config.sampling.int8)(decoder.join(params, self.constants.frozen))

    def sample(self, sampler_params: Params, instances: Instances, key: Array, group_size: int = 0) -> Rollouts:
        """Expand every instance into a group of rollouts, from the sampler's form of the policy; 0 for groups of the config."""
        config, policy = self.config, decoder_config(self.config)
        slots = config.run.sampler_slots if not group_size else 0
        group_size = group_size or config.algorithm.group_size
        prompt, length = meshes.shard_batch(self.mesh, (instances.prompt, instances.prompt_length))
        with meshes.use(self.mesh):
            sampling = sampling_config(config, self.domain, self.domain.max_tokens)
            rollouts = sampler.sample(policy, sampling, group_size, sampler_params, prompt, length, key, slots)
            return meshes.shard_batch(self.mesh, rollouts)

    def rollout(self, params: Params, instances: Instances, key: Array) -> Rollouts:
        """Expand every instance into a group of rollouts."""
        return self.sample(self.reshard(params), instances, key)

    def grade(self, instances: Instances, rollouts: Rollouts) -> Grades:
        """Grade rollouts by the domain's verifier, which is written in jnp."""
        return self.domain.grade(instances, rollouts)

    def follow(self, rollouts: Rollouts, grades: Grades, mode: int = IMPROVE) -> tuple[Instances, Array]:
        """Return what is asked after rollouts in a mode, and where there is something."""
        return attempts.follow(self.domain.templates, self.domain.prompt_width, rollouts, grades, mode)

    def attempt_again(self, state: State, rollouts: Rollouts, grades: Grades) -> Second | None:
        """Return second attempts, graded; None where a rollout is one attempt."""
        if self.config.algorithm.protocol == protocol.SINGLE:
            return None
        instances, made = self.follow(rollouts, grades)
        key = stream(state.key, "second", state.step)
        again = self.sample(self.reshard(state.params), instances, key, group_size=1)
        return Second(instances, again, self.domain.grade(instances, again), made)

    def logprobs(self, trained: Params, prompt: Array, prompt_length: Array, tokens: Array):
        """Return the learner's log-probs of responses and the entropy, as ``sampler.logprobs`` does."""
        config, policy = self.config, decoder_config(self.config)
        params = decoder.cast(decoder.join(trained, self.constants.frozen), policy.dtype)
        arrays = meshes.shard_batch(self.mesh, (prompt, prompt_length, tokens))
        with meshes.use(self.mesh):
            return sampler.logprobs(policy, config.algorithm.temperature, config.run.token_chunk, params, *arrays)

    def teacher_prompt(self, history: History) -> tuple[Array, Array]:
        """Return the improve prompts of histories [...], tokens int32 [..., P] and lengths, as ``render`` does."""
        return render(self.domain.templates["improve"], history, self.domain.prompt_width)

    def learn(
        self, state: State, instances: Instances, rollouts: Rollouts, grades: Grades, second: Second | None = None
    ) -> tuple[State, Metrics]:
        """Update policy and buffer, and say what can be said of the batch."""
        config, num_epochs = self.config, self.config.algorithm.num_epochs
        first_step, waits = state.step * num_epochs, state.pool is not None
        learn = functools.partial(
            iteration.learn,
            config.algorithm,
            self.logprobs,
            make_optimizer(config.optimizer),
            num_microbatches=config.run.num_microbatches,
            max_tokens=self.domain.max_tokens,
            num_shown=config.run.rollouts_kept if config.run.rollouts_every else 0,
            units=curriculum_units(config.algorithm.curriculum, self.domain),
            teacher_prompt=self.teacher_prompt,
        )
        state, metrics = learn(state, instances, rollouts, grades, second)
        if waits:  # updates are not as many as iterations: those of the newest one
            first_step = jnp.maximum(updates_done(state.opt_state) - num_epochs, 0)
        rates = jax.vmap(make_schedule(config.optimizer))(first_step + jnp.arange(num_epochs))
        metrics |= {"learning_rate": jnp.mean(rates), "finite_logits": sampler.finite_share(rollouts)}
        return state, metrics | mean_difficulty(self.domain, self.constants.tasks, instances.history.task)


def updates_done(opt_state: Any) -> Array:
    """Return how many updates an optimiser's state has seen, int32 []."""
    return optax.tree.get_all_with_path(opt_state, "count")[0][1]


def mean_difficulty(domain: Domain, tasks: History, drawn: Array) -> Metrics:
    """Return each difficulty's mean over the training tasks numbered ``drawn``, int32 [B], of all ``tasks`` [M]."""
    row = drawn - tasks.task[0]  # tasks of a split are numbered on from its first, which is 0 in the first split alone
    known = row < tasks.task.size  # one that was made on the way is in no table

    def mean(level: np.ndarray) -> Array:
        drawn = jnp.asarray(level)[jnp.minimum(row, tasks.task.size - 1)]
        return jnp.mean(drawn, where=known) if "edit" in domain.variants else drawn.mean()

    return {f"task/{name}": mean(level) for name, level in domain.difficulty("train").items()}
