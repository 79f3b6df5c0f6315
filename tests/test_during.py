"""Evaluation while a run trains: it changes nothing, goes on exactly, and says what an evaluation of those tasks says."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from test_train import assert_same, smoke, train_and_die

from exit_jax import domains, run
from exit_jax.errors import ConfigError, GradingError
from exit_jax.evaluation import during
from exit_jax.evaluation.chains import run_chains
from exit_jax.evaluation.stored import fingerprint
from exit_jax.report import runs
from exit_jax.report.during import accuracy_by_iteration, keys_of
from exit_jax.training import train
from exit_jax.workdir.metrics import read_jsonl, trained_iterations

HOSTED = {"domain.on_host": True, "algorithm.rollout_lag": 1, "run.steps_per_call": 1}


def config_of(changes=None, **run):
    changes = {"warm_start.num_steps": 5, "eval.steps": (0, 2), "eval.samples_per_task": 2} | (changes or {})
    return smoke(changes=changes, **{"num_iterations": 10, "checkpoint_every": 5} | run)


def go(config, workdir):
    """Train with evaluations; the last of them must be of the final policy, as this small one's figures hardly say."""
    evaluate, seen = during.make(config), []
    state, params = train.train(config, workdir, lambda params: seen.append(fingerprint(params)) or evaluate(params))
    assert len(set(seen)) == len(seen)
    assert seen[-1] == fingerprint(params)
    return state, params, read_jsonl(workdir / "train.jsonl")


def untimed(rows):
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, HOSTED], ids=["device", "hosted, one batch ahead"])
def test_training_is_the_same_with_it_and_it_goes_on_exactly(changes, tmp_path):
    plain, _ = train.train(config_of(changes), tmp_path / "plain")
    config = config_of(changes, eval_every=5, eval_tasks=6)
    state, params, rows = go(config, tmp_path / "looks")
    assert_same(plain, state)
    keys = {f"eval/validation/{figure}@{k}" for figure in ("accuracy", "quality") for k in (0, 2)} | {"time/eval_secs"}
    assert [keys & row.keys() for row in rows] == [keys if row["step"] % 5 == 0 else set() for row in rows]

    go(config_of(changes, eval_every=5, eval_tasks=6, num_iterations=5), tmp_path / "parts")
    resumed, _, again = go(config, tmp_path / "parts")
    assert_same(plain, resumed)
    assert untimed(again) == untimed(rows)

    # and the figures are those of the policy of that iteration
    domain = domains.make(config.domain_name, config.domain)
    some = during.sample_tasks(config, domain, "validation")
    assert some.tolist() == sorted(set(some.tolist()))
    assert some.size == 6
    quality = run_chains(during.shrink(config, 6), params, "validation", rows=some).chains.quality
    assert quality.shape == (3, 6)
    for k in (0, 2):
        assert rows[-1][f"eval/validation/quality@{k}"] == pytest.approx(quality[k].mean())
        assert rows[-1][f"eval/validation/accuracy@{k}"] == pytest.approx((quality[k] >= 1).mean())


def test_the_tasks_are_those_that_were_sampled():
    """Greedy, so a chain is the same in any batch."""
    config = config_of({"eval.temperature": 0.0, "eval.samples_per_task": 1}, eval_every=5, eval_tasks=5)
    domain = domains.make(config.domain_name, config.domain)
    params = train.make_program(config).init_params(3)
    some = during.sample_tasks(config, domain, "test")
    assert not np.array_equal(some, np.arange(5)), "the first five: this test would prove too little"
    whole = run_chains(config, params, "test")
    sampled = run_chains(during.shrink(config, 5), params, "test", rows=some)
    np.testing.assert_array_equal(sampled.chains.quality, whole.chains.quality[:, some])
    assert [sampled.describe(i) for i in range(5)] == [whole.describe(int(row)) for row in some], "the same grids"
    other = dataclasses.replace(config, seed=7)
    assert during.sample_tasks(other, domain, "test").tolist() == some.tolist(), "all seeds have the same tasks"


def test_a_verifier_that_is_away_costs_the_figures_alone(monkeypatch, caplog, tmp_path):
    config = config_of(HOSTED, eval_every=5, eval_tasks=4)

    def away(*_, **__):
        raise GradingError("no answer")

    monkeypatch.setattr(during, "run_chains", away)
    state, _, rows = go(config, tmp_path)
    assert int(state.step) == 10
    assert not [key for row in rows for key in row if key.startswith("eval/")]
    assert caplog.text.count("an evaluation during training has no figures: GradingError('no answer')") == 2


BEST = "eval/validation/quality@2"


def scripted(monkeypatch, values):
    """Have the evaluations of step 5, 10, ... say these values, whatever the policy does, and count what was asked."""
    left = iter(values)
    monkeypatch.setattr(during, "make", lambda config: lambda params: {} if (v := next(left)) is None else {BEST: v})


