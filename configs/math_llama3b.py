"""Competition math with Llama-3.2-3B-Instruct: the first column of ExIt's Table 1, with the settings of its Table 4.

    python -m exit_jax.main --mode data --config configs/math_llama3b.py
    python -m exit_jax.main --mode compile --config configs/math_llama3b.py --topology v5e:4x4
    python -m exit_jax.main --config configs/math_llama3b.py:variant=exit,seed=0
    python -m exit_jax.main --mode report --config configs/math_llama3b.py --runs runs/<one>,runs/<another>

Hardware: a TPU slice of 16 v5e or 8 v6e chips; half of that in more time (docs/fit.md). By published peaks at least 26 minutes
for 100 iterations on v6e:2x4 and 34 for the evaluation, which samples 220 million tokens at most; uncalibrated, expect several
times that. The paper reports 20.4 ± 0.5 for ExIt and 18.7 ± 0.4 for GRPO after 16 steps, mean over seven test sets (ExIt,
Table 1). We have not run it.

The paper is silent on lengths: problems up to 320 tokens, responses up to 1024, which the next prompt shows whole.

Arguments:
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5); all use the same number of rollouts.
  seed: of selection and sampling; the problems are the same for all.
  checkpoint: folder or hub id of an instruct model.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

LLAMA = "meta-llama/Llama-3.2-3B-Instruct"
SYSTEM = "Reason step by step and put the final answer into \\boxed{{}}."
IMPROVE = """Write an improved response to the request.

# Request
{request}

# Current response
{solution}

# Improved response"""
DIVERGE = """Write another response to the request, with an approach that differs significantly.

# Request
{request}

# Current response
{solution}

# Format
- Current approach: one line
- Different approach: one line
- Response: complete in itself"""


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=...,checkpoint=..."."""
    sudoku = runpy.run_path(str(pathlib.Path(__file__).with_name("sudoku.py")))
    given = sudoku["parse"](arg, variant="exit", seed=0, checkpoint=LLAMA)
    variant = given["variant"]
    if variant not in sudoku["VARIANTS"]:
        raise ValueError(f"variant={variant} is not one of {tuple(sudoku['VARIANTS'])}")

    c = sudoku["get_config"](f"variant={variant},seed={given['seed']}")
    c.name = "math_llama3b"
    c.checkpoint = given["checkpoint"]
    llama = "llama-3" in c.checkpoint.lower()  # their chat template writes a date, which is to stay the same

    c.domain_name = "math"
    c.domain = ConfigDict()
    c.domain.data = "competition"
    c.domain.data_dir = "data/math"
    c.domain.files_dir = ""
    c.domain.data_seed = 0
    c.domain.num_train = 1280
    c.domain.num_validation = 100
    c.domain.num_test = 100  # of arithmetic alone
    c.domain.tokenizer = c.checkpoint
    c.domain.vocab_size = 512  # of a trained tokenizer alone
    c.domain.system = SYSTEM
    c.domain.base = "{request}"
    c.domain.improve = IMPROVE
    c.domain.diverge = DIVERGE
    c.domain.template_inputs = ("date_string=26 Jul 2024",) if llama else ()
    c.domain.prompt_width = 1536
    c.domain.max_request_tokens = 320
    c.domain.max_solution_tokens = 1024
    c.domain.max_tokens = 1024
    c.domain.truncate = "none"
    c.domain.num_workers = 0
    c.domain.timeout_secs = 5.0
    c.domain.demo_noise = 0.0
    c.domain.split_by = "text"  # of arithmetic alone

    c.policy = ConfigDict()
    c.policy.dtype = "bfloat16"
    c.policy.param_dtype = "float32"
    c.policy.attention = "auto"
    c.policy.remat = "layer"
    c.policy.unroll_layers = False
    c.policy.decode_stages = 4
    c.policy.lora = ConfigDict()
    c.policy.lora.rank = 0
    c.policy.lora.alpha = 16.0
    c.policy.lora.targets = ()
    c.warm_start.num_steps = 0

    a = c.algorithm
    a.num_prompts = 128
    a.group_size = 8
    a.buffer_size = 512
    a.min_buffer_size = 128
    a.diversity_embedding = "policy"  # the paper's BERT tuned on mathematics: encoder.checkpoint, and "grades" here
    a.kl_coef = 0.001
    a.entropy_coef = 0.0
    a.zero_variance = "drop"
    a.reference_every = 100
    a.reference_mix = 1.0
    a.rollout_lag = 1
    c.optimizer.learning_rate = 1e-6

    c.eval.splits = (
        *("math500", "amc12_2022", "amc12_2023", "aime_2024", "aime_2025", "minerva", "olympiadbench_text"),
    )
    c.eval.samples_per_task = 8
    c.eval.batch_size = 512
    c.eval.from_checkpoint = True
    c.eval.restart_every = 0
    c.eval.num_chains_saved = 200

    c.run.num_iterations = 100
    c.run.mesh.fsdp = 8
    c.run.mesh.tensor = 2
    c.run.num_microbatches = 8
    c.run.prompt_buckets = (512,)
    c.run.token_chunk = 128
    c.run.steps_per_call = 1
    c.run.checkpoint_every = 5
    c.run.export_dtype = "bfloat16"
    return c
