"""Training rollouts that are kept for people: what they say is what was trained on, and training is the same without them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
from small import tiny_math
from test_train import assert_same, smoke

from exit_jax import domains
from exit_jax.algorithm import iteration
from exit_jax.report import browser, runs
from exit_jax.step.program import compile_key
from exit_jax.training import rollouts, train
from exit_jax.workdir.metrics import read_jsonl


def kept(workdir):
    return {int(file.stem): pyarrow.parquet.read_table(file).to_pylist() for file in sorted(workdir.glob("rollouts/*"))}


def check(rows, metrics, groups, size):
    """Hold the rows of a whole batch to the metrics of its iteration."""
    assert len(rows) == groups * size
    mean = lambda name, some=rows: np.mean([row[name] for row in some])
    for name in ("reward", "quality", "learnability"):
        assert mean(name) == pytest.approx(metrics[name], abs=1e-6), name
    assert mean("valid") == pytest.approx(1 - metrics["invalid"])
    assert mean("finished") == pytest.approx(1 - metrics["unfinished"])
    assert mean("num_tokens") == pytest.approx(metrics["response_length"])
    assert mean("depth") == pytest.approx(metrics["start_depth"])
    for b in range(groups):
        group = [row for row in rows if row["group"] == b]
        assert [row["rollout"] for row in group] == list(range(size))
        assert mean("advantage", group) == pytest.approx(0, abs=1e-5)
        spread = np.ptp([row["reward"] for row in group])
        assert (np.ptp([row["advantage"] for row in group]) > 0) == (spread > 0)


@pytest.mark.slow
def test_they_are_what_was_trained_on_and_change_nothing(tmp_path):
    run: dict = {"num_iterations": 10, "checkpoint_every": 10, "steps_per_call": 5}
    changes = {"warm_start.num_steps": 5, "algorithm.min_buffer_size": 8}
    plain, _ = train.train(smoke(changes=changes, **run), tmp_path / "plain")
    config = smoke(changes=changes, rollouts_every=2, rollouts_kept=1000, **run)
    state, _ = train.train(config, tmp_path / "shows")
    assert_same(plain, state)
    found, metrics = kept(tmp_path / "shows"), {row["step"]: row for row in read_jsonl(tmp_path / "shows/train.jsonl")}
    assert list(found) == [2, 4, 6, 8, 10]
    for step, rows in found.items():
        check(rows, metrics[step], config.algorithm.num_prompts, config.algorithm.group_size)
    last = found[10]
    assert any(row["id"] >= 0 and row["born"] > 0 for row in last), (
        "nothing came from the buffer: this proves too little"
    )
    assert all((row["held"] == "") == (row["depth"] == 1) for row in last)
    assert "rollouts" not in metrics[10]


def test_a_row_says_its_own_reward_and_advantage(tmp_path, monkeypatch):
    """Of rewards that differ within each group, which a policy that has learnt nothing yet does not get."""
    paid = np.arange(8) / 16
    by_place = lambda kind, quality, valid, before, mode: jnp.broadcast_to(
        jnp.asarray(paid[: quality.shape[1]]), quality.shape
    )
    monkeypatch.setattr(iteration, "reward", by_place)
    changes = {"warm_start.num_steps": 5, "algorithm.diversity_bonus": False, "algorithm.advantage_eps": 1e-3}
    config = smoke(changes=changes, num_iterations=5, checkpoint_every=5, steps_per_call=5, rollouts_every=5)
    train.train(config, tmp_path)
    (rows,) = kept(tmp_path).values()
    paid = paid[: config.algorithm.group_size]
    advantage = (paid - paid.mean()) / (paid.std() + 1e-3)
    for row in rows:
        assert row["reward"] == paid[row["rollout"]]
        assert row["advantage"] == pytest.approx(advantage[row["rollout"]], rel=1e-4)


def test_of_a_domain_of_text_they_are_texts_and_are_read_in_the_page_of_chains(tmp_path):
    config = tiny_math(tmp_path, run__rollouts_every=2, run__rollouts_kept=8)
    train.train(config, tmp_path / "run")
    found, metrics = kept(tmp_path / "run"), {row["step"]: row for row in read_jsonl(tmp_path / "run/train.jsonl")}
    assert list(found) == [2, 4]
    for step, rows in found.items():
        check(rows, metrics[step], 8, 2)
    assert all(row["prompt"] for row in found[4])
    assert any(row["response"] for row in found[4])
    (tmp_path / "run/config.json").write_text(json.dumps({"config": {"name": "toy", "variant": "exit", "seed": 0}}))
    made = browser.page(runs.group([runs.load(tmp_path / "run")]))
    assert made is not None
    page, note = made
    assert "All 32 saved chains." in note
    assert page.count('"split":"training, iteration 4"') == 16


def test_a_lone_half_of_a_surrogate_pair_costs_no_file(tmp_path):
    config = smoke(rollouts_every=1)
    domain = domains.make(config.domain_name, config.domain)
    told = dataclasses.replace(domain, describe=lambda history: ["a \ud800 b"] * len(history.task))
    writer = rollouts.RolloutWriter(config, told, tmp_path)
    some = jax.tree.map(lambda leaf: leaf[None], sampled(domain))
    writer.write(1, some)
    (row,) = kept(tmp_path)[1]
    assert row["response"] == row["prompt"] == "a ? b"


def sampled(domain):
    """Return a group of one rollout, as the iteration hands it out."""
    task = jax.tree.map(lambda leaf: np.asarray(leaf[:1]), domain.tasks("train"))
    one, tokens = np.zeros((1, 1), np.float32), np.zeros((1, 1, 3), np.int32)
    numbers = {name: one for name in ("quality", "reward", "advantage", "valid", "finished")}
    instance = {"history": task, "mode": np.zeros(1, int), "learnability": one[0]}
    instance |= {"prompt": tokens[0], "prompt_length": np.ones(1, int)}
    return (
        instance
        | numbers
        | {"tokens": tokens, "mask": tokens == 0, "children": jax.tree.map(lambda leaf: leaf[None], task)}
    )


def test_the_oldest_are_removed_and_one_file_always_stays(tmp_path):
    config = smoke(rollouts_every=1)
    writer = rollouts.RolloutWriter(config, domains.make(config.domain_name, config.domain), tmp_path)
    rng = np.random.default_rng(0)
    rows = lambda: [{"text": rng.bytes(1000).hex()}]
    writer._max_bytes = 8000
    for step in range(1, 12):
        writer._store(step, rows())
    names = sorted(kept(tmp_path))
    assert names[-1] == 11
    assert names == list(range(names[0], 12))
    assert 1 < len(names) < 8
    assert sum(file.stat().st_size for file in tmp_path.glob("rollouts/*")) <= 8000
    writer._max_bytes = 1
    writer._store(12, rows())
    assert list(kept(tmp_path)) == [12]


@pytest.mark.slow
def test_a_fault_is_told_once_and_stops_nothing(tmp_path, caplog, monkeypatch):
    (tmp_path / "rollouts").write_text("in the way")
    train.train(smoke(changes={"warm_start.num_steps": 5}, num_iterations=10, rollouts_every=1), tmp_path)
    assert caplog.text.count("no more training rollouts are kept") == 1
    assert len(read_jsonl(tmp_path / "train.jsonl")) == 10


def test_programs_differ_only_where_they_are_asked_for():
    assert compile_key(smoke(rollouts_kept=3)) == compile_key(smoke())
    assert compile_key(smoke(rollouts_every=3)) == compile_key(smoke(rollouts_every=7, rollouts_max_mb=2))
    assert compile_key(smoke(rollouts_every=3)) != compile_key(smoke())


def test_a_file_that_cannot_be_read_costs_itself_alone(tmp_path):
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts/00000001.parquet").write_bytes(b"PAR1 half a file")
    table = pyarrow.Table.from_pylist([{"iteration": 2}])
    pyarrow.parquet.write_table(table, tmp_path / "rollouts/00000002.parquet")
    assert [list(browser.rollouts_of(file)) for file in sorted(tmp_path.glob("rollouts/*"))] == [[], []]
