"""K-step self-improvement on held-out tasks (ExIt §2.1, §5): each step sees the request and the newest response only.

Beside that plain chain stand two rivals at equal numbers of responses: chains that start over, and a greedy search, in which
each step sees the best response so far.

A domain that is graded on the device runs a batch of chains as one program. One that is graded on the host goes step by
step and streams every response to ``answers/<split>.jsonl``: an evaluation that was stopped goes on behind the last complete
step, and one that is repeated grades the stored responses again and samples nothing.
"""

import base64
import dataclasses
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax import domains
from exit_jax.algorithm.prompts import render, render_by_mode
from exit_jax.config.schema import Config, EvalConfig
from exit_jax.domains.domain import ENDS, Domain, Environment, GradingError, blank_grades
from exit_jax.evaluation.figures import Chains, Outcome, mean_of, summarise, task_names
from exit_jax.evaluation.stored import open_stored
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.parallel.mesh import MeshConfig
from exit_jax.policy import sampler
from exit_jax.policy.shape import DecoderConfig
from exit_jax.step.episodes import PlayedSteps, play_steps
from exit_jax.step.finite import NonFiniteError, explain, require_finite
from exit_jax.step.programs import (
    decoder_config,
    evaluation_sampling,
    make_reshard,
    transcript_room,
    turn_programs,
)
from exit_jax.types import (
    BASE,
    IMPROVE,
    MODES,
    Array,
    Grades,
    History,
    Instances,
    Params,
    Rollouts,
)
from exit_jax.workdir import identity
from exit_jax.workdir.metrics import Progress

# of a split; each kind samples independently of the others, by a stream of keys named by its place
KINDS = ("chain", "restarts", "greedy")


@dataclasses.dataclass(frozen=True)
class ChainPrograms:
    """What a chain's step consists of, jitted; ``whole`` runs all steps where the domain is graded on the device."""

    reshard: Callable[[Params], Params]
    respond: Callable[[Params, History, Array, Array], tuple[Instances, Rollouts]]  # (copy, held, key, k)
    # (params, base tasks [R], key, responses until a new start, is it a greedy search?) -> chains, finite_share at each k
    whole: Callable[[Params, History, Array, Array, Array], tuple[Chains, Array]]


def begin_again(tasks: History, history: History, k, every) -> History:
    """Return the base tasks where a chain begins anew, else what is held."""
    return jax.tree.map(lambda base, held: jnp.where(k % every == 0, base, held), tasks, history)


def keep_better(held: History, child: History, greedy) -> History:
    """Return what is held after a response: the child; in a greedy search the better of both, the child where they tie.

    Which solution a step of the search starts from is this project's choice (ExIt §5 names the scaffold only).
    """
    stays = greedy & (held.step >= 0) & (held.quality > child.quality)

    def choose(old, new):
        return jnp.where(stays.reshape(stays.shape + (1,) * (new.ndim - stays.ndim)), old, new)

    return jax.tree.map(choose, held, child)


def record(domain: Domain, instances: Instances, rollouts: Rollouts, grades: Grades) -> tuple[History, Chains]:
    """Return the histories that responses lead to [R], and the same as one row of ``Chains``."""
    history = instances.history
    child = jax.tree.map(lambda leaf: leaf[:, 0, 0], grades.children)
    chains = Chains(
        quality=child.quality,
        unchanged=(child.tokens == history.tokens).all(-1) & (history.step >= 0),
        valid=grades.valid[:, 0],
        complete=domain.complete(child) if domain.complete else jnp.zeros_like(child.quality, bool),
        tokens=rollouts.mask.sum((1, 2)),
        mode=instances.mode,
        notes={name: values[:, 0] for name, values in grades.notes.items()},
        history=child,
    )
    return child, chains


@functools.lru_cache
def chain_programs(domain_name, fields, policy: DecoderConfig, settings: EvalConfig, mesh_config: MeshConfig):
    """Jit the steps of a chain; the same for all splits and batches."""
    domain, mesh = domains.make(domain_name, fields), meshes.make_mesh(mesh_config)
    reshard, sampling = make_reshard(policy, mesh), evaluation_sampling(settings, domain, domain.max_tokens)

    def respond(params: Params, history: History, key: Array, k: Array):
        mode = jnp.where(history.step < 0, BASE, IMPROVE)
        prompt, length = render_by_mode(domain.templates, history, mode, domain.prompt_width)
        with meshes.use(mesh):
            rollouts = sampler.sample(policy, sampling, 1, params, prompt, length, jax.random.fold_in(key, k))
        blank = jnp.zeros_like(mode, bool)
        return Instances(history, mode, blank, blank, prompt, length), rollouts

    def whole(params, tasks, key, every, greedy):
        tasks, copy = meshes.shard_batch(mesh, tasks), reshard(params)

        def step(history, k):
            held = begin_again(tasks, history, k, every)
            instances, rollouts = respond(copy, held, key, k)
            child, chains = record(domain, instances, rollouts, domain.grade(instances, rollouts))
            return keep_better(held, child, greedy), (chains, sampler.finite_share(rollouts))

        return jax.lax.scan(step, tasks, jnp.arange(max(settings.steps) + 1))[1]

    same, by_row = meshes.replicated(mesh), meshes.by_row(mesh)
    return ChainPrograms(
        reshard=jax.jit(reshard),
        respond=jax.jit(respond, out_shardings=by_row),
        whole=jax.jit(whole, out_shardings=same),
    )


