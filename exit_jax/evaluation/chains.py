"""Chains of responses to the tasks of a split, by one scaffold: batches of one shape, of which each has its key."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.config.schema import Config
from exit_jax.evaluation.hosted import HostedChains
from exit_jax.evaluation.outcome import Chains, Outcome, tell_column
from exit_jax.evaluation.programs import sampling_key, setup_of, whole_chain
from exit_jax.evaluation.scaffolds import CHAIN, Scaffold, chosen
from exit_jax.evaluation.scaffolds.scaffold import require_known
from exit_jax.step.finite import NonFiniteError
from exit_jax.types import Params
from exit_jax.workdir.metrics import Progress


def run_chains(
    config: Config,
    params: Params,
    split: str,
    scaffold: Scaffold = CHAIN,
    workdir: pathlib.Path | None = None,
    rows: np.ndarray | None = None,
) -> Outcome:
    """Run n chains a task of a split in batches of fixed shape; R = n · M rows, all chains of a sample together.

    A domain that is graded on the device runs a batch as one program, one that is graded on the host goes step by step.

    Args:
      scaffold: one that ``config.eval`` asks for.
      workdir: where a domain that is graded on the host stores its responses; None for nowhere.
      rows: numbers of the split's tasks that count, int [M]; None for all.
    """
    setup = setup_of(config)
    settings, domain = setup.settings, setup.domain
    num_responses, place = max(settings.steps) + 1, jnp.int32(chosen(settings).index(scaffold))
    root = jax.random.fold_in(sampling_key(config), scaffold.stream)
    tasks = jax.device_get(domain.tasks(split))
    row_of = np.tile(np.arange(tasks.task.shape[0]) if rows is None else rows, settings.samples_per_task)
    starts = range(0, row_of.size, settings.batch_size)
    progress = Progress(f"evaluate {stored_name(split, scaffold)}", 0, len(starts) * num_responses)
    host = None
    if domain.on_host:
        host = HostedChains(config, params, split, stored_name(split, scaffold), scaffold, row_of, workdir)
    batches = []
    for index, start in enumerate(starts):
        # the last batch repeats rows
        some = np.resize(row_of[start : start + settings.batch_size], settings.batch_size)
        batch, key = jax.tree.map(lambda leaf, some=some: leaf[some], tasks), jax.random.fold_in(root, index)
        if host:
            batches.append(host.run(batch, key, index, progress))
        else:
            chains, finite_share = jax.device_get(whole_chain(setup)(params, batch, key, place))
            if (finite_share < 1.0).any():
                raise NonFiniteError
            for k, node in enumerate(np.asarray(chains.parent) + 1):
                require_known(scaffold, node, k)
            batches.append(chains)
            progress.update((index + 1) * num_responses)
    chains: Chains = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1)[:, : row_of.size], *batches)
    if host:
        return host.close(chains)
    history = chains.history
    assert history is not None
    feedback = tell_column(domain.feedback, history) if domain.feedback else None
    return Outcome(dataclasses.replace(chains, history=None), tell_column(domain.describe, history), None, feedback)


def stored_name(split: str, scaffold: Scaffold) -> str:
    """Return what the chains of a scaffold on a split are called, in files and in the progress line."""
    return split if scaffold is CHAIN else f"{split}-{scaffold.name}"
