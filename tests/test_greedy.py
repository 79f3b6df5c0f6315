"""Greedy search (ExIt §5): against a loop in plain Python, on the device and on the host, and its figures against NumPy."""

import dataclasses
import json
import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sudoku
from small import tiny_math

from exit_jax import domains
from exit_jax.config.parse import validate
from exit_jax.errors import ConfigError
from exit_jax.evaluation import programs
from exit_jax.evaluation.chains import run_chains
from exit_jax.evaluation.evaluate import evaluate, save_chains, summarise
from exit_jax.evaluation.figures import mean_of
from exit_jax.evaluation.outcome import Chains, Outcome, Split
from exit_jax.evaluation.scaffolds import BEST_OF_N, CHAIN, GREEDY, RESTARTS, archive, chosen
from exit_jax.evaluation.scaffolds.scaffold import chooser
from exit_jax.step.program import make_program

ROOT = pathlib.Path(__file__).parents[1]


def with_eval(config, **changes):
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, **changes))


@pytest.fixture(scope="module")
def config():
    content = tiny_sudoku.get_config()
    content.eval.splits = ("validation",)
    content.eval.restart_every = 0
    content.eval.greedy = True
    content.run.mesh.data = 1
    return validate(content, jax.device_count())


@pytest.fixture(scope="module")
def params(config):
    return make_program(config).init_params(0)


# scaffold -> (settings, base task, what is held, k) -> what a response starts from, and (what it started from, what it led to)
# -> what is held: the rules before there was an archive
RULES = {
    CHAIN: (lambda settings, task, held, k: held, lambda held, new: new),
    RESTARTS: (lambda settings, task, held, k: held if k % settings.restart_every else task, lambda held, new: new),
    GREEDY: (
        lambda settings, task, held, k: held,
        lambda held, new: held if held.step >= 0 and held.quality > new.quality else new,
    ),
    BEST_OF_N: (lambda settings, task, held, k: task, lambda held, new: new),
}


def search_by_hand(config, params, split, scaffold=GREEDY):
    """Return the qualities [K + 1, R] and texts [K + 1][R] of one batch of chains, one step of one chain at a time."""
    domain = domains.make(config.domain_name, config.domain)
    settings, setup = config.eval, programs.setup_of(config)
    tasks = jax.device_get(domain.tasks(split))
    size = len(tasks.task)
    assert size == settings.batch_size
    key = jax.random.fold_in(jax.random.fold_in(programs.sampling_key(config), scaffold.stream), 0)
    begin, keep = RULES[scaffold]
    copy = programs.reshard(setup.policy, setup.mesh)(params)
    row = lambda tree, *at: jax.tree.map(lambda leaf: leaf[at], tree)
    held, qualities, texts = [row(tasks, i) for i in range(size)], [], []
    for k in range(max(settings.steps) + 1):
        held = [begin(settings, row(tasks, i), held[i], k) for i in range(size)]
        together = jax.tree.map(lambda *leaves: np.stack(leaves), *held)
        instances, rollouts = jax.device_get(
            programs.respond(programs.responder_of(setup))(copy, together, key, jnp.int32(k))
        )
        children = jax.device_get(domain.grade(instances, rollouts).children)
        new = [row(children, i, 0, 0) for i in range(size)]
        qualities.append([float(one.quality) for one in new])
        texts.append(domain.describe(jax.tree.map(lambda *leaves: np.stack(leaves), *new)))
        held = [keep(held[i], new[i]) for i in range(size)]
    return np.array(qualities, np.float32), texts


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    """Return arithmetic, of which an untrained policy solves nothing."""
    return tiny_math(tmp_path_factory.mktemp("data"), eval__greedy=True, eval__restart_every=0, eval__steps=(0, 1, 3))


