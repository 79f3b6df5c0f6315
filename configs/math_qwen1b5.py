"""Competition math with Qwen2.5-1.5B-Instruct, on four v5e chips.

    python -m exit_jax.main --mode data --config configs/math_qwen1b5.py
    python -m exit_jax.main --config configs/math_qwen1b5.py:variant=exit,seed=0

configs/math_llama3b.py with a smaller policy and half the prompts a step. It takes 12.9 of each chip's 15.75 GiB and, by
published peaks, at least 35 minutes for 100 iterations and 56 for the evaluation (docs/fit.md; uncalibrated). The paper has
no such run, and neither have we.

Takes the arguments of configs/math_llama3b.py.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Return configs/math_llama3b.py for a smaller policy and slice."""
    base = runpy.run_path(str(pathlib.Path(__file__).with_name("math_llama3b.py")))
    c = base["get_config"](arg if "checkpoint=" in (arg or "") else f"{arg},checkpoint=Qwen/Qwen2.5-1.5B-Instruct")
    c.name = "math_qwen1b5"
    c.algorithm.num_prompts = 64
    c.run.mesh.fsdp = 4
    c.run.mesh.tensor = 1
    c.run.num_microbatches = 16
    c.eval.batch_size = 256
    return c
