"""Multi-turn tool use on a CPU: boxes, coins, doors and lights, in the transcript code of configs/tools_qwen7b.py.

    python -m exit_jax.main --config configs/tools_tiny.py:variant=exit,seed=0
    python -m exit_jax.main --mode study --config configs/tools_tiny.py

Two to four requests an episode, which take up to 12 calls by one of ten functions; what a request asks for often depends on
what an earlier one led to. The policy is warm-started on an expert that slips. ``quality`` is the share of requests that were
fulfilled; what came out is in docs/results.md.

Arguments:
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5); all use the same number of rollouts.
  seed: of selection and sampling; the tasks and the warm start are the same for all.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants

# p and p_div of ExIt's Table 5 where they are not those of math
SETTINGS = {"curriculum": {"selection_prob": 0.2}, "exit": {"divergence_prob": 0.5}}


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=..."."""
    given = arguments(arg, variant="exit", seed=0)
    c = default("tool_use", name="tools_tiny", seed=given["seed"])
    d = c.domain
    d.world, d.data_dir = "tiny", "data/tools_tiny"
    d.num_train, d.num_validation, d.num_test = 1024, 64, 96
    d.vocab_size = 768
    d.improve = "Better. {request} {solution}"
    d.diverge = "Other. {request} {solution}"
    d.prompt_width, d.max_context_tokens, d.max_request_tokens = 256, 208, 16
    d.max_solution_tokens, d.max_tokens, d.max_observation_tokens = 12, 14, 24
    d.max_transcript_tokens = d.test_max_transcript_tokens = 200
    d.max_turns = d.test_max_turns = 12
    d.num_requests = 0
    d.quality = "requests"
    d.demo_noise = 0.15

    p = c.policy
    p.num_layers, p.embed_dim, p.mlp_dim = 3, 64, 192
    p.num_heads, p.num_kv_heads, p.head_dim = 4, 2, 16
    p.rope_theta = 1000.0
    p.tie_embeddings = True
    p.dtype = "float32"
    p.remat, p.unroll_layers, p.decode_stages = "none", True, 1

    w = c.warm_start
    w.seed = 0  # as the paper's runs begin from one checkpoint
    w.num_steps = w.optimizer.decay_steps = 1200
    w.num_states, w.group_size = 6, 2
    w.optimizer.learning_rate = 2e-3
    w.optimizer.warmup_steps = 50
    w.optimizer.weight_decay = 1e-4

    a = c.algorithm
    a.num_prompts = 8
    a.buffer_size, a.min_buffer_size = 512, 64
    a.aggregation = "dr_grpo"
    a.advantage_norm = "none"
    a.mask_overlong = True
    a.num_epochs = 2
    a.kl_coef = 0.0
    variants.apply(c, given["variant"])
    a.update(SETTINGS.get(given["variant"], {}))
    c.optimizer.learning_rate = 1e-4

    c.eval.steps = (0, 1, 2, 4)
    c.eval.samples_per_task = 1
    c.eval.batch_size = 96
    c.eval.from_checkpoint = False
    c.eval.num_chains_saved = 100

    c.run.num_iterations = 60
    c.run.token_chunk = 0
    c.run.checkpoint_every = 20
    c.run.prompt_buckets = (64, 128)
    c.run.response_buckets = (128,)
    c.run.export_dtype = "float32"
    return c
