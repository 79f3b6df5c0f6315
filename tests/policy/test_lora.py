"""Test that all of an update is seen by whoever samples, learns or exports: it is never rounded into bfloat16 kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from small import LLAMA

from exit_jax.parallel import mesh as meshes
from exit_jax.policy import costs, decoder, sampler
from exit_jax.policy.choice import SamplingConfig
from exit_jax.policy.hf.export import export
from exit_jax.policy.shape import PROJECTIONS, LoraConfig
from exit_jax.step.policy import make_reshard

# wide enough for a product to sum over many weights, as of a real model
WIDE = dataclasses.replace(LLAMA, vocab_size=64, embed_dim=128, head_dim=32, mlp_dim=256, dtype="bfloat16")
LORA = dataclasses.replace(WIDE, param_dtype="bfloat16", lora=LoraConfig(8, 16.0, PROJECTIONS))
SAMPLING = SamplingConfig(max_tokens=12, stop_tokens=(), temperature=1.0)
PROMPT_BP = np.random.default_rng(0).integers(64, size=(16, 8))
LENGTH_B = np.full(16, 8)
MESH = meshes.make_mesh(meshes.MeshConfig(1, 1, 1))


def policy_with(step: float):
    """Return fresh parameters whose B has entries of ± ``step``, as after the first steps of Adam."""
    params = decoder.init(LORA, jax.random.key(0))
    sign = lambda x: step * jnp.sign(jax.random.normal(jax.random.key(x.size), x.shape))
    return jax.tree.map_with_path(lambda path, x: sign(x) if path[-1].key == "lora_b" else x, params)


def without(params):
    """Return parameters without adapters."""
    return decoder.split_adapters(params)[1]


def gap(config, params, int8=False) -> float:
    """Return the mean distance of the learner's log-probs from the sampler's."""

    @jax.jit
    def run(params, key):
        rollouts = sampler.sample(
            config, SAMPLING, 4, make_reshard(config, MESH, int8)(params), PROMPT_BP, LENGTH_B, key
        )
        cast = decoder.cast(params, config.dtype)
        logp, _ = sampler.logprobs(config, 1.0, 0, cast, PROMPT_BP, LENGTH_B, rollouts.tokens)
        return jnp.abs(logp - rollouts.logp).mean()

    return float(run(params, jax.random.key(1)))


def shift(config, params):
    """Return log-probs of fixed tokens as the sampler's copy computes them."""
    tokens = np.random.default_rng(2).integers(64, size=(16, 4, 24))

    @jax.jit
    def run(params):
        copy = make_reshard(config, MESH)(params)
        position = jnp.broadcast_to(jnp.arange(24), tokens.shape)
        hidden, _ = decoder.apply(config, copy, tokens, position, jnp.ones(tokens.shape, bool))
        return jax.nn.log_softmax(decoder.logits(config, copy, hidden), axis=-1)

    return np.asarray(run(params), np.float64)


def test_the_sampler_is_as_near_to_the_learner_as_without_adapters():
    """In bfloat16, and to the learner's own kernels where the sampler's are in int8."""
    plain, params = without(policy_with(0.0)), policy_with(5e-3)
    for int8 in (False, True):
        assert gap(LORA, params, int8) < 1.3 * gap(WIDE, plain, int8)


def test_the_sampler_sees_all_of_a_small_update():
    """Regress what an update does to log-probs in bfloat16 on what it does in float32: a slope of 1 within noise.

    Merged into bfloat16 kernels, of the same update .2 arrive.
    """
    exact = dataclasses.replace(LORA, dtype="float32", param_dtype="float32")
    wide = lambda params: decoder.cast(params, "float32")
    start, after = policy_with(0.0), policy_with(2e-4)
    true = shift(exact, wide(after)) - shift(exact, wide(start))
    seen = lambda config, params: shift(config, params) - shift(LORA, start)
    slope = lambda change: (change * true).sum() / (true * true).sum()
    assert abs(slope(seen(LORA, after)) - 1) < 0.2

    def merge(node):
        if not isinstance(node, dict):
            return node
        if "lora_a" not in node:
            return {name: merge(value) for name, value in node.items()}
        whole = decoder.merge(node["kernel"], node["lora_a"], node["lora_b"], LORA.lora.scale)
        return {"kernel": whole.astype(jnp.bfloat16)} | ({"bias": node["bias"]} if "bias" in node else {})

    plain = dataclasses.replace(LORA, lora=dataclasses.replace(LORA.lora, rank=0, targets=()))
    assert slope(seen(plain, merge(after))) < 0.85  # 0.77 measured: merged in bfloat16, a quarter of the update is lost


