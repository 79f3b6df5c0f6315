"""Your own task: prompts from anywhere, a reward in Python (docs/your_own_task.md).

    python -m exit_jax.main --config configs/task.py:tasks=my_tasks.jsonl,reward=my_reward.py:score,checkpoint=Qwen/Qwen3-0.6B

Arguments:
  tasks: a file, folder, hub id or function with rows; further ones by --config.domain.tasks="('a.jsonl', 'b.jsonl')".
  reward: file.py:function or module:function.
  checkpoint: folder or hub id of an instruct model; without it, a small policy of bytes from random weights.
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5); all use the same number of rollouts.
  seed: of selection and sampling, and of weights where there is no checkpoint.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "tasks=...,reward=...,checkpoint=...,variant=...,seed=..."."""
    given = arguments(arg, tasks="", reward="", checkpoint="", variant="exit", seed=0)
    c = default("task", name="task", seed=given["seed"], checkpoint=given["checkpoint"])
    d = c.domain
    d.tasks, d.reward = tuple(filter(None, [given["tasks"]])), tuple(filter(None, [given["reward"]]))
    d.tokenizer = c.checkpoint
    d.max_feedback_tokens = 64
    if not c.checkpoint:
        tiny_policy(c)

    # 16 prompts of 8 responses fit beside a model of 1B on one chip of 16 GiB
    c.algorithm.num_prompts, c.algorithm.buffer_size, c.algorithm.min_buffer_size = 16, 128, 16
    c.run.num_microbatches = 4
    c.eval.steps, c.eval.samples_per_task, c.eval.batch_size = (0, 1, 2, 4), 4, 64
    variants.apply(c, given["variant"])
    return c


def tiny_policy(c: ConfigDict) -> None:
    """Set a policy that a CPU trains, of 0.2M parameters, whose tokens are bytes."""
    p = c.policy
    p.num_layers, p.embed_dim, p.mlp_dim = 2, 96, 256
    p.num_heads, p.num_kv_heads, p.head_dim = 6, 2, 16
    p.dtype, p.remat, p.decode_stages = "float32", "none", 1
    c.domain.max_request_tokens, c.domain.max_tokens = 256, 64
    c.optimizer.learning_rate = 1e-4
    c.algorithm.kl_coef = 0.0