def sampling_key(config: Config) -> Array:
    """Return the root key of an evaluation, another one for each seed: a spread over seeds has the noise of sampling, too."""
    return jax.random.fold_in(jax.random.key(config.eval.seed), config.seed)


def run_chains(
    config: Config, params: Params, split: str, kind: str = "chain", workdir: pathlib.Path | None = None
) -> Outcome:
    """Run n chains a task of a split in batches of fixed shape; R = n · M rows, all chains of a sample together.

    Args:
      kind: of KINDS; "restarts" begin anew every ``eval.restart_every`` responses.
      workdir: where a domain that is graded on the host stores its responses; None for nowhere.
    """
    settings, domain = config.eval, domains.make(config.domain_name, config.domain)
    if domain.test_environment:
        return run_episodes(config, params, split, workdir)
    programs = chain_programs(config.domain_name, config.domain, decoder_config(config), settings, config.run.mesh)
    num_responses = max(settings.steps) + 1
    every = jnp.int32(settings.restart_every if kind == "restarts" else num_responses)
    greedy = jnp.bool(kind == "greedy")  # traced, as ``every`` is: one program for all kinds
    root = jax.random.fold_in(sampling_key(config), KINDS.index(kind))
    tasks = jax.device_get(domain.tasks(split))
    row_of = np.tile(np.arange(tasks.task.shape[0]), settings.samples_per_task)
    starts = range(0, row_of.size, settings.batch_size)
    name = split if kind == "chain" else f"{split}-{kind}"
    progress = Progress(f"evaluate {name}", 0, len(starts) * num_responses)
    host = OnHost(config, params, programs, split, name, every, greedy, row_of, workdir) if domain.on_host else None
    batches = []
    for index, start in enumerate(starts):
        # the last batch repeats rows
        rows = np.resize(row_of[start : start + settings.batch_size], settings.batch_size)
        batch, key = jax.tree.map(lambda leaf, rows=rows: leaf[rows], tasks), jax.random.fold_in(root, index)
        if host:
            batches.append(host.run(batch, key, index, progress))
        else:
            chains, finite_share = jax.device_get(programs.whole(params, batch, key, every, greedy))
            if (finite_share < 1.0).any():
                raise NonFiniteError
            batches.append(chains)
            progress.update((index + 1) * num_responses)
    chains = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1)[:, : row_of.size], *batches)
    if host:
        host.close()
        of_chain = lambda table: lambda c: [row[c] for row in table]
        answers, said = host.tables["answer"], host.tables["feedback"]
        return Outcome(chains, of_chain(host.tables["text"]), answers or None, of_chain(said) if said else None)
    told = chains.history
    of_chain = lambda tell: lambda c: tell(jax.tree.map(lambda leaf: leaf[:, c], told))
    said = of_chain(domain.feedback) if domain.feedback else None
    return Outcome(dataclasses.replace(chains, history=None), of_chain(domain.describe), None, said)


