"""Groups in the places of others, and rounds, in runs: on all meshes, from where a round begins, at what rate."""

import dataclasses

import jax
import numpy as np
import pytest
from test_train import leaves, rows, smoke

from exit_jax import domains
from exit_jax.parallel import mesh as meshes
from exit_jax.step.device import Constants, DeviceSteps
from exit_jax.step.program import make_program
from exit_jax.training import train
from exit_jax.training.start import initial_params

RATES = {"optimizer.learning_rate": 8e-4, "optimizer.warmup_steps": 8}


@pytest.mark.slow
@pytest.mark.parametrize("word", ["regroup", "restem"])
def test_one_step_agrees_on_all_meshes(word):
    changes = {"algorithm.right_at": 0.05, "algorithm.num_epochs": 1 + (word == "restem")}
    changes |= {"algorithm.rounds.iterations": 1} if word == "restem" else {}
    config = smoke(f"variant=exit-{word}", changes | {"warm_start.num_steps": 0})
    domain = domains.make(config.domain_name, config.domain)
    state, constants = make_program(config).init(initial_params(config), 0), Constants(domain.tasks("train"), None)
    one = DeviceSteps(config, domain, make_program(config).mesh, constants)
    instances, key = jax.jit(one.select)(state)
    rollouts = jax.jit(one.rollout)(state.params, instances, key)
    grades = jax.jit(domain.grade)(instances, rollouts)  # of a random policy: some groups are made to differ
    quality = np.where(np.arange(grades.quality.shape[0])[:, None] % 3, 0.0, np.arange(grades.quality.shape[1]) % 2)
    grades = dataclasses.replace(grades, quality=np.float32(quality), valid=np.ones_like(quality, bool))
    outcomes = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        run = dataclasses.replace(config.run, mesh=meshes.MeshConfig(*shape))
        program = make_program(dataclasses.replace(config, run=run))
        arguments = jax.device_put((instances, rollouts, grades), meshes.replicated(program.mesh))
        where = jax.tree.map(lambda leaf: leaf.sharding, program.state)
        if word == "restem":
            assert where.initial == where.params, "as the parameters are split"
        learn = jax.jit(DeviceSteps(config, domain, program.mesh, constants).learn, out_shardings=(where, None))
        outcomes.append(learn(jax.device_put(state, where), *arguments))
    (state, metrics), (other, other_metrics) = outcomes
    assert metrics["params_moved"] > 0.5
    for a, b in zip(leaves(state.params), leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    if word == "regroup":
        assert 0 < metrics["regroup/replaced"] < 1
        np.testing.assert_array_equal(state.regroup.groups.prompt, other.regroup.groups.prompt)
    for name in ("loss", "grad_norm", *(name for name in metrics if name.startswith(("pool/", "regroup/")))):
        np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("restart", ["base", "last"])
def test_where_a_round_begins_and_at_what_rate(restart, tmp_path):
    changes = {
        "algorithm.right_at": 0.05,
        "algorithm.rounds.iterations": 2,
        "algorithm.rounds.restart": restart,
        "algorithm.num_epochs": 3,
    }
    config = smoke("variant=grpo-restem", changes | RATES, num_iterations=4, steps_per_call=1, checkpoint_every=1)
    assert config.algorithm.right_kept == 10
    sampled = dataclasses.replace(config, run=dataclasses.replace(config.run, num_iterations=1))
    before, _ = train.train(sampled, tmp_path)
    after, _ = train.train(config, tmp_path)
    if restart == "base":
        for a, b in zip(leaves(before.params), leaves(after.initial), strict=True):
            np.testing.assert_array_equal(a, b)
    else:
        assert before.initial is after.initial is None
    B, found, updates, rates = config.algorithm.num_prompts, rows(tmp_path), 0, []
    newest = lambda: np.mean([min(8, max(updates - 3, 0) + epoch) for epoch in range(3)]) * 1e-4
    for first, second in (found[:2], found[2:]):
        assert first["params_moved"] == 0
        assert second["params_moved"] > 0.5
        rates.append(newest())  # before any update, or those of the round before
        batches = -(-round(B * (first["admitted"] + second["admitted"])) // B)
        updates = 3 * batches + (updates if restart == "last" else 0)
        rates.append(newest())
    np.testing.assert_allclose([row["learning_rate"] for row in found], rates, rtol=1e-5)
    assert updates >= (3 if restart == "base" else 6)
