"""configs/smoke.py for tests: smaller, and fixed, so that what the config shows people first may change without them."""

import pathlib
import runpy

from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parents[1]
FIXED = {
    "domain.graded_by": "rules",
    "domain.max_edits": 3,
    "domain.eval_clues": (4, 7),
    "domain.demo_clues": (4, 7),
    "domain.demo_noise": 0.2,
    "domain.demo_wrong": 0.3,
    "domain.num_train": 64,
    "domain.num_eval": 16,
    "policy.num_layers": 1,
    "policy.embed_dim": 32,
    "policy.mlp_dim": 64,
    "policy.head_dim": 8,
    "policy.unroll_layers": True,
    "warm_start.num_steps": 40,
    "warm_start.num_states": 32,
    "warm_start.optimizer.decay_steps": 40,
    "warm_start.optimizer.learning_rate": 4e-3,
    "warm_start.optimizer.warmup_steps": 5,
    "algorithm.entropy_coef": 0.1,
    "optimizer.learning_rate": 3e-4,
    "eval.batch_size": 16,
    "run.num_iterations": 20,
}


def get_config(arg: str = "") -> ConfigDict:
    """Return 4x4 sudoku cut down in every dimension."""
    config = runpy.run_path(str(ROOT / "configs/smoke.py"))["get_config"](arg)
    config.domain.num_clues = (4, 14) if "setting=control" in arg else (4, 7)
    config.update_from_flattened_dict(FIXED)
    return config
