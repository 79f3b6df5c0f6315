"""Settings of Algorithm 1 and the paper's ablations of it."""

import dataclasses
from typing import Any

from exit_jax.algorithm import schedules
from exit_jax.algorithm.method_settings import SCORES, CurriculumConfig, ReplayConfig, RoundsConfig, StartsConfig
from exit_jax.settings import Table, group, setting

IMPORTANCE = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
REWARDS = Table("exit_jax.algorithm.learnability:REWARDS")
BUFFER_DRAWS = Table("exit_jax.algorithm.buffer_draws:DRAWS")
ADMISSIONS = Table("exit_jax.algorithm.admission:ADMISSIONS")
PROTOCOLS = Table("exit_jax.algorithm.protocol:PROTOCOLS")
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
    selection: str = setting("softmax", "how the buffer is drawn from", choices=BUFFER_DRAWS)
    score_temperature: float = setting(20.0, "κ (our choice; the paper gives none)", within="[0, inf)")
    selection_exponent: float = setting(0.1, "P ∝ rank^(-1/β) for a draw by rank, β", within="(0, inf)", younger=True)
    selection_staleness: float = setting(
        0.0, "weight in a draw of the time since an entry was scored, ρ of PLR", within="[0, 1]", younger=True
    )
    puct_exploration: float = setting(1.0, "c of a draw by puct", within="[0, inf)", younger=True)
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
    curriculum: CurriculumConfig = group(CurriculumConfig, "which base tasks are drawn (not ExIt's buffer)")
    starts: StartsConfig = group(StartsConfig, "what base tasks start with besides their request")
    # reward (ExIt §4, App. A)
    reward: str = setting("quality", "what improve steps are paid", choices=REWARDS)
    length_weight: float = setting(
        0.0,
        "share of the reward that is paid for the length of a response, by a triangle that is highest at length_budget",
        within="[0, 1]",
        younger=True,
    )
    length_budget: float = setting(0.0, "tokens that a response should have", within="[0, inf)", younger=True)
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
    admission: str = setting("all", "which groups may be learnt from", choices=ADMISSIONS, younger=True)
    admission_band: tuple[float, float] = setting(
        (0.2, 0.8), "mean rewards that the band admits", within="[0, 1]", younger=True
    )
    refill: bool = setting(
        False,
        "sample on, without an update, until num_prompts groups are admitted (DAPO); an iteration still samples num_prompts",
        younger=True,
    )
    rounds: RoundsConfig = group(RoundsConfig, "sampling in rounds, each learnt from as a whole")
    right_kept: int = setting(
        0,
        "right responses of a group that count as right, the first ones, for objectives that tell right from wrong; 0 for all",
        within="[0, inf)",
        younger=True,
    )
    regroup: int = setting(
        0,
        "groups kept whose rewards differ, to take the places of a batch's groups whose rewards do not; 0 for none",
        within="[0, inf)",
        younger=True,
    )
    protocol: str = setting(
        "single",
        "whether rollouts have a second attempt, by a critique or without, and what is paid",
        choices=PROTOCOLS,
        younger=True,
    )
    protocol_stage: int = setting(
        0,
        "iterations of SCoRe's first stage, in which first attempts are paid nothing",
        within="[0, inf)",
        younger=True,
    )
    protocol_alpha: float = setting(10.0, "weight of the progress that SCoRe pays, α", within="[0, inf)", younger=True)
    replay: ReplayConfig = group(ReplayConfig, "good responses that are learnt from again")
    replay_coef: float = setting(1.0, "weight of what is learnt again", within="[0, inf)", younger=True)
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
    num_epochs: int = setting(1, "updates a batch, or passes over a round", within="[1, inf)")
    reference_every: int = setting(100, "iterations between updates of the reference policy, M", within="[1, inf)")
    reference_mix: float = setting(1.0, "share of the policy in an update of the reference, α", within="[0, 1]")
    temperature: float = setting(
        1.0,
        "temperature of sampling, and of the log-probs (our choice)",
        within="(0, inf)",
        remedy="training must sample",
    )
    turn_limit: float = setting(
        0.0,
        "responses of an episode in training, if fewer than the environment's own limit, which evaluation keeps; 0 for none",
        within="[0, inf)",
        younger=True,
    )
    schedules: tuple[str, ...] = setting(
        (),
        'coefficients that change over the iterations, as "entropy_coef = linear(0.1, 0, 600)": constant(value), linear, '
        "cosine and exponential(first, last, iterations), stairs(first, factor, every)",
        younger=True,
    )
    recompute_logp: bool = setting(False, "take the ratio against the learner's log-probs, not the sampler's")
    importance: str = setting(
        "none",
        "how tokens are weighed by what the learner's own log-probs say of them, over the sampler's (TIS, MIS); needs "
        "recompute_logp",
        choices=IMPORTANCE,
        younger=True,
    )
    importance_min: float = setting(
        0.0, "lowest weight: what is below is raised to it, or masked", within="[0, 1]", younger=True
    )
    importance_max: float = setting(
        3.0, "highest weight: what is above is cut to it, or masked", within="[1, inf)", younger=True
    )
    rollout_lag: int = setting(
        0,
        "batches that are sampled ahead while earlier ones are graded, each from parameters so many updates older than those "
        "that learn from it; from 2 on they are graded in the background",
        within="[0, 16]",
    )

    @property
    def responses(self) -> int:
        """Return how many responses an iteration samples; an episode of several turns counts as one."""
        return self.num_prompts * self.group_size * {"single": 1, "critique": 3}.get(self.protocol, 2)

    def faults(self) -> list[str]:
        """Return what is wrong with the schedules, and a length that is paid without a budget."""
        found = schedules.faults(self)
        budgeted = self.length_budget or any(
            text.partition("=")[0].strip() == "length_budget" for text in self.schedules
        )
        if self.length_weight and not budgeted:
            found.append(
                f"algorithm.length_weight = {self.length_weight} with algorithm.length_budget = 0: say how many tokens a "
                "response should have"
            )
        if len(self.admission_band) != 2 or self.admission_band[0] > self.admission_band[1]:
            found.append(
                f"algorithm.admission_band = {self.admission_band} is not (low, high): it would admit no group"
            )
        if self.refill and self.admission == "all":
            found.append(
                'algorithm.refill = True with algorithm.admission = "all": every group is admitted, so there is nothing to '
                'fill up; say which are, "spread" for those whose rewards differ'
            )
        if self.protocol != "single" and (self.rollout_lag or self.refill or self.advantage_norm == "ema"):
            found.append(
                f"algorithm.protocol = {self.protocol!r} with rollout_lag = {self.rollout_lag}, refill = {self.refill}, "
                f"advantage_norm = {self.advantage_norm!r}: second attempts follow at once and have no running baseline; set "
                'the lag to 0, refill to False and the norm to another one, or the protocol to "single"'
            )
        held = self.num_prompts * self.group_size
        if self.replay.size and self.replay.size < max(held, self.replay.rows):
            found.append(
                f"algorithm.replay.size = {self.replay.size} is below the {max(held, self.replay.rows)} responses that an "
                "iteration may add to it or take from it; raise it, or set it to 0 for no replay"
            )
        if self.right_kept and self.objective != "rft":
            found.append(
                f"algorithm.right_kept = {self.right_kept} with algorithm.objective = {self.objective!r}: what is right beyond "
                'them would count as wrong; set the objective to "rft", or right_kept to 0'
            )
        if self.regroup and (self.recompute_logp or self.self_distillation):
            found.append(
                f"algorithm.regroup = {self.regroup} with recompute_logp = {self.recompute_logp}, self_distillation = "
                f"{self.self_distillation}: a kept group is learnt from by the log-probs that it was sampled with, and has no "
                "teacher; set both off, or regroup to 0"
            )
        others = {
            "refill": self.refill,
            "replay.size": self.replay.size,
            "self_distillation": self.self_distillation,
            "clip_cov_share": self.clip_cov_share,
            "recompute_logp": self.recompute_logp,
        } | ({"protocol": self.protocol} if self.protocol != "single" else {})
        asked = ", ".join(f"{name} = {value!r}" for name, value in others.items() if value)
        if self.rounds.iterations and asked:
            found.append(
                f"algorithm.rounds.iterations = {self.rounds.iterations} with {asked}: a round is learnt from as it was "
                "sampled, with nothing beside it; set these off, or the rounds to 0"
            )
        if self.refill and self.self_distillation:
            found.append(
                "algorithm.refill with algorithm.self_distillation: a teacher reads groups of one batch; set one off"
            )
        return found


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
