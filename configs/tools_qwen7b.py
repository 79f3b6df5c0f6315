"""Multi-turn tool use with Qwen2.5-7B-Instruct: the second column of ExIt's Table 1, with the settings of its Table 5.

    pip install "exit_jax[tools]" && pip install --no-deps bfcl-eval==2026.3.23
    python -m exit_jax.main --mode compile --config configs/tools_qwen7b.py --topology v5e:4x4
    python -m exit_jax.main --config configs/tools_qwen7b.py:variant=exit,seed=0
    python -m exit_jax.main --mode report --config configs/tools_qwen7b.py --runs runs/<one>,runs/<another>

BFCL v3 multi-turn-base with the benchmark's own back-ends: 100 tasks to train on, 100 to test, stratified by API set and number
of requests (the same for all seeds; the paper's own split is not published). Training makes the first request of a task, with
10 turns; testing makes all of them, with 60. ``accuracy`` is that of the first request, as in the paper, and
``figures.requests_fulfilled`` the total return. To choose hyperparameters, train on 75 of the training tasks
(domain.train_split = "tuning") and evaluate on the other 25 (eval.splits = ("validation",)).

Hardware: v5e-16 by the compiler (docs/fit.md, setting tools). The paper reports 76.4 ± 1.0 for ExIt and 73.5 ± 1.5 for GRPO
after 4 steps (ExIt, Table 1). We have not run it. The paper is silent on lengths: the documents of a task's functions take
3,000 to 6,000 tokens, so contexts of up to 7,808, responses and observations of up to 512.

Arguments:
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5); all use the same number of rollouts.
  seed: of selection and sampling.
  checkpoint: folder or hub id of an instruct model.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants

QWEN = "Qwen/Qwen2.5-7B-Instruct"
# N, B_min, p and p_div of ExIt's Table 5
SETTINGS = {
    "grpo": {},
    "curriculum": {"buffer_size": 320, "min_buffer_size": 320, "selection_prob": 0.2},
    "improve": {"buffer_size": 640, "min_buffer_size": 320, "selection_prob": 0.5},
    "diverge": {"buffer_size": 640, "min_buffer_size": 320, "selection_prob": 0.5, "divergence_prob": 0.2},
    "exit": {"buffer_size": 640, "min_buffer_size": 320, "selection_prob": 0.5, "divergence_prob": 0.5},
}


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=...,checkpoint=..."."""
    given = arguments(arg, variant="exit", seed=0, checkpoint=QWEN)
    c = default("tool_use", name="tools_qwen7b", seed=given["seed"], checkpoint=given["checkpoint"])
    c.domain.tokenizer = c.checkpoint
    c.domain.stop_at_call = True  # the paper's, as the next (docs/decisions.md, Tool use)
    c.domain.overlong_unit = "response"

    a = c.algorithm
    a.num_prompts = 16
    a.aggregation = "dr_grpo"
    a.advantage_norm = "none"
    a.mask_overlong = True
    a.num_epochs = 2
    variants.apply(c, given["variant"])
    a.update(SETTINGS[given["variant"]])
    c.optimizer.learning_rate = 1e-6 if given["variant"] in ("grpo", "exit") else 5e-7

    c.eval.steps = (0, 1, 2, 4)
    # the model's "default sampling configs" (ExIt App. A.5), as its generation_config.json gives them
    c.eval.temperature, c.eval.top_k, c.eval.top_p, c.eval.repetition_penalty = 0.7, 20, 0.8, 1.05
    c.eval.batch_size = 64

    c.run.num_iterations = 400
    c.run.mesh.fsdp = c.run.mesh.tensor = 4
    c.run.num_microbatches = 4
    c.run.prompt_buckets = (6144, 8192)
    c.run.response_buckets = (1024, 2048)
    return c
