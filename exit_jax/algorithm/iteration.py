"""One training iteration of Exploratory Iteration (ExIt, Algorithm 1), from parts that come in as arguments."""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from exit_jax.algorithm import attempts, curricula, distillation, grpo, regroup, rounds, schedules, start_levels
from exit_jax.algorithm import baseline as baselines
from exit_jax.algorithm import buffer as buffers
from exit_jax.algorithm import pool as pools
from exit_jax.algorithm import replay as replays
from exit_jax.algorithm import starts as starting
from exit_jax.algorithm.attempts import Second
from exit_jax.algorithm.curricula.core import Units
from exit_jax.algorithm.diversity import diversity
from exit_jax.algorithm.equality import fingerprint, repeats, same_content, same_entry
from exit_jax.algorithm.in_flight import Batch, Carry, InFlight, state_of
from exit_jax.algorithm.learnability import SCORES, Group, length_reward, reward
from exit_jax.algorithm.measures import batch_metrics, buffer_metrics, first, first_groups
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.algorithm.streams import stream
from exit_jax.types import (
    Array,
    Grades,
    History,
    Instances,
    Metrics,
    Params,
    Rollouts,
    State,
    TaskBuffer,
)


class Steps(Protocol):
    """The steps of an iteration, bound to a policy, a domain and devices.

    What ``rollout`` returns is ``Rollouts``, and what ``grade`` returns is ``Grades``, or either with what a host keeps beside
    it: the iteration only hands it on to the next step.
    """

    def select(self, state: State, in_flight: tuple[Instances, ...] = ()) -> tuple[Instances, Array]:
        """Return the next batch's instances, beside those in flight, and the key that its rollouts are sampled with."""
        ...

    def rollout(self, params: Params, instances: Instances, key: Array) -> Any:
        """Expand every instance into a group of rollouts."""
        ...

    def grade(self, instances: Instances, rollouts: Any) -> Any:
        """Grade rollouts by the domain's verifier."""
        ...

    def attempt_again(self, state: State, rollouts: Any, grades: Any) -> Any:
        """Return second attempts, graded; None where a rollout is one attempt."""
        ...

    def learn(
        self, state: State, instances: Instances, rollouts: Any, grades: Any, second: Any
    ) -> tuple[State, Metrics]:
        """Return the state after the update of policy and buffer."""
        ...


def iterate(steps: Steps, carry: Carry) -> tuple[Carry, Metrics]:
    """Run one training iteration: select instances, expand them into rollouts, grade these, learn from them.

    With a lag of n, the batch that is graded and learnt from was sampled n iterations before, and the next one is sampled while
    earlier ones are graded; its log-probs are those that it was sampled with, so the ratio is exact (ExIt App. A).
    """
    state, ahead = state_of(carry), []
    if isinstance(carry, InFlight):
        ahead = [*carry.batches, sample(steps, state, tuple(asked for asked, _ in carry.batches))]
        instances, rollouts = ahead.pop(0)
    else:
        instances, rollouts = sample(steps, state)
    grades = steps.grade(instances, rollouts)
    second = steps.attempt_again(state, rollouts, grades)
    state, metrics = steps.learn(state, instances, rollouts, grades, second)
    return (InFlight.of(state, ahead) if ahead else state), metrics


def sample(steps: Steps, state: State, in_flight: tuple[Instances, ...] = ()) -> Batch:
    """Select the next batch's instances, beside those in flight, and sample their rollouts."""
    instances, key = steps.select(state, in_flight)
    return instances, steps.rollout(state.params, instances, key)


