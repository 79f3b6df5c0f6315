"""ExIt on 4x4 sudoku with a Hugging Face checkpoint: the first thing to run with a real language model, on one GPU or TPU.

    python -m exit_jax.main --config configs/sudoku_hf.py:checkpoint=Qwen/Qwen3-0.6B
    python -m exit_jax.main --config configs/sudoku_hf.py:checkpoint=<folder>,lora=16 --config.run.mesh.fsdp=4
    python -m exit_jax.main --mode export --config configs/sudoku_hf.py:checkpoint=Qwen/Qwen3-0.6B

The puzzle's symbols are the tokenizer's first ids, whatever they stand for, so what the checkpoint knows of language is of
little use: this shows that loading, sharding, training and export work, not that pretraining helps.

Takes the arguments of configs/sudoku.py, and
  checkpoint: a folder or a hub id; Llama 3, Qwen2, Qwen2.5, Qwen3 and Mistral are supported.
  lora: rank of adapters on all projections; 0 trains all parameters.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants
from exit_jax.policy.shape import PROJECTIONS

CLUES = {"paper": (4, 7), "control": (4, 14)}


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "checkpoint=...,lora=...,variant=...,seed=...,setting=..."."""
    given = arguments(arg, variant="exit", seed=0, setting="paper", checkpoint="", lora=0)
    if not given["checkpoint"]:
        raise ValueError("name a checkpoint: configs/sudoku_hf.py:checkpoint=<folder or hub id>")
    if given["setting"] not in CLUES:
        raise ValueError(f"setting={given['setting']} is not one of {tuple(CLUES)}")
    c = default("sudoku", name=f"sudoku_hf-{given['setting']}", seed=given["seed"], checkpoint=given["checkpoint"])
    d = c.domain
    d.num_clues = CLUES[given["setting"]]
    d.graded_by = "solution"
    d.pencil_marks, d.erase = "improve", True
    d.demo_noise = 0.05

    c.policy.decode_stages = 1
    c.policy.lora.rank = given["lora"]
    c.policy.lora.alpha = 2.0 * given["lora"]
    c.policy.lora.targets = PROJECTIONS if given["lora"] else ()
    rate = 2e-4 if given["lora"] else 1e-5

    w = c.warm_start
    w.num_steps = w.optimizer.decay_steps = 1000
    w.optimizer.learning_rate = rate
    w.optimizer.warmup_steps = 50
    w.optimizer.weight_decay = 1e-4

    a = c.algorithm
    a.num_prompts = 64
    a.buffer_size, a.children = 8192, "one"
    a.diversity_embedding = "grades"
    a.zero_variance = "keep"
    a.kl_coef = 0.0
    a.entropy_coef = 0.05
    c.optimizer.learning_rate = rate / 10

    c.eval.splits = ("validation", "test")
    c.eval.samples_per_task = 2
    c.eval.batch_size = 512
    c.eval.from_checkpoint = False
    c.eval.restart_every = 8
    c.eval.num_chains_saved = 32

    c.run.num_iterations = 600
    c.run.token_chunk = 0
    c.run.steps_per_call = 20
    c.run.checkpoint_every = 100
    variants.apply(c, given["variant"], selection_prob=0.75)
    return c
