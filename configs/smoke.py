"""A first look in half a minute: warm start, RL, evaluation and report on 4x4 sudoku of which little is blank.

    python -m exit_jax.main --config configs/smoke.py

A response edits one cell, and held-out puzzles have 2 to 4 blanks: none is solved at k = 0, and chains solve more of them with
each step. Takes the arguments of configs/sudoku.py; in the setting "control" training tasks have 1 to 4 blanks.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants

CLUES = {"paper": (12, 14), "control": (12, 15)}


def get_config(arg: str = "") -> ConfigDict:
    """Return 4x4 sudoku cut down in every dimension."""
    given = arguments(arg, variant="exit", seed=0, setting="paper")
    if given["setting"] not in CLUES:
        raise ValueError(f"setting={given['setting']} is not one of {tuple(CLUES)}")
    c = default("sudoku", name="smoke", seed=given["seed"])
    d = c.domain
    d.num_clues = CLUES[given["setting"]]
    d.eval_clues = d.demo_clues = CLUES["paper"]
    d.num_train, d.num_eval = 1024, 64
    d.graded_by = "solution"
    d.max_edits = 1
    d.demo_noise = d.demo_wrong = 0.1

    p = c.policy
    p.num_layers, p.embed_dim, p.mlp_dim = 2, 64, 128  # one layer cannot tell which cell is blank
    p.num_heads, p.num_kv_heads, p.head_dim = 4, 2, 16
    p.rope_theta = 100.0  # positions end at 41
    p.tie_embeddings = True
    p.dtype = "float32"
    p.remat, p.unroll_layers, p.decode_stages = "none", True, 1

    w = c.warm_start
    w.num_steps = w.optimizer.decay_steps = 300
    w.num_states = 32
    w.optimizer.learning_rate = 6e-3
    w.optimizer.warmup_steps = 10
    w.optimizer.weight_decay = 1e-4

    a = c.algorithm
    a.num_prompts, a.group_size = 16, 4
    a.buffer_size, a.min_buffer_size = 64, 16
    a.diversity_embedding = "grades"
    a.zero_variance = "keep"
    a.kl_coef = 0.0
    a.entropy_coef = 0.03
    c.optimizer.learning_rate = 1e-3

    c.eval.splits = ("validation", "test")
    c.eval.steps = (0, 1, 2, 4)
    c.eval.samples_per_task = 1
    c.eval.batch_size = 64
    c.eval.from_checkpoint = False
    c.eval.restart_every = 4
    c.eval.num_chains_saved = 4

    c.run.num_iterations = 40
    c.run.token_chunk = 0
    c.run.steps_per_call = 5
    c.run.checkpoint_every = 10
    c.run.export_dtype = "float32"
    c.study.seeds = (0, 1)
    variants.apply(c, given["variant"])
    return c
