"""ExIt on 4x4 sudoku by edit scripts: the whole method on a laptop, with no download.

    python -m exit_jax.main --config configs/sudoku.py
    python -m exit_jax.main --config configs/sudoku.py:variant=grpo,seed=1,setting=control

A digit earns if it is the solution's, and costs what two of them earn if it is not. A prompt that shows a grid to improve
shows what a player would note beside it, too: the digits that fit each blank by the rules, and own digits that clash.

Arguments:
  variant: grpo | curriculum | improve | diverge | exit, the ablations of the paper (ExIt §5), or any of
    them with a change, as in exit-uniform. All use the same number of rollouts. Without one it is diverge, all of ExIt but
    the diversity bonus, which costs accuracy here (docs/results.md).
  seed: of parameters, demonstrations, selection and sampling. The puzzles are the same for all seeds.
  setting: paper, where training tasks have 4-7 clues like the held-out ones; or control, where they have 4-14, so that
    GRPO too is shown the states that ExIt finds by itself.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants

CLUES = {"paper": (4, 7), "control": (4, 14)}


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=...,setting=..."."""
    given = arguments(arg, variant="diverge", seed=0, setting="paper")
    if given["setting"] not in CLUES:
        raise ValueError(f"setting={given['setting']} is not one of {tuple(CLUES)}")
    c = default("sudoku", name=f"sudoku-{given['setting']}", seed=given["seed"])
    d = c.domain
    d.num_clues = CLUES[given["setting"]]
    d.graded_by, d.wrong_cost = "solution", 2.0
    d.pencil_marks, d.erase = "improve", True
    d.demo_noise = 0.05

    p = c.policy
    p.num_layers, p.embed_dim, p.mlp_dim = 3, 64, 192
    p.num_heads, p.num_kv_heads, p.head_dim = 4, 2, 16
    p.rope_theta = 100.0  # positions end at 41
    p.tie_embeddings = True
    p.dtype = "float32"
    p.remat, p.unroll_layers, p.decode_stages = "none", True, 1

    w = c.warm_start
    w.num_steps = w.optimizer.decay_steps = 1000
    w.num_states, w.group_size = 64, 8
    w.optimizer.learning_rate = 4e-3
    w.optimizer.warmup_steps = 50
    w.optimizer.weight_decay = 1e-4

    a = c.algorithm
    a.num_prompts = 64
    # all children of 64 groups would at once drop what is nearly solved, whose S is low
    a.buffer_size, a.children = 8192, "one"
    a.diversity_embedding = "grades"
    a.zero_variance = "keep"
    a.kl_coef = 0.0
    a.entropy_coef = 0.05
    c.optimizer.learning_rate = 3e-4

    c.eval.splits = ("validation", "test")
    c.eval.samples_per_task = 2
    c.eval.batch_size = 512
    c.eval.from_checkpoint = False
    c.eval.restart_every = 8
    c.eval.num_chains_saved = 32

    c.run.num_iterations = 600
    c.run.token_chunk = 0
    c.run.steps_per_call = 20
    c.run.checkpoint_every = 100
    c.run.export_dtype = "float32"
    variants.apply(c, given["variant"], selection_prob=0.75)
    return c
