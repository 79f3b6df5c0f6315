"""ExIt on 9x9 sudoku, at a size for an accelerator.

    python -m exit_jax.main --config configs/sudoku9.py:variant=exit,seed=0

Takes the arguments of configs/sudoku.py. Puzzles have 36-50 clues, 36-70 in the setting control. A policy of 18M parameters
and up to 8 edits a response; not yet run to the end by us, so there is no score to expect. Generating the puzzles takes a
minute on the host at each start.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants

CLUES = {"paper": (36, 50), "control": (36, 70)}


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=...,setting=..."."""
    given = arguments(arg, variant="exit", seed=0, setting="paper")
    if given["setting"] not in CLUES:
        raise ValueError(f"setting={given['setting']} is not one of {tuple(CLUES)}")
    c = default("sudoku", name=f"sudoku9-{given['setting']}", seed=given["seed"])
    c.domain.box = 3
    c.domain.num_clues = CLUES[given["setting"]]
    c.domain.eval_clues = c.domain.demo_clues = (36, 50)
    c.domain.max_edits = 8
    c.domain.graded_by = "solution"
    c.domain.pencil_marks, c.domain.erase = "improve", True
    c.domain.demo_noise = 0.05

    p = c.policy
    p.num_layers, p.embed_dim, p.mlp_dim = 6, 512, 1408
    p.num_heads, p.num_kv_heads, p.head_dim = 8, 4, 64
    p.rope_theta = 1000.0
    p.tie_embeddings = True
    p.remat, p.decode_stages = "none", 1

    w = c.warm_start
    w.num_steps = w.optimizer.decay_steps = 4000
    w.optimizer.learning_rate = 1e-3
    w.optimizer.warmup_steps = 50
    w.optimizer.weight_decay = 1e-4

    a = c.algorithm
    a.buffer_size, a.min_buffer_size = 4096, 512
    a.diversity_embedding = "grades"
    a.zero_variance = "keep"
    a.kl_coef = 0.0
    a.entropy_coef = 0.1
    c.optimizer.learning_rate = 1e-4

    c.eval.splits = ("validation", "test")
    c.eval.steps = (0, 1, 2, 4, 8, 16, 32)
    c.eval.samples_per_task = 2
    c.eval.batch_size = 512
    c.eval.from_checkpoint = False
    c.eval.restart_every = 16
    c.eval.num_chains_saved = 32

    c.run.num_iterations = 2000
    c.run.token_chunk = 0
    c.run.steps_per_call = 20
    c.run.checkpoint_every = 100
    c.run.export_dtype = "float32"
    variants.apply(c, given["variant"])
    return c
