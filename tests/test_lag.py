"""Several batches sampled ahead: what each is sampled with, that nothing is graded twice, and exact resume."""

import collections
import dataclasses

import jax
import pytest
from test_train import assert_same, rows, smoke

from exit_jax import domains
from exit_jax.algorithm.in_flight import state_of
from exit_jax.algorithm.iteration import sample
from exit_jax.step import hosted
from exit_jax.step.device import Constants
from exit_jax.step.hosted import HostedSteps
from exit_jax.step.program import make_program
from exit_jax.training import train
from exit_jax.training.start import initial_params

LAG, ITERATIONS = 3, 5


def ahead(lag=LAG, **changes):
    own = {
        "domain.on_host": True,
        "algorithm.rollout_lag": lag,
        "algorithm.selection_prob": 0.0,
        "warm_start.num_steps": 0,
    }
    return smoke("variant=exit", own | changes, steps_per_call=1, num_iterations=ITERATIONS, checkpoint_every=1)


@pytest.fixture
def graded(monkeypatch):
    """Return how often batches were graded, early and when they are learnt from."""
    counts = collections.Counter()

    def counting(name):
        function = getattr(hosted, name)

        def call(*args):
            counts[name] += 1
            return function(*args)

        return call

    for name in ("grade_local_rows", "grade_rows"):
        monkeypatch.setattr(hosted, name, counting(name))
    return counts


def test_batches_are_learnt_from_in_order_by_what_they_were_sampled_with(tmp_path, graded):
    """The pipeline, against a queue in Python: batch j is sampled from what came of the update before iteration j - LAG."""
    config = ahead()
    trained, _ = train.train(config, tmp_path)
    assert graded == {"grade_local_rows": LAG + ITERATIONS}, "each once, and none when it is learnt from"
    program, domain = make_program(config), domains.make(config.domain_name, config.domain)
    constants = Constants(train.base_tasks(config, "train"), None)
    steps = HostedSteps(config, domain, program.mesh, program.steps, constants)
    state, queue = program.init(initial_params(config), config.seed), collections.deque()
    for number in range(LAG + ITERATIONS):
        queue.append(sample(steps, state, tuple(asked for asked, _ in queue)))
        if number >= LAG:
            instances, rollouts = queue.popleft()
            state, _ = steps.learn(state, instances, rollouts, steps.grade(instances, rollouts), None)
    assert_same(state.params, trained.params)
    assert_same(state.buffer, trained.buffer)
    found = rows(tmp_path)
    assert [row["distinct_instances"] for row in found[:2]] == [config.algorithm.num_prompts * n for n in (1, 2)]
    assert [row["gap/ratio_max"] > 1.001 for row in found[:2]] == [False, True], "the first batch is on policy"


def test_a_run_that_was_stopped_goes_on_to_the_same_result(tmp_path, graded):
    config = ahead()
    whole, _ = train.train(config, tmp_path / "whole")
    short = dataclasses.replace(config, run=dataclasses.replace(config.run, num_iterations=2))
    train.train(short, tmp_path / "stopped")
    graded.clear()
    resumed, _ = train.train(config, tmp_path / "stopped")
    assert graded == {"grade_rows": LAG, "grade_local_rows": ITERATIONS - 2}, (
        "those that the checkpoint holds are graded anew"
    )
    assert_same(whole.params, resumed.params)
    assert_same(whole.buffer, resumed.buffer)
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")


def test_a_domain_that_fails_in_the_background_costs_its_batch(tmp_path, monkeypatch):
    failing = {"count": 0}
    grade_local_rows = hosted.grade_local_rows

    def fail_once(domain, instances, rollouts):
        failing["count"] += 1

        def broken(*_):
            raise ValueError("a verifier that fails")

        return grade_local_rows(
            dataclasses.replace(domain, grade=broken) if failing["count"] == 2 else domain, instances, rollouts
        )

    monkeypatch.setattr(hosted, "grade_local_rows", fail_once)
    train.train(ahead(lag=2), tmp_path)
    assert [row["grading_faults"] for row in rows(tmp_path)] == [0, 1, 0, 0, 0]
    assert [row["invalid"] for row in rows(tmp_path)][1] == 1.0


def test_a_checkpoint_of_one_batch_ahead_names_no_later_ones():
    program = make_program(ahead(lag=1))
    assert program.carry.later is None
    assert program.early is None
    assert len(make_program(ahead()).carry.later) == LAG - 1
    assert state_of(program.carry) is program.carry.state
    assert jax.tree.structure(program.carry).num_leaves < jax.tree.structure(make_program(ahead()).carry).num_leaves
