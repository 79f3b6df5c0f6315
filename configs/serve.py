"""A policy of any origin behind OpenAI's API (docs/serve.md).

    python -m exit_jax.main --mode serve --config configs/serve.py:policy=Qwen/Qwen3-0.6B --config.serve.port=8000

Arguments:
  policy: a Hugging Face folder or hub id, or the workdir of a run.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default


def get_config(arg: str = "") -> ConfigDict:
    """Return the settings for "policy=..."."""
    c = default("task", name="serve")
    c.serve.policy = arguments(arg, policy="")["policy"]
    return c
