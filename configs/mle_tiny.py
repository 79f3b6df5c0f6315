"""ML engineering on a CPU: a tiny policy writes real scripts, which really run, on competitions of real data.

    python -m exit_jax.main --config configs/mle_tiny.py:variant=exit,seed=0
    python -m exit_jax.main --mode study --config configs/mle_tiny.py
    python -m exit_jax.main --config configs/mle_tiny.py:variant=exit --config.domain.train="('tumours',)"

The code of configs/mle_r1_qwen7b.py but for the model: its tokens are fragments of Python, of which a sampled script may well
be wrong, and its prompts tell a competition, and what a run came to, in a few words. It is warm-started on the random scripts
of a teacher that slips. Scripts run in the sandbox (bubblewrap), or in none with --config.domain.isolation=none; their
results are kept in domain.cache_dir for all runs. What came out is in docs/results.md.

Arguments:
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5); all use the same number of rollouts.
  seed: of parameters, demonstrations, selection and sampling; the competitions are the same for all.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants

# N, B_min, p and p_div of ExIt's Table 6
SETTINGS = {
    "grpo": {},
    "curriculum": {"buffer_size": 3, "min_buffer_size": 3, "selection_prob": 0.5},
    "improve": {"buffer_size": 24, "min_buffer_size": 8, "selection_prob": 0.5},
    "diverge": {"buffer_size": 32, "min_buffer_size": 8, "selection_prob": 0.5, "divergence_prob": 0.2},
    "exit": {"buffer_size": 24, "min_buffer_size": 3, "selection_prob": 0.5, "divergence_prob": 0.5},
}


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=..."."""
    given = arguments(arg, variant="exit", seed=0)
    c = default("ml_engineering", name="mle_tiny", seed=given["seed"])
    d = c.domain
    d.source, d.data_dir, d.cache_dir = "embedded", "data/mle_tiny", "data/mle_tiny/runs"
    d.brief = True
    d.base = "{request}"
    d.improve = "{context}{request}{feedback}{solution}"
    d.diverge = "diverge\n{request}{feedback}{solution}"
    d.improve_goal, d.debug_goal = "improve\n", "debug\n"
    d.preview_chars = 0
    d.prompt_width, d.max_goal_tokens, d.max_request_tokens, d.max_feedback_tokens = 28, 1, 3, 1
    d.max_solution_tokens = d.max_tokens = 20
    d.truncate = "none"
    d.wall_secs, d.memory_mb, d.disk_mb = 60.0, 1024, 64
    d.demo_noise = 0.06
    d.compact_descriptions = True
    d.show_score = False  # the paper's feedback is the error trace alone

    p = c.policy
    p.num_layers, p.embed_dim, p.mlp_dim = 2, 64, 192
    p.num_heads, p.num_kv_heads, p.head_dim = 4, 2, 16
    p.rope_theta = 100.0  # positions end at 48
    p.tie_embeddings = True
    p.dtype = "float32"
    p.remat, p.unroll_layers, p.decode_stages = "none", True, 1

    w = c.warm_start
    w.num_steps = w.optimizer.decay_steps = 300
    w.num_states, w.group_size = 64, 2
    w.optimizer.learning_rate = 4e-3
    w.optimizer.warmup_steps = 30
    w.optimizer.weight_decay = 1e-4

    a = c.algorithm
    a.num_prompts = 4
    a.buffer_size, a.min_buffer_size = 24, 3
    a.reward = "improvement"
    a.learnability_of = "reward"  # what varies in quality, and never improves, teaches nothing
    a.diversity_embedding = "solution"  # the script, not the thoughts before it
    a.kl_coef = 0.0
    a.reference_mix = 0.5
    variants.apply(c, given["variant"])
    a.update(SETTINGS[given["variant"]])
    c.optimizer.learning_rate = 1e-3

    c.eval.splits = ("train", "test")
    c.eval.samples_per_task = 16
    c.eval.batch_size = 48
    c.eval.from_checkpoint = False
    c.eval.restart_every = 1
    c.eval.greedy = True
    c.eval.num_chains_saved = 48

    c.run.num_iterations = 80
    c.run.token_chunk = 0
    c.run.checkpoint_every = 20
    c.run.export_dtype = "float32"
    return c
