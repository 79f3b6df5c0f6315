"""What a run asks of its checkpoint: faults that neither shows alone, found before anything is compiled."""

from exit_jax.config.checks import no_demonstrations
from exit_jax.config.schema import Config
from exit_jax.domains.domain import Domain
from exit_jax.errors import ConfigError
from exit_jax.policy.hf import tokenizer as tokenizers
from exit_jax.policy.hf.config import read_limits, resolve

NO_CRITIQUES = (
    "{what}: the domain {domain} asks for no critiques; one of text does where domain.critique says how, and "
    "domain.max_feedback_tokens how long they may be"
)


def require_demonstrations(config: Config, domain: Domain) -> None:
    """Raise ConfigError if a warm start has nothing to learn from, which only a domain that is built may know."""
    if config.warm_start.num_steps and domain.demonstrations is None:
        raise ConfigError(no_demonstrations(config))


def require_one_turn(config: Config, domain: Domain) -> None:
    """Raise ConfigError if rollouts of several turns are to have a second attempt."""
    if config.algorithm.protocol != "single" and domain.environment is not None:
        raise ConfigError(
            f"algorithm.protocol = {config.algorithm.protocol!r}: the domain {domain.name} plays episodes of several turns, "
            'which have no second attempt; set it to "single"'
        )


def require_critiques(config: Config, domain: Domain) -> None:
    """Raise ConfigError if the policy is to write critiques that the domain does not ask for."""
    if config.algorithm.protocol == "critique" and domain.critique is None:
        raise ConfigError(NO_CRITIQUES.format(what='algorithm.protocol = "critique"', domain=domain.name))


def longest_sequence(config: Config, domain: Domain) -> int:
    """Return the tokens of the longest sequence that training or evaluation may read: prompt and response, or transcript."""
    longest = domain.max_tokens
    if test := domain.test_environment:
        again = test.max_ask + test.max_tokens if max(config.eval.steps) else 0
        longest = max(longest, test.max_transcript + again)
    return domain.prompt_width + longest


def require_checkpoint_fits(config: Config, domain: Domain) -> None:
    """Raise unless the checkpoint was trained with the domain's tokenizer, and on sequences as long as the run's.

    Raises:
      ConfigError: naming both lengths.
      CheckpointError: naming what the tokenizers disagree about.
    """
    if not config.checkpoint:
        return
    folder = resolve(config.checkpoint)
    longest = longest_sequence(config, domain)
    field, limit = min(read_limits(folder).items(), key=lambda item: item[1])
    if longest > limit:
        told = "domain.max_transcript_tokens and what evaluation adds" if domain.environment else "domain.max_tokens"
        raise ConfigError(
            f"domain.prompt_width = {domain.prompt_width} and {told} make sequences of up to {longest} tokens, but {folder} "
            f"has {field} = {limit} in its config.json; lower them, or take a checkpoint that was trained on longer ones"
        )
    name = getattr(config.domain, "tokenizer", "")
    if domain.tokenizer is not None and not (name and resolve(name).resolve() == folder.resolve()):
        called = (
            f"domain.tokenizer = {name!r}" if name else "the tokenizer that the domain makes (domain.tokenizer = '')"
        )
        tokenizers.check_pair(domain.tokenizer, called, folder)