@pytest.fixture
def pay(monkeypatch):
    """Return a function that makes a domain pay any response 0 to 6/8 and tell it in its feedback, untrained as policies are.

    ``mark`` (tokens of a history, quality) -> tokens of the history after the response.
    """

    def forget():
        programs.respond.cache_clear()
        programs.whole_chain.cache_clear()

    def change(config, mark):
        plain = domains.make(config.domain_name, config.domain)

        def grade(instances, rollouts):
            grades = plain.grade(instances, rollouts)
            quality = ((rollouts.tokens * rollouts.mask).sum(-1) % 7 / 8).astype(np.float32)
            tokens = mark(grades.children.tokens, quality[..., None])
            children = dataclasses.replace(grades.children, quality=quality[..., None], tokens=tokens)
            return dataclasses.replace(grades, quality=quality, children=children)

        told = lambda history: [f"score {quality}" for quality in np.asarray(history.quality)]
        domain = dataclasses.replace(plain, grade=grade, feedback=told)
        monkeypatch.setattr(domains, "make", lambda *_: domain)
        forget()

    yield change
    forget()


def test_on_the_device_a_search_goes_on_from_the_best_so_far(config, params, pay):
    # an untrained policy edits nothing, so that the quality goes to the feedback token, and it must heed its prompt
    pay(config, lambda tokens, quality: tokens.at[..., -1].set(4 + (8 * quality).astype(int) % 4))
    params = jax.tree.map(lambda leaf: 4 * leaf, params)
    outcome = run_chains(config, params, "validation", GREEDY)
    quality, texts = search_by_hand(config, params, "validation")
    np.testing.assert_array_equal(outcome.chains.quality, quality)
    assert [outcome.describe(c) for c in range(16)] == [list(column) for column in zip(*texts)]
    assert (quality[1:] < np.maximum.accumulate(quality)[:-1]).any(), "some response was worse and so was dropped"
    assert outcome.feedback is not None
    assert outcome.feedback(3) == [f"score {value}" for value in quality[:, 3]]
    plain = run_chains(config, params, "validation").chains
    assert (plain.quality[0] != outcome.chains.quality[0]).any(), "searches sample independently of chains"


@pytest.mark.parametrize("scaffold", RULES, ids=lambda scaffold: scaffold.name)
def test_chains_are_those_of_the_rules_before_there_was_an_archive(scaffold, config, params, on_host, pay, monkeypatch):
    """Bit for bit, on the device and on the host, with the streams that they had."""
    assert {row.name: row.stream for row in RULES} == {"chain": 0, "restarts": 1, "greedy": 2, "best_of_n": 3}
    several = {"restart_every": 2, "scaffolds": ("best_of_n",), "steps": (0, 4)}
    plain = domains.make
    for of_domain, split, mark in (
        (config, "validation", lambda tokens, quality: tokens.at[..., -1].set(4 + (8 * quality).astype(int) % 4)),
        (on_host, "test", lambda tokens, _: tokens),
    ):
        monkeypatch.setattr(domains, "make", plain)
        pay(of_domain, mark)
        of_domain = with_eval(of_domain, **several)
        some = params if of_domain.domain_name == "sudoku" else make_program(of_domain).init_params(0)
        some = jax.tree.map(lambda leaf: 4 * leaf, some)
        outcome = run_chains(of_domain, some, split, scaffold)
        quality, texts = search_by_hand(of_domain, some, split, scaffold)
        np.testing.assert_array_equal(outcome.chains.quality, quality)
        assert [outcome.describe(c) for c in range(quality.shape[1])] == [list(column) for column in zip(*texts)]


