"""The whole program in half a minute: warm start, RL, evaluation and report on a policy too small to be any good.

    python -m exit_jax.main --config configs/smoke.py

Takes the arguments of configs/sudoku.py.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Return configs/sudoku.py cut down in every dimension."""
    sudoku = runpy.run_path(str(pathlib.Path(__file__).with_name("sudoku.py")))
    c = sudoku["get_config"](arg)
    c.name = "smoke"
    c.domain.num_train = 64
    c.domain.num_eval = 16
    c.policy.num_layers = 1
    c.policy.embed_dim = 32
    c.policy.head_dim = 8
    c.policy.mlp_dim = 64
    c.warm_start.num_steps = 40
    c.warm_start.num_states = 32
    c.warm_start.optimizer.decay_steps = 40
    c.warm_start.optimizer.warmup_steps = 5
    c.algorithm.num_prompts = 16
    c.algorithm.group_size = 4
    c.algorithm.buffer_size //= 16  # of the variant's: fresh has a quarter of the others'
    c.algorithm.min_buffer_size = 16
    c.eval.steps = (0, 1, 2, 4)
    c.eval.samples_per_task = 1
    c.eval.batch_size = 16
    c.eval.restart_every = 4
    c.eval.num_chains_saved = 4
    c.run.num_iterations = 20
    c.run.steps_per_call = 5
    c.run.checkpoint_every = 10
    c.study.seeds = (0, 1)
    return c
