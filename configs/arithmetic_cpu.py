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

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=..."."""
    here = pathlib.Path(__file__)
    base = runpy.run_path(str(here.with_name("math_llama3b.py")))
    sudoku = runpy.run_path(str(here.with_name("sudoku.py")))
    given = sudoku["parse"](arg, variant="exit", seed=0)
    named = f"variant={given['variant']},seed={given['seed']}"
    c, small = base["get_config"](named), sudoku["get_config"](named)
    c.name = "arithmetic"
    c.checkpoint = ""

    c.domain.data = "arithmetic"
    c.domain.data_dir = "data/arithmetic"
    c.domain.num_train = 2048
    c.domain.num_validation = 128
    c.domain.num_test = 256
    c.domain.tokenizer = ""
    c.domain.vocab_size = 448
    c.domain.system = ""
    c.domain.improve = "{request}\nBetter:\n{solution}"
    c.domain.diverge = "{request}\nOther:\n{solution}"
    c.domain.template_inputs = ()
    c.domain.prompt_width = 72
    c.domain.max_request_tokens = 20
    c.domain.max_solution_tokens = 40
    c.domain.max_tokens = 40
    c.domain.demo_noise = 0.15
    c.domain.split_by = "computation"  # runs made before it was there need "text"

    c.policy = small.policy
    c.policy.rope_theta = 1000.0
    c.warm_start = small.warm_start
    c.warm_start.num_steps = 800
    c.warm_start.num_states = 64
    c.warm_start.group_size = 2
    c.warm_start.optimizer.learning_rate = 3e-3
    c.warm_start.optimizer.decay_steps = 800

    a = c.algorithm
    a.num_prompts = 32
    a.group_size = 8
    a.buffer_size = 256
    a.min_buffer_size = 64
    a.kl_coef = 0.0
    a.rollout_lag = 0
    c.optimizer.learning_rate = 1e-4

    c.eval = small.eval
    c.eval.splits = ("test",)
    c.eval.samples_per_task = 2
    c.eval.batch_size = 256
    c.eval.restart_every = 1
    c.eval.num_chains_saved = 100

    c.run = small.run
    c.run.num_iterations = 300
    c.run.steps_per_call = 1
    c.run.checkpoint_every = 50
    return c
