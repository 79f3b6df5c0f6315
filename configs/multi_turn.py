"""An environment of several turns, your own or another package's, with ExIt around it (docs/your_own_task.md).

    python -m exit_jax.main --config configs/multi_turn.py:environment=my_game.py:Game,checkpoint=Qwen/Qwen3-0.6B

Arguments:
  environment: file.py:class or module:class; or openenv:<address>, textarena:<game>, verifiers:<taskset>.
  tasks: a file, folder, hub id or function with rows; without it, the environment's own tasks.
  checkpoint: folder or hub id of an instruct model; without it, a small policy of bytes from random weights.
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5); all use the same number of rollouts.
  seed: of selection and sampling, and of weights where there is no checkpoint.
"""

from typing import Any

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "environment=...,tasks=...,checkpoint=...,variant=...,seed=..."."""
    given = arguments(arg, environment="", tasks="", checkpoint="", variant="exit", seed=0)
    c = default("multi_turn", name="multi_turn", seed=given["seed"], checkpoint=given["checkpoint"])
    d = c.domain
    d.environment, d.tasks = given["environment"], tuple(filter(None, [given["tasks"]]))
    d.tokenizer = c.checkpoint
    if not c.checkpoint:
        tiny_policy(c)

    c.algorithm.num_prompts, c.algorithm.buffer_size, c.algorithm.min_buffer_size = 8, 128, 16
    c.algorithm.mask_overlong = True
    c.run.num_microbatches = 8
    c.eval.steps, c.eval.samples_per_task, c.eval.batch_size = (0, 1, 2, 4), 1, 32
    variants.apply(c, given["variant"])
    return c


def tiny_policy(c: Any) -> None:
    """Set a policy that a CPU trains, of 0.2M parameters, whose tokens are bytes."""
    p = c.policy
    p.num_layers, p.embed_dim, p.mlp_dim = 2, 96, 256
    p.num_heads, p.num_kv_heads, p.head_dim = 6, 2, 16
    p.dtype, p.remat, p.decode_stages = "float32", "none", 1
    c.domain.max_tokens, c.domain.max_observation_tokens, c.domain.max_transcript_tokens = 64, 128, 512
    c.domain.max_turns = 4
    c.optimizer.learning_rate = 1e-4
    c.algorithm.kl_coef = 0.0
