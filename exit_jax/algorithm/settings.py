"""Settings of Algorithm 1 and the paper's ablations of it."""

import dataclasses
from typing import Any

from exit_jax.settings import Table, setting

SCORES, REWARDS = (Table(f"exit_jax.algorithm.learnability:{name}") for name in ("SCORES", "REWARDS"))
OBJECTIVES, AGGREGATIONS, KL_ESTIMATORS, ADVANTAGE_NORMS = (
    Table(f"exit_jax.algorithm.objectives:{name}")
    for name in ("OBJECTIVES", "AGGREGATIONS", "KL_ESTIMATORS", "ADVANTAGE_NORMS")
)


@dataclasses.dataclass(frozen=True)
class ExItConfig:
    """Settings of ExIt's Algorithm 1; defaults are those of competition math (ExIt Table 4) unless they say otherwise."""

    num_prompts: int = setting(128, "prompts an iteration, B", within="[1, inf)")
    group_size: int = setting(8, "rollouts a prompt, G", within="[2, inf)")
    # selection (ExIt §4.1)
    buffer_size: int = setting(512, "slots of the task buffer, N", within="[1, inf)")
    min_buffer_size: int = setting(128, "histories in the buffer before any is drawn, B_min", within="[1, inf)")
    selection_prob: float = setting(0.5, "probability that an instance is drawn from the buffer, p", within="[0, 1]")
    selection: str = setting(
        "softmax", "how the buffer is drawn from: P(i) ∝ exp(κ S_i), or uniform", choices=("softmax", "uniform")
    )
    score_temperature: float = setting(20.0, "κ (our choice; the paper gives none)", within="[0, inf)")
    self_iteration: bool = setting(
        True,
        "whether responses are improved; if not, the buffer holds base tasks and turn prefixes (curriculum ablation)",
    )
    divergence_prob: float = setting(
        0.2, "probability that an instance from the buffer is to diverge, p_div (ExIt §4.2)", within="[0, 1]"
    )
    max_depth: int = setting(
        0, "histories that hold more responses stay out of the buffer; 0 for no limit", within="[0, inf)"
    )
    children: str = setting(
        "all",
        "rollouts of a group that enter the buffer; distinct are those that are not there yet, improved those with a higher "
        "quality than what they began from (our choice)",
        choices=("all", "distinct", "improved", "best", "one"),
    )
    learnability_of: str = setting("quality", "the score S of a group of rollouts (our choice)", choices=SCORES)
    # reward (ExIt §4, App. A)
    reward: str = setting("quality", "what improve steps are paid", choices=REWARDS)
    diversity_bonus: bool = setting(True, "scale advantages by the distance to the group's mean (ExIt eq. 6)")
    diversity_embedding: str = setting(
        "policy",
        "the embedding of eq. 6: the domain's or an encoder's (grades), the mean hidden state of the policy's response, or its "
        "reading of the solution alone (our choice)",
        choices=("grades", "policy", "solution"),
    )
    diversity_cap: float = setting(float("inf"), "upper bound of eq. 6's factor; inf for none")
    # GRPO (ExIt §2.2, App. A)
    advantage_norm: str = setting("group", "what advantages are divided by, or taken from", choices=ADVANTAGE_NORMS)
    advantage_eps: float = setting(1e-6, "added to standard deviations (our choice)", within="[0, inf)")
    baseline_decay: float = setting(
        0.0,
        'memory of the running baseline of advantage_norm "ema": b ← decay · b + (1 - decay) · mean reward; 0 keeps none',
        within="[0, 1)",
        younger=True,
    )
    zero_variance: str = setting(
        "drop",
        "groups of equal rewards: kept, they still get KL and entropy (open-instruct drops)",
        choices=("keep", "drop"),
    )
    objective: str = setting("clip", "what is maximised for each token", choices=OBJECTIVES, younger=True)
    right_at: float = setting(
        1.0,
        "quality from which on a response is right, for objectives that tell right from wrong (nft, nft_std, rft, ail)",
        within="(0, 1]",
        younger=True,
    )
    negative_weight: float = setting(
        1.0, "what wrong responses weigh (nft, nft_std, ail)", within="[0, inf)", younger=True
    )
    reward_temperature: float = setting(0.4, "τ of the weight exp(r / τ) (rwr)", within="[0.02, inf)", younger=True)
    clip_cov_share: float = setting(
        0.0,
        "share of the tokens that get no gradient, drawn among those in clip_cov_band (Clip-Cov); 0 for none",
        within="[0, 1]",
        younger=True,
    )
    clip_cov_band: tuple[float, float] = setting(
        (1.0, 40.0), "the covariance of log-prob and advantage is between these", younger=True
    )
    self_distillation: float = setting(
        0.0,
        "share of the advantage that the policy gives which has read the response's feedback (SDPO); 0 for none",
        within="[0, 1]",
        younger=True,
    )
    clip_low: float = setting(0.2, "the ratio is clipped below 1 - this", within="[0, inf)")
    clip_high: float = setting(0.2, "the ratio is clipped above 1 + this", within="[0, inf)")
    ratio_level: str = setting("token", "ratio of a token, or of a sequence (GSPO)", choices=("token", "sequence"))
    aggregation: str = setting("sequence_mean", "how token losses are averaged", choices=AGGREGATIONS)
    mask_overlong: bool = setting(False, "no gradient for responses that ran out of room, or lack a valid ending")
    kl_coef: float = setting(0.001, "weight of the KL term, β; 0 keeps no reference policy", within="[0, inf)")
    kl_estimator: str = setting("k3", "estimator of the KL term (open-instruct's)", choices=KL_ESTIMATORS)
    entropy_coef: float = setting(0.0, "weight of the entropy bonus")
    num_epochs: int = setting(1, "updates a batch", within="[1, inf)")
    reference_every: int = setting(100, "iterations between updates of the reference policy, M", within="[1, inf)")
    reference_mix: float = setting(1.0, "share of the policy in an update of the reference, α", within="[0, 1]")
    temperature: float = setting(
        1.0,
        "temperature of sampling, and of the log-probs (our choice)",
        within="(0, inf)",
        remedy="training must sample",
    )
    recompute_logp: bool = setting(False, "take the ratio against the learner's log-probs, not the sampler's")
    rollout_lag: int = setting(
        0, "1 samples a batch while the one before is graded, from parameters one update older", choices=(0, 1)
    )


# the ablations of ExIt §5, by the fields in which they differ; all use the same number of rollouts
_OFF: dict[str, Any] = {
    "selection_prob": 0.0,
    "self_iteration": False,
    "divergence_prob": 0.0,
    "diversity_bonus": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": _OFF,
    "curriculum": _OFF | {"selection_prob": 0.5},
    "improve": _OFF | {"selection_prob": 0.5, "self_iteration": True},
    "diverge": _OFF | {"selection_prob": 0.5, "self_iteration": True, "divergence_prob": 0.2},
    "exit": {"selection_prob": 0.5, "self_iteration": True, "divergence_prob": 0.2, "diversity_bonus": True},
}
