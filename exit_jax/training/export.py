"""Write a trained policy as a Hugging Face checkpoint, and its adapters, if it has any, as PEFT does.

With the weights goes what they were trained and evaluated with: tokenizer and chat template, stop tokens and sampling. So
`transformers` makes the same prompts, and generate() samples as evaluation did and stops where it stopped.
"""

import copy
import dataclasses
import logging
import pathlib
from typing import Any

from exit_jax import domains
from exit_jax.config.schema import Config
from exit_jax.domains.domain import Domain
from exit_jax.domains.text import chat
from exit_jax.errors import ConfigError
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf import generation
from exit_jax.policy.hf.export import Words, export, export_adapter
from exit_jax.policy.shape import DecoderConfig
from exit_jax.step.policy import decoder_config, evaluation_sampling
from exit_jax.training import card
from exit_jax.training.train import restore_params

log = logging.getLogger(__name__)


def export_policy(config: Config, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Write the workdir's newest policy to ``<workdir>/export``, and its adapters to ``<workdir>/adapter``.

    Returns:
      The folders written.

    Raises:
      ConfigError: if there is no policy, a folder is there already, or it cannot be written.
    """
    params = restore_params(config, workdir)
    if params is None:
        raise ConfigError(f"{workdir} holds no checkpoint; train first, or name the right --workdir")
    return write_policy(config, params, workdir)


def write_policy(config: Config, params: Any, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Write all parameters of a policy, merged or not; as ``export_policy``."""
    policy, whole, adapter = decoder_config(config), workdir / "export", workdir / "adapter"
    words, dtype = make_words(config, policy), config.run.export_dtype
    of = lambda library: dataclasses.replace(words, readme=card.make(config, workdir, words.readme, library))
    if policy.lora.rank and dtype != "float32":
        log.warning(
            "run.export_dtype = %r: adapters are merged in float32 and then rounded, by which much of a short training is "
            "lost; %s holds all of it, and so does the merged policy in float32",
            *(dtype, adapter),
        )
    try:
        source = hf_config.resolve(config.checkpoint) if config.checkpoint else None
        export(params, policy, whole, source, dtype, words=of("transformers"))
        if not policy.lora.rank:
            return [whole]
        export_adapter(params, policy, adapter, config.checkpoint or None, words=of("peft"))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return [whole, adapter]


def make_words(config: Config, policy: DecoderConfig) -> Words:
    """Return what a policy's tokens are and how they are sampled, as its domain and its evaluation have it."""
    domain = domains.make(config.domain_name, config.domain)
    max_tokens = domain.test_environment.max_tokens if domain.test_environment else domain.max_tokens
    tokenizer = freeze_inputs(domain) if domain.tokenizer is not None else None
    ids = {name: getattr(tokenizer, name, None) for name in ("bos_token_id", "pad_token_id")}
    ranges = policy.unused_ids if tokenizer is not None else ()
    unused = [number for start, stop in ranges for number in range(start, stop)]
    content = generation.make(evaluation_sampling(config.eval, domain, max_tokens), ids, unused)
    return Words(tokenizer, content, describe(config, domain, policy))


def freeze_inputs(domain: Domain) -> Any:
    """Return the domain's tokenizer, whose chat template has the domain's inputs for defaults, the stopped clock included."""
    tokenizer, inputs = domain.tokenizer, domain.template_inputs
    if not inputs:
        return tokenizer
    frozen = copy.deepcopy(tokenizer)
    frozen.chat_template = chat.with_inputs(tokenizer, inputs)
    return frozen


def describe(config: Config, domain: Domain, policy: DecoderConfig) -> str:
    """Return a README.md: what this is, what its tokens are, and how it was prompted."""
    began = f", which began from {config.checkpoint}" if config.checkpoint else ""
    lines = [
        f"# {config.name}",
        "",
        f"A policy{began}, trained by exit_jax (domain {config.domain_name}, variant {config.variant}, seed {config.seed}).",
        "",
    ]
    if domain.tokenizer is None:
        never = f" Ids from {domain.vocab_size} on are never sampled." if policy.unused_ids else ""
        lines.append(f"**Its tokens are no text, so there is no tokenizer.** {domain.tokens_are}{never}")
        return "\n".join([*lines, ""])
    stops = domain.tokenizer.convert_ids_to_tokens(list(domain.stop_tokens))
    lines.append(
        "Tokenizer and chat template are those it was trained with; `generation_config.json` samples as its evaluation did. "
        f"A response ends at one of {', '.join(f'`{stop}`' for stop in stops)}."
    )
    if domain.template_inputs:
        lines.append(f"Defaults of the chat template: {dict(domain.template_inputs)}.")
    prompts = {name: getattr(config.domain, name, "") for name in ("system", "base", "improve", "diverge")}
    for name, text in (prompts | dict(domain.messages)).items():
        if text:
            lines += ["", f"## {name}", "", "```", text, "```"]
    return "\n".join([*lines, ""])