class OnHost:
    """Chains of a domain that is graded on the host, step by step, with a file of all responses."""

    def __init__(
        self, config: Config, params: Params, programs: ChainPrograms, split, name, every, greedy, row_of, workdir
    ):
        self.domain, self.programs = domains.make(config.domain_name, config.domain), programs
        self.every, self.greedy = every, greedy
        self.num_responses, self.row_of = max(config.eval.steps) + 1, row_of
        self.batch_size, self.rows = config.eval.batch_size, meshes.by_row(meshes.make_mesh(config.run.mesh))
        self.copy, self.about = programs.reshard(params), self.domain.about_tasks(split)
        tellers = {"text": self.domain.describe, "answer": self.domain.answers, "feedback": self.domain.feedback}
        self.tell = {what: tell for what, tell in tellers.items() if tell}
        # [K + 1][R] by what is told; empty where the domain does not tell it
        self.tables = {what: [[] for _ in range(self.num_responses) if what in self.tell] for what in tellers}
        self.stored = None
        if workdir is not None:
            rule = {"greedy": True} if greedy else {"every": int(every)}
            self.stored = open_stored(config, params, workdir, split, name, **rule, **beyond(self.domain, split))

    def run(self, tasks: History, key: Array, index: int, progress: Progress) -> Chains:
        """Run one batch, taking the responses that are stored in place of sampling them."""
        history, steps = tasks, []
        for k in range(self.num_responses):
            number = index * self.num_responses + k
            held = jax.tree.map(np.asarray, begin_again(tasks, history, k, self.every))
            kept = self.stored.get(number) if self.stored else None
            if kept is None:
                instances, rollouts = self.programs.respond(self.copy, held, key, jnp.int32(k))
                require_finite(*hosts.all_rows((rollouts.logp, rollouts.mask)))
            else:
                instances, rollouts = jax.device_put(self._replay(held, kept), self.rows)
            blank = functools.partial(blank_grades, self.domain)
            grades, failed = hosts.on_own_rows(self.domain.grade, blank, instances, rollouts)
            require_graded(failed)
            instances, rollouts = hosts.all_rows((instances, rollouts))
            child, chains = record(self.domain, instances, rollouts, grades)
            history = keep_better(held, child, self.greedy)
            steps.append(jax.device_get(dataclasses.replace(chains, history=None)))
            told = {what: tell(child) for what, tell in self.tell.items()}
            for what, texts in told.items():
                self.tables[what][k] += texts
            if self.stored and kept is None:
                self.stored.put(self._rows(index, k, rollouts, steps[-1], told))
            progress.update(number + 1)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *steps)

    def _rows(self, index: int, k: int, rollouts: Rollouts, chains: Chains, told) -> list[dict]:
        """Return what is stored of a step: a row for each chain that counts."""
        first, num_tasks = index * self.batch_size, len(self.about)
        rows = []
        for i, chain in enumerate(range(first, min(first + self.batch_size, self.row_of.size))):
            tokens = np.asarray(rollouts.tokens[i, 0][rollouts.mask[i, 0]], "<i4")
            row = {"chain": chain, "task": int(self.row_of[chain]), "sample": chain // num_tasks, "k": k}
            row |= {"mode": MODES[chains.mode[i]], "text": "", "answer": ""}
            row |= {what: texts[i] for what, texts in told.items()} | dict(self.about[self.row_of[chain]])
            row |= {"quality": round(float(chains.quality[i]), 6), "valid": bool(chains.valid[i])}
            row |= {"finished": bool(rollouts.finished[i, 0]), "tokens": base64.b64encode(tokens.tobytes()).decode()}
            rows.append(row)
        return rows

    def _replay(self, history: History, kept: list[dict]) -> tuple[Instances, Rollouts]:
        """Return instances and rollouts as they were when the rows were stored, but for prompts and log-probs."""
        kept = [kept[i % len(kept)] for i in range(self.batch_size)]
        tokens: Any = np.zeros((self.batch_size, 1, self.domain.max_tokens), np.int32)
        mask: Any = np.zeros(tokens.shape, bool)
        for i, row in enumerate(kept):
            sampled = np.frombuffer(base64.b64decode(row["tokens"]), "<i4")
            tokens[i, 0, : sampled.size], mask[i, 0, : sampled.size] = sampled, True
        finished: Any = np.array([[row["finished"]] for row in kept])
        zeros: Any = np.zeros(tokens.shape, np.float32)
        mode: Any = np.where(history.step < 0, BASE, IMPROVE).astype(np.int32)
        no: Any = np.zeros(mode.shape, bool)
        instances = Instances(history, mode, no, no, tokens[:, 0, :1], mode)
        return instances, Rollouts(tokens, mask, zeros, zeros, finished, zeros[:, :, :1])

    def close(self) -> None:
        """Drop the rows that the last batch repeats, and close the file."""
        for table in self.tables.values():
            for texts in table:
                del texts[self.row_of.size :]
        if self.stored:
            self.stored.close()


def count_too_long(domain: Domain, split: str) -> int:
    """Return how many tasks of a split do not fit into a prompt, and count as wrong."""
    return int(domain.too_long(split).sum()) if domain.too_long else 0


def beyond(domain: Domain, split: str) -> dict[str, int]:
    """Return what tells stored responses apart from those of versions that left out the tasks that are too long."""
    count = count_too_long(domain, split)
    return {"num_too_long": count} if count else {}


def require_graded(failed: bool) -> None:
    """Raise GradingError on all hosts if one of them could not grade: figures of 0 would pass for the policy's."""
    if hosts.agree(failed):
        raise GradingError(
            "the evaluation stopped, since its responses could not be graded (the log above says why); mend that, and "
            "--mode evaluate goes on behind the last that were"
        )


@functools.lru_cache
def episode_programs(domain_name, fields, policy: DecoderConfig, settings: EvalConfig, mesh_config: MeshConfig):
    """Jit the parts of evaluated episodes: the sampler's copy, the conversations so far, and a turn."""
    domain, mesh = domains.make(domain_name, fields), meshes.make_mesh(mesh_config)
    environment = domain.test_environment
    assert environment is not None
    sampling = evaluation_sampling(settings, domain, environment.max_tokens)
    room = transcript_room(environment) + environment.max_ask + environment.max_tokens
    context = lambda history: render(("context",), history, domain.prompt_width)
    return (
        jax.jit(make_reshard(policy, mesh)),
        jax.jit(context, out_shardings=meshes.by_row(mesh)),
        turn_programs(policy, sampling, mesh, 1, room, may_reuse=False),
    )


def run_episodes(config: Config, params: Params, split: str, workdir: pathlib.Path | None) -> Outcome:
    """Play n episodes a task at each k of ``eval.steps``, with k self-iterations on every turn (ExIt §2.1).

    Of the k between them, a row of the outcome repeats the one before. Rows stream to ``answers/<split>.jsonl``, a batch at
    one k after the other; an evaluation that was stopped goes on behind the last.
    """
    settings, domain = config.eval, domains.make(config.domain_name, config.domain)
    environment, steps = domain.test_environment, sorted(set(settings.steps))
    assert environment is not None
    reshard, context, programs = episode_programs(
        config.domain_name, config.domain, decoder_config(config), settings, config.run.mesh
    )
    tasks, copy = jax.device_get(domain.tasks(split)), reshard(params)
    by_row = meshes.by_row(meshes.make_mesh(config.run.mesh))
    row_of = np.tile(np.arange(tasks.task.shape[0]), settings.samples_per_task)
    starts = range(0, row_of.size, settings.batch_size)
    stored = None
    if workdir:
        stored = open_stored(config, params, workdir, split, split, steps=steps, **beyond(domain, split))
    progress = Progress(f"evaluate {split}", 0, len(starts) * len(steps))
    played: dict[int, list[dict]] = {k: [] for k in steps}
    for number, (start, k) in enumerate(itertools.product(starts, steps)):
        rows = stored.get(number) if stored else None
        if rows is None:
            chosen = np.resize(
                row_of[start : start + settings.batch_size], settings.batch_size
            )  # one width, one program
            history = jax.device_put(jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], tasks), by_row)
            key = jax.random.fold_in(jax.random.fold_in(sampling_key(config), start), k)
            episodes = play_steps(programs, environment, copy, context(history), history, key, k)
            require_graded(episodes.failed)
            rows = _episode_rows(environment, episodes, range(start, min(start + settings.batch_size, row_of.size)), k)
            if stored:
                stored.put(rows)
        played[k] += rows
        progress.update(number + 1)
    if stored:
        stored.close()
    return _episodes_outcome(played)


