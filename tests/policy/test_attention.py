"""Attention: the kernels against one plain reference, alone and in the whole decoder, with gradients and on a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import LLAMA, random_params

from exit_jax.parallel import mesh as meshes
from exit_jax.policy import attention, sampler
from exit_jax.policy.cache import LayerCache, causal_mask, prompt_within_window, view, within_window

B, G, S, P, K, R, H = 2, 2, 10, 6, 2, 2, 8  # the last: size of a head
LENGTH_B = np.array([6, 2])
KERNELS = ("cudnn", "splash_interpret")  # off a GPU, the former is the same call of jax.nn with XLA behind it


def arrays(prompt: bool):
    rng = np.random.default_rng(0)
    new = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    query, key, value = new(B, G, S, K * R, H), new(B, G, K, S, H), new(B, G, K, S, H)
    shared = (new(B, K, P, H), new(B, K, P, H)) if prompt else (None, None)
    return query, key, value, shared


def reference(query, key, value, shared, window=0, scale=H**-0.5, cap=0.0):
    """Attend one query at a time, in float64."""
    out = np.zeros(query.shape)
    for b, g, s, head in np.ndindex(B, G, S, K * R):
        kv = head // R
        seen_keys, seen_values = key[b, g, kv, : s + 1], value[b, g, kv, : s + 1]
        if shared[0] is not None:
            seen_keys = np.concatenate([shared[0][b, kv, : LENGTH_B[b]], seen_keys])
            seen_values = np.concatenate([shared[1][b, kv, : LENGTH_B[b]], seen_values])
        seen_keys, seen_values = seen_keys[-window:], seen_values[-window:]  # all of them for 0
        score = np.asarray(seen_keys, np.float64) @ np.asarray(query[b, g, s, head], np.float64) * scale
        score = cap * np.tanh(score / cap) if cap else score
        weight = np.exp(score - score.max())
        out[b, g, s, head] = weight @ np.asarray(seen_values, np.float64) / weight.sum()
    return out


def attend(kernel, query, key, value, shared, window=0, scale=0.0, cap=0.0):
    mask = jnp.ones((B, G, S), bool)
    prompt = shared[0] is not None
    prompt_mask = jnp.arange(P)[None] < LENGTH_B[:, None] if prompt else None
    cache = LayerCache(*shared, key, value)
    if kernel == "grouped":
        seen = causal_mask(mask, 0, S)
        if window:
            position = np.arange(S) + np.broadcast_to(LENGTH_B[:, None, None] if prompt else 0, (B, G, S))
            new = view(mask, 0, position)
            seen &= within_window(new, window)
            prompt_mask = prompt_within_window(new, window, prompt_mask) if prompt else None
        return attention.grouped(query, cache, prompt_mask, seen, scale, cap)
    return attention.flash(kernel, query, cache, prompt_mask, mask, window, scale, cap)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("kernel", ["grouped", *KERNELS])
def test_kernels_equal_the_reference(kernel, prompt):
    inputs = arrays(prompt)
    np.testing.assert_allclose(attend(kernel, *inputs), reference(*inputs), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", ["grouped", *KERNELS])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize(("window", "scale", "cap"), [(4, 0.0, 0.0), (1, 0.7, 0.0), (9, 0.5, 2.0)])
def test_windows_scales_and_caps_are_the_references(kernel, prompt, window, scale, cap):
    if kernel == "cudnn" and cap:
        pytest.skip("cuDNN bounds no scores, and is not chosen where they are")
    inputs, how = arrays(prompt), {"window": window, "scale": scale or H**-0.5, "cap": cap}
    np.testing.assert_allclose(attend(kernel, *inputs, **how), reference(*inputs, **how), rtol=0, atol=4e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_kernels_are_those_of_grouped(kernel):
    direction = np.random.default_rng(1).normal(size=(B, G, S, K * R, H))
    grad = lambda kernel: jax.grad(lambda inputs: (attend(kernel, *inputs) * direction).sum())(arrays(True))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5), grad(kernel), grad("grouped"))


@pytest.mark.parametrize("windows", [(), (4, 0)], ids=["all", "window"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [None, (2, 1, 2)], ids=["one device", "2x1x2"])
def test_the_learner_is_the_same_with_every_kernel(kernel, shape, windows):
    rng = np.random.default_rng(2)
    prompt, tokens = rng.integers(17, size=(2, P)), rng.integers(17, size=(2, 2, S))
    mesh = meshes.make_mesh(meshes.MeshConfig(*shape)) if shape else None

    def loss(attention, params):
        config = dataclasses.replace(LLAMA, attention=attention, layer_windows=windows)
        arrays = jnp.asarray(prompt), jnp.asarray(LENGTH_B), jnp.asarray(tokens)
        if mesh is None:
            return sampler.logprobs(config, 1.0, 0, params, *arrays)[0].mean()
        with meshes.use(mesh):
            return sampler.logprobs(config, 1.0, 0, params, *meshes.shard_batch(mesh, arrays))[0].mean()

    run = lambda attention: jax.jit(jax.value_and_grad(functools.partial(loss, attention)))(random_params(LLAMA))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), run(kernel), run("xla"))


def test_auto_is_the_platforms_kernel():
    chosen = [attention.resolve("auto", platform, "bfloat16") for platform in ("cpu", "gpu", "tpu")]
    assert chosen == ["xla", "cudnn", "splash"]
    assert attention.resolve("auto", "gpu", "float32") == "xla"  # cuDNN has no kernel for it
    assert attention.resolve("auto", "gpu", "bfloat16", 50.0) == "xla"  # nor one that bounds scores
    assert attention.resolve("xla", "tpu", "bfloat16") == "xla"
