"""What families add to the decoder, through all that computes it: meshes, int8, the learner's log-probs and a server's rows."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small import LLAMA, random_params

from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder, sampler
from exit_jax.policy.choice import SamplingConfig
from exit_jax.serve.engine import Cuts, Engine
from exit_jax.step.policy import make_reshard

POLICY = dataclasses.replace(LLAMA, vocab_size=11, tie_embeddings=False)
GEMMA = dataclasses.replace(
    POLICY,
    **{"qk_norm": True, "layer_windows": (3, 0), "rope_local_theta": 10.0, "attention_cap": 5.0, "logits_cap": 4.0},
    **{"norms": "both", "norm_offset": True, "embedding_scaled": True, "activation": "gelu_pytorch_tanh"},
)
EXPERTS = dataclasses.replace(POLICY, num_experts=3, experts_per_token=2, experts_renormalised=True)
SAMPLING = SamplingConfig(max_tokens=6, stop_tokens=(7,), temperature=0.7)
LENGTH_B = np.array([5, 1, 3, 2])
PROMPT_BP = np.random.default_rng(0).integers(11, size=(4, 5))
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("config", "int8"),
    [
        slow(GEMMA, False, id="gemma"),
        slow(GEMMA, True, id="gemma int8"),
        slow(EXPERTS, False, id="experts"),
        pytest.param(EXPERTS, True, id="experts int8"),
    ],
)
def test_a_family_is_the_same_on_a_mesh(config, int8):
    """Sampled from the sampler's copy, split over heads and MLPs, and scored by the learner's parameters, split over both."""
    values = random_params(config, seed=1)
    mesh = meshes.make_mesh(meshes.MeshConfig(1, 2, 2))
    where = meshes.shardings(mesh, decoder.logical_axes(values), values, meshes.LEARNER)

    def run(mesh, params, prompt, length):
        key = jax.random.key(5)
        with meshes.use(mesh):
            prompt, length = meshes.shard_batch(mesh, (prompt, length))
            rollouts = sampler.sample(
                config, SAMPLING, 2, make_reshard(config, mesh, int8)(params), prompt, length, key
            )

            def score(params):
                logp, _ = sampler.logprobs(config, 0.7, 0, params, prompt, length, rollouts.tokens)
                return (logp * rollouts.mask).sum(), logp

            return rollouts, *jax.grad(score, has_aux=True)(params)

    on = lambda mesh, params: jax.jit(functools.partial(run, mesh))(params, PROMPT_BP, LENGTH_B)
    one = on(meshes.make_mesh(meshes.MeshConfig(1, 1, 1)), values)
    many = on(mesh, jax.device_put(values, where))
    np.testing.assert_array_equal(one[0].tokens, many[0].tokens)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), one[1:], many[1:])
    if not int8:
        np.testing.assert_allclose(np.where(one[0].mask, one[2] - one[0].logp, 0.0), 0.0, atol=1e-5)


@pytest.mark.parametrize("config", [slow(GEMMA, id="gemma"), pytest.param(EXPERTS, id="experts")])
def test_a_server_samples_what_the_sampler_does(config):
    greedy = dataclasses.replace(SAMPLING, temperature=0.0)
    params, mesh = random_params(config, seed=1), meshes.make_mesh(meshes.MeshConfig(1, 1, 1))
    wanted = jax.jit(functools.partial(sampler.sample, config, greedy, 1))(
        params, PROMPT_BP, LENGTH_B, jax.random.key(0)
    )
    engine = Engine(config, greedy, params, mesh, 2, 16, 8)
    for row in range(2):
        prompt = PROMPT_BP[row, : LENGTH_B[row]]
        engine.admit(row, prompt, Cuts(temperature=0.0), 6, np.zeros(2, np.uint32))
    found = engine.step(np.ones(2, bool))
    for row in range(2):
        tokens = np.asarray(wanted.tokens[row, 0])[np.asarray(wanted.mask[row, 0])]
        np.testing.assert_array_equal(found.tokens[row, : len(tokens)], tokens)
        assert found.count[row] == len(tokens)