def test_on_the_host_too_and_a_search_that_was_cut_off_goes_on(on_host, pay, tmp_path, monkeypatch):
    pay(on_host, lambda tokens, _: tokens)
    params = make_program(on_host).init_params(0)
    whole = evaluate(on_host, params, tmp_path / "whole")
    stored = tmp_path / "whole/answers/test-greedy.jsonl"
    rows = [json.loads(line) for line in stored.read_text().splitlines() if '"chain"' in line]
    quality, texts = search_by_hand(on_host, params, "test")
    table = {(row["k"], row["chain"]): row for row in rows}
    assert [[table[k, c]["text"] for c in range(8)] for k in range(4)] == texts
    np.testing.assert_allclose([[table[k, c]["quality"] for c in range(8)] for k in range(4)], quality)
    assert (quality[1:] < np.maximum.accumulate(quality)[:-1]).any()
    held = np.maximum.accumulate(quality).mean(1)[[0, 1, 3]]
    found = whole["splits"]["test"]["scaffolds"]["greedy"]
    np.testing.assert_allclose(found["quality"], held, rtol=1e-6)
    assert set(found["notes"]) == {"ungraded", "no_answer", "truncated"}

    part = tmp_path / "part/answers"
    part.mkdir(parents=True)
    for path in stored.parent.iterdir():
        (part / path.name).write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    assert evaluate(on_host, params, part.parent) == whole
    assert (part / "test-greedy.jsonl").read_bytes() == stored.read_bytes()

    def refuse(*_):
        raise AssertionError("sampled although everything is stored")

    programs.respond.cache_clear()  # a program that is compiled already would not ask for it
    monkeypatch.setattr("exit_jax.policy.sampler.sample", refuse)
    assert evaluate(on_host, params, part.parent) == whole
    chains = [json.loads(line) for line in (tmp_path / "whole/chains.jsonl").read_text().splitlines()]
    assert {chain["split"] for chain in chains} == {"test", "test-greedy"}
    for chain in chains:
        assert [float(said.split()[1]) for said in chain["feedback"]] == pytest.approx(chain["quality"], abs=1e-4)
    timing = json.loads((tmp_path / "whole/evaluation_timing.json").read_text())
    assert set(timing["secs"]["test"]) == {"chain", "greedy"}


def test_a_search_that_draws_was_cut_off_and_goes_on(on_host, pay, tmp_path, monkeypatch):
    """What each response started from is stored: it is neither drawn again nor found from grades that may be others now."""
    pay(on_host, lambda tokens, _: tokens)
    config = with_eval(on_host, greedy=False, scaffolds=("shinka", "uct"), steps=(0, 1, 6))
    params = make_program(config).init_params(0)
    whole = evaluate(config, params, tmp_path / "whole")
    stored = tmp_path / "whole/answers/test-shinka.jsonl"
    rows = [json.loads(line) for line in stored.read_text().splitlines() if '"chain"' in line]
    at = {(row["k"], row["chain"]): row["from"] for row in rows}
    chains = [json.loads(line) for line in (tmp_path / "whole/chains.jsonl").read_text().splitlines()]
    searches = [chain for chain in chains if chain["split"] == "test-shinka"]
    assert searches
    for chain in searches:
        assert chain["from"] == [at[k, chain["task"]] for k in range(7)]
        assert chain["modes"] == ["base"] + ["improve"] * 6
    assert any(chain["from"] != list(range(-1, 6)) for chain in searches)

    part = tmp_path / "part/answers"
    part.mkdir(parents=True)
    for path in stored.parent.iterdir():
        (part / path.name).write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    assert evaluate(config, params, part.parent) == whole
    for path in stored.parent.iterdir():
        assert (part / path.name).read_bytes() == path.read_bytes()

    def refuse(*_):
        raise AssertionError("sampled or chosen although everything is stored")

    programs.respond.cache_clear()
    monkeypatch.setattr("exit_jax.policy.sampler.sample", refuse)
    with monkeypatch.context() as patch:
        patch.setattr("exit_jax.evaluation.hosted.jitted_chooser", lambda *_: refuse)
        assert evaluate(config, params, part.parent) == whole
    for path in part.iterdir():  # files of versions that did not store it
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "from"}) + "\n" for row in lines))
    assert evaluate(config, params, part.parent) == whole


