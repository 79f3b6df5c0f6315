"""Objectives of the field in whole runs: exact resume of their state, devices, one batch late, and every method by its word."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_sudoku
from test_train import assert_same, leaves, rows, smoke

from exit_jax import domains
from exit_jax.config import variants
from exit_jax.config.methods import METHODS
from exit_jax.config.parse import validate
from exit_jax.parallel import mesh as meshes
from exit_jax.step.device import Constants, DeviceSteps
from exit_jax.step.program import make_program
from exit_jax.training import train
from exit_jax.training.start import initial_params
from exit_jax.workdir.metrics import read_jsonl

# all that has a state, a key or a program of its own, at once
EVERYTHING = {
    "algorithm.objective": "ail",
    "algorithm.advantage_norm": "ema",
    "algorithm.baseline_decay": 0.8,
    "algorithm.clip_cov_share": 0.1,
    "algorithm.clip_cov_band": (0.0, 40.0),
    "algorithm.self_distillation": 0.3,
    "algorithm.right_at": 0.5,
    "run.num_microbatches": 2,
    "run.steps_per_call": 1,
    "run.checkpoint_every": 2,
}
LATE = {"domain.on_host": True, "algorithm.rollout_lag": 1}
OURS = [word for word, method in METHODS.items() if method.mechanism == "objective"]


@pytest.mark.parametrize(
    "changes", [{}, pytest.param(LATE, marks=pytest.mark.slow)], ids=["on_device", "one_batch_late"]
)
def test_the_running_baseline_resumes_exactly(tmp_path, changes):
    config = smoke(changes=EVERYTHING | changes, num_iterations=4)
    half = dataclasses.replace(config, run=dataclasses.replace(config.run, num_iterations=2))
    whole, _ = train.train(config, tmp_path / "whole")
    first, _ = train.train(half, tmp_path / "parts")
    resumed, _ = train.train(config, tmp_path / "parts")
    assert 0 < float(first.baseline[0]) < 1
    assert (np.asarray(resumed.baseline) != np.asarray(first.baseline)).any()
    assert_same(whole, resumed)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    for row in rows(tmp_path / "whole"):
        assert row["teacher/informed"] > 0
        assert row["teacher/advantage"] > 0
        assert row["clip_cov_fraction"] > 0
    last = rows(tmp_path / "whole")[-1]
    recorded = [last[f"baseline/{mode}"] for mode in ("base", "improve", "diverge")]
    np.testing.assert_allclose(recorded, resumed.baseline, rtol=1e-5)


@pytest.mark.slow
def test_one_step_of_everything_agrees_on_all_meshes():
    config = smoke(changes=EVERYTHING)
    domain = domains.make(config.domain_name, config.domain)
    state, constants = make_program(config).init(initial_params(config), 0), Constants(domain.tasks("train"), None)
    one = DeviceSteps(config, domain, make_program(config).mesh, constants)
    instances, key = jax.jit(one.select)(state)
    rollouts = jax.jit(one.rollout)(state.params, instances, key)
    grades = jax.jit(domain.grade)(instances, rollouts)
    outcomes = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        run = dataclasses.replace(config.run, mesh=meshes.MeshConfig(*shape))
        program = make_program(dataclasses.replace(config, run=run))
        arguments = jax.device_put((instances, rollouts, grades), meshes.replicated(program.mesh))
        where = jax.tree.map(lambda leaf: leaf.sharding, program.state)
        learn = jax.jit(DeviceSteps(config, domain, program.mesh, constants).learn, out_shardings=(where, None))
        outcomes.append(learn(jax.device_put(state, where), *arguments))
    (state, metrics), (other, other_metrics) = outcomes
    np.testing.assert_allclose(state.baseline, other.baseline, rtol=1e-6)
    for a, b in zip(leaves(state.params), leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for name in ("loss", "grad_norm", "clip_cov_fraction", "teacher/informed", "teacher/advantage"):
        np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("word", OURS)
def test_a_run_learns_by_every_method(tmp_path, word):
    content = tiny_sudoku.get_config("variant=exit")
    variants.apply(content, f"exit-{word}")
    content.algorithm.right_at = 0.01  # hardly any grid of so small a policy is right throughout
    content.run.mesh.data, content.run.num_iterations = 1, 10
    train.train(validate(content, jax.device_count()), tmp_path)
    found = read_jsonl(tmp_path / "train.jsonl")
    assert len(found) == 10
    assert all(np.isfinite([row["loss"], row["grad_norm"], row["entropy"]]).all() for row in found)
    assert max(row["params_moved"] for row in found) > 0.5
