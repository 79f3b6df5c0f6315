"""K-step self-improvement on held-out tasks (ExIt §2.1, §5): each step sees the request and the newest response only."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax import config as configs
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.algorithm.types import BASE, IMPROVE, Array, History, Instances, Params, pytree
from exit_jax.config import Config
from exit_jax.parallel import hosts
from exit_jax.parallel import mesh as meshes
from exit_jax.parallel.mesh import MeshConfig
from exit_jax.policy import decoder, sampler
from exit_jax.policy.decoder import DecoderConfig
from exit_jax.programs import decoder_config, make_domain, make_reshard


@pytree
class Chains:
    """What R chains held after each of K + 1 responses."""

    quality: Array  # float32 [K + 1, R]
    unchanged: Array  # bool [K + 1, R]: the response left the answer as it was
    valid: Array  # bool [K + 1, R]
    complete: Array  # bool [K + 1, R]: the policy's own sign that it is done
    tokens: Array  # int32 [K + 1, R]: sampled
    history: History  # [K + 1, C]: of the first C chains


@functools.lru_cache
def chain_program(domain_name, fields, policy: DecoderConfig, settings: configs.EvalConfig, mesh_config: MeshConfig):
    """Jit (params, base tasks [R], number of the batch, responses until a chain begins anew) -> Chains."""
    domain, mesh = make_domain(domain_name, fields), meshes.make_mesh(mesh_config)
    reshard, plain = make_reshard(policy, mesh), decoder.without_adapters(policy)
    num_responses = max(settings.steps) + 1
    sampling = sampler.SamplingConfig(
        domain.max_tokens,
        domain.stop_tokens,
        settings.temperature,
        settings.top_k,
        settings.top_p,
        settings.min_p,
        stop_sequences=domain.stop_sequences,
    )

    def respond(params: Params, tasks: History, key: Array, every: Array, history: History, k: Array):
        again = k % every == 0
        history = jax.tree.map(lambda base, held: jnp.where(again, base, held), tasks, history)
        mode = jnp.where(history.step < 0, BASE, IMPROVE)
        prompt, length = render_by_mode(domain.templates, history, mode, domain.prompt_width)
        with meshes.use(mesh):
            rollouts = sampler.sample(plain, sampling, 1, params, prompt, length, jax.random.fold_in(key, k))
        blank = jnp.zeros_like(mode, bool)
        grades = domain.grade(Instances(history, mode, blank, blank, prompt, length), rollouts)
        child = jax.tree.map(lambda leaf: leaf[:, 0, 0], grades.children)
        chains = Chains(
            quality=child.quality,
            unchanged=(child.tokens == history.tokens).all(-1) & (history.step >= 0),
            valid=grades.valid[:, 0],
            complete=domain.complete(child),
            tokens=rollouts.mask.sum((1, 2)),
            history=jax.tree.map(lambda leaf: leaf[: settings.num_chains_saved], child),
        )
        return child, chains

    def run(params, tasks, index, every):
        restarts = (every < num_responses).astype(jnp.int32)  # the two kinds of chains sample independently
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(settings.seed), restarts), index)
        tasks = meshes.shard_batch(mesh, tasks)
        body = functools.partial(respond, reshard(params), tasks, key, every)
        return jax.lax.scan(body, tasks, jnp.arange(num_responses))[1]

    return jax.jit(run, out_shardings=meshes.replicated(mesh))


def run_chains(config: Config, params: Params, split: str, restart_every: int | None = None) -> Chains:
    """Run n chains a task of a split in batches of fixed shape; R = n · M rows, all chains of a sample together."""
    settings = config.eval
    program = chain_program(config.domain_name, config.domain, decoder_config(config), settings, config.run.mesh)
    every = np.int32(restart_every or max(settings.steps) + 1)
    tasks = jax.device_get(make_domain(config.domain_name, config.domain).tasks(split))
    row_of = np.tile(np.arange(tasks.task.shape[0]), settings.samples_per_task)
    batches = []
    for index, start in enumerate(range(0, row_of.size, settings.batch_size)):
        rows = np.resize(
            row_of[start : start + settings.batch_size], settings.batch_size
        )  # the last batch repeats rows
        batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows], tasks)
        batches.append(jax.device_get(program(params, batch, index, every)))
    chains = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1)[:, : row_of.size], *batches)
    return dataclasses.replace(chains, history=batches[0].history)


def evaluate(config: Config, params: Params, workdir: pathlib.Path | None) -> dict:
    """Evaluate on ``config.eval.splits``; writes ``evaluation.json`` and ``chains.jsonl`` if a workdir is given."""
    domain = make_domain(config.domain_name, config.domain)
    results, saved = {}, []
    for split in config.eval.splits:
        chains = run_chains(config, params, split)
        rival = run_chains(config, params, split, config.eval.restart_every)
        results[split] = summarise(config, chains, rival, domain.difficulty(split))
        for c in range(chains.history.task.shape[1]):
            one = jax.tree.map(lambda leaf, c=c: leaf[:, c], chains.history)
            saved.append(
                {
                    "split": split,
                    "task": int(one.task[0]),
                    "quality": [round(float(q), 4) for q in chains.quality[:, c]],
                    "responses": domain.describe(one),
                }
            )
    if workdir is not None and hosts.is_lead():
        (workdir / "chains.jsonl").write_text("".join(json.dumps(chain) + "\n" for chain in saved))
        configs.write_json(
            workdir / "evaluation.json", results
        )  # last: a study takes it for the sign that a run is done
    return results


def summarise(config: Config, chains: Chains, rival: Chains, difficulty: Mapping[str, np.ndarray]) -> dict:
    """Reduce the chains of a split to what is reported at each k.

    Lists run over ``k``. ``accuracy`` and ``quality`` are those of the last iterate. ``best_so_far`` is the accuracy of an
    oracle that picks the best iterate; ``stopped`` that of stopping, without an oracle, at the first iterate that
    the policy's own sign calls done. ``net_corrections`` = ``corrected`` - ``broken`` counts wrong→right and right→wrong
    changes between neighbouring iterates up to k, a task. ``unchanged_right`` and ``unchanged_wrong`` are the shares of
    responses that left a right or wrong answer as it was, up to k (null where there was none). ``restarts`` is the rival at
    equal responses: chains that start over every ``eval.restart_every`` responses, by the same rules.
    """
    steps = config.eval.steps
    right = chains.quality >= 1.0
    stopped, best = _stop(chains), np.maximum.accumulate(right, axis=0)
    gained, lost = np.cumsum(right[1:] & ~right[:-1], axis=0), np.cumsum(right[:-1] & ~right[1:], axis=0)
    num_tasks = right.shape[1] // config.eval.samples_per_task

    def at(values):  # [K + 1] -> list over k
        return [float(values[k]) for k in steps]

    def share(event, among):  # of neighbouring pairs of iterates up to k
        hits, total = np.cumsum((event & among).sum(1)), np.cumsum(among.sum(1))
        return [float(hits[k - 1] / total[k - 1]) if k and total[k - 1] else None for k in steps]

    def counts(events):  # [K, R] cumulative -> a task's samples averaged
        return [float(events[k - 1].sum() / config.eval.samples_per_task) if k else 0.0 for k in steps]

    corrected, broken = counts(gained), counts(lost)
    accuracy = right.mean(1)
    return {
        "k": list(steps),
        "accuracy": at(accuracy),
        "quality": at(chains.quality.mean(1)),
        "delta": [value - float(accuracy[0]) for value in at(accuracy)],
        "net_corrections": [c - b for c, b in zip(corrected, broken)],
        "corrected": corrected,
        "broken": broken,
        "best_so_far": at(best.mean(1)),
        "stopped": at(stopped.mean(1)),
        "unchanged_right": share(chains.unchanged[1:], right[:-1]),
        "unchanged_wrong": share(chains.unchanged[1:], ~right[:-1]),
        "invalid": at(1.0 - chains.valid.mean(1)),
        "tokens": at(np.cumsum(chains.tokens.mean(1))),
        "restarts": {
            "every": config.eval.restart_every,
            "best_so_far": at(np.maximum.accumulate(rival.quality >= 1.0, axis=0).mean(1)),
            "stopped": at(_stop(rival).mean(1)),
            "tokens": at(np.cumsum(rival.tokens.mean(1))),
        },
        "by_difficulty": {
            name: {
                str(level): {
                    "accuracy": at(right[:, np.tile(values == level, config.eval.samples_per_task)].mean(1)),
                    "num_tasks": int((values == level).sum()),
                }
                for level in np.unique(values)
            }
            for name, values in ((name, np.asarray(values)) for name, values in difficulty.items())
        },
        "num_tasks": num_tasks,
        "samples_per_task": config.eval.samples_per_task,
        "settings": configs.to_dict(config)["eval"],
    }


def _stop(chains: Chains) -> np.ndarray:
    """Return bool [K + 1, R]: is the first iterate up to k that calls itself complete right, or else the k-th?"""
    right = np.asarray(chains.quality >= 1.0)
    done = np.maximum.accumulate(chains.complete, axis=0)
    first = np.argmax(chains.complete, axis=0)
    at_first = np.take_along_axis(right, first[None], axis=0)
    return np.where(done, at_first, right)
