"""Competition math with Qwen2.5-1.5B-Instruct, on four v5e chips.

    python -m exit_jax.main --mode data --config configs/math_qwen1b5.py
    python -m exit_jax.main --config configs/math_qwen1b5.py:variant=exit,seed=0

configs/math_llama3b.py with a smaller policy and half the prompts a step. It takes 12.9 of each chip's 15.75 GiB and, by
published peaks, at least 35 minutes for 100 iterations and 56 for the evaluation (docs/fit.md; uncalibrated). The paper has
no such run, and neither have we.

Takes the arguments of configs/math_llama3b.py.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants
from exit_jax.domains.math.prompts import SYSTEM

QWEN = "Qwen/Qwen2.5-1.5B-Instruct"


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=...,checkpoint=..."."""
    given = arguments(arg, variant="exit", seed=0, checkpoint=QWEN)
    c = default("math", name="math_qwen1b5", seed=given["seed"], checkpoint=given["checkpoint"])
    c.domain.tokenizer = c.checkpoint
    c.domain.system = SYSTEM
    if "llama-3" in c.checkpoint.lower():  # their chat template writes a date, which is to stay the same
        c.domain.template_inputs = ("date_string=26 Jul 2024",)

    c.algorithm.num_prompts = 64
    c.algorithm.rollout_lag = 1

    c.eval.splits = (
        *("math500", "amc12_2022", "amc12_2023", "aime_2024", "aime_2025", "minerva", "olympiadbench_text"),
    )

    c.run.mesh.fsdp = 4
    c.run.num_microbatches = 16
    c.run.prompt_buckets = (512,)
    c.run.checkpoint_every = 5
    variants.apply(c, given["variant"])
    return c