def test_the_best_policy_is_kept_as_a_workdir_of_its_own(monkeypatch, tmp_path):
    """Of equal ones the first; an evaluation without figures is passed over."""
    config = config_of({"warm_start.num_steps": 0}, eval_every=5, num_iterations=25, keep_best=BEST)
    scripted(monkeypatch, [0.25, None, 0.5, 0.5, 0.125])
    run.train(config, tmp_path / "run")
    best = tmp_path / "run" / "best"
    assert trained_iterations(best) == 15
    assert [path.name for path in (best / "checkpoints").iterdir()] == ["15"]

    short = dataclasses.replace(
        config, run=dataclasses.replace(config.run, num_iterations=15, keep_best="", eval_every=0)
    )
    run.train(short, tmp_path / "short")
    assert_same(train.restore_params(config, best), train.restore_params(config, tmp_path / "short"))
    kept = run.evaluate(config, best)  # it is a workdir: what takes one takes it
    assert kept == json.loads((tmp_path / "short" / "evaluation.json").read_text())
    assert kept != json.loads((tmp_path / "run" / "evaluation.json").read_text())
    for name in ("config.json", "tasks.json"):
        assert (best / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.parametrize("died", [10, 15])
def test_a_run_that_was_killed_keeps_the_same_best(died, monkeypatch, tmp_path):
    """It dies once the best is saved and before the row that tells of it, or the checkpoint, is written."""
    config = config_of(
        {"warm_start.num_steps": 0}, eval_every=5, checkpoint_every=10, num_iterations=20, keep_best=BEST
    )
    values = [0.25, 0.5, 0.75, 0.5]
    scripted(monkeypatch, values)
    train_and_die(config, tmp_path, monkeypatch, died - 4)  # the first of five steps
    assert trained_iterations(tmp_path / "best") == died
    scripted(monkeypatch, values[(died - 1) // 10 * 2 :])  # a checkpoint is written every 10
    run.train(config, tmp_path)
    assert trained_iterations(tmp_path / "best") == 15
    assert [row[BEST] for row in read_jsonl(tmp_path / "train.jsonl") if BEST in row] == values


def test_a_best_that_a_killed_run_kept_later_gives_way_to_an_earlier_one(monkeypatch, tmp_path):
    """As where ``keep_best`` names another figure then, or a verifier that was away is back."""
    config = config_of(
        {"warm_start.num_steps": 0}, eval_every=5, checkpoint_every=20, num_iterations=20, keep_best=BEST
    )
    scripted(monkeypatch, [0.25, None, 0.5, 0.75])
    train_and_die(config, tmp_path, monkeypatch, 16)
    assert trained_iterations(tmp_path / "best") == 20
    scripted(monkeypatch, [0.25, 0.875, 0.5, 0.75])
    run.train(config, tmp_path)
    assert [path.name for path in (tmp_path / "best" / "checkpoints").iterdir()] == ["10"]


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match=r"run.keep_best = 'accuracy' is no figure .* eval/validation/accuracy@0, "):
        config_of(eval_every=5, keep_best="accuracy")
    with pytest.raises(ConfigError, match=r"asks for evaluations during training; set run.eval_every"):
        config_of(keep_best="eval/validation/accuracy@2")
    with pytest.raises(ConfigError, match=r"run.eval_every = 3 is not a multiple of run.steps_per_call = 5"):
        config_of(eval_every=3, steps_per_call=5)
    with pytest.raises(ConfigError, match=r"run.eval_splits: 'tset' is not one of"):
        config_of(eval_every=5, eval_splits=("tset",))


def test_the_report_draws_a_line_for_each_k_or_variant(tmp_path):
    def run_of(variant, scored):
        rows = [
            {"step": step, "reward": 0.1}
            | ({f"eval/test/{figure}@{k}": (step + k) / 100 + scored * (figure == "quality")
                for figure, k in itertools.product(("accuracy", "quality"), (0, 2, 16))} if step % 4 == 0 else {})
            for step in range(1, 13)
        ]  # fmt: skip
        empty = {name: {} for name in ("versions", "evaluation", "timing", "scores", "instances")}
        chains = runs.Chains(tmp_path / "none")
        return runs.Run(path=tmp_path, config={"name": "x", "variant": variant}, rows=rows, chains=chains, **empty)

    one = {"exit": [run_of("exit", 0.25)]}
    assert keys_of(one) == {("test", "accuracy"): [0, 2, 16], ("test", "quality"): [0, 2, 16]}
    assert keys_of({"exit": [run_of("exit", 0.0)]}) == {("test", "accuracy"): [0, 2, 16]}
    figure, _ = accuracy_by_iteration(one)
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["k = 0", "k = 2", "k = 16"]
    assert lines[2].get_xydata().round(6).tolist() == [[4, 20], [8, 24], [12, 28]]
    both, _ = accuracy_by_iteration(one | {"grpo": [run_of("grpo", 0.0)]})
    assert [line.get_label() for line in both.axes[0].get_lines()] == ["exit", "grpo"]
    assert both.axes[0].get_title() == "test, accuracy (%) at k = 16"
    assert accuracy_by_iteration({"exit": [dataclasses.replace(one["exit"][0], rows=[{"step": 1}])]}) is None
