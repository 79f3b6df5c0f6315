"""Evaluation while a run trains: a chain for each of a fixed sample of held-out tasks, as figures of the iteration's row.

It draws from keys of its own and leaves training as it is, to the bit. Tasks and keys are the same at each iteration, and the
tasks for all variants and seeds, so that what moves in a curve is the policy.
"""

import dataclasses
import logging
import time
from collections.abc import Callable

import numpy as np

from exit_jax import domains
from exit_jax.config.checks import sampled_splits
from exit_jax.config.schema import Config
from exit_jax.domains.domain import Domain
from exit_jax.errors import GradingError
from exit_jax.evaluation.chains import run_chains
from exit_jax.evaluation.episodes import run_episodes
from exit_jax.parallel import hosts
from exit_jax.step.finite import NonFiniteError
from exit_jax.types import Params

log = logging.getLogger(__name__)


def make(config: Config) -> Callable[[Params], dict[str, float]]:
    """Return the function from all parameters of a policy to its figures, as metric_table.py describes them.

    Where responses could not be graded, or logits are not finite, there is a warning and no figure: training goes on, or says
    itself why it does not.
    """
    domain = domains.make(config.domain_name, config.domain)
    some = {split: sample_tasks(config, domain, split) for split in sampled_splits(config)}
    sampled = shrink(config, max(rows.size for rows in some.values()))

    def evaluate(params: Params) -> dict[str, float]:
        started, figures = time.monotonic(), {}
        try:
            for split, rows in some.items():
                run = run_episodes if domain.test_environment else run_chains
                quality = np.asarray(run(sampled, params, split, rows=rows).chains.quality)
                for k in sorted(set(config.eval.steps)):
                    figures[f"eval/{split}/accuracy@{k}"] = float((quality[k] >= 1.0).mean())
                    figures[f"eval/{split}/quality@{k}"] = float(quality[k].mean())
        except (GradingError, NonFiniteError) as error:
            if hosts.is_lead():
                log.warning("an evaluation during training has no figures: %r", error)
            return {}
        return figures | {"time/eval_secs": time.monotonic() - started}

    return evaluate


def sample_tasks(config: Config, domain: Domain, split: str) -> np.ndarray:
    """Return the numbers of the sampled tasks, int [n], in the order of the split."""
    count = domain.tasks(split).task.shape[0]
    return np.sort(np.random.default_rng(config.eval.seed).permutation(count)[: config.run.eval_tasks])


def shrink(config: Config, num_tasks: int) -> Config:
    """Return the config of an evaluation of one plain chain a task, in batches no larger than that takes."""
    shards = config.run.mesh.num_batch_shards
    settings = dataclasses.replace(
        config.eval,
        samples_per_task=1,
        batch_size=min(config.eval.batch_size, -(-num_tasks // shards) * shards),
        restart_every=0,
        greedy=False,
        scaffolds=(),
    )
    return dataclasses.replace(config, eval=settings)
