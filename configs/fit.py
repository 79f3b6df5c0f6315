"""The paper's three settings, and a 70B policy, as shapes: what --mode compile needs before data and weights are at hand.

    python -m exit_jax.main --mode compile --config configs/fit.py:setting=math --topology v5e:4x8

Nothing here can be trained on: the domain "shapes" has widths and no tasks. docs/fit.md has what came out.

Arguments:
  setting: math (Llama-3.2-3B, 128 prompts x 8 rollouts), tools (Qwen2.5-7B, 16 x 8), code (DeepSeek-R1-Distill-Qwen-7B,
    4 x 8), the models and batches of ExIt App. A; or llama70b (Llama-3.1-70B on the batch of math).

Widths are multiples of 128, and prompt + response one of 512, which give splash attention its largest tiles. The paper states
none; ours leave room for a problem and a solution (math), the documents of several APIs and transcripts of ten turns (tools,
which are played turn by turn), a task, a script, its error trace and an answer with its thoughts (code).
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default

LLAMA_3B = {
    "vocab_size": 128256,
    "num_layers": 28,
    "embed_dim": 3072,
    "num_heads": 24,
    "num_kv_heads": 8,
    "head_dim": 128,
    "mlp_dim": 8192,
    "rope_theta": 500000.0,
    "rope_scaling": (32.0, 1.0, 4.0, 8192.0),
    "norm_eps": 1e-5,
    "tie_embeddings": True,
    "qkv_bias": False,
}
QWEN_7B = {
    "vocab_size": 152064,
    "num_layers": 28,
    "embed_dim": 3584,
    "num_heads": 28,
    "num_kv_heads": 4,
    "head_dim": 128,
    "mlp_dim": 18944,
    "rope_theta": 1000000.0,
    "rope_scaling": (),
    "norm_eps": 1e-6,
    "tie_embeddings": False,
    "qkv_bias": True,
}
LLAMA_70B = LLAMA_3B | {
    "num_layers": 80,
    "embed_dim": 8192,
    "num_heads": 64,
    "mlp_dim": 28672,
    "rope_scaling": (8.0, 1.0, 4.0, 8192.0),
    "tie_embeddings": False,
}
MATH = {
    "domain.num_tasks": 1280,
    "domain.history_width": 1408,
    "domain.prompt_width": 1536,
    "domain.max_tokens": 1024,
    "algorithm.num_prompts": 128,
    "algorithm.buffer_size": 512,
    "algorithm.min_buffer_size": 128,
    "run.mesh.fsdp": 8,
    "run.mesh.tensor": 2,
    "run.num_microbatches": 8,
}
# setting -> shape of the policy, and fields that differ from each other
SETTINGS = {
    "math": (LLAMA_3B, MATH),
    "tools": (
        QWEN_7B,
        {
            "domain.num_tasks": 100,
            "domain.history_width": 8576,
            "domain.prompt_width": 8704,
            "domain.max_tokens": 4096,
            "domain.num_children": 10,
            "eval.restart_every": 0,
            "domain.max_turns": 10,
            "domain.turn_tokens": 512,
            "domain.observation_tokens": 512,
            "algorithm.num_prompts": 16,
            "algorithm.buffer_size": 640,
            "algorithm.min_buffer_size": 320,
            "algorithm.divergence_prob": 0.5,
            "algorithm.advantage_norm": "none",
            "algorithm.aggregation": "dr_grpo",
            "algorithm.mask_overlong": True,
            "algorithm.num_epochs": 2,
            "run.mesh.fsdp": 4,
            "run.mesh.tensor": 4,
            "run.num_microbatches": 4,
        },
    ),
    "code": (
        QWEN_7B | {"rope_theta": 10000.0},
        {
            "domain.num_tasks": 3,
            "domain.history_width": 6016,
            "domain.prompt_width": 6144,
            "domain.max_tokens": 4096,
            "algorithm.num_prompts": 4,
            "algorithm.buffer_size": 24,
            "algorithm.min_buffer_size": 3,
            "algorithm.divergence_prob": 0.5,
            "algorithm.reward": "improvement",
            "algorithm.reference_mix": 0.5,
            "run.mesh.fsdp": 4,
            "run.mesh.tensor": 4,
            "run.num_microbatches": 1,
        },
    ),
    "llama70b": (LLAMA_70B, MATH | {"run.mesh.fsdp": 4, "run.mesh.tensor": 8, "run.num_microbatches": 32}),
}


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "setting=..."."""
    setting = arguments(arg, setting="math")["setting"]
    if setting not in SETTINGS:
        raise ValueError(f"setting={setting} is not one of {tuple(SETTINGS)}")
    shape, fields = SETTINGS[setting]
    c = default("shapes", name=f"fit-{setting}")
    c.domain.vocab_size = shape["vocab_size"]
    c.policy.update(shape)
    c.algorithm.diversity_embedding = "grades"
    c.algorithm.zero_variance = "keep"
    c.eval.batch_size = 512
    c.eval.restart_every = 8
    c.update_from_flattened_dict(fields)
    return c