def test_the_device_and_the_host_choose_alike(config, params, pay, monkeypatch):
    pay(config, lambda tokens, quality: tokens.at[..., -1].set(4 + (8 * quality).astype(int) % 4))
    config = with_eval(config, scaffolds=("shinka", "mcts_aira", "map_elites"), steps=(0, 9))
    params = jax.tree.map(lambda leaf: 4 * leaf, params)
    rows = chosen(config.eval)[2:]
    on_device = [run_chains(config, params, "validation", row).chains for row in rows]
    domain = dataclasses.replace(domains.make(config.domain_name, config.domain), on_host=True)
    monkeypatch.setattr(domains, "make", lambda *_: domain)
    for row, chains in zip(rows, on_device):
        on_host = run_chains(config, params, "validation", row).chains
        for field in ("quality", "tokens", "parent", "mode"):
            np.testing.assert_array_equal(
                getattr(on_host, field), getattr(chains, field), err_msg=f"{row.name} {field}"
            )
        assert len(np.unique(chains.parent)) > 3


def test_the_best_is_gone_on_from_the_newest_where_some_tie_and_any_first_response(config, make_history):
    """Of base tasks that hold no solution, and of one that holds one, which counts as any other."""
    tasks = make_history(4, step=[-1, -1, -1, 3], quality=[0.9, 0.9, 0.9, 0.5], id=1)
    qualities = [[0.0, 0.5, 0.5, 0.4], [0.0, 0.5, 0.4, 0.6]]
    choose, held = chooser(config.eval, GREEDY), archive.start(tasks, 2)
    found = [choose(held, jax.random.key(0), 0)]
    for k, quality in enumerate(qualities):
        child = make_history(4, step=[k] * 4, quality=quality, id=2 + k, tokens=1 + k)
        held = archive.add(held, found[-1], child, np.ones(4, bool), np.ones(4, int), k)
        found.append(choose(held, jax.random.key(0), k + 1))
    np.testing.assert_array_equal(found, [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 2]])
    np.testing.assert_array_equal(archive.take(held, found[-1]).id, [3, 3, 2, 3])
    np.testing.assert_array_equal(archive.take(held, found[-1]).tokens[:, 0], [2, 2, 1, 2])


def outcome_of(quality, notes=None):
    quality = np.array(quality, np.float32)
    yes: np.ndarray = np.ones(quality.shape, bool)
    chains = Chains(quality, ~yes, yes, ~yes, 5 * yes, 1 * yes, notes or {}, None)
    return Outcome(chains, lambda c: [f"{c}.{k}" for k in range(len(quality))], None)


