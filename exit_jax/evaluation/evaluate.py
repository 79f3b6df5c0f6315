"""K-step self-improvement on held-out tasks (ExIt §2.1, §5): every scaffold on every split, and the files that tell of it."""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exit_jax import domains
from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError
from exit_jax.evaluation.chains import run_chains, stored_name
from exit_jax.evaluation.episodes import run_episodes
from exit_jax.evaluation.figures import mean_of
from exit_jax.evaluation.outcome import Outcome, Split, describe_split
from exit_jax.evaluation.scaffolds import CHAIN, Scaffold, chosen
from exit_jax.parallel import hosts
from exit_jax.step.finite import explain
from exit_jax.step.requirements import NO_CRITIQUES
from exit_jax.types import ALL_MODES, Params
from exit_jax.workdir import identity
from exit_jax.workdir.evaluation import FORMAT, MEAN, NAME


def scaffolds_of(config: Config) -> tuple[Scaffold, ...]:
    """Return the scaffolds that an evaluation runs.

    Raises:
      UserError: if there is no such scaffold, or one needs what the domain has not.
    """
    rows = chosen(config.eval)
    for row in rows:
        if row.critiques and domains.make(config.domain_name, config.domain).critique is None:
            raise ConfigError(NO_CRITIQUES.format(what=f"eval.scaffolds with {row.name!r}", domain=config.domain_name))
    return rows


def evaluate(config: Config, params: Params, workdir: pathlib.Path | None) -> dict[str, Any]:
    """Evaluate on ``config.eval.splits`` and return what ``evaluation.json`` holds; writes files if a workdir is given.

    ``chains.jsonl`` holds chains for people to read. Wall times go to a file of their own, ``evaluation_timing.json``, with
    what the domain's grading says of its own, a mean over all responses: all else is the same however often an evaluation was
    stopped.
    """
    domain, scaffolds = domains.make(config.domain_name, config.domain), scaffolds_of(config)
    splits, saved, timing, means = {}, [], {}, {}
    trained = config.run.num_iterations or config.warm_start.num_steps
    for split in config.eval.splits:
        outcomes: dict[Scaffold, Outcome] = {}
        timing[split], means[split] = {}, {}
        for scaffold in scaffolds:
            started = time.monotonic()
            with explain(config, lambda: params, workdir if trained else None):
                if domain.test_environment:
                    outcome = run_episodes(config, params, split, workdir)
                else:
                    outcome = run_chains(config, params, split, scaffold, workdir)
            timing[split][scaffold.name] = time.monotonic() - started
            notes = outcome.chains.notes  # episodes have none
            means[split][scaffold.name] = {name: float(notes[name].mean()) for name in domain.timings if name in notes}
            outcomes[scaffold] = outcome
            saved += save_chains(config, split, scaffold, outcome, domain.about_tasks(split)) if scaffold.saved else []
        splits[split] = summarise(describe_split(config, split), outcomes)
    tested = [splits[split] for split in config.eval.splits if split in domain.test_splits]
    if len(tested) > 1:
        splits[MEAN] = mean_of(tested)
    results = {"format": FORMAT, "settings": identity.to_dict(config)["eval"], "splits": splits}
    if workdir is not None and hosts.is_lead():
        (workdir / "chains.jsonl").write_text("".join(json.dumps(chain) + "\n" for chain in saved))
        identity.write_json(workdir / "evaluation_timing.json", {"secs": timing, "notes": means})
        identity.write_json(workdir / NAME, results)  # last: a study takes it for the sign that a run is done
    return results


def summarise(split: Split, outcomes: Mapping[Scaffold, Outcome]) -> dict[str, Any]:
    """Return the figures of a split: what holds of its tasks, and what each scaffold reports.

    ``num_too_long`` of the ``num_tasks`` did not fit into a prompt; all their figures are 0.
    """
    settings = split.settings
    num_chains = next(iter(outcomes.values())).chains.quality.shape[1]
    return {
        "k": split.steps,
        "num_tasks": num_chains // settings.samples_per_task,
        "num_too_long": split.num_too_long,
        "samples_per_task": settings.samples_per_task,
        "scaffolds": {
            scaffold.name: describe(scaffold) | scaffold.reported(split, outcome)
            for scaffold, outcome in outcomes.items()
        },
    }


def describe(scaffold: Scaffold) -> dict[str, Any]:
    """Return what ``evaluation.json`` says of a scaffold beside its figures: what it does, and how near it is to its source."""
    said = {"source": scaffold.source, "label": scaffold.label}
    about = {"about": scaffold.about, "looks_at_grader": scaffold.looks_at_grader}
    return about | {name: text for name, text in said.items() if text}


def save_chains(
    config: Config, split: str, scaffold: Scaffold, outcome: Outcome, about: Sequence[Mapping[str, str]]
) -> list[dict]:
    """Return ``eval.num_chains_saved`` chains for people to read, those first in which something changed.

    Rivals of the plain chain are listed under a split of their own; their ``from`` tells which response each response started
    from, -1 for the base task.
    """
    quality, num_tasks = np.asarray(outcome.chains.quality), len(about)
    turned = ((quality[1:] >= 1.0) != (quality[:-1] >= 1.0)).any(0)
    moved = (quality[1:] != quality[:-1]).any(0)
    some = np.lexsort((~moved, ~turned))[: config.eval.num_chains_saved]
    parent = None if scaffold is CHAIN else outcome.chains.parent
    rows = []
    for c in sorted(some.tolist()):
        row = {"split": stored_name(split, scaffold), "task": c % num_tasks, "sample": c // num_tasks}
        row |= dict(about[c % num_tasks])
        row["quality"] = [round(float(q), 4) for q in quality[:, c]]
        row["modes"] = [ALL_MODES[mode] for mode in outcome.chains.mode[:, c]]
        if outcome.answers:
            row["answers"] = [answers[c] for answers in outcome.answers]
        if outcome.feedback:
            row["feedback"] = outcome.feedback(c)
        if parent is not None:
            row["from"] = parent[:, c].tolist()
        rows.append(row | {"responses": outcome.describe(c)})
    return rows
