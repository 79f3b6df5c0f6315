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

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=..."."""
    here = pathlib.Path(__file__)
    base = runpy.run_path(str(here.with_name("mle_r1_qwen7b.py")))
    sudoku = runpy.run_path(str(here.with_name("sudoku.py")))
    given = sudoku["parse"](arg, variant="exit", seed=0)
    named = f"variant={given['variant']},seed={given['seed']}"
    c, small = base["get_config"](named), sudoku["get_config"](named)
    c.name = "mle_tiny"
    c.checkpoint = ""

    c.domain.source = "embedded"
    c.domain.data_dir = "data/mle_tiny"
    c.domain.cache_dir = "data/mle_tiny/runs"
    c.domain.tokenizer = ""
    c.domain.brief = True
    c.domain.base = "{request}"
    c.domain.improve = "{context}{request}{feedback}{solution}"
    c.domain.diverge = "diverge\n{request}{feedback}{solution}"
    c.domain.improve_goal = "improve\n"
    c.domain.debug_goal = "debug\n"
    c.domain.preview_chars = 0
    c.domain.prompt_width = 28
    c.domain.max_goal_tokens = 1
    c.domain.max_request_tokens = 3
    c.domain.max_solution_tokens = 20
    c.domain.max_feedback_tokens = 1
    c.domain.max_tokens = 20
    c.domain.truncate = "none"
    c.domain.wall_secs = 60.0
    c.domain.memory_mb = 1024
    c.domain.disk_mb = 64
    c.domain.demo_noise = 0.06

    c.policy = small.policy
    c.policy.num_layers = 2
    c.policy.rope_theta = 100.0  # positions end at 48
    c.warm_start = small.warm_start
    c.warm_start.num_steps = 300
    c.warm_start.num_states = 64
    c.warm_start.group_size = 2
    c.warm_start.optimizer.learning_rate = 4e-3
    c.warm_start.optimizer.warmup_steps = 30
    c.warm_start.optimizer.decay_steps = 300

    a = c.algorithm
    a.kl_coef = 0.0
    c.optimizer.learning_rate = 1e-3

    c.eval = small.eval
    c.eval.splits = ("train", "test")
    c.eval.samples_per_task = 16
    c.eval.batch_size = 48
    c.eval.restart_every = 1
    c.eval.greedy = True
    c.eval.num_chains_saved = 48

    c.run = small.run
    c.run.num_iterations = 80
    c.run.steps_per_call = 1
    c.run.checkpoint_every = 20
    return c