def test_an_update_is_added_before_the_output_is_rounded():
    """bfloat16 has steps of 2^-7 above 1: of 1 + 2^-8 - 2^-10 and an update of 2^-9 the sum is above the middle of a step."""
    module = decoder.Linear(2, 1, decoder.nnx.Rngs(0), lora=LoraConfig(1, 1.0, ("query",)))
    x = jnp.array([[1.0, 2.0**-8 - 2.0**-10]], jnp.bfloat16)
    for name, value in (("kernel", [[1.0], [1.0]]), ("lora_a", [[1.0], [0.0]]), ("lora_b", [[0.0]])):
        getattr(module, name).set_value(jnp.array(value))
    assert float(module(x)[0, 0]) == 1.0
    module.lora_b.set_value(jnp.array([[2.0**-9]]))  # as little as a bfloat16 of 1 would not change for
    assert float(module(x)[0, 0]) == 1.0 + 2.0**-7


@pytest.mark.parametrize("kernel", [0.0217, 1.7])
def test_merging_keeps_float32(kernel):
    rng = np.random.default_rng(0)
    whole, low, high = (
        kernel * rng.normal(size=(2, 48, 40)),
        rng.normal(size=(2, 48, 8)),
        1e-5 * rng.normal(size=(2, 8, 40)),
    )
    found = decoder.merge(jnp.bfloat16(whole), jnp.float32(low), jnp.float32(high), 2.0)
    assert found.dtype == jnp.float32
    exact = np.float64(jnp.bfloat16(whole)) + 2.0 * low @ high
    np.testing.assert_allclose(found, exact, rtol=2e-7, atol=1e-9)


def test_decoding_counts_the_adapters():
    """Rank 8 beside all projections of 2 layers: 2 · 8 (n + m) FLOPs each a token.

    Of a prompt's tokens, all but the last meet only those of keys and values in the second layer.
    """
    sizes = costs.projection_sizes(LORA)
    adapters = sum(2 * 2 * 8 * (n + m) for n, m in sizes.values())
    others = adapters // 2 - sum(2 * 8 * sum(sizes[name]) for name in ("key", "value"))
    assert costs.prefill_flops(LORA, 3, 5) - costs.prefill_flops(WIDE, 3, 5) == 3 * (5 * adapters - 4 * others)
    assert costs.decode_flops(LORA, 4, 5, 9) - costs.decode_flops(WIDE, 4, 5, 9) == 4 * 8 * adapters
    assert costs.forward_flops(LORA, 1, 2, 5, 9) - costs.forward_flops(WIDE, 1, 2, 5, 9) == (5 + 2 * 9) * adapters


def test_export_merges_in_float32(tmp_path):
    """A float32 file holds kernels of bfloat16 with all of an update that is a hundredth of their step."""
    params = policy_with(2e-5)
    export(params, LORA, tmp_path / "out", None, "float32")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for part, name, theirs in (("attention", "query", "self_attn.q_proj"), ("mlp", "down", "mlp.down_proj")):
        leaf = jax.tree.map(lambda x: np.float64(x[1]), params["blocks"][part][name])
        found = stored[f"model.layers.1.{theirs}.weight"].T
        learnt = 2.0 * leaf["lora_a"] @ leaf["lora_b"]
        np.testing.assert_allclose(found - leaf["kernel"], learnt, atol=3e-8)
        assert np.abs(learnt).max() > 1e-5
    assert stored["model.embed_tokens.weight"].dtype == np.float32
