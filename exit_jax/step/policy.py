"""The policy of a run: its shape with the domain's vocabulary, what of it is trained, how it is sampled from."""

import dataclasses
from collections.abc import Callable

import jax

from exit_jax import domains
from exit_jax.config.schema import Config, EvalConfig
from exit_jax.domains.domain import Domain
from exit_jax.errors import ConfigError
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder
from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.shape import DecoderConfig
from exit_jax.types import Params


def decoder_config(config: Config) -> DecoderConfig:
    """Return the policy's shape with the vocabulary of its domain; of a larger one, the ids without a token are not used.

    Raises:
      ConfigError: if the policy's vocabulary is smaller than the domain's.
    """
    domain = domains.make(config.domain_name, config.domain)
    needed = domain.vocab_size
    size = config.policy.vocab_size or needed
    if size < needed:
        raise ConfigError(
            f"policy.vocab_size = {size}, but the domain {config.domain_name} has {needed} tokens; take a checkpoint that "
            "matches the domain's tokenizer"
        )
    padding = ((needed, size),) if size > needed else ()
    return dataclasses.replace(config.policy, vocab_size=size, unused_ids=domain.unused_ids + padding)


def split_params(config: Config, params: Params) -> tuple[Params, Params | None]:
    """Split parameters into those that are trained and those that are frozen, None without LoRA."""
    return decoder.split_adapters(params) if config.policy.lora.rank else (params, None)


def make_reshard(policy: DecoderConfig, mesh: jax.sharding.Mesh, int8: bool = False) -> Callable[[Params], Params]:
    """Return what makes the sampler's copy: cast, a tuple of layers, split by the sampler's rules.

    Adapters stay beside their kernels: merged into kernels of bfloat16, most of what they learn in the first iterations
    would be rounded away (docs/language_models.md has the figures). With ``int8``, the kernels of the layers are rounded to
    int8 before they travel.
    """

    def reshard(params: Params) -> Params:
        params = decoder.cast(params, policy.dtype, adapters=True)
        params = decoder.unstack(policy, decoder.quantise(params) if int8 else params)
        where = meshes.shardings(mesh, decoder.logical_axes(params), params, meshes.SAMPLER)
        return jax.lax.with_sharding_constraint(params, where)

    return reshard


def sampling_config(config: Config, domain: Domain, max_tokens: int) -> SamplingConfig:
    """Return how training samples responses of up to ``max_tokens``.

    There is no repetition penalty, under which the log-probs would not be the policy's.
    """
    cut = config.sampling
    return SamplingConfig(
        max_tokens=max_tokens,
        stop_tokens=domain.stop_tokens,
        stop_sequences=domain.stop_sequences,
        temperature=config.algorithm.temperature,
        top_k=cut.top_k,
        top_p=cut.top_p,
        min_p=cut.min_p,
        min_tokens=cut.min_tokens,
        stop_text=domain.stop_text,
    )


def evaluation_sampling(settings: EvalConfig, domain: Domain, max_tokens: int) -> SamplingConfig:
    """Return how evaluation samples responses of up to ``max_tokens``: where one ends is the domain's, as in training."""
    return SamplingConfig(
        max_tokens=max_tokens,
        stop_tokens=domain.stop_tokens,
        stop_sequences=domain.stop_sequences,
        stop_text=domain.stop_text,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        min_tokens=settings.min_tokens,
        repetition_penalty=settings.repetition_penalty,
        suppress_tokens=settings.suppress_tokens,
    )
