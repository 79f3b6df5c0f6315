"""Test the decoder against transformers: logits and greedy responses of the families, also beyond their windows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import LLAMA

from exit_jax.policy import decoder, prefill, sampler
from exit_jax.policy.choice import SamplingConfig

pytestmark = pytest.mark.parity

GEMMA = {"norms": "both", "norm_offset": True, "embedding_scaled": True, "activation": "gelu_pytorch_tanh"}
PLAIN = {"rope_type": "default", "rope_theta": 1000.0}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4}
# by class of theirs: our fields, and what says the same in their config, beside what ``random_model`` gives
FAMILIES = {
    "Llama": ({"head_dim": 10}, {}),  # not embed_dim / num_heads
    "Qwen2": (
        {"tie_embeddings": True, "qkv_bias": True, "layer_windows": (0, 4, 4)},
        WINDOWS | {"max_window_layers": 1},
    ),
    "Qwen3": ({"tie_embeddings": True, "head_dim": 10, "qk_norm": True}, {}),
    "Gemma3": (
        {"tie_embeddings": True, "head_dim": 10, "qk_norm": True, "layer_windows": (4, 4, 0), "rope_local_theta": 50.0}
        | {"query_scalar": 12.0, "logits_cap": 5.0}
        | GEMMA,
        {"sliding_window": 4, "sliding_window_pattern": 3, "query_pre_attn_scalar": 12, "final_logit_softcapping": 5.0}
        | {"rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN | {"rope_theta": 50.0}}},
    ),
    "Olmo2": ({"head_dim": 8, "qk_norm": True, "qk_norm_whole": True, "norms": "after"}, {}),
    "SmolLM3": ({"no_rope_layers": (1,)}, {"no_rope_layers": [1, 0, 1]}),
    "Qwen3Moe": (
        {"head_dim": 10, "qk_norm": True, "num_experts": 5, "experts_per_token": 2, "experts_renormalised": True},
        {"num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": 40},
    ),
    "Mistral": ({"layer_windows": (4, 4, 4)}, {"sliding_window": 4}),
}
MODULES = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "attention_out_norm": "post_attention_layernorm",
    "mlp_in_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "router": "mlp.gate",
}
LENGTH_B = np.array([7, 1, 4])
PROMPT_BP = np.random.default_rng(0).integers(31, size=(3, 7))


def policy(**family):
    shape = {"vocab_size": 31, "num_layers": 3, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 40}
    variant = {"rope_theta": 1000.0, "norm_eps": 1e-5, "qkv_bias": False, "qk_norm": False, "tie_embeddings": False}
    return dataclasses.replace(LLAMA, **{**shape, **variant, **family})


def random_model(torch, transformers, name, c, theirs):
    """Return their model of our config, with random numbers also where norms start at 1 and biases at 0."""
    config = getattr(transformers, f"{name}ForCausalLM").config_class(
        vocab_size=c.vocab_size,
        num_hidden_layers=c.num_layers,
        hidden_size=c.embed_dim,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        intermediate_size=c.mlp_dim,
        rms_norm_eps=c.norm_eps,
        tie_word_embeddings=c.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **({"rope_parameters": PLAIN} | theirs),
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    rng = np.random.default_rng(1)
    for weight in model.parameters():
        weight.requires_grad_(False).copy_(torch.tensor(rng.normal(0.2, 0.5, weight.shape)))
    return model


def convert(c, theirs):
    """Return our parameters from the arrays of their state dict, each of which must be used."""
    theirs = dict(theirs)

    def find(path, leaf):
        *modules, kind = (key.key for key in path)
        if not modules:  # the embedding has no kinds
            modules = [kind]
        name = f"{MODULES[modules[-1]]}.{'bias' if kind == 'bias' else 'weight'}"
        layers = [f"model.layers.{i}.{name}" for i in range(c.num_layers)]
        if "experts" in modules:  # theirs holds gate and up together
            held = "down_proj" if modules[-1] == "down" else "gate_up_proj"
            array = np.stack([theirs[f"model.layers.{i}.mlp.experts.{held}"] for i in range(c.num_layers)])
            half = {"gate": slice(None, c.mlp_dim), "up": slice(c.mlp_dim, None)}.get(modules[-1], slice(None))
            return jnp.asarray(array[:, :, half].swapaxes(-1, -2))
        array = np.stack([theirs.pop(layer) for layer in layers]) if modules[0] == "blocks" else theirs.pop(name)
        array = array.swapaxes(-1, -2) if kind == "kernel" else array
        assert array.shape == leaf.shape
        return jnp.asarray(array)

    params = jax.tree_util.tree_map_with_path(find, jax.eval_shape(lambda: decoder.init(c, jax.random.key(0))))
    theirs = {name for name in theirs if "experts" not in name}
    assert theirs == ({"lm_head.weight"} if c.tie_embeddings else set())
    return params


@pytest.fixture(
    scope="module",
    params=[name if name == "Qwen2" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def family(request, require_parity):
    """Return their model, our config and our parameters, which are the model's."""
    ours, theirs = FAMILIES[request.param]
    c = policy(**ours)
    model = random_model(*require_parity("torch", "transformers"), request.param, c, theirs)
    return model, c, convert(c, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def test_logits_are_theirs(family, require_parity):
    (torch,) = require_parity("torch")
    model, c, params = family
    theirs_BPV = model(torch.tensor(PROMPT_BP)).logits.numpy()
    read = jax.jit(lambda *args: decoder.logits(c, params, prefill.read_prompts(c, params, *args)[0]))
    for length in range(1, 8):
        ours_BV = read(PROMPT_BP, np.full(3, length))
        np.testing.assert_allclose(ours_BV, theirs_BPV[:, length - 1], rtol=0, atol=1e-4)
    assert theirs_BPV.std() > 0.5  # so that 1e-4 is small


@pytest.mark.parametrize("num_slots", [0, 1])
def test_greedy_responses_are_theirs(family, require_parity, num_slots):
    """Two rows a prompt, at once or one after the other in the same slots of the cache; up to 12 tokens after up to 7."""
    (torch,) = require_parity("torch")
    model, c, params = family

    def generate(row, **settings):
        prompt = torch.tensor(PROMPT_BP[row : row + 1, : LENGTH_B[row]])
        mask = torch.ones_like(prompt)
        whole = model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=12, **settings)
        return whole[0, LENGTH_B[row] :].numpy()

    stop = int(generate(0)[5])
    sampling = SamplingConfig(12, (stop,), temperature=0.0)
    sample = jax.jit(functools.partial(sampler.sample, c, sampling, 2, num_slots=num_slots))
    rollouts = sample(params, PROMPT_BP, LENGTH_B, jax.random.key(0))
    for row in range(3):
        theirs = generate(row, eos_token_id=stop, pad_token_id=0)
        for one in range(2):
            np.testing.assert_array_equal(rollouts.tokens[row, one][rollouts.mask[row, one]], theirs)
    assert rollouts.finished[0, 0]
