"""What a run asks of its domain and of its checkpoint: faults that neither shows alone, found before anything is compiled."""

from exit_jax.config.schema import Config
from exit_jax.domains.domain import Domain
from exit_jax.errors import ConfigError
from exit_jax.policy.hf import tokenizer as tokenizers
from exit_jax.policy.hf.config import read_limits, resolve


def require_domain_fits(config: Config, domain: Domain) -> None:
    """Raise ConfigError if the run asks for what its domain does not do."""
    settings = config.eval
    rivals = settings.restart_every or settings.greedy or settings.scaffolds
    if domain.environment and (config.algorithm.rollout_lag or config.run.sampler_slots or rivals):
        raise ConfigError(
            f"algorithm.rollout_lag = {config.algorithm.rollout_lag}, run.sampler_slots = {config.run.sampler_slots}, "
            f"eval.restart_every = {settings.restart_every}, eval.greedy = {settings.greedy} and eval.scaffolds = "
            f"{settings.scaffolds}: the domain {config.domain_name} plays episodes of several turns, which know none of them; "
            "set the first three to 0, eval.greedy to False and eval.scaffolds to ()"
        )
    if domain.on_host and config.run.steps_per_call != 1:
        raise ConfigError(
            f"run.steps_per_call = {config.run.steps_per_call}: the domain {config.domain_name} is graded on the host, between "
            "the programs of one iteration; set it to 1"
        )
    if config.algorithm.diversity_embedding == "solution" and (domain.num_children > 1 or not domain.on_host):
        raise ConfigError(
            f'algorithm.diversity_embedding = "solution": a response of the domain {config.domain_name} leaves no single '
            'solution on the host; take "policy" or "grades"'
        )
    if not domain.on_host and (
        config.run.prompt_buckets or config.run.response_buckets or config.algorithm.rollout_lag
    ):
        raise ConfigError(
            f"run.prompt_buckets = {config.run.prompt_buckets}, run.response_buckets = {config.run.response_buckets} and "
            f"algorithm.rollout_lag = {config.algorithm.rollout_lag}: the domain {config.domain_name} is graded on the device, "
            "in one program of one width with nothing to wait for; leave both empty and the lag 0"
        )


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