def learn(
    config: ExItConfig,
    logprobs: grpo.Logprobs,
    optimizer: optax.GradientTransformation,
    state: State,
    instances: Instances,
    rollouts: Rollouts,
    grades: Grades,
    second: Second | None = None,
    *,
    num_microbatches: int,
    max_tokens: int,
    num_shown: int = 0,
    units: Units | None = None,
    teacher_prompt: distillation.TeacherPrompt | None = None,
) -> tuple[State, Metrics]:
    """Score the instances, update the policy by GRPO and the buffer by Algorithm 1.

    Metrics are numbers, but for "instances": the fingerprints uint32 [B, 2] of what was trained on, to be counted on the host;
    and, where ``num_shown`` is not 0, "rollouts": the first so many groups of the batch, for people to read.

    Args:
      second: second attempts; None where a rollout is one attempt.
      teacher_prompt: what the teacher of self_distillation reads.
    """
    config = schedules.at(config, state.step)
    asked, instances = instances, without_starts(instances)  # what the buffer is told of has no hints
    before = asked.history.quality
    reward_BG = reward(config.reward, grades.quality, grades.valid, before, asked.mode)
    more, changes = [], {}
    if second is not None:
        reward_BG, more, changes = attempts.pay(config, state.step, grades.quality, grades.valid, second)
    if not schedules.is_off(config.length_weight):
        paid_BG = length_reward(rollouts.mask.sum(-1), config.length_budget)
        reward_BG = (1.0 - config.length_weight) * reward_BG + config.length_weight * paid_BG
    baseline_B1 = None if state.baseline is None else state.baseline[asked.mode][:, None]
    advantage_BG = grpo.advantages(reward_BG, config.advantage_norm, config.advantage_eps, baseline_B1)
    group = Group(grades.quality, reward_BG, advantage_BG)
    score_B = SCORES[config.learnability_of](group)

    embedding = rollouts.hidden if config.diversity_embedding == "policy" else grades.embedding
    diversity_BG = diversity(embedding, config.diversity_cap)
    if config.diversity_bonus:
        advantage_BG = advantage_BG * diversity_BG
    teacher = None
    if config.self_distillation and teacher_prompt:
        teacher = distillation.teacher(teacher_prompt, grades.children)
    right_BG = rounds.at_most(grades.valid & (grades.quality >= config.right_at), config.right_kept)
    learnt, step = with_learnt_prompt(asked), state.step + 1
    replay = state.replay
    if replay is not None:
        rows = replays.recall(config.replay, replay, state.step, stream(state.key, "replay", state.step))
        more.append(grpo.More("replay", rows, replays.plain(config), config.replay_coef))
        replay = replays.remember(replay, learnt, rollouts, reward_BG, advantage_BG, state.step, grades.lost)
    in_rounds = config.rounds.iterations > 0
    update = functools.partial(
        grpo.update,
        dataclasses.replace(config, num_epochs=1) if in_rounds else config,
        logprobs,
        optimizer,
        num_microbatches=num_microbatches,
        max_tokens=max_tokens,
        teacher=teacher,
        key=stream(state.key, "clip_cov", state.step),
        more=more,
    )
    groups, kept = pools.Groups.of(learnt, rollouts, advantage_BG, reward_BG, right_BG), state.regroup
    if kept is not None:
        kept, groups, exchanged = regroup.exchange(kept, groups, stream(state.key, "regroup", state.step))
        changes |= exchanged
    improve = functools.partial(rounds.improve, optimizer) if in_rounds else pools.improve
    (params, reference, opt_state), pool, metrics = improve(config, update, state, learnt, groups)

    curriculum, shares = None, {}
    if units:
        told = instances, group, grades.lost, state.key, state.step
        curriculum, shares = curricula.observe(config.curriculum, units, state.curriculum, *told)
    start_level = state.start_level
    if start_level is not None:
        start_level = start_levels.observe(config.starts, start_level, instances.history.task, reward_BG, grades.lost)
        metrics["start_level"] = start_level.level.mean()
    key = stream(state.key, "expand", state.step)
    buffer, first_B, expansion = expand(config, state.buffer, instances, rollouts, grades, score_B, step, key)
    state = dataclasses.replace(
        state,
        params=params,
        reference=reference,
        opt_state=opt_state,
        buffer=buffer,
        step=step,
        cursor=state.cursor + (~instances.from_buffer).sum(dtype=jnp.int32),
        num_distinct=state.num_distinct + (instances.fresh & first_B).sum(dtype=jnp.int32),
        starts=starting.add(state.starts, instances.history, stream(state.key, "starts", state.step)),
        curriculum=curriculum,
        pool=pool,
        replay=replay,
        regroup=kept,
        start_level=start_level,
        baseline=baselines.update(state.baseline, config.baseline_decay, reward_BG, asked.mode, grades.lost),
    )
    metrics |= shares | changes | expansion | batch_metrics(asked, rollouts, grades, reward_BG, score_B, step)
    metrics |= baselines.metrics(state.baseline)
    metrics |= buffer_metrics(buffer, step) | {
        "distinct_entries": state.num_distinct,
        "instances": fingerprint(instances.history),
        "diversity_max": diversity_BG.max(),
    }
    if num_shown:
        given = {"learnability": score_B, "reward": reward_BG, "advantage": advantage_BG}
        metrics |= {"rollouts": first_groups(num_shown, asked, rollouts, grades) | first(num_shown, given)}
    return state, metrics


