"""Speed of one ExIt iteration against one step of TRL's GRPOTrainer on the same amount of work, on this CPU, in float32.

    pip install -e ".[parity]" && python benchmarks/trl_step.py

Equal: the decoder's shape and vocabulary (configs/sudoku.py), fresh random weights, B prompts of P tokens with G completions
of at most T tokens each, sampled from the whole softmax; rewards, group advantages, one pass of loss and gradient over all
rows at once, no reference model, global-norm clipping, AdamW. Both have all cores, and take several steps a turn.

Not equal: exit_jax also selects tasks from its buffer, grades sudoku, takes the gradient of an entropy bonus, writes children
into the buffer and measures some 60 figures. TRL also tokenizes prompts and decodes completions, which are strings of
ids, for a reward that costs nothing, and takes the entropy for its log. A prompt is read once for its G rows by exit_jax, and
once a row by TRL: that is the way of each. TRL runs without vLLM, which is for GPUs, without torch.compile and without
checkpointing of activations; attention by "sdpa" and by "eager" both compete. Its step is timed from on_step_begin to
on_step_end, which leaves out the loading of data; the first step of each turn, which sets up, is not counted, nor is the
compilation of exit_jax.

Where others keep the cores busy: taskset -c 0 python benchmarks/trl_step.py --cpu_time --num_threads 1 (policy.py says why).
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import datasets
import jax
import numpy as np
import tokenizers
import torch
import transformers
from iteration import read_config
from policy import device_name, in_turns, now, ratio, spread, timed
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from exit_jax import domains
from exit_jax.config.schema import Config
from exit_jax.policy.shape import DecoderConfig
from exit_jax.step.device import Constants
from exit_jax.step.policy import decoder_config
from exit_jax.step.program import make_program
from exit_jax.training import train

SMALL = {"algorithm.num_prompts": 2, "algorithm.group_size": 2, "algorithm.buffer_size": 128}


class StepTimes(transformers.TrainerCallback):
    """Keeps the seconds of each step since training began."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.secs: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.secs.append(now() - self.started)


def make_ours(config: Config) -> Callable[[], dict[str, float]]:
    """Return what runs ``steps_per_call`` iterations in one program and gives the seconds of one."""
    program = make_program(config)
    constants = Constants(train.base_tasks(config, "train"), None)
    state = program.init(program.init_params(0), 0)

    def measure() -> dict[str, float]:
        nonlocal state
        (state, _), secs = timed(program.train, constants, state)
        return {"secs": secs / config.run.steps_per_call}

    return measure


def make_llama(config: DecoderConfig, end: int | None, dtype: str = "float32") -> transformers.LlamaForCausalLM:
    """Return transformers' Llama of the shape, with random weights; ``end`` is the token that ends a row."""
    llama = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.embed_dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(llama).to(getattr(torch, dtype))


def make_theirs(
    config: Config, attention: str, folder: pathlib.Path, dtype: str = "float32", **changes: Any
) -> Callable[[], dict[str, float]]:
    """Return what runs as many steps of a GRPOTrainer, and one before them, and gives the mean seconds of one.

    Args:
      changes: of GRPOConfig, as on a GPU.
    """
    c, a, o, num_steps = decoder_config(config), config.algorithm, config.optimizer, config.run.steps_per_call
    domain = domains.make(config.domain_name, config.domain)
    words = tokenizers.models.WordLevel({str(i): i for i in range(c.vocab_size)}, unk_token="0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    end = domain.stop_tokens[0]
    model = make_llama(c, end, dtype)
    model.set_attn_implementation(attention)
    ids = np.random.default_rng(0).integers(
        end + 1, c.vocab_size, ((num_steps + 1) * a.num_prompts, domain.prompt_width)
    )
    named: dict[str, Any] = {
        "output_dir": str(folder / attention),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "max_steps": num_steps + 1,
        "per_device_train_batch_size": a.num_prompts * a.group_size,
        "num_generations": a.group_size,
        "max_completion_length": domain.max_tokens,
        "temperature": a.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": 0.0,
        "loss_type": "grpo",
        "learning_rate": o.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": o.weight_decay,
        "max_grad_norm": o.max_grad_norm,
    }
    settings = GRPOConfig(**named | changes)
    times = StepTimes()
    trainer = GRPOTrainer(
        model,
        lambda completions, **_: [float(len(text) % 2) for text in completions],
        settings,
        datasets.Dataset.from_dict({"prompt": [" ".join(map(str, row)) for row in ids]}),
        processing_class=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="0", eos_token=str(end)
        ),
        callbacks=[times],
    )
    trainer.remove_callback(transformers.PrinterCallback)

    def measure() -> dict[str, float]:
        trainer.train()
        return {"secs": statistics.mean(times.secs[1:])}

    return measure


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="one iteration against one step of TRL's GRPOTrainer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="of each side in a turn; divides 100")
    parser.add_argument("--num_threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--cpu_time", action="store_true", help="measure seconds of the CPU and not of the wall")
    parser.add_argument("--small", action="store_true", help="few rollouts, which measure nothing")
    if "--small" in sys.argv:
        parser.set_defaults(rounds=1, steps=1)
    a = parser.parse_args()
    torch.set_num_threads(a.num_threads)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # the names of TRL's own settings
    config = read_config(**{"run.steps_per_call": a.steps} | (SMALL if a.small else {}))
    with tempfile.TemporaryDirectory() as temporary:
        theirs = {f"TRL, {name}": make_theirs(config, name, pathlib.Path(temporary)) for name in ("sdpa", "eager")}
        calls = {"exit_jax": make_ours(config)} | theirs
        results = {name: measured["secs"] for name, measured in in_turns(calls, a.rounds).items()}
    domain, b, g = (
        domains.make(config.domain_name, config.domain),
        config.algorithm.num_prompts,
        config.algorithm.group_size,
    )
    print(f"{device_name()}, torch {torch.__version__} on {a.num_threads} threads, jax {jax.__version__}")
    print(f"{b} prompts of {domain.prompt_width} tokens x {g} completions of at most {domain.max_tokens}\n")
    print("| what | ms a step (min-max) | rollouts/s | ratio to exit_jax of the same round |\n|---|---|---|---|")
    for name, secs in results.items():
        rate = b * g / statistics.median(secs)
        print(f"| {name} | {spread(secs, 1e3)} | {rate:.0f} | {ratio(secs, results['exit_jax'])} |")


if __name__ == "__main__":
    main()
