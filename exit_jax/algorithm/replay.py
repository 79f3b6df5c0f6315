"""Replay of a policy's own good responses beside those it samples now (SPEAR, arXiv 2509.22601; code: SPEAR's verl-agent).

Responses of positive advantage are kept in a ring with the log-probs that they were sampled with. Each update also learns from
some of them, by the clipped surrogate against these log-probs, weighed by ``replay_coef``. Their advantage is taken anew: the
reward less the median of the newest groups' means, and only those are learnt from of which it is not negative. SPEAR waits
until the ring is full, learns from all of it once and empties it; here an update draws some rows, without replacement.
"""

import dataclasses

import jax
import jax.numpy as jnp

from exit_jax.algorithm.grpo import Rows
from exit_jax.algorithm.method_settings import ReplayConfig
from exit_jax.algorithm.pool import widened
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import Array, Instances, Replay, Rollouts

EMPTY = -1


def create(config: ReplayConfig, prompt_width: int, max_tokens: int) -> Replay:
    """Return an empty ring."""
    size = config.size
    tokens = jnp.zeros((size, max_tokens), jnp.int32)
    return Replay(
        prompt=jnp.zeros((size, prompt_width), jnp.int32),
        prompt_length=jnp.zeros(size, jnp.int32),
        tokens=tokens,
        mask=tokens > 0,
        logp=tokens.astype(jnp.float32),
        reward=jnp.zeros(size, jnp.float32),
        born=jnp.full(size, EMPTY, jnp.int32),
        head=jnp.int32(0),
        means=jnp.full(config.window, jnp.nan, jnp.float32),
        num_means=jnp.int32(0),
    )


def remember(
    replay: Replay,
    instances: Instances,
    rollouts: Rollouts,
    reward: Array,
    advantage: Array,
    step: Array,
    lost: Array | None = None,
) -> Replay:
    """Keep the whole responses [B, G] of positive advantage over the oldest ones, and the mean rewards of groups not lost."""
    size, groups = replay.born.size, reward.shape
    good = ((advantage > 0) & rollouts.finished).reshape(-1)
    place = (replay.head + jnp.cumsum(good, dtype=jnp.int32) - 1) % size
    row = jnp.where(good, place, size)

    def put(held: Array, new: Array) -> Array:
        return held.at[row].set(widened(new.reshape(-1, *new.shape[2:]), held), mode="drop")

    each = lambda x: jnp.broadcast_to(x[:, None], (*groups, *x.shape[1:]))
    mean = reward.mean(1) if lost is None else jnp.where(lost, jnp.nan, reward.mean(1))
    number = replay.num_means + jnp.arange(groups[0])
    return dataclasses.replace(
        replay,
        prompt=put(replay.prompt, each(instances.prompt)),
        prompt_length=put(replay.prompt_length, each(instances.prompt_length)),
        tokens=put(replay.tokens, rollouts.tokens),
        mask=put(replay.mask, rollouts.mask),
        logp=put(replay.logp, rollouts.logp),
        reward=put(replay.reward, reward),
        born=put(replay.born, jnp.broadcast_to(step, groups)),
        head=(replay.head + good.sum(dtype=jnp.int32)) % size,
        means=replay.means.at[number % replay.means.size].set(mean),
        num_means=replay.num_means + groups[0],
    )


def recall(config: ReplayConfig, replay: Replay, step: Array, key: Array) -> Rows:
    """Draw ``config.rows`` of the kept responses that are young enough, and not below the median of the newest groups."""
    baseline = jnp.nan_to_num(jnp.nanmedian(replay.means))
    usable = (replay.born != EMPTY) & (step - replay.born <= config.max_age) & (replay.reward >= baseline)
    priority = jnp.where(usable, jax.random.uniform(key, usable.shape), -1.0)
    _, row = jax.lax.top_k(priority, config.rows)
    admitted, groups_of_one = usable[row], lambda array: array[row][:, None]
    reward = groups_of_one(replay.reward)
    rollouts = Rollouts(
        tokens=groups_of_one(replay.tokens),
        mask=groups_of_one(replay.mask),
        logp=groups_of_one(replay.logp),
        sampled_logp=groups_of_one(replay.logp),
        finished=jnp.ones((config.rows, 1), bool),
        hidden=None,  # type: ignore[arg-type]
    )
    nothing: dict = dict.fromkeys(("history", "mode", "from_buffer", "fresh"))
    instances = Instances(**nothing, prompt=replay.prompt[row], prompt_length=replay.prompt_length[row])
    return Rows(instances, rollouts, reward - baseline, reward, reward >= 1.0, admitted)


def plain(config: ExItConfig) -> ExItConfig:
    """Return the settings by which kept responses are learnt from: the clipped surrogate alone."""
    off = {"entropy_coef": 0.0, "kl_coef": 0.0, "clip_cov_share": 0.0}
    return dataclasses.replace(config, objective="clip", zero_variance="keep", mask_overlong=False, **off)
