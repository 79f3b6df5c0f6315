"""Write a trained policy as a Hugging Face checkpoint, and its adapters, if it has any, as PEFT does."""

import pathlib

from exit_jax.config import Config, ConfigError
from exit_jax.policy import decoder
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf.export import export, export_adapter
from exit_jax.programs import decoder_config
from exit_jax.train import restore_params


def export_policy(config: Config, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Write the workdir's newest policy to ``<workdir>/export``, and its adapters to ``<workdir>/adapter``.

    Returns:
      The folders written.

    Raises:
      ConfigError: if there is no policy, a folder is there already, or it cannot be written.
    """
    params, policy = restore_params(config, workdir), decoder_config(config)
    if params is None:
        raise ConfigError(f"{workdir} holds no checkpoint; train first, or name the right --workdir")
    whole, adapter = workdir / "export", workdir / "adapter"
    try:
        source = hf_config.resolve(config.checkpoint) if config.checkpoint else None
        export(
            decoder.merge_adapters(policy, params),
            decoder.without_adapters(policy),
            whole,
            source,
            config.run.export_dtype,
        )
        if not policy.lora.rank:
            return [whole]
        export_adapter(params, policy, adapter, config.checkpoint or None)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return [whole, adapter]
