"""Chains of a domain that is graded on the host, step by step, with a file of all responses.

Every response streams to ``answers/<split>.jsonl``: an evaluation that was stopped goes on after the last complete step, and
one that is repeated grades the stored responses again and samples nothing.
"""

import base64
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.config.schema import Config, EvalConfig
from exit_jax.domains.domain import blank_grades
from exit_jax.errors import GradingError
from exit_jax.evaluation.outcome import Chains, Outcome, read_column
from exit_jax.evaluation.programs import record, reshard, respond, responder_of, setup_of
from exit_jax.evaluation.scaffolds import Scaffold
from exit_jax.evaluation.scaffolds.archive import Archive, add, start, take
from exit_jax.evaluation.scaffolds.scaffold import chooser, require_known
from exit_jax.evaluation.stored import open_stored
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.step.finite import require_finite
from exit_jax.types import ALL_MODES, BASE, CRITIQUE, IMPROVE, Array, History, Instances, Params, Rollouts
from exit_jax.workdir.metrics import Progress


class HostedChains:
    """The chains of one scaffold on one split."""

    def __init__(
        self,
        config: Config,
        params: Params,
        split: str,
        name: str,
        scaffold: Scaffold,
        row_of: np.ndarray,
        workdir: pathlib.Path | None,
    ):
        """Open the file of responses, unless ``workdir`` is None; ``row_of`` [R] is the task of each chain."""
        setup = setup_of(config)
        self.domain, self.respond = setup.domain, respond(responder_of(setup))
        self.criticise = respond(responder_of(setup, "critique")) if scaffold.critiques else None
        self.scaffold, self.row_of = scaffold, row_of
        self.choose, self.take, self.add = jitted_chooser(config.eval, scaffold), jax.jit(take), jax.jit(add)
        self.num_responses, self.batch_size = max(config.eval.steps) + 1, config.eval.batch_size
        self.rows = meshes.by_row(setup.mesh)
        self.sampler_params, self.about = reshard(setup.policy, setup.mesh)(params), self.domain.about_tasks(split)
        tellers = {"text": self.domain.describe, "answer": self.domain.answers, "feedback": self.domain.feedback}
        self.tell = {what: tell for what, tell in tellers.items() if tell}
        # [K + 1][R] by what is told
        self.tables: dict[str, list[list[str]]] = {what: [[] for _ in range(self.num_responses)] for what in self.tell}
        self.stored = None
        if workdir is not None:
            recipe = scaffold.recipe(config.eval) if scaffold.recipe else {"scaffold": scaffold.name}
            self.stored = open_stored(config, params, workdir, split, name, **recipe)

    def run(self, tasks: History, key: Array, index: int, progress: Progress) -> Chains:
        """Run one batch, taking the responses that are stored in place of sampling them."""
        archive, steps = start(tasks, self.num_responses), []
        for k in range(self.num_responses):
            number = index * self.num_responses + k
            kept = self.stored.get(number) if self.stored else None
            node = self._node(archive, key, k, kept)
            begun = jax.device_get(self.take(archive, node))
            respond, grade = self.respond, self.domain.grade
            if self.criticise and self.domain.critique and k % 2:
                respond, grade = self.criticise, self.domain.critique
            if kept is None:
                instances, rollouts = respond(self.sampler_params, begun, key, jnp.int32(k))
                require_finite(*hosts.all_rows((rollouts.logp, rollouts.mask)))
            else:
                instances, rollouts = self._replay(begun, kept)
            blank = functools.partial(blank_grades, self.domain)
            grades, failed = hosts.on_own_rows(grade, blank, instances, rollouts)
            require_graded(failed)
            instances, rollouts = hosts.all_rows((instances, rollouts))
            child, chains = record(self.domain, instances, rollouts, grades, node)
            if respond is self.criticise:
                chains = dataclasses.replace(chains, mode=jnp.full_like(chains.mode, CRITIQUE))
            steps.append(jax.device_get(chains))
            archive = self.add(archive, node, child, steps[-1].valid, steps[-1].tokens, k)
            told = {what: tell(child) for what, tell in self.tell.items()}
            for what, texts in told.items():
                self.tables[what][k] += texts
            if self.stored and kept is None:
                self.stored.put(self._rows(index, k, rollouts, steps[-1], told))
            progress.update(number + 1)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *steps)

    def _node(self, archive: Archive, key: Array, k: int, kept: list[dict] | None) -> np.ndarray:
        """Return which nodes the k-th responses start from, or those that are stored did, int32 [R]."""
        if kept and "from" in kept[0]:
            return np.array([kept[i % len(kept)]["from"] + 1 for i in range(self.batch_size)], np.int32)
        node = np.asarray(self.choose(archive, key, k))
        require_known(self.scaffold, node, k)
        return node

    def _rows(
        self, index: int, k: int, rollouts: Rollouts, chains: Chains, told: Mapping[str, list[str]]
    ) -> list[dict]:
        """Return what is stored of a step: a row for each chain that counts."""
        first, num_tasks = index * self.batch_size, len(self.about)
        rows, parent = [], np.asarray(chains.parent)
        for i, chain in enumerate(range(first, min(first + self.batch_size, self.row_of.size))):
            tokens = np.asarray(rollouts.tokens[i, 0][rollouts.mask[i, 0]], "<i4")
            row = {"chain": chain, "task": int(self.row_of[chain]), "sample": chain // num_tasks, "k": k}
            row |= {"from": int(parent[i]), "mode": ALL_MODES[chains.mode[i]], "text": "", "answer": ""}
            row |= {what: texts[i] for what, texts in told.items()} | dict(self.about[self.row_of[chain]])
            row |= {"quality": round(float(chains.quality[i]), 6), "valid": bool(chains.valid[i])}
            row |= {"finished": bool(rollouts.finished[i, 0]), "tokens": base64.b64encode(tokens.tobytes()).decode()}
            rows.append(row)
        return rows

    def _replay(self, history: History, kept: list[dict]) -> tuple[Instances, Rollouts]:
        """Return instances and rollouts as they were when the rows were stored, but for prompts and log-probs."""
        kept = [kept[i % len(kept)] for i in range(self.batch_size)]
        shape = self.batch_size, 1, self.domain.max_tokens
        tokens, mask, zeros = np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, np.float32)
        for i, row in enumerate(kept):
            sampled = np.frombuffer(base64.b64decode(row["tokens"]), "<i4")
            tokens[i, 0, : sampled.size], mask[i, 0, : sampled.size] = sampled, True
        mode = np.where(history.step < 0, BASE, IMPROVE).astype(np.int32)
        put = functools.partial(jax.device_put, device=self.rows)
        nowhere, blank = put(np.zeros(mode.shape, bool)), put(zeros)
        rollouts = Rollouts(
            tokens=put(tokens),
            mask=put(mask),
            logp=blank,
            sampled_logp=blank,
            finished=put(np.array([[row["finished"]] for row in kept])),
            hidden=put(zeros[:, :, :1]),
        )
        instances = Instances(
            history=put(history),
            mode=put(mode),
            from_buffer=nowhere,
            fresh=nowhere,
            prompt=put(tokens[:, 0, :1]),
            prompt_length=put(mode),
        )
        return instances, rollouts

    def close(self, chains: Chains) -> Outcome:
        """Close the file and return the outcome of all batches' chains [K + 1, R], without the rows that the last repeats."""
        if self.stored:
            self.stored.close()
        tables = {what: [texts[: self.row_of.size] for texts in table] for what, table in self.tables.items()}
        feedback = read_column(tables["feedback"]) if "feedback" in tables else None
        return Outcome(chains, read_column(tables["text"]), tables.get("answer"), feedback)


@functools.lru_cache
def jitted_chooser(settings: EvalConfig, scaffold: Scaffold) -> Callable[[Archive, Array, int], Array]:
    """Jit the choices of a scaffold, once for all splits and for all evaluations while a run trains."""
    return jax.jit(chooser(settings, scaffold))


def require_graded(failed: bool) -> None:
    """Raise GradingError on all hosts if one of them could not grade: figures of 0 would pass for the policy's."""
    if hosts.agree(failed):
        raise GradingError(
            "the evaluation stopped, since its responses could not be graded (the log above says why); mend that, and "
            "--mode evaluate goes on after the last that were"
        )
