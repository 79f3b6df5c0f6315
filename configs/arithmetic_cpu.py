"""Exercises in words and LaTeX that need several steps, on a CPU: the path of the 3B run with nothing to download.

    python -m exit_jax.main --config configs/arithmetic_cpu.py:variant=exit,seed=0
    python -m exit_jax.main --mode study --config configs/arithmetic_cpu.py --config.study.variants="('grpo','exit')"

A decoder of 0.2 million parameters with a byte-level BPE tokenizer that is trained on the exercises; warm-started on the
work of a teacher who slips, then trained by RL with math-verify as the grader, on the host. About 8 minutes on 2 cores;
docs/results.md has what came out.

Arguments:
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5).
  seed: of parameters, demonstrations, selection and sampling; the exercises are the same for all.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=..."."""
    given = arguments(arg, variant="exit", seed=0)
    c = default("math", name="arithmetic", seed=given["seed"])
    d = c.domain
    d.data, d.data_dir = "arithmetic", "data/arithmetic"
    d.num_train, d.num_validation, d.num_test = 2048, 128, 256
    d.vocab_size = 448
    d.improve = "{request}\nBetter:\n{solution}"
    d.diverge = "{request}\nOther:\n{solution}"
    d.prompt_width, d.max_request_tokens = 72, 20
    d.max_solution_tokens = d.max_tokens = 40
    d.demo_noise = 0.15
    d.split_by = "computation"  # runs made before it was there need "text"

    p = c.policy
    p.num_layers, p.embed_dim, p.mlp_dim = 3, 64, 192
    p.num_heads, p.num_kv_heads, p.head_dim = 4, 2, 16
    p.rope_theta = 1000.0
    p.tie_embeddings = True
    p.dtype = "float32"
    p.remat, p.unroll_layers, p.decode_stages = "none", True, 1

    w = c.warm_start
    w.num_steps = w.optimizer.decay_steps = 800
    w.num_states, w.group_size = 64, 2
    w.optimizer.learning_rate = 3e-3
    w.optimizer.warmup_steps = 50
    w.optimizer.weight_decay = 1e-4

    a = c.algorithm
    a.num_prompts = 32
    a.buffer_size, a.min_buffer_size = 256, 64
    a.kl_coef = 0.0
    c.optimizer.learning_rate = 1e-4

    c.eval.samples_per_task = 2
    c.eval.from_checkpoint = False
    c.eval.restart_every = 1
    c.eval.num_chains_saved = 100

    c.run.num_iterations = 300
    c.run.token_chunk = 0
    c.run.checkpoint_every = 50
    c.run.export_dtype = "float32"
    variants.apply(c, given["variant"])
    return c
