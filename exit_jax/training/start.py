"""Where RL starts: fresh parameters or a checkpoint's, and the supervised warm start."""

import functools
import pathlib

import jax

from exit_jax import domains
from exit_jax.config.schema import WARM_START_DEPENDS_ON, Config
from exit_jax.errors import ConfigError
from exit_jax.policy import decoder
from exit_jax.step.finite import explain
from exit_jax.step.policy import decoder_config
from exit_jax.step.program import make_program
from exit_jax.step.tasks import tasks_digest
from exit_jax.training.loop import run_loop
from exit_jax.types import Params
from exit_jax.workdir import identity, inputs, remote


def first_seed(config: Config) -> int:
    """Return the seed of all that is before RL: fresh parameters, trained or frozen, and demonstrations."""
    return config.warm_start.seed if config.warm_start.seed >= 0 else config.seed


def untrained(config: Config) -> Params:
    """Return the parameters before any training, without adapters: fresh ones, or those of ``config.checkpoint``.

    Raises:
      ConfigError: if the checkpoint cannot be loaded.
    """
    program = make_program(config)
    if not config.checkpoint:
        return decoder.split_adapters(program.init_params(first_seed(config)))[1]
    from exit_jax.policy.hf.config import resolve
    from exit_jax.policy.hf.load import load

    where = jax.tree.map(lambda leaf: leaf.sharding, program.params)
    try:
        return load(resolve(config.checkpoint), decoder_config(config), where)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def frozen_params(config: Config) -> Params | None:
    """Return the parameters that are not trained: all but the adapters with LoRA, else None."""
    return untrained(config) if config.policy.lora.rank else None


def initial_params(config: Config) -> Params:
    """Return the parameters that are trained, as they are at first: fresh adapters with LoRA, else ``untrained``."""
    if not config.policy.lora.rank:
        return untrained(config)
    program = make_program(config)
    where = jax.tree.map(lambda leaf: leaf.sharding, program.state.params)
    fresh = jax.jit(lambda seed: decoder.split_adapters(program.init_params(seed))[0], out_shardings=where)
    return fresh(first_seed(config))


def warm_start(config: Config, workdir: pathlib.Path, frozen: Params | None) -> Params:
    """Return the parameters that RL starts to train: the initial ones, or those of the supervised phase.

    The phase is a run of its own, whose folder is named by a hash of what determines it; once finished, it serves every run
    that shares ``run.warm_start_dir``.
    """
    if not config.warm_start.num_steps:
        return initial_params(config)
    program, seed = make_program(config), first_seed(config)
    recipe = identity.scientific(config) | {"seed": seed, "warm_start.seed": -1}  # whichever of the two fields gave it
    recipe = {name: recipe[name] for name in recipe if name.partition(".")[0] in WARM_START_DEPENDS_ON}
    recipe["demonstrations"] = domains.make(config.domain_name, config.domain).demonstrations_id
    recipe["tasks"] = tasks_digest(config, "train")
    with (
        remote.opened(config.run.warm_start_dir or workdir / "warm_start") as root,
        explain(config, lambda: untrained(config), None),
    ):
        folder = root / identity.digest(recipe)
        inputs.check(config, folder, bool(remote.children(folder / "checkpoints")), "run.warm_start_dir", of_run=False)
        state = run_loop(
            "warm_start",
            functools.partial(program.warm, frozen),
            config,
            like=program.warm_state,
            make=lambda: program.init_warm(initial_params(config), seed),
            total=config.warm_start.num_steps,
            checkpoint_dir=folder / "checkpoints",
            metrics_dir=folder,
            describe=lambda row: f"loss {row['warm_start/loss']:.3f}",
        )
    return state.params
