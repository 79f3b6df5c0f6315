"""Competition math with LoRA adapters on Qwen2.5-1.5B-Instruct, on a single v5e chip.

    python -m exit_jax.main --mode data --config configs/math_lora.py
    python -m exit_jax.main --config configs/math_lora.py:variant=exit,seed=0
    python -m exit_jax.main --mode export --config configs/math_lora.py:variant=exit,seed=0

configs/math_llama3b.py with adapters of rank 32 on all projections, over weights kept in bfloat16, and an eighth of the
prompts a step. It takes 10.6 of the chip's 15.75 GiB and, by published peaks, at least 32 minutes for 100 iterations
(docs/fit.md; uncalibrated). The evaluation of all seven test sets would take hours there: choose some by eval.splits, or
fewer eval.samples_per_task. The paper has no such run, and neither have we.

Takes the arguments of configs/math_llama3b.py.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants
from exit_jax.domains.math.prompts import SYSTEM
from exit_jax.policy.shape import PROJECTIONS

QWEN = "Qwen/Qwen2.5-1.5B-Instruct"


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=...,checkpoint=..."."""
    given = arguments(arg, variant="exit", seed=0, checkpoint=QWEN)
    c = default("math", name="math_lora", seed=given["seed"], checkpoint=given["checkpoint"])
    c.domain.tokenizer = c.checkpoint
    c.domain.system = SYSTEM
    if "llama-3" in c.checkpoint.lower():  # their chat template writes a date, which is to stay the same
        c.domain.template_inputs = ("date_string=26 Jul 2024",)

    c.policy.param_dtype = "bfloat16"
    c.policy.lora.rank, c.policy.lora.alpha, c.policy.lora.targets = 32, 64.0, PROJECTIONS

    c.algorithm.num_prompts = 16
    c.algorithm.min_buffer_size = 32
    c.algorithm.rollout_lag = 1
    c.optimizer.learning_rate = 2e-5

    c.eval.splits = (
        *("math500", "amc12_2022", "amc12_2023", "aime_2024", "aime_2025", "minerva", "olympiadbench_text"),
    )
    c.eval.batch_size = 64

    c.run.num_microbatches = 16
    c.run.prompt_buckets = (512,)
    c.run.checkpoint_every = 5
    c.run.export_dtype = "float32"  # bfloat16 kernels lose half of what adapters learn in a hundred steps
    variants.apply(c, given["variant"])
    return c
