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

import pathlib
import runpy

from ml_collections import ConfigDict

from exit_jax.policy.shape import COMPUTE_FIELDS, PROJECTIONS


def get_config(arg: str = "") -> ConfigDict:
    """Return configs/sudoku.py with the policy of a checkpoint."""
    own, rest = {"checkpoint": "", "lora": "0"}, []
    for item in filter(None, (arg or "").split(",")):
        name, _, value = item.partition("=")
        if name in own:
            own[name] = value
        else:
            rest.append(item)
    if not own["checkpoint"]:
        raise ValueError("name a checkpoint: configs/sudoku_hf.py:checkpoint=<folder or hub id>")
    sudoku = runpy.run_path(str(pathlib.Path(__file__).with_name("sudoku.py")))
    c = sudoku["get_config"](",".join(rest))
    c.name = c.name.replace("sudoku", "sudoku_hf")
    c.checkpoint = own["checkpoint"]
    for name in list(c.policy):
        if name not in COMPUTE_FIELDS:
            del c.policy[name]
    c.policy.dtype = "bfloat16"
    c.policy.remat = "layer"
    c.policy.unroll_layers = False
    c.policy.decode_stages = 1
    c.policy.lora.rank = int(own["lora"])
    c.policy.lora.alpha = 2.0 * int(own["lora"])
    c.policy.lora.targets = PROJECTIONS if c.policy.lora.rank else ()
    rate = 2e-4 if c.policy.lora.rank else 1e-5
    c.warm_start.optimizer.learning_rate = rate
    c.optimizer.learning_rate = rate / 10
    c.run.export_dtype = "bfloat16"
    return c