def test_figures_of_a_search_agree_with_numpy(config):
    """Three tasks with two searches each, of random qualities on a coarse grid, so that some steps change nothing."""
    rng = np.random.default_rng(0)
    plain, rival, search = rng.integers(0, 5, (3, 5, 6)) / 4
    crashed = rng.random((5, 6)).astype(np.float32)
    chosen = with_eval(config, steps=(0, 1, 4), samples_per_task=2, restart_every=1, greedy=True)
    split = Split(chosen.eval, domains.make(config.domain_name, config.domain), names=["a", "b", "c"])
    outcomes = {
        CHAIN: outcome_of(plain, {"crashed": crashed}),
        RESTARTS: outcome_of(rival),
        GREEDY: outcome_of(search, {"crashed": 1 - crashed}),
    }
    summary = summarise(split, outcomes)
    results, restarts, found = (summary["scaffolds"][scaffold.name] for scaffold in outcomes)
    ks, best = [0, 1, 4], np.maximum.accumulate(search)
    tasks = lambda values: values.reshape(5, 2, 3).mean(1)
    assert found["quality"] == pytest.approx(best.mean(1)[ks])
    assert (np.diff(found["quality"]) >= 0).all()
    assert found["quality_se"] == pytest.approx(tasks(best).std(1, ddof=1)[ks] / np.sqrt(3))
    assert found["quality_delta"] == pytest.approx((best - best[0]).mean(1)[ks])
    assert found["accuracy"] == pytest.approx((best == 1).mean(1)[ks])
    assert found["tokens"] == [5, 10, 25]
    assert found["notes"]["crashed"] == pytest.approx((1 - crashed).mean(1)[ks])
    better, worse = search[1:] > best[:-1], search[1:] < best[:-1]
    assert found["improved"] == [None, pytest.approx(better[:1].mean()), pytest.approx(better.mean())]
    assert found["worsened"] == [None, pytest.approx(worse[:1].mean()), pytest.approx(worse.mean())]

    assert results["quality_se"] == pytest.approx(tasks(plain).std(1, ddof=1)[ks] / np.sqrt(3))
    assert results["best_quality"] == pytest.approx(np.maximum.accumulate(plain).mean(1)[ks])
    assert restarts["best_quality"] == pytest.approx(np.maximum.accumulate(rival).mean(1)[ks])
    net = np.sign(np.diff(plain, axis=0))
    assert results["net_gains"] == [None, pytest.approx(net[:1].mean()), pytest.approx(net.mean())]
    per_task = net.mean(0).reshape(2, 3).mean(0)
    assert results["net_gains_se"][-1] == pytest.approx(per_task.std(ddof=1) / np.sqrt(3))
    assert results["notes"]["crashed"] == pytest.approx(crashed.mean(1)[ks])
    assert list(results["by_task"]) == ["a", "b", "c"]
    assert found["by_task"]["b"]["quality"] == pytest.approx(best[:, [1, 4]].mean(1)[ks])
    assert results["by_task"]["c"]["quality"] == pytest.approx(plain[:, [2, 5]].mean(1)[ks])
    mean = mean_of([summary, summary])["scaffolds"]
    assert mean["greedy"]["quality"] == pytest.approx(found["quality"])
    assert mean["greedy"]["quality_se"] == pytest.approx(np.array(found["quality_se"]) / np.sqrt(2))
    assert mean["chain"]["net_gains"][0] is None
    json.dumps([summary, mean], allow_nan=False)


def test_saved_searches_tell_where_each_response_started(config):
    quality = np.array([[0.5, 0.0], [0.2, 0.0], [0.5, 0.3], [0.1, 0.2]], np.float32)
    outcome = outcome_of(quality)
    parent = np.array([[-1, -1], [0, 0], [0, 1], [2, 2]])
    outcome = dataclasses.replace(outcome, chains=dataclasses.replace(outcome.chains, parent=parent))
    rows = save_chains(config, "test", GREEDY, outcome, [{"name": "a"}, {"name": "b"}])
    assert [row["from"] for row in rows] == [[-1, 0, 0, 2], [-1, 0, 1, 2]]
    assert [row["split"] for row in rows] == ["test-greedy"] * 2
    plain = save_chains(config, "test", CHAIN, outcome, [{"name": "a"}, {"name": "b"}])
    assert not [row for row in plain if "from" in row], "always the one before"


@pytest.mark.parametrize(("field", "value"), [("greedy", True), ("restart_every", 1), ("scaffolds", ("best_of_n",))])
def test_episodes_of_several_turns_have_no_search(field, value):
    content = runpy.run_path(str(ROOT / "configs/tools_tiny.py"))["get_config"]()
    assert validate(content, 1).eval.restart_every == 0
    content.eval[field] = value
    with pytest.raises(ConfigError, match=rf"eval\.{field} = {re.escape(str(value))}"):
        validate(content, 1)


def test_runs_of_other_seeds_sample_anew(config, params):
    """Else the noise of sampling would be common to all seeds, and missing in the spread over them."""
    other = dataclasses.replace(config, seed=config.seed + 1)
    first, again, anew = (run_chains(which, params, "test").chains.tokens for which in (config, config, other))
    np.testing.assert_array_equal(first, again)
    assert (first != anew).any()
