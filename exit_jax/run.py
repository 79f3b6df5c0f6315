"""What is done with a run: train, evaluate, export, study; improve has a policy answer your prompts, serve those of clients.

The command line calls these functions, and so may a notebook:

    from exit_jax import config, run

    c = config.default("task")
    c.domain.tasks, c.domain.reward = ("my_tasks.jsonl",), ("my_reward.py:score",)
    results = run.train(c)
    answers = run.improve("runs/run-exit-seed0", ["What is 17 + 25?"], k=2)

A config is checked as the command line checks it, all faults at once, before anything compiles. What is asked of several
processes is asked of each of them by the same call.
"""

import contextlib
import functools
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from exit_jax import domains
from exit_jax import study as studies
from exit_jax.config import learning, parse
from exit_jax.config.schema import Config
from exit_jax.config.start import join, start
from exit_jax.domains.task.prompts import SPLIT
from exit_jax.errors import ConfigError
from exit_jax.evaluation import asking, chains, during, programs, scaffolds
from exit_jax.evaluation import evaluate as evaluation
from exit_jax.parallel import hosts
from exit_jax.step import program
from exit_jax.step.finite import explain
from exit_jax.step.tasks import tasks_digest
from exit_jax.training import push as pushing
from exit_jax.training import train as training
from exit_jax.training.export import export_policy
from exit_jax.training.record import record_buffer
from exit_jax.types import Params
from exit_jax.workdir import identity, inputs, remote, trackers
from exit_jax.workdir.identity import holds_run, open_workdir, read_object, write_json
from exit_jax.workdir.metrics import Timing, trained_iterations

log = logging.getLogger(__name__)
# what a domain of this process was made of: (name, settings) -> file or folder -> (time, size)
_made_of: dict[tuple[str, Any], dict[pathlib.Path, tuple[int, int]]] = {}


def train(config: ConfigDict | Config, workdir: str | os.PathLike | None = None) -> dict[str, Any]:
    """Train, or go on training where the workdir stands, then evaluate.

    Args:
      config: what ``exit_jax.config.default`` or ``.load`` returns, or the same already checked.
      workdir: folder of the run; by default ``runs/<name>-<variant>-seed<seed>``, as the command line's.

    Returns:
      The evaluation, as in ``evaluation.json`` (docs/evaluation.md).

    Raises:
      ConfigError: listing all faults of the config; or the workdir is of another experiment, or of other tasks or inputs.
      UserError: tasks, rewards or checkpoint cannot be had.
      Interrupted: a signal, as the interrupt of a notebook, asked to stop; the same call goes on.
    """
    config = _checked(config)
    evaluation.scaffolds_of(config)  # raises before anything is trained
    trackers.require_installed(config.run.trackers)
    for line in learning.warnings_of(config) if hosts.is_lead() else ():
        warn(line)
    with remote.opened(workdir or identity.default_workdir(config)) as folder:
        open_workdir(folder, config)
        inputs.check(config, folder, holds_run(folder), "--workdir")
        check_tasks(config, folder, {"train", *config.eval.splits})
        remote.store(folder)  # config.json: where nothing can be written, that is told before anything computes
        _remember(config)
        old, trained = folder / "evaluation.json", trained_iterations(folder)
        if hosts.is_lead() and old.exists() and trained < config.run.num_iterations:
            # it is of the policy so far, not of what training will leave
            old.rename(old.with_stem(f"evaluation-{trained}"))
        timing = Timing()
        with timing.phase("train"):
            state, params = training.train(config, folder, during.make(config) if config.run.eval_every else None)
            record_buffer(config, state, params, folder)
        with timing.phase("evaluate"):
            results = evaluation.evaluate(config, params, folder)
        if hosts.is_lead():
            write_json(folder / "timing.json", timing.summary())
        return results


def evaluate(config: ConfigDict | Config, workdir: str | os.PathLike | None = None) -> dict[str, Any]:
    """Evaluate the newest policy of a workdir; arguments, result and errors as of ``train``.

    What was evaluated before is not sampled again, unless the settings of ``config.eval`` are others.
    """
    config = _checked(config, trains=False)
    with _reopen(config, workdir) as folder:
        check_tasks(config, folder, set(config.eval.splits))
        _remember(config)
        return evaluation.evaluate(config, _newest(config, folder), folder)


def export(
    config: ConfigDict | Config, workdir: str | os.PathLike | None = None, push: str = "", private: bool = True
) -> list[pathlib.Path]:
    """Write the newest policy of a workdir as a Hugging Face checkpoint, ``<workdir>/export``; else as ``evaluate``.

    Args:
      push: repository of the hub to upload it to, as "me/model"; "" for none.
      private: whether a repository that is made for it is seen by its owner alone.

    Returns:
      The folders written: that, and ``<workdir>/adapter`` of a policy with adapters.
    """
    config = _checked(config, trains=False)
    if push:
        pushing.check(push)
    with _reopen(config, workdir) as folder:
        folders = export_policy(config, folder)
    if push and hosts.is_lead():
        log.info("pushed: %s", pushing.push(folders, push, private))
    return folders


