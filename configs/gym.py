"""Sets of reasoning-gym with a Hugging Face checkpoint: any of them by name, or several mixed.

    pip install "exit_jax[gym]"
    python -m exit_jax.main --config configs/gym.py:task=countdown,checkpoint=Qwen/Qwen3-0.6B
    python -m exit_jax.main --config configs/gym.py:task=countdown+sudoku,weights=2+1,level=0+1,checkpoint=<folder>

Tasks are made at the start, once, from seeds that no two splits share, into domain.data_dir. Of several sets each is evaluated
by itself, and their mean is reported. docs/environments.md says which sets there are, which are refused and why. We have not
run it on a model of this size.

Arguments:
  task: a set, or several joined by "+".
  weights: their shares of the tasks, joined by "+"; equal ones without it.
  level: level of the sets' curricula, 0 being the easiest, or several joined by "+"; the sets as they are without it.
  checkpoint: folder or hub id of an instruct model.
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5); all use the same number of rollouts.
  seed: of selection and sampling; the tasks are the same for all.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants
from exit_jax.domains.gym.prompts import SYSTEM


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "task=...,weights=...,level=...,checkpoint=...,variant=...,seed=..."."""
    given = arguments(arg, variant="exit", seed=0, task="", weights="", level="", checkpoint="")
    if not (given["task"] and given["checkpoint"]):
        raise ValueError("name a set and a checkpoint: configs/gym.py:task=countdown,checkpoint=<folder or hub id>")
    parts = {name: given[name].split("+") if given[name] else [] for name in ("task", "weights", "level")}
    c = default("gym", name=f"gym-{'-'.join(parts['task'])}", seed=given["seed"], checkpoint=given["checkpoint"])
    d = c.domain
    d.sets = tuple(parts["task"])
    d.weights = tuple(map(float, parts["weights"]))
    d.levels = tuple(map(int, parts["level"]))
    d.tokenizer = c.checkpoint
    d.system = SYSTEM
    if "llama-3" in c.checkpoint.lower():  # their chat template writes a date, which is to stay the same
        d.template_inputs = ("date_string=26 Jul 2024",)
    d.max_request_tokens = 1024
    d.max_tokens = 1024
    d.max_feedback_tokens = 64

    c.algorithm.num_prompts = 32
    c.algorithm.min_buffer_size = 64
    c.algorithm.rollout_lag = 1

    c.eval.splits = d.sets if len(d.sets) > 1 else ("test",)
    c.eval.samples_per_task = 2

    c.run.num_microbatches = 8
    c.run.prompt_buckets = (512, 1024)
    variants.apply(c, given["variant"])
    return c
