"""ExIt on 4x4 sudoku by edit scripts: the whole method on a laptop, with no download.

    python -m exit_jax.main --config configs/sudoku.py
    python -m exit_jax.main --config configs/sudoku.py:variant=grpo,seed=1,setting=control

Arguments:
  variant: grpo | curriculum | improve | diverge | exit, the ablations of the paper (ExIt §5), or any of
    them with a change, as in exit-uniform. All use the same number of rollouts.
  seed: of parameters, demonstrations, selection and sampling. The puzzles are the same for all seeds.
  setting: paper, where training tasks have 4-7 clues like the held-out ones; or control, where they have 4-14, so that
    GRPO too is shown the states that ExIt finds by itself.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "grpo": {"selection_prob": 0.0, "self_iteration": False, "divergence_prob": 0.0, "diversity_bonus": False},
    "curriculum": {"selection_prob": 0.5, "self_iteration": False, "divergence_prob": 0.0, "diversity_bonus": False},
    "improve": {"selection_prob": 0.5, "self_iteration": True, "divergence_prob": 0.0, "diversity_bonus": False},
    "diverge": {"selection_prob": 0.5, "self_iteration": True, "divergence_prob": 0.2, "diversity_bonus": False},
    "exit": {"selection_prob": 0.5, "self_iteration": True, "divergence_prob": 0.2, "diversity_bonus": True},
}
CHANGES = {
    "uniform": {"algorithm.selection": "uniform"},
    "sharp": {"algorithm.score_temperature": 200.0},
    "shallow": {"algorithm.max_depth": 4},
    "best": {"algorithm.children": "best"},
    "one": {"algorithm.children": "one"},
    "fresh": {"algorithm.buffer_size": 256},
    "gain": {"algorithm.reward": "improve_or_keep", "algorithm.learnability_of": "reward"},
    "blind": {"domain.feedback": False},
}
SETTINGS = {"paper": (4, 7), "control": (4, 14)}


def parse(arg: str, **defaults):
    """Parse "name=value,..." into the defaults' types; an unknown name is an error."""
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, value = item.partition("=")
        if name not in defaults or not equals:
            raise ValueError(f"config argument {item!r} is not one of {', '.join(f'{k}=...' for k in defaults)}")
        values[name] = type(defaults[name])(value)
    return values


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=...,setting=..."."""
    given = parse(arg, variant="exit", seed=0, setting="paper")
    variant, setting = given["variant"], given["setting"]
    base, _, change = variant.partition("-")
    if base not in VARIANTS or (change and change not in CHANGES):
        raise ValueError(
            f"variant={variant} is not one of {tuple(VARIANTS)}, or one of them, a hyphen and one of {tuple(CHANGES)}"
        )
    if setting not in SETTINGS:
        raise ValueError(f"setting={setting} is not one of {tuple(SETTINGS)}")

    c = ConfigDict()
    c.name = f"sudoku-{setting}"
    c.variant = variant
    c.seed = given["seed"]

    c.domain_name = "sudoku"
    c.domain = ConfigDict()
    c.domain.box = 2
    c.domain.num_clues = SETTINGS[setting]
    c.domain.num_train = 2048
    c.domain.eval_clues = (4, 7)
    c.domain.num_eval = 512
    c.domain.max_edits = 3
    c.domain.data_seed = 0
    c.domain.feedback = True
    c.domain.on_host = False
    c.domain.demo_clues = (4, 7)
    c.domain.demo_noise = 0.2
    c.domain.demo_wrong = 0.3

    c.checkpoint = ""
    c.policy = ConfigDict()
    c.policy.vocab_size = 0
    c.policy.num_layers = 3
    c.policy.embed_dim = 64
    c.policy.num_heads = 4
    c.policy.num_kv_heads = 2
    c.policy.head_dim = 16
    c.policy.mlp_dim = 192
    c.policy.rope_theta = 100.0  # positions end at 41
    c.policy.rope_scaling = ()
    c.policy.norm_eps = 1e-6
    c.policy.tie_embeddings = True
    c.policy.qkv_bias = False
    c.policy.qk_norm = False
    c.policy.dtype = "float32"
    c.policy.param_dtype = "float32"
    c.policy.attention = "auto"
    c.policy.remat = "none"
    c.policy.unroll_layers = True
    c.policy.decode_stages = 1
    c.policy.lora = ConfigDict()
    c.policy.lora.rank = 0
    c.policy.lora.alpha = 16.0
    c.policy.lora.targets = ()

    c.warm_start = ConfigDict()
    c.warm_start.seed = -1
    c.warm_start.num_steps = 1000
    c.warm_start.num_states = 128
    c.warm_start.group_size = 4
    c.warm_start.optimizer = ConfigDict()
    c.warm_start.optimizer.kind = "adamw"
    c.warm_start.optimizer.learning_rate = 4e-3
    c.warm_start.optimizer.warmup_steps = 50
    c.warm_start.optimizer.decay_steps = 1000
    c.warm_start.optimizer.b1 = 0.9
    c.warm_start.optimizer.b2 = 0.999
    c.warm_start.optimizer.weight_decay = 1e-4
    c.warm_start.optimizer.max_grad_norm = 1.0

    c.algorithm = ConfigDict()
    c.algorithm.num_prompts = 64
    c.algorithm.group_size = 8
    c.algorithm.buffer_size = 1024
    c.algorithm.min_buffer_size = 128
    c.algorithm.selection = "softmax"
    c.algorithm.score_temperature = 20.0
    c.algorithm.max_depth = 0
    c.algorithm.children = "all"
    c.algorithm.learnability_of = "quality"
    c.algorithm.reward = "quality"
    c.algorithm.diversity_embedding = "grades"
    c.algorithm.diversity_cap = float("inf")
    c.algorithm.advantage_norm = "group"
    c.algorithm.advantage_eps = 1e-6
    c.algorithm.zero_variance = "keep"
    c.algorithm.clip_low = 0.2
    c.algorithm.clip_high = 0.2
    c.algorithm.ratio_level = "token"
    c.algorithm.aggregation = "sequence_mean"
    c.algorithm.mask_overlong = False
    c.algorithm.kl_coef = 0.0
    c.algorithm.kl_estimator = "k3"
    c.algorithm.entropy_coef = 0.1
    c.algorithm.num_epochs = 1
    c.algorithm.reference_every = 100
    c.algorithm.reference_mix = 1.0
    c.algorithm.temperature = 1.0
    c.algorithm.recompute_logp = False
    c.algorithm.rollout_lag = 0

    c.algorithm.update(VARIANTS[base])

    c.sampling = ConfigDict()
    c.sampling.top_k = 0
    c.sampling.top_p = 1.0
    c.sampling.min_p = 0.0
    c.sampling.min_tokens = 0
    c.sampling.int8 = False

    c.optimizer = ConfigDict()
    c.optimizer.kind = "adamw"
    c.optimizer.learning_rate = 3e-4
    c.optimizer.warmup_steps = 0
    c.optimizer.decay_steps = 0
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.0
    c.optimizer.max_grad_norm = 1.0

    c.encoder = ConfigDict()
    c.encoder.checkpoint = ""
    c.encoder.pooling = "auto"
    c.encoder.max_tokens = 512
    c.encoder.batch_size = 64

    c.eval = ConfigDict()
    c.eval.splits = ("validation", "test")
    c.eval.steps = (0, 1, 2, 4, 8, 16)
    c.eval.samples_per_task = 2
    c.eval.batch_size = 512
    c.eval.from_checkpoint = False
    c.eval.temperature = 1.0
    c.eval.top_k = 0
    c.eval.top_p = 1.0
    c.eval.min_p = 0.0
    c.eval.restart_every = 8
    c.eval.greedy = False
    c.eval.num_chains_saved = 32
    c.eval.seed = 0
    c.eval.repetition_penalty = 1.0
    c.eval.min_tokens = 0
    c.eval.suppress_tokens = ()

    c.run = ConfigDict()
    c.run.num_iterations = 200
    c.run.mesh = ConfigDict()
    c.run.mesh.data = 0
    c.run.mesh.fsdp = 1
    c.run.mesh.tensor = 1
    c.run.num_microbatches = 1
    c.run.prompt_buckets = ()
    c.run.response_buckets = ()
    c.run.sampler_slots = 0
    c.run.token_chunk = 0
    c.run.steps_per_call = 20
    c.run.checkpoint_every = 100
    c.run.keep_checkpoints = 2
    c.run.warm_start_dir = ""
    c.run.export_dtype = "float32"
    c.run.profile = False
    c.run.allow_idle_updates = False

    c.study = ConfigDict()
    c.study.variants = tuple(VARIANTS)
    c.study.seeds = (0, 1, 2)

    c.update_from_flattened_dict(CHANGES.get(change, {}))
    return c