def without_starts(instances: Instances) -> Instances:
    """Return instances of the tasks as they are, without what they were started with."""
    return instances if instances.origin is None else dataclasses.replace(instances, history=instances.origin)


def with_learnt_prompt(instances: Instances) -> Instances:
    """Return instances with the prompts that are learnt from, which may lack a hint that was sampled with."""
    if instances.learnt_prompt is None:
        return instances
    prompt, length = instances.learnt_prompt
    return dataclasses.replace(instances, prompt=prompt, prompt_length=length)


def expand(
    config: ExItConfig,
    buffer: TaskBuffer,
    instances: Instances,
    rollouts: Rollouts,
    grades: Grades,
    score_B: Array,
    step: Array,
    key: Array,
) -> tuple[TaskBuffer, Array, Metrics]:
    """Write S to the instances and insert their children with the same S (ExIt Algorithm 1, "Buffer update").

    Where a batch drew one history several times, each draw is an estimate of the same variance: the history and all
    its children get their mean, and a base task among them is inserted once.

    Returns:
      The buffer; bool [B], True for the first of the instances that hold the same history; metrics.
    """
    history = instances.history
    same_BB = same_entry(history)
    score_B = jnp.where(same_BB, score_B[None], 0.0).sum(1) / same_BB.sum(1)
    first_B = jnp.argmax(same_BB, axis=1) == jnp.arange(score_B.size)
    slot_B, found_B = buffers.locate(buffer, history)
    lost_B = jnp.zeros_like(found_B) if grades.lost is None else grades.lost
    best_B = jnp.where(same_BB, grades.quality.max(1)[None], -jnp.inf).max(1)
    buffer = buffers.rescore(buffer, slot_B, found_B & ~lost_B, score_B, step, best_B)
    buffer = buffers.drop(buffer, slot_B, found_B & lost_B)

    enters_B = first_B & ~found_B & ~lost_B & buffers.is_base_task(history)
    buffer, new_id_B = buffers.assign_ids(buffer, enters_B)
    entered_B = jnp.where(found_B, buffer.history.id[slot_B], new_id_B[jnp.argmax(same_BB, axis=1)])
    parent_id_B = jnp.where(buffers.is_base_task(history), entered_B, history.id)  # also of one that has left since
    base = dataclasses.replace(history, id=new_id_B, born=jnp.full_like(history.born, step))

    children, wanted_BGU, counts = make_children(config, buffer, instances, rollouts, grades, step, key)
    buffer, child_id = buffers.assign_ids(buffer, wanted_BGU.reshape(-1))
    children = dataclasses.replace(
        children,
        id=child_id.reshape(wanted_BGU.shape),
        parent=jnp.broadcast_to(parent_id_B[:, None, None], wanted_BGU.shape),
    )
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), children)
    newcomers = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), base, flat)
    child_score = jnp.broadcast_to(score_B[:, None, None], wanted_BGU.shape).reshape(-1)
    num_draws = jnp.concatenate([same_BB.sum(1), jnp.zeros_like(child_id)])
    best = jnp.concatenate([best_B, jnp.full_like(child_score, -jnp.inf)])
    buffer, inserted = buffers.insert(buffer, newcomers, jnp.concatenate([score_B, child_score]), num_draws, best)
    counts["buffer/inserted"] = inserted.sum()
    counts["buffer/rescored"] = (found_B & first_B & ~lost_B).sum()
    counts["buffer/lost"] = (found_B & first_B & lost_B).sum()
    return buffer, first_B, counts


