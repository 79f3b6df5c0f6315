"""Evaluated episodes of several turns: k self-iterations on every turn before its last iterate is carried out (ExIt §2.1)."""

import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from exit_jax.config.schema import Config
from exit_jax.domains.domain import ENDS, Environment
from exit_jax.evaluation.hosted import require_graded
from exit_jax.evaluation.outcome import Chains, Outcome, read_column
from exit_jax.evaluation.programs import conversations, reshard, sampling_key, setup_of, turns
from exit_jax.evaluation.stored import open_stored
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.step.episodes import PlayedSteps, play_steps
from exit_jax.types import Params
from exit_jax.workdir.metrics import Progress


def run_episodes(
    config: Config,
    params: Params,
    split: str,
    workdir: pathlib.Path | None = None,
    rows: np.ndarray | None = None,
) -> Outcome:
    """Play n episodes a task at each k of ``eval.steps``, with k self-iterations on every turn.

    Of the k between them, a row of the outcome repeats the one before. Rows stream to ``answers/<split>.jsonl``, a batch at
    one k after the other; an evaluation that was stopped goes on after the last. ``rows`` are the numbers of the split's tasks
    that count, int [M]; None for all.
    """
    setup = setup_of(config)
    settings, domain = setup.settings, setup.domain
    environment, steps = domain.test_environment, sorted(set(settings.steps))
    assert environment is not None
    tasks, read = jax.device_get(domain.tasks(split)), conversations(setup)
    sampler_params = reshard(setup.policy, setup.mesh)(params)
    by_row = meshes.by_row(setup.mesh)
    row_of = np.tile(np.arange(tasks.task.shape[0]) if rows is None else rows, settings.samples_per_task)
    starts = range(0, row_of.size, settings.batch_size)
    stored = open_stored(config, params, workdir, split, split, steps=steps) if workdir else None
    progress = Progress(f"evaluate {split}", 0, len(starts) * len(steps))
    played: dict[int, list[dict]] = {k: [] for k in steps}
    for number, (start, k) in enumerate(itertools.product(starts, steps)):
        kept = stored.get(number) if stored else None
        if kept is None:
            # one width, one program: the last batch repeats rows
            some = np.resize(row_of[start : start + settings.batch_size], settings.batch_size)
            history = jax.device_put(jax.tree.map(lambda leaf, some=some: leaf[some], tasks), by_row)
            key = jax.random.fold_in(jax.random.fold_in(sampling_key(config), start), k)
            episodes = play_steps(turns(setup), environment, sampler_params, read(history), history, key, k)
            require_graded(episodes.failed)
            kept = _rows(environment, episodes, range(start, min(start + settings.batch_size, row_of.size)), k)
            if stored:
                stored.put(kept)
        played[k] += kept
        progress.update(number + 1)
    if stored:
        stored.close()
    return _outcome(played)


def _rows(environment: Environment, episodes: PlayedSteps, chains: range, k: int) -> list[dict]:
    """Return what is kept of episodes, of all processes, a row for each of the chains that count."""
    kept = [{"figures": dict(environment.figures(e)), "text": environment.show(e)} for e in episodes.episodes]
    kept = hosts.share_rows(kept, episodes.rows, episodes.end.size)
    return [
        {"chain": chain, "k": k, "end": ENDS[episodes.end[i]], "tokens": int(episodes.num_tokens[i]), **kept[i]}
        for i, chain in enumerate(chains)
    ]


def _outcome(played: Mapping[int, list[dict]]) -> Outcome:
    """Put the episodes at each k together: where k is not evaluated, what the k before it came to."""
    steps = sorted(played)
    at = [max([k for k in steps if k <= row], default=steps[0]) for row in range(steps[-1] + 1)]

    def table(read: Callable[[dict], Any]) -> np.ndarray:
        return np.array([[read(row) for row in played[k]] for k in at])

    text = [[row["text"] for row in played[k]] for k in at]
    tokens, quality = table(lambda row: row["tokens"]), table(lambda row: row["figures"]["quality"])
    chains = Chains(
        quality=quality.astype(np.float32),
        unchanged=np.array([[a == b for a, b in zip(now, before)] for now, before in zip(text, [text[0], *text])]),
        valid=table(lambda row: row["end"] == "valid"),
        complete=quality < 0,  # no sign of its own
        tokens=np.diff(tokens, axis=0, prepend=0),  # what k takes, not what all k up to it take
        mode=np.repeat(np.minimum(at, 1)[:, None], quality.shape[1], axis=1),
        notes={},
        history=None,
        sampled=np.isin(np.arange(len(at)), steps),
    )
    names = played[steps[0]][0]["figures"]
    figures = {name: table(lambda row, name=name: row["figures"][name]) for name in names if name != "quality"}
    return Outcome(chains, read_column(text), None, figures=figures)