def study(
    make_config: Callable[[str, int], ConfigDict | Config],
    variants: Sequence[str],
    seeds: Sequence[int],
    workdir: str | os.PathLike,
    rows: str | os.PathLike = "",
) -> dict[str, Any]:
    """Train and evaluate the base policy and all variants over seeds, each in a folder of its own below ``workdir``.

    Args:
      make_config: (variant, seed) -> the config of that run, as of ``train``.
      rows: file of finished runs, as ``config.study.rows``.

    Returns:
      What ``study.json`` holds: figures by split and variant, means and spreads over seeds, differences to GRPO.

    Raises:
      ConfigError: as ``train``.
    """
    recorded = pathlib.Path(rows).expanduser().absolute() if rows else None
    checked = lambda variant, seed: _checked(make_config(variant, seed))
    with remote.opened(workdir) as folder:
        return studies.study(checked, variants, seeds, folder, train, recorded)


def improve(
    checkpoint: str | os.PathLike,
    prompts: Sequence[str | Sequence[Mapping[str, str]]],
    k: int,
    *,
    feedback: Callable[[Any, str], str] | None = None,
    seed: int = 0,
    **settings: Any,
) -> list[list[str]]:
    """Have a policy answer prompts, then improve each answer k times as evaluation does (ExIt §2.1).

    All prompts at once are cheaper than one a call, which reads the weights each time. Where a run is asked what it was
    evaluated on, with the seed of ``config.eval`` and batches of that size, the answers are those of its evaluation.

    Args:
      checkpoint: a Hugging Face folder or hub id, which is asked through its own chat template and sampled from as its
        generation_config.json says; or the workdir of a run, whose newest policy is asked in the words of its config, with
        its sampling.
      prompts: each a text, or a chat as a list of messages with "role" and "content" that ends with the user's.
      k: number of improvements; 0 for first answers alone.
      feedback: (prompt as given, answer) -> text that the next prompt shows of the answer. A policy that was trained with
        feedback wants some.
      seed: of sampling; the same call gives the same answers.
      settings: others of sampling (temperature, top_k, top_p, min_p, repetition_penalty, min_tokens, suppress_tokens,
        batch_size; from_checkpoint=False leaves generation_config.json aside), of words and widths (system, base, improve,
        template_inputs, max_tokens, max_solution_tokens, max_feedback_tokens, truncate, max_request_tokens,
        max_context_tokens, prompt_width), of what computes (dtype, attention) and of the mesh (data, fsdp, tensor).

    Returns:
      For each prompt its k + 1 answers, as a later prompt shows them: without thoughts, "" for a thought without an end,
      and with their middle cut out beyond ``max_solution_tokens``.

    Raises:
      UserError: for settings that there are not or that contradict each other, a checkpoint that cannot be had, and prompts
        that are none or do not fit, by their places; before anything compiles.
    """
    changes = asking.dotted(settings)
    prompts = prompts if isinstance(prompts, str) else list(prompts)
    if isinstance(prompts, str) or not prompts:
        raise ConfigError(
            f"prompts = {prompts!r:.60} is no list of prompts; give at least one, as [{'What is 1 + 1?'!r}]"
        )
    if type(k) is not int or k < 0:
        raise ConfigError(f"k = {k!r} is no number of improvements; give 0 for first answers alone, or more")
    join()
    source, run_config, workdir = _find_policy(os.fspath(checkpoint), changes)
    config = asking.make_config(source, prompts, k, seed, feedback, changes)
    params = asking.load_policy(config) if run_config is None else _newest(run_config, workdir)
    with explain(run_config or config, lambda: params, workdir if run_config else None):
        outcome = chains.run_chains(config, params, SPLIT)
    answers = [outcome.describe(place) for place in range(len(prompts))]
    if empty := sum(not answer for row in answers for answer in row):
        log.warning(
            "%d of %d answers are empty: nothing was said, or a thought had no end within max_tokens = %d",
            *(empty, len(answers) * (k + 1), config.domain.max_tokens),
        )
    return answers


def serve(checkpoint: str | os.PathLike, **settings: Any) -> None:
    """Answer OpenAI's clients by a policy, until a signal or an interrupt asks to stop (docs/serve.md).

    Arguments and errors as of ``make_server``.
    """
    server = make_server(checkpoint, **settings)
    took = f"compiled in {server.compile_seconds:.0f} s"
    print(f"serving {server.service.name} at {server.url} ({took}); Ctrl-C stops", flush=True)
    server.serve_forever()
    print(server.summary(), flush=True)


