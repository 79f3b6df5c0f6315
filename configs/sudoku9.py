"""ExIt on 9x9 sudoku: the code of configs/sudoku.py at a size for an accelerator.

    python -m exit_jax.main --config configs/sudoku9.py:variant=exit,seed=0

Takes the arguments of configs/sudoku.py. Puzzles have 36-50 clues, 36-70 in the setting control. A policy of 18M parameters
and up to 8 edits a response; not yet run to the end by us, so there is no score to expect. Generating the puzzles takes a
minute on the host at each start.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

CLUES = {"sudoku-paper": (36, 50), "sudoku-control": (36, 70)}


def get_config(arg: str = "") -> ConfigDict:
    """Return configs/sudoku.py scaled up."""
    sudoku = runpy.run_path(str(pathlib.Path(__file__).with_name("sudoku.py")))
    c = sudoku["get_config"](arg)
    c.domain.num_clues = CLUES[c.name]
    c.name = c.name.replace("sudoku", "sudoku9")
    c.domain.box = 3
    c.domain.eval_clues = (36, 50)
    c.domain.demo_clues = (36, 50)
    c.domain.max_edits = 8
    c.policy.num_layers = 6
    c.policy.embed_dim = 512
    c.policy.num_heads = 8
    c.policy.num_kv_heads = 4
    c.policy.head_dim = 64
    c.policy.mlp_dim = 1408
    c.policy.rope_theta = 1000.0
    c.policy.dtype = "bfloat16"
    c.policy.unroll_layers = False
    c.warm_start.num_steps = 4000
    c.warm_start.optimizer.learning_rate = 1e-3
    c.warm_start.optimizer.decay_steps = 4000
    c.algorithm.num_prompts = 128
    c.algorithm.group_size = 8
    c.algorithm.buffer_size *= 4  # of the variant's: fresh has a quarter of the others'
    c.algorithm.min_buffer_size = 512
    c.optimizer.learning_rate = 1e-4
    c.eval.steps = (0, 1, 2, 4, 8, 16, 32)
    c.eval.restart_every = 16
    c.run.num_iterations = 2000
    return c