def _episode_rows(environment: Environment, episodes: PlayedSteps, chains: range, k: int) -> list[dict]:
    """Return what is kept of episodes, of all processes, a row for each of the chains that count."""
    kept = [{"figures": dict(environment.figures(e)), "text": environment.show(e)} for e in episodes.episodes]
    kept = hosts.share_rows(kept, episodes.rows, episodes.end.size)
    return [
        {"chain": chain, "k": k, "end": ENDS[episodes.end[i]], "tokens": int(episodes.num_tokens[i]), **kept[i]}
        for i, chain in enumerate(chains)
    ]


def _episodes_outcome(played: Mapping[int, list[dict]]) -> Outcome:
    """Put the episodes at each k together: where k is not evaluated, what the k before it came to."""
    steps = sorted(played)
    at = [max([k for k in steps if k <= row], default=steps[0]) for row in range(steps[-1] + 1)]

    def table(read: Callable[[dict], Any]) -> Any:
        return np.array([[read(row) for row in played[k]] for k in at])

    text = [[row["text"] for row in played[k]] for k in at]
    tokens, quality = table(lambda row: row["tokens"]), table(lambda row: row["figures"]["quality"])
    same: Any = np.array([[a == b for a, b in zip(now, before)] for now, before in zip(text, [text[0], *text])])
    mode: Any = np.repeat(np.minimum(at, 1)[:, None], quality.shape[1], axis=1)
    chains = Chains(
        quality=quality.astype(np.float32),
        unchanged=same,
        valid=table(lambda row: row["end"] == "valid"),
        complete=quality < 0,  # no sign of its own
        tokens=np.diff(tokens, axis=0, prepend=0),  # what k takes, not what all k up to it take
        mode=mode,
        notes={},
        history=None,
    )
    names = played[steps[0]][0]["figures"]
    figures = {name: table(lambda row, name=name: row["figures"][name]) for name in names if name != "quality"}
    return Outcome(chains, lambda c: [text[k][c] for k in range(len(at))], None, figures=figures)


