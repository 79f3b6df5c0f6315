"""ML engineering with DeepSeek-R1-Distill-Qwen-7B: the third column of ExIt's Table 1, with the settings of its Table 6.

    pip install --no-deps "mlebench @ git+https://github.com/openai/mle-bench@783b15af77404fbaffe7255b0c4a934b46153389"
    mlebench prepare -c spooky-author-identification --data-dir data/mlebench    # and the other five; docs/mle.md
    python -m exit_jax.main --mode data --config configs/mle_r1_qwen7b.py
    python -m exit_jax.main --config configs/mle_r1_qwen7b.py:variant=exit,seed=0
    python -m exit_jax.main --mode report --config configs/mle_r1_qwen7b.py --runs runs/<one>,runs/<another>

Three competitions of MLE-bench to train on, three others to test on; a script may run for 5 minutes, in the sandbox. A run from
a single competition, as in the paper's Figure 1, is --config.domain.train="('spooky-author-identification',)". Without
Kaggle's data, --config.domain.source=embedded takes the six competitions made from scikit-learn's data sets.

Hardware: v5e-16 by the compiler (docs/fit.md, setting code); and cores for scripts, of which 32 an iteration run for up to 5
minutes each: with 32 cores an iteration waits for them for no more than that. The paper reports 58.6 ± 2.5 for ExIt and 48.0 ±
0.7 for GRPO after 16 steps (ExIt, Table 1). We have not run it. The paper is silent on lengths: prompts of up to 6,144 tokens,
responses of up to 4,096 with their thoughts, and on β, here 0.001.

Arguments:
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5); all use the same number of rollouts.
  seed: of selection and sampling.
  checkpoint: folder or hub id of a model that writes Python.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants

R1 = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
# N, B_min, p and p_div of ExIt's Table 6
SETTINGS = {
    "grpo": {},
    "curriculum": {"buffer_size": 3, "min_buffer_size": 3, "selection_prob": 0.5},
    "improve": {"buffer_size": 24, "min_buffer_size": 8, "selection_prob": 0.5},
    "diverge": {"buffer_size": 32, "min_buffer_size": 8, "selection_prob": 0.5, "divergence_prob": 0.2},
    "exit": {"buffer_size": 24, "min_buffer_size": 3, "selection_prob": 0.5, "divergence_prob": 0.5},
}


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=...,checkpoint=..."."""
    given = arguments(arg, variant="exit", seed=0, checkpoint=R1)
    c = default("ml_engineering", name="mle_r1_qwen7b", seed=given["seed"], checkpoint=given["checkpoint"])
    c.domain.tokenizer = c.checkpoint  # and no system message: R1's authors advise against one
    c.domain.compact_descriptions = True
    c.domain.show_score = False  # the paper's feedback is the error trace alone

    a = c.algorithm
    a.num_prompts = 4
    a.buffer_size, a.min_buffer_size = 24, 3
    a.reward = "improvement"
    a.learnability_of = "reward"  # what varies in quality, and never improves, teaches nothing
    a.diversity_embedding = "solution"  # the script, not the thoughts before it
    a.reference_mix = 0.5
    variants.apply(c, given["variant"])
    a.update(SETTINGS[given["variant"]])

    c.eval.splits = ("train", "test")
    c.eval.samples_per_task = 16
    c.eval.batch_size = 48
    c.eval.restart_every = 1  # independent tries, at as many responses
    c.eval.greedy = True
    c.eval.num_chains_saved = 48

    c.run.num_iterations = 800
    c.run.mesh.fsdp = c.run.mesh.tensor = 4
    c.run.prompt_buckets = (4096,)
    c.run.response_buckets = (2048,)
    return c