def make_children(
    config: ExItConfig,
    buffer: TaskBuffer,
    instances: Instances,
    rollouts: Rollouts,
    grades: Grades,
    step: Array,
    key: Array,
) -> tuple[History, Array, Metrics]:
    """Choose the histories that enter the buffer: children [B, G, U], wanted bool [B, G, U], and what was left out.

    Unfinished rollouts and answers that equal their parent's are left out and counted. Without self-iteration a child
    keeps its turn prefix but drops its response, and what would be a base task again is left out.

    All G rollouts yield children, also where answers are equal: the paper does not say otherwise, and an answer's share of
    the entries is then its share of the policy's answers. But a prefix without a response is a task to begin from, of which
    one entry is enough, as of a base task: it is left out if it is there already, or comes twice (ExIt §4, Algorithm 1).
    """
    children = dataclasses.replace(grades.children, born=jnp.full_like(grades.children.born, step))
    # where a row has several responses that count one by one, the domain says which of them are whole
    usable_BGU = grades.insertable & (rollouts.finished[..., None] if rollouts.ended is None else True)
    same_BGU, wanted_BGU = same_content(children, instances.history), usable_BGU
    if not config.self_iteration:
        children = without_response(children)
        same_BGU = same_content(children, instances.history)
        same_BGU = same_BGU & (children.turn == instances.history.turn[:, None, None])
        wanted_BGU = wanted_BGU & (children.turn > 0)
    unchanged_BGU = wanted_BGU & same_BGU
    wanted_BGU = wanted_BGU & ~same_BGU
    if config.max_depth:
        wanted_BGU = wanted_BGU & (children.step + 1 <= config.max_depth)
    if config.children == "improved":
        wanted_BGU = wanted_BGU & (grades.quality > instances.history.quality[:, None])[..., None]
    if config.children in ("best", "one"):
        preference = grades.quality if config.children == "best" else jax.random.uniform(key, grades.quality.shape)
        chosen = jnp.argmax(jnp.where(wanted_BGU.any(-1), preference, -1.0), axis=1)
        wanted_BGU = wanted_BGU & (jnp.arange(preference.shape[1])[None] == chosen[:, None])[..., None]
    counts = {"children_unchanged": unchanged_BGU.sum(), "children_unusable": (~usable_BGU).sum()}
    if config.children == "distinct" or not config.self_iteration:
        repeated_BGU = repeats(children, wanted_BGU, buffer.history)
        wanted_BGU = wanted_BGU & ~repeated_BGU
        counts["children_repeated"] = repeated_BGU.sum()
    return children, wanted_BGU, counts


def without_response(history: History) -> History:
    """Return histories that keep their context and request, and hold no response."""
    kept = history.lengths.at[..., 2:].set(0)
    position = jnp.broadcast_to(jnp.arange(history.tokens.shape[-1]), history.tokens.shape)
    return dataclasses.replace(
        history,
        tokens=jnp.where(position < kept.sum(-1, keepdims=True), history.tokens, 0),
        lengths=kept,
        step=jnp.full_like(history.step, -1),
        quality=jnp.zeros_like(history.quality),
    )


def init_state(
    config: ExItConfig,
    params: Params,
    opt_state,
    key: Array,
    history_width: int,
    units: Units | None = None,
    **held: Any,
) -> State:
    """Return the state before the first iteration: an empty buffer, the reference at the initial parameters.

    Args:
      held: fields of ``State`` that depend on the domain: start_level, pool, replay, regroup.
    """
    return State(
        params=params,
        reference=jax.tree.map(jnp.copy, params) if config.kl_coef else None,
        opt_state=opt_state,
        buffer=buffers.create(
            config.buffer_size,
            history_width,
            scored=config.selection_staleness > 0,
            best=config.selection == "puct",
        ),
        key=key,
        step=jnp.int32(0),
        cursor=jnp.int32(0),
        num_distinct=jnp.int32(0),
        starts=starting.create(history_width),
        curriculum=curricula.create(config.curriculum, units) if units else None,
        initial=jax.tree.map(jnp.copy, params) if config.rounds.restart == rounds.BASE else None,
        baseline=baselines.create() if config.baseline_decay else None,
        **held,
    )
