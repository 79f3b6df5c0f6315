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

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants
from exit_jax.domains.math.prompts import SYSTEM

LLAMA = "meta-llama/Llama-3.2-3B-Instruct"


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=...,checkpoint=..."."""
    given = arguments(arg, variant="exit", seed=0, checkpoint=LLAMA)
    c = default("math", name="math_llama3b", seed=given["seed"], checkpoint=given["checkpoint"])
    c.domain.tokenizer = c.checkpoint
    c.domain.system = SYSTEM
    if "llama-3" in c.checkpoint.lower():  # their chat template writes a date, which is to stay the same
        c.domain.template_inputs = ("date_string=26 Jul 2024",)

    c.algorithm.rollout_lag = 1

    c.eval.splits = (
        *("math500", "amc12_2022", "amc12_2023", "aime_2024", "aime_2025", "minerva", "olympiadbench_text"),
    )
    c.eval.batch_size = 512

    c.run.mesh.fsdp, c.run.mesh.tensor = 8, 2
    c.run.num_microbatches = 8
    c.run.prompt_buckets = (512,)
    c.run.checkpoint_every = 5
    variants.apply(c, given["variant"])
    return c
