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

import pathlib
import runpy

from ml_collections import ConfigDict

from exit_jax.policy.shape import PROJECTIONS


def get_config(arg: str = "") -> ConfigDict:
    """Return configs/math_llama3b.py for adapters on one chip."""
    base = runpy.run_path(str(pathlib.Path(__file__).with_name("math_llama3b.py")))
    c = base["get_config"](arg if "checkpoint=" in (arg or "") else f"{arg},checkpoint=Qwen/Qwen2.5-1.5B-Instruct")
    c.name = "math_lora"
    c.policy.param_dtype = "bfloat16"
    c.policy.lora.rank = 32
    c.policy.lora.alpha = 64.0
    c.policy.lora.targets = PROJECTIONS
    c.optimizer.learning_rate = 2e-5
    c.algorithm.num_prompts = 16
    c.algorithm.min_buffer_size = 32
    c.run.mesh.fsdp = 1
    c.run.mesh.tensor = 1
    c.run.num_microbatches = 16
    c.run.export_dtype = (
        "float32"  # half of what adapters learn in a hundred steps is lost when bfloat16 kernels take it up
    )
    c.eval.batch_size = 64
    return c
