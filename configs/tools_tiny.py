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

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=..."."""
    here = pathlib.Path(__file__)
    base = runpy.run_path(str(here.with_name("tools_qwen7b.py")))
    sudoku = runpy.run_path(str(here.with_name("sudoku.py")))
    given = sudoku["parse"](arg, variant="exit", seed=0)
    named = f"variant={given['variant']},seed={given['seed']}"
    c, small = base["get_config"](named), sudoku["get_config"](named)
    c.name = "tools_tiny"
    c.checkpoint = ""

    c.domain.world = "tiny"
    c.domain.data_dir = "data/tools_tiny"
    c.domain.num_train = 1024
    c.domain.num_validation = 64
    c.domain.num_test = 96
    c.domain.tokenizer = ""
    c.domain.vocab_size = 768
    c.domain.improve = "Better. {request} {solution}"
    c.domain.diverge = "Other. {request} {solution}"
    c.domain.prompt_width = 256
    c.domain.max_context_tokens = 208
    c.domain.max_request_tokens = 16
    c.domain.max_solution_tokens = 12
    c.domain.max_tokens = 14
    c.domain.max_observation_tokens = 24
    c.domain.max_transcript_tokens = 200
    c.domain.max_turns = 12
    c.domain.num_requests = 0
    c.domain.test_max_transcript_tokens = 200
    c.domain.test_max_turns = 12
    c.domain.quality = "requests"
    c.domain.demo_noise = 0.15
    c.domain.stop_at_call = False  # as docs/results.md's runs were made
    c.domain.overlong_unit = "episode"

    c.policy = small.policy
    c.policy.rope_theta = 1000.0
    c.warm_start = small.warm_start
    c.warm_start.seed = 0  # as the paper's runs begin from one checkpoint
    c.warm_start.num_steps = 1200
    c.warm_start.num_states = 6
    c.warm_start.group_size = 2
    c.warm_start.optimizer.learning_rate = 2e-3
    c.warm_start.optimizer.decay_steps = 1200

    a = c.algorithm
    a.num_prompts = 8
    a.buffer_size = 512
    a.min_buffer_size = 64
    a.kl_coef = 0.0
    c.optimizer.learning_rate = 1e-4

    c.eval = small.eval
    c.eval.splits = ("test",)
    c.eval.steps = (0, 1, 2, 4)
    c.eval.samples_per_task = 1
    c.eval.batch_size = 96
    c.eval.restart_every = 0
    c.eval.num_chains_saved = 100

    c.run = small.run
    c.run.num_iterations = 60
    c.run.steps_per_call = 1
    c.run.checkpoint_every = 20
    c.run.prompt_buckets = (64, 128)
    c.run.response_buckets = (128,)
    return c
