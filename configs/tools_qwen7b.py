"""Multi-turn tool use with Qwen2.5-7B-Instruct: the second column of ExIt's Table 1, with the settings of its Table 5.

    pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0
    python -m exit_jax.main --mode compile --config configs/tools_qwen7b.py --topology v5e:4x4
    python -m exit_jax.main --config configs/tools_qwen7b.py:variant=exit,seed=0
    python -m exit_jax.main --mode report --config configs/tools_qwen7b.py --runs runs/<one>,runs/<another>

BFCL v3 multi-turn-base with the benchmark's own back-ends: 100 tasks to train on, 100 to test, stratified by API set and number
of requests (the same for all seeds; the paper's own split is not published). Training makes the first request of a task, with
10 turns; testing makes all of them, with 60. ``accuracy`` is that of the first request, as in the paper, and
``figures.requests_fulfilled`` the total return. To choose hyperparameters, train on 75 of the training tasks
(domain.train_split = "tuning") and evaluate on the other 25 (eval.splits = ("validation",)).

Hardware: v5e-16 by the compiler (docs/fit.md, setting tools). The paper reports 76.4 ± 1.0 for ExIt and 73.5 ± 1.5 for GRPO
after 4 steps (ExIt, Table 1). We have not run it. The paper is silent on lengths: the documents of a task's functions take
3,000 to 6,000 tokens, so contexts of up to 7,808, responses and observations of up to 512.

Arguments:
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5); all use the same number of rollouts.
  seed: of selection and sampling.
  checkpoint: folder or hub id of an instruct model.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

QWEN = "Qwen/Qwen2.5-7B-Instruct"
IMPROVE = """Improve your response at this point of the conversation. It replaces the current one, which was not carried out.

# Request
{request}

# Current response
{solution}

# Improved response"""
DIVERGE = """Respond once more at this point of the conversation, with an approach that differs significantly. It replaces the
current response, which was not carried out.

# Request
{request}

# Current response
{solution}

# Format
- Current approach: one line
- Different approach: one line
- Response: complete in itself, with its one ending"""
# N, B_min, p and p_div of ExIt's Table 5
SETTINGS = {
    "grpo": {},
    "curriculum": {"buffer_size": 320, "min_buffer_size": 320, "selection_prob": 0.2},
    "improve": {"buffer_size": 640, "min_buffer_size": 320, "selection_prob": 0.5},
    "diverge": {"buffer_size": 640, "min_buffer_size": 320, "selection_prob": 0.5, "divergence_prob": 0.2},
    "exit": {"buffer_size": 640, "min_buffer_size": 320, "selection_prob": 0.5, "divergence_prob": 0.5},
}


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=...,checkpoint=..."."""
    here = pathlib.Path(__file__)
    base = runpy.run_path(str(here.with_name("math_llama3b.py")))
    given = runpy.run_path(str(here.with_name("sudoku.py")))["parse"](arg, variant="exit", seed=0, checkpoint=QWEN)
    variant, seed = given["variant"], given["seed"]
    c = base["get_config"](f"variant={variant},seed={seed},checkpoint={given['checkpoint']}")
    c.name = "tools_qwen7b"

    c.domain_name = "tool_use"
    c.domain = ConfigDict()
    c.domain.world = "bfcl"
    c.domain.data_dir = "data/bfcl"
    c.domain.data_seed = 0
    c.domain.train_split = "train"
    c.domain.num_train = 100
    c.domain.num_validation = 25
    c.domain.num_test = 100
    c.domain.tokenizer = c.checkpoint
    c.domain.vocab_size = 512  # of a trained tokenizer alone
    c.domain.improve = IMPROVE
    c.domain.diverge = DIVERGE
    c.domain.template_inputs = ()
    c.domain.observation_role = "tool"
    c.domain.prompt_width = 8704
    c.domain.max_context_tokens = 7808
    c.domain.max_request_tokens = 256
    c.domain.max_solution_tokens = 512
    c.domain.max_tokens = 512
    c.domain.max_observation_tokens = 512
    c.domain.max_transcript_tokens = 4096
    c.domain.max_turns = 10
    c.domain.num_requests = 1
    c.domain.test_max_transcript_tokens = 16384
    c.domain.test_max_turns = 60
    c.domain.test_num_requests = 0
    c.domain.quality = "first_request"
    c.domain.num_workers = 0
    c.domain.call_secs = 2.0
    c.domain.demo_noise = 0.0
    c.domain.stop_at_call = True  # the paper's, as the next (docs/decisions.md, Tool use)
    c.domain.overlong_unit = "response"

    a = c.algorithm
    a.num_prompts = 16
    a.group_size = 8
    a.update(SETTINGS[variant])
    a.aggregation = "dr_grpo"
    a.advantage_norm = "none"
    a.mask_overlong = True
    a.num_epochs = 2
    a.rollout_lag = 0
    c.optimizer.learning_rate = 1e-6 if variant in ("grpo", "exit") else 5e-7

    c.eval.splits = ("test",)
    c.eval.steps = (0, 1, 2, 4)
    # the model's "default sampling configs" (ExIt App. A.5), as its generation_config.json gives them
    c.eval.temperature = 0.7
    c.eval.top_k = 20
    c.eval.top_p = 0.8
    c.eval.repetition_penalty = 1.05
    c.eval.samples_per_task = 8
    c.eval.batch_size = 64

    c.run.num_iterations = 400
    c.run.mesh.fsdp = 4
    c.run.mesh.tensor = 4
    c.run.num_microbatches = 4
    c.run.prompt_buckets = (6144, 8192)
    c.run.response_buckets = (1024, 2048)
    c.run.checkpoint_every = 10
    return c
