"""Evaluation: the arithmetic on a hand-made case, and chains that see the newest response only."""

import dataclasses
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
import tiny_sudoku

from exit_jax import domains
from exit_jax.config.parse import validate
from exit_jax.errors import GradingError
from exit_jax.evaluation.chains import run_chains
from exit_jax.evaluation.episodes import _outcome as episodes_outcome
from exit_jax.evaluation.evaluate import evaluate, summarise
from exit_jax.evaluation.figures import levels, mean_of
from exit_jax.evaluation.outcome import Chains, Outcome, Split
from exit_jax.evaluation.scaffolds import CHAIN, RESTARTS
from exit_jax.evaluation.scaffolds.reports import report_chain
from exit_jax.parallel import hosts
from exit_jax.step.program import make_program
from exit_jax.workdir.evaluation import chain_of

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config():
    content = tiny_sudoku.get_config()
    content.eval.splits = ("validation",)
    content.eval.samples_per_task = 2
    content.eval.restart_every = 2
    content.eval.batch_size = 24  # 16 tasks x 2 samples: the second batch is partly filled
    content.run.mesh.data = 1
    return validate(content, jax.device_count())


@pytest.fixture(scope="module")
def params(config):
    return make_program(config).init_params(0)


def make_chains(quality_KR, unchanged_KR, complete_KR, answers=None) -> Outcome:
    quality_KR = np.array(quality_KR, np.float32)
    yes = np.ones(quality_KR.shape, bool)
    chains = Chains(
        quality_KR, np.array(unchanged_KR, bool), yes, np.array(complete_KR, bool), 7 * yes, 1 * yes, {}, None
    )
    return Outcome(chains, lambda c: [], answers)


def split_of(config, difficulty=None, **settings) -> Split:
    domain = domains.make(config.domain_name, config.domain)
    return Split(dataclasses.replace(config.eval, **settings), domain, difficulty or {})


def test_of_episodes_only_the_evaluated_k_count(config):
    """Rows between the k of ``eval.steps`` repeat the one before: they are no responses that left an answer as it was."""
    rng = np.random.default_rng(0)
    played = {
        k: [
            {"text": str(rng.integers(2)), "tokens": 10 + k, "end": "valid", "figures": {"quality": float(q)}}
            for q in rng.choice([0.0, 0.5, 1.0], 8)
        ]
        for k in (0, 3, 7)
    }
    sparse, dense = episodes_outcome(played), episodes_outcome(dict(enumerate(played.values())))
    assert len(sparse.chains.quality) == 8
    at = lambda outcome, steps: report_chain(split_of(config, steps=steps, samples_per_task=2), outcome)
    assert at(sparse, (0, 3, 7)) == at(dense, (0, 1, 2))
    assert at(dense, (0, 1, 2))["improved"][-1] not in (0.0, None)


def test_summary_of_a_hand_made_case(config):
    """Four chains: found and broken; right from k=1; never right, frozen; called done while wrong, then mended."""
    chains = make_chains(
        quality_KR=[[0.5, 0.2, 0.1, 0.8], [1.0, 1.0, 0.1, 0.8], [0.5, 1.0, 0.1, 1.0]],
        unchanged_KR=[[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]],
        complete_KR=[[0, 0, 0, 1], [1, 1, 0, 1], [1, 1, 0, 1]],
    )
    rival = make_chains([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1.0, 0]], np.zeros((3, 4)), np.zeros((3, 4)))
    split = split_of(config, {"clues": np.array([4, 7])}, steps=(0, 1, 2), samples_per_task=2)
    summary = summarise(split, {CHAIN: chains, RESTARTS: rival})
    result = summary["scaffolds"]["chain"]
    assert result["accuracy"] == [0.0, 0.5, 0.5]
    assert result["delta"] == [0.0, 0.5, 0.5]
    assert result["best_so_far"] == [0.0, 0.5, 0.75]
    assert result["stopped"] == [0.0, 0.5, 0.5]  # the last chain stopped at its wrong first iterate
    assert result["corrected"] == [0.0, 1.0, 1.5]  # a task, with two samples each
    assert result["broken"] == [0.0, 0.0, 0.5]
    assert result["net_corrections"] == [0.0, 1.0, 1.0]
    assert result["net_corrections_sum"] == [0, 2, 2] == [round(4 * gain) for gain in result["delta"]]  # n · M · Δ
    assert result["unchanged_wrong"] == [None, 0.25, pytest.approx(2 / 6)]
    assert result["unchanged_right"] == [None, None, 0.5]
    assert summary["scaffolds"]["restarts"]["best_so_far"] == [0.25, 0.25, 0.5]
    assert result["tokens"] == [7.0, 14.0, 21.0]
    assert result["by_difficulty"]["clues"]["4"] == {"accuracy": [0.0, 0.5, 0.0], "num_tasks": 1}
    assert result["by_difficulty"]["clues"]["7"] == {"accuracy": [0.0, 0.5, 1.0], "num_tasks": 1}
    assert (summary["num_tasks"], summary["samples_per_task"]) == (2, 2)