def make_server(checkpoint: str | os.PathLike, **settings: Any) -> Any:
    """Return a server of a policy, loaded and compiled: ``serve_forever`` runs it, ``stop`` of another thread ends it.

    Args:
      checkpoint: as of ``improve``.
      settings: those of the config's group ``serve``, as port=8000.

    Raises:
      UserError: for settings that there are not or that cannot be had, and a checkpoint that cannot; before anything compiles.
    """
    config = parse.serve_fields(settings | {"policy": os.fspath(checkpoint)})
    try:
        from exit_jax.serve import server
    except ModuleNotFoundError as error:
        raise ConfigError(f'serving needs {error.name}: pip install "exit_jax[serve]"') from error
    token, listener = server.find_token(config), server.bind(config)
    try:
        join()
        if jax.process_count() > 1:
            raise ConfigError("a policy is served by one process; start it without the others")
        changes: dict[str, Any] = {"run.mesh.data": 1, "run.mesh.fsdp": 1, "run.mesh.tensor": config.tensor}
        changes |= {"policy.dtype": config.dtype} if config.dtype else {}
        source, run_config, workdir = _find_policy(config.policy, changes)
        # a prompt of one letter stands for those to come, so that words and widths are checked now
        asked = asking.make_config(source, ["a"], 0, 0, None, changes)
        params = asking.load_policy(asked) if run_config is None else _newest(run_config, workdir)
        name = config.name or (workdir.name if workdir.exists() else config.policy)
        return server.Server(asked, params, config, name, listener, token)
    except BaseException:
        listener.close()
        raise


def _find_policy(name: str, changes: Mapping[str, Any]) -> tuple[asking.Source, Config | None, pathlib.Path]:
    """Return what a checkpoint or a run's workdir brings along, the run's config (None for a checkpoint), and the folder.

    Args:
      changes: settings by dotted name.
    """
    workdir = remote.fetch(name)
    if not identity.holds_config(workdir):
        return asking.source_of_checkpoint(name, changes.get("eval.from_checkpoint", True)), None, workdir
    config = _checked(asking.on_this_machine(identity.read_config(workdir), changes), trains=False)
    return asking.source_of_run(config), config, workdir


def _checked(config: ConfigDict | Config, trains: bool = True) -> Config:
    """Return a config as the command line checks it; what was made of files that have changed since is forgotten."""
    if not isinstance(config, ConfigDict | Config):
        raise ConfigError(
            f"config = {config!r:.60} is a {type(config).__name__}; give what exit_jax.config.default or .load returns"
        )
    config = config if isinstance(config, Config) else start(config, trains=trains)
    _forget_if_changed(config)
    return config


def _newest(config: Config, workdir: pathlib.Path) -> Params:
    """Return all parameters of the newest policy of a workdir."""
    params = training.restore_params(config, workdir)
    if params is None:
        raise ConfigError(f"{workdir} holds no checkpoint; train first, or name the right --workdir")
    return params


@contextlib.contextmanager
def _reopen(config: Config, workdir: str | os.PathLike | None) -> Iterator[pathlib.Path]:
    """Open the workdir of a run that has begun."""
    name = workdir or identity.default_workdir(config)
    with remote.opened(name) as folder:
        if not (folder / "config.json").exists():
            raise ConfigError(f"{name} holds no run; train first, or name the right --workdir")
        open_workdir(folder, config)
        inputs.check(config, folder, holds_run(folder), "--workdir")
        remote.store(folder)  # as in train
        yield folder


def check_tasks(config: Config, workdir: pathlib.Path, splits: Collection[str]) -> None:
    """Check that the tasks of a run are still those of its ``tasks.json``, which is made where it does not name them.

    Raises:
      ConfigError: if they are others, as where data were prepared anew: histories name their task by its number.
    """
    file = workdir / "tasks.json"
    held = read_object(file) if holds_run(workdir) and file.exists() else {}
    found = {split: tasks_digest(config, split) for split in sorted(splits)}
    changed = [split for split in found if held.get(split, found[split]) != found[split]]
    if changed:
        raise ConfigError(
            f"{workdir} was begun with other tasks of {', '.join(changed)}: its data or tokenizer were made anew, or another "
            "folder is named; restore them, or choose another --workdir"
        )
    if hosts.is_lead():
        write_json(file, held | found)


@functools.cache
def warn(line: str) -> None:
    """Say a line, once a process: the runs of a study share most of what there is to say."""
    log.warning("%s", line)


# A notebook's process outlives its files: rows, rewards and domains are written anew, and trained on in another workdir.


def _remember(config: Config) -> None:
    """Note what the config's domain was made of."""
    _made_of.setdefault((config.domain_name, config.domain), _files(config))


def _forget_if_changed(config: Config) -> None:
    """Have a domain made anew if a file that it was made of is another one now."""
    key = config.domain_name, config.domain
    before = _made_of.get(key)
    if before is None or before == (now := _files(config)):
        return
    changed = {str(path) for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) in changed]:
        del sys.modules[name]
    held = (programs.whole_chain, programs.conversations, programs.turns, program._make_program)
    for cached in (domains.make, *held, scaffolds.find):
        cached.cache_clear()
    _made_of.clear()


def _files(config: Config) -> dict[pathlib.Path, tuple[int, int]]:
    """Return the files and folders that a domain is made of, with time and size of each."""
    files = domains.make(config.domain_name, config.domain).files
    code = domains.source(config.domain_name)
    paths = [*(files().values() if files else ()), *([code] if code else ())]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.exists()}
