"""Sets of reasoning-gym on a CPU, from random weights: the text counterpart of sudoku, with nothing to download.

    pip install "exit_jax[gym]"
    python -m exit_jax.main --config configs/gym_cpu.py:variant=exit,seed=0
    python -m exit_jax.main --mode study --config configs/gym_cpu.py

A decoder of 0.2 million parameters, for which every byte is a token, fills in 4x4 sudokus (mini_sudoku) and spells words
backward (spell_backward). Either answer can be checked without knowing the right one, and mended in part: the improve prompt
says which rows, columns, boxes or letters are wrong, and never what should stand there. It is warm-started on the answers of a
teacher who slips, then trained by RL with the sets' own scorers, in processes of their own.

Arguments:
  variant: grpo | curriculum | improve | diverge | exit (ExIt §5), or one with a change, as exit-blind, which has no feedback.
  seed: of parameters, demonstrations, selection and sampling; the tasks are the same for all.
"""

from ml_collections import ConfigDict

from exit_jax.config import arguments, default, variants


def get_config(arg: str = "") -> ConfigDict:
    """Return the experiment for "variant=...,seed=..."."""
    given = arguments(arg, variant="exit", seed=0)
    c = default("gym", name="gym_cpu", seed=given["seed"])
    d = c.domain
    d.sets = ("mini_sudoku", "spell_backward")
    d.levels = (1,)  # 4 to 8 blanks, words of 3 to 5 letters
    d.data_dir = "data/gym_cpu"
    d.num_train, d.num_validation, d.num_test = 8192, 128, 256
    d.brief = True
    d.answers = "any"
    # a response then follows the request as in a base prompt: with what varies in length between, little is learnt in this time
    d.improve = "Better: {feedback}\n{solution}\n{request}"
    d.diverge = "Other: {feedback}\n{solution}\n{request}"
    d.max_request_tokens, d.max_feedback_tokens = 48, 40
    d.max_solution_tokens = d.max_tokens = 36
    d.demo_noise = 0.05

    p = c.policy
    p.num_layers, p.embed_dim, p.mlp_dim = 3, 64, 192
    p.num_heads, p.num_kv_heads, p.head_dim = 4, 2, 16
    p.rope_theta = 1000.0
    p.tie_embeddings = True
    p.dtype = "float32"
    p.remat, p.unroll_layers, p.decode_stages = "none", True, 1

    w = c.warm_start
    w.num_steps = w.optimizer.decay_steps = 400
    w.num_states, w.group_size = 32, 2
    w.optimizer.learning_rate = 3e-3
    w.optimizer.warmup_steps = 50
    w.optimizer.weight_decay = 1e-4

    a = c.algorithm
    a.num_prompts = 32
    a.buffer_size, a.min_buffer_size = 256, 64
    a.kl_coef = 0.0
    c.optimizer.learning_rate = 3e-4

    c.eval.splits = d.sets
    c.eval.samples_per_task = 1
    c.eval.from_checkpoint = False
    c.eval.temperature = 0.5
    c.eval.num_chains_saved = 100

    c.run.num_iterations = 150
    c.run.token_chunk = 0
    c.run.checkpoint_every = 50
    c.run.export_dtype = "float32"
    variants.apply(c, given["variant"])
    return c