def test_steps_are_reported_in_their_order_and_once(config):
    chains = make_chains([[0.5, 0.2], [1.0, 1.0], [0.5, 1.0]], np.zeros((3, 2)), np.zeros((3, 2)))
    summaries = [summarise(split_of(config, steps=steps), {CHAIN: chains}) for steps in ((2, 0, 2), (0, 2))]
    assert summaries[0] == summaries[1]
    assert summaries[0]["k"] == [0, 2]


def test_chains_have_the_shape_asked_for_and_repeat(config, params):
    outcome = run_chains(config, params, "validation")
    assert outcome.chains.quality.shape == (5, 32)
    np.testing.assert_array_equal(outcome.chains.mode[:, 0], [0, 1, 1, 1, 1])
    again = run_chains(config, params, "validation")
    np.testing.assert_array_equal(outcome.chains.quality, again.chains.quality)
    assert outcome.describe(31) == again.describe(31) != outcome.describe(30)


def test_what_cannot_be_graded_is_no_result(config, params, tmp_path, monkeypatch):
    """Nor is it stored: once the fault is mended, the figures are those of an evaluation that met none."""
    domain = dataclasses.replace(config.domain, on_host=True)
    config = dataclasses.replace(config, domain=domain)
    expected = evaluate(config, params, tmp_path / "whole")
    grade, calls = hosts.on_rows, itertools.count()

    def on_rows(function, *args):
        return grade(lambda *_: 1 / 0 if next(calls) == 2 else function(*_), *args)

    with monkeypatch.context() as patch:
        patch.setattr(hosts, "on_rows", on_rows)
        with pytest.raises(GradingError, match="could not be graded"):
            evaluate(config, params, tmp_path / "parts")
    assert not (tmp_path / "parts" / "evaluation.json").exists()
    assert evaluate(config, params, tmp_path / "parts") == expected


def test_restarts_begin_anew(config, params):
    chains = run_chains(config, params, "validation", RESTARTS).chains
    np.testing.assert_array_equal(chains.mode[:, 0], [0, 1, 0, 1, 0])
    assert not chains.unchanged[::2].any()  # a first response changes nothing that was held


def test_files(config, params, tmp_path):
    results = evaluate(config, params, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == results
    saved = [json.loads(line) for line in (tmp_path / "chains.jsonl").read_text().splitlines()]
    assert len(saved) == config.eval.num_chains_saved
    assert all(len(chain["responses"]) == len(chain["quality"]) == 5 for chain in saved)


def test_episodes_tell_no_timings(config, monkeypatch):
    domain = domains.make(config.domain_name, config.domain)
    episodic = dataclasses.replace(domain, test_environment=object(), timings=("grading_secs",))
    monkeypatch.setattr(domains, "make", lambda *_: episodic)
    blank = np.zeros((5, 32))
    monkeypatch.setattr("exit_jax.evaluation.evaluate.run_episodes", lambda *_: make_chains(blank, blank, blank))
    assert chain_of(evaluate(config, {}, None)["splits"]["validation"])["accuracy"][0] == 0.0


def test_votes_and_errors_of_a_hand_made_case(config):
    """Answers a, b, b, c, a: the vote goes to a, a, b, b, and to a again, which was the first to have two."""
    answers = [["a", ""], ["b", "x"], ["b", "x"], ["c", ""], ["a", ""]]
    quality = [[1, 0], [0, 0], [0, 0], [0, 0], [1, 0]]
    blank = np.zeros((5, 2))
    split = split_of(config, steps=(0, 1, 2, 3, 4), samples_per_task=1, restart_every=1)
    chains, rival = make_chains(quality, blank, blank), make_chains(quality, blank, blank, answers)
    result = summarise(split, {CHAIN: chains, RESTARTS: rival})["scaffolds"]
    assert result["restarts"]["majority"] == [0.5, 0.5, 0.0, 0.0, 0.5]
    assert result["chain"]["accuracy_se"] == pytest.approx([0.5, 0.0, 0.0, 0.0, 0.5])  # of 1 and 0: 0.7071 / sqrt(2)


def test_mean_of_splits_is_unweighted(config):
    blank = np.zeros((1, 4))
    split = split_of(config, steps=(0,), samples_per_task=1)
    small = summarise(split, {CHAIN: make_chains([[1.0]], blank[:, :1], blank[:, :1])})
    large = summarise(split, {CHAIN: make_chains([[1.0, 0, 0, 0]], blank, blank)})
    mean = mean_of([small, large])
    assert chain_of(mean)["accuracy"] == [0.625]
    assert mean["num_tasks"] == 5
    two = chain_of(mean_of([large, large]))
    assert two["accuracy_se"][0] == pytest.approx(chain_of(large)["accuracy_se"][0] / np.sqrt(2))


def test_many_levels_are_put_together():
    values = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 20])
    found = levels(values)
    assert sum(among.sum() for among in found.values()) == 10
    assert len(found) == 4
    assert list(levels(values[:3])) == ["1", "2", "3"]