def evaluate(config: Config, params: Params, workdir: pathlib.Path | None) -> dict:
    """Evaluate on ``config.eval.splits``; writes files if a workdir is given.

    ``evaluation.json`` holds the figures, ``chains.jsonl`` chains for people to read. Wall times go to a file of their own,
    ``evaluation_timing.json``, with what the domain's grading says of its own, a mean over all responses: all else is the
    same however often an evaluation was stopped.
    """
    domain = domains.make(config.domain_name, config.domain)
    results, saved, timing, means = {}, [], {}, {}
    wanted = {"chain": True, "restarts": config.eval.restart_every > 0, "greedy": config.eval.greedy}
    for split in config.eval.splits:
        outcomes: dict[str, Outcome] = {}
        timing[split], means[split] = {}, {}
        for kind in (kind for kind in KINDS if wanted[kind]):
            started = time.monotonic()
            with explain(config, lambda: params, workdir if config.run.num_iterations else None):
                outcomes[kind] = run_chains(config, params, split, kind, workdir)
            timing[split][kind] = time.monotonic() - started
            means[split][kind] = {name: float(outcomes[kind].chains.notes[name].mean()) for name in domain.timings}
        chain, rival, search = outcomes["chain"], outcomes.get("restarts"), outcomes.get("greedy")
        about = domain.about_tasks(split)
        others = search, task_names(about), count_too_long(domain, split)
        results[split] = summarise(config, chain, rival, domain.difficulty(split), *others)
        saved += save_chains(config, split, chain, about)
        if search:
            saved += save_chains(config, split, search, about, "greedy")
    tested = [results[split] for split in config.eval.splits if split in domain.test_splits]
    if len(tested) > 1:
        results["mean"] = mean_of(tested)
    if workdir is not None and hosts.is_lead():
        (workdir / "chains.jsonl").write_text("".join(json.dumps(chain) + "\n" for chain in saved))
        identity.write_json(workdir / "evaluation_timing.json", {"secs": timing, "notes": means})
        identity.write_json(
            workdir / "evaluation.json", results
        )  # last: a study takes it for the sign that a run is done
    return results


def started_from(quality: Any) -> np.ndarray:
    """Return which response each response of greedy searches started from, int [K + 1, R]; -1 for the base task."""
    at, best = np.full(quality.shape, -1), np.zeros(quality.shape[1:], int)
    for k in range(1, len(quality)):
        at[k] = best
        better = quality[k] >= np.take_along_axis(quality, best[None], axis=0)[0]
        best = np.where(better, k, best)
    return at


def save_chains(config: Config, split: str, outcome: Outcome, about: Sequence[Mapping[str, str]], kind="chain"):
    """Return ``eval.num_chains_saved`` chains for people to read, those first in which something changed.

    Greedy searches are listed under a split of their own, and tell ``from`` which response each response started.
    """
    quality, num_tasks = outcome.chains.quality, len(about)
    turned = ((quality[1:] >= 1.0) != (quality[:-1] >= 1.0)).any(0)
    moved = (quality[1:] != quality[:-1]).any(0)
    chosen = np.lexsort((~moved, ~turned))[: config.eval.num_chains_saved]
    parents = started_from(quality) if kind == "greedy" else None
    rows = []
    for c in sorted(chosen.tolist()):
        row = {
            "split": split if kind == "chain" else f"{split}-{kind}",
            "task": c % num_tasks,
            "sample": c // num_tasks,
        }
        row |= dict(about[c % num_tasks])
        row["quality"] = [round(float(q), 4) for q in quality[:, c]]
        row["modes"] = [MODES[mode] for mode in outcome.chains.mode[:, c]]
        if outcome.answers:
            row["answers"] = [answers[c] for answers in outcome.answers]
        if outcome.feedback:
            row["feedback"] = outcome.feedback(c)
        if parents is not None:
            row["from"] = parents[:, c].tolist()
        rows.append(row | {"responses": outcome.describe(c)})
    return rows
