"""Objectives, gates and baselines beside those of GRPO."""

from exit_jax.config.methods.method import Method

OBJECTIVES = {
    "nft": Method(
        "objective",
        "NFT, weight 1 - p",
        "2505.18116",
        "adapted: a response is right from a quality of right_at on, where theirs is right or wrong; a batch's sum over tokens "
        "is divided by its responses and the most tokens that one may have, where theirs is divided by 1,000",
        {
            "algorithm.objective": "nft",
            "algorithm.aggregation": "dr_grpo",
            "algorithm.zero_variance": "drop",
            "algorithm.diversity_bonus": False,
            "algorithm.kl_coef": 0.0,
        },
    ),
    "nftstd": Method(
        "objective",
        "NFT, weight √((1 - p) / p)",
        "2505.18116",
        "adapted: as nft",
        {
            "algorithm.objective": "nft_std",
            "algorithm.aggregation": "dr_grpo",
            "algorithm.zero_variance": "drop",
            "algorithm.diversity_bonus": False,
            "algorithm.kl_coef": 0.0,
        },
    ),
    "rft": Method(
        "objective",
        "RFT, expert iteration",
        "2308.01825",
        "in kind: right responses are learnt from, on policy and one batch after the other, where theirs are collected, made "
        "unique and learnt from in rounds (`restem` has rounds)",
        {"algorithm.objective": "rft", "algorithm.diversity_bonus": False, "algorithm.kl_coef": 0.0},
    ),
    "rwr": Method(
        "objective",
        "reward-weighted regression, as in RISE",
        "2407.18219",
        "adapted: rewards are 0 to 1 and all responses of a batch are learnt from, where theirs are -1, 0 and 1, of the turns "
        "that are chosen from rounds of sampling",
        {
            "algorithm.objective": "rwr",
            "algorithm.reward_temperature": 0.4,
            "algorithm.diversity_bonus": False,
            "algorithm.kl_coef": 0.0,
        },
    ),
    "cispo": Method(
        "objective",
        "CISPO",
        "2506.13585",
        "adapted: its authors do not give ε_high, and 4 bounds the weight by 5, as ScaleRL does (arXiv 2510.13786)",
        {
            "algorithm.objective": "cispo",
            "algorithm.clip_high": 4.0,
            "algorithm.aggregation": "token_mean",
            "algorithm.kl_coef": 0.0,
        },
    ),
    "clipcov": Method(
        "objective",
        "Clip-Cov, as in SPEAR",
        "2509.22601",
        "adapted: covariances are those of the log-probs that tokens were sampled with, once a batch; of SPEAR this is the "
        "clip alone",
        {"algorithm.clip_cov_share": 0.02, "algorithm.clip_cov_band": (1.0, 40.0)},
    ),
    "tis": Method(
        "objective",
        "TIS, truncated importance sampling",
        "Yao et al. 2025, fengyao.notion.site/off-policy-rl",
        "adapted: the highest weight is TRL's default of 3",
        {"algorithm.recompute_logp": True, "algorithm.importance": "token_truncate"},
    ),
    "icepop": Method(
        "objective",
        "IcePop, masked importance sampling",
        "2510.18855; bounds as in 2512.16144",
        "faithful",
        {
            "algorithm.recompute_logp": True,
            "algorithm.importance": "token_mask",
            "algorithm.importance_min": 0.5,
            "algorithm.importance_max": 5.0,
        },
    ),
    "ail": Method(
        "objective",
        "adversarial imitation, as in SEAgent",
        "2508.04700",
        "in kind: a response is wrong as a whole, by its quality, where theirs are steps that a model judges; the reference is "
        "the policy that sampled where kl_coef = 0 keeps none",
        {"algorithm.objective": "ail", "algorithm.negative_weight": 0.2},
    ),
    "maxrl": Method(
        "objective",
        "MaxRL",
        "2602.02710",
        "adapted: rewards between 0 and 1 take the place of right and wrong",
        {"algorithm.advantage_norm": "mean"},
    ),
    "rae": Method(
        "objective",
        "RAE, SPIRAL's running baseline",
        "2506.24119",
        "adapted: one baseline for each mode, moved once a batch, where theirs is one for each game and role, moved by every "
        "episode",
        {"algorithm.advantage_norm": "ema", "algorithm.baseline_decay": 0.95},
    ),
    "sdpo": Method(
        "objective",
        "SDPO, self-distillation from feedback",
        "2601.20802",
        "adapted: the divergence is estimated from the tokens sampled, where theirs is a sum over the likeliest; the teacher "
        "is the policy as the update begins, not an average; it reads the improve prompt, which holds the attempt, and no "
        "sample solution",
        {"algorithm.self_distillation": 1.0, "algorithm.diversity_bonus": False},
    ),
}
