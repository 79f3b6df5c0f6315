"""Test checkpoints against transformers and PEFT: written by them and read by us, and the other way round."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from exit_jax.policy import decoder, sampler
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf import names
from exit_jax.policy.hf.export import export, export_adapter
from exit_jax.policy.hf.load import load
from exit_jax.policy.shape import PROJECTIONS, DecoderConfig, LoraConfig

pytestmark = pytest.mark.parity

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,  # so that the tests' positions are far beyond
}
PLAIN = {"rope_type": "default", "rope_theta": 1000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "original_max_position_embeddings": 16,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 9}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
LOCAL = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = MIXTRAL | {"moe_intermediate_size": 24}
FAMILIES = {
    "llama3-tied": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama": ("Llama", {"rope_parameters": PLAIN, "head_dim": 10}),  # head_dim is not hidden_size / num_attention_heads
    "qwen2": ("Qwen2", {"rope_parameters": PLAIN, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"rope_parameters": PLAIN, "head_dim": 10}),
    "mistral": ("Mistral", {"rope_parameters": PLAIN, "sliding_window": None}),
    "mistral-window": ("Mistral", {"rope_parameters": PLAIN, "sliding_window": 7}),
    "qwen2-window": ("Qwen2", {"rope_parameters": PLAIN, **WINDOW, "max_window_layers": 2}),
    "qwen3-window-yarn": ("Qwen3", {"rope_parameters": YARN, **WINDOW, "layer_types": KINDS}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}}),
    "gemma3": (
        "Gemma3",
        {
            "rope_parameters": LOCAL,
            "sliding_window": 7,
            "layer_types": KINDS,
            "head_dim": 10,
            "query_pre_attn_scalar": 5,
        },
    ),
    "gemma2": (
        "Gemma2",
        {"rope_parameters": PLAIN, "sliding_window": 9, "head_dim": 10, "query_pre_attn_scalar": 12}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0},
    ),
    "olmo2": ("Olmo2", {"rope_parameters": PLAIN}),
    "smollm3": ("SmolLM3", {"rope_parameters": PLAIN, "no_rope_layers": [1, 0, 1]}),
    "qwen3-moe": ("Qwen3Moe", {"rope_parameters": PLAIN, "head_dim": 10, "norm_topk_prob": True, **EXPERTS}),
    "qwen3-moe-shares": ("Qwen3Moe", {"rope_parameters": PLAIN, **EXPERTS, **WINDOW}),
    "mixtral": ("Mixtral", {"rope_parameters": PLAIN, **MIXTRAL}),
    "llama-linear": ("Llama", {"rope_parameters": PLAIN | {"rope_type": "linear", "factor": 4.0}}),
}
SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 4096,
}
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # torch learns no embedding of a pad token
NO_LORA = LoraConfig(0, 1.0, ())
TOKENS_BS = np.random.default_rng(0).integers(48, size=(2, 40))
STARTS = (0, 3000)  # of positions


# between them scaled positions, tied embeddings, norms, a head_dim of their own, layers with and without a window
FAST = ("llama3-tied", "qwen3-window-yarn", "gemma3", "qwen3-moe")


@pytest.fixture(
    scope="module",
    params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def checkpoint(request, require_parity, tmp_path_factory):
    """Return (their float32 model, the folder that they wrote, in several files), with random norms and biases too."""
    torch, transformers = require_parity("torch", "transformers")
    name, fields = FAMILIES[request.param]
    config = getattr(transformers, f"{name}ForCausalLM").config_class(**(SHAPE | NO_TOKENS | fields))
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    rng, of_norms = np.random.default_rng(1), 0.0 if name.startswith("Gemma") else 1.0
    for parameter in model.parameters():
        mean, std = (of_norms, 0.3) if parameter.ndim == 1 else (0.0, 2.0 * parameter.shape[-1] ** -0.5)
        parameter.requires_grad_(False).copy_(torch.tensor(rng.normal(mean, std, parameter.shape)))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return model, folder


def make_config(folder, dtype="float32", lora=NO_LORA):
    how = {"attention": "xla", "remat": "none", "unroll_layers": False, "decode_stages": 1}
    return DecoderConfig(**hf_config.read(folder), dtype=dtype, param_dtype=dtype, **how, lora=lora)


def load_on_mesh(folder, config):
    """Load with matrices split four by two over the 8 devices, and the rest copied."""
    grid = jax.make_mesh((4, 2), ("fsdp", "tensor"), (AxisType.Auto,) * 2)

    def place(path, leaf):
        split = {"kernel": ("fsdp", "tensor"), "embedding": ("fsdp", "tensor")}.get(path[-1].key, ())
        return NamedSharding(grid, PartitionSpec(*(None,) * (leaf.ndim - len(split)), *split))

    return load(folder, config, jax.tree.map_with_path(place, jax.eval_shape(functools.partial(init, config))))


def init(config):
    return decoder.init(config, jax.random.key(0))


def our_logits(config, params, start=0):
    """Return float32 [B, S, V] of TOKENS_BS at positions that begin at ``start``."""
    tokens = TOKENS_BS[:, None]
    positions = np.broadcast_to(start + np.arange(tokens.shape[-1], dtype=np.int32), tokens.shape)

    @jax.jit
    def run(params):
        hidden, _ = decoder.apply(config, params, tokens, positions, jnp.ones(tokens.shape, bool))
        return decoder.logits(config, params, hidden)

    return np.asarray(run(params))[:, 0]


def their_logits(torch, model, start=0):
    with torch.no_grad():
        positions = torch.arange(start, start + TOKENS_BS.shape[1]).expand(*TOKENS_BS.shape)
        return model(torch.tensor(TOKENS_BS), position_ids=positions).logits.float().numpy()


@pytest.mark.parametrize("start", STARTS)
def test_logits_are_theirs(checkpoint, require_parity, start):
    (torch,) = require_parity("torch")
    model, folder = checkpoint
    config = make_config(folder)
    theirs = their_logits(torch, model, start)
    np.testing.assert_allclose(our_logits(config, load_on_mesh(folder, config), start), theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 1  # so that 1e-4 is small
    if config.rope_scaling:  # and the scaling matters there
        unscaled = dataclasses.replace(config, rope_scaling=())
        assert np.abs(our_logits(unscaled, load_on_mesh(folder, config), start) - theirs).max() > 0.1
    if config.layer_windows:  # and so do the windows
        unbounded = dataclasses.replace(config, layer_windows=())
        assert np.abs(our_logits(unbounded, load_on_mesh(folder, config), start) - theirs).max() > 0.1


def split_expert(name, i, array):
    """Yield the names in checkpoints, and the arrays, of what one expert has of a parameter of theirs."""
    prefix, _, kind = name.rpartition("experts.")
    for part, half in zip(("gate_proj", "up_proj"), np.split(array, 2)) if "gate" in kind else [("down_proj", array)]:
        yield f"{prefix}experts.{i}.{part}.weight", half


def test_gradients_are_theirs(checkpoint, require_parity):
    """Of the log-probs of responses to prompts of unequal length, which the learner reads once for two rows."""
    (torch,) = require_parity("torch")
    model, folder = checkpoint
    config = make_config(folder)
    prompt, length, own = (
        TOKENS_BS[:, :20],
        np.array([20, 13]),
        np.stack([TOKENS_BS[:, 20:], TOKENS_BS[:, :20]], axis=1),
    )

    def loss(params):
        return sampler.logprobs(config, 1.0, 0, params, prompt, length, own)[0].mean()

    grads = jax.jit(jax.grad(loss))(load_on_mesh(folder, config))
    model.requires_grad_(True).zero_grad()
    for row, one in np.ndindex(2, 2):
        tokens = torch.tensor([*prompt[row, : length[row]], *own[row, one]])
        logp = model(tokens[None]).logits[0].log_softmax(-1)[:-1].gather(-1, tokens[1:, None])[-20:]
        (logp.mean() / 4).backward()
    wanted = {}
    for name, parameter in model.named_parameters():
        parts = {name: parameter.grad.numpy()}
        if "experts" in name:  # which they hold together, and checkpoints do not
            parts = {key: one for i in range(4) for key, one in split_expert(name, i, parts[name][i])}
        wanted |= parts
    model.requires_grad_(False)
    found = {}
    for path, leaf in names.flatten(grads).items():
        for index, name in names.tensors(config, path, leaf.shape):
            name = name.replace("block_sparse_moe", "mlp").replace(".w1", ".gate_proj").replace(".w3", ".up_proj")
            name = name.replace(".w2", ".down_proj")
            found[name] = np.asarray(leaf[index]).T if names.is_transposed(path) else np.asarray(leaf[index])
    assert found.keys() == wanted.keys()
    worst = max(np.linalg.norm(found[name] - wanted[name]) / np.linalg.norm(wanted[name]) for name in wanted)
    print(f"largest distance of a gradient: {worst:.1e} of its norm")
    assert worst < 1e-4


def test_bfloat16_is_as_near_as_theirs(checkpoint, require_parity):
    """Distance to their float32 logits, root mean square: at most 1.25 times that of their own bfloat16.

    Measured: 0.010 to 0.035 standard deviations of the logits, 0.72 to 0.92 times theirs. With experts, that of the median
    token: rounding sends some tokens, of ours as of theirs, to another expert, whose logits are others altogether.
    """
    torch, transformers = require_parity("torch", "transformers")
    model, folder = checkpoint
    theirs = their_logits(torch, model)
    rounded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = make_config(folder, "bfloat16")
    mean = (lambda square: np.median(square.mean(-1))) if config.num_experts else np.mean
    rms = lambda logits: np.sqrt(mean((logits - theirs) ** 2)) / theirs.std()
    ours, peers = rms(our_logits(config, load_on_mesh(folder, config))), rms(their_logits(torch, rounded))
    print(f"bfloat16: rms error / std of logits {ours:.4f}, theirs {peers:.4f}")
    assert ours < 1.25 * peers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_bitwise(checkpoint, require_parity, tmp_path, dtype):
    torch, transformers = require_parity("torch", "transformers")
    _, folder = checkpoint
    read = functools.partial(transformers.AutoModelForCausalLM.from_pretrained, dtype="auto")
    if dtype == "bfloat16":
        read(folder).bfloat16().save_pretrained(tmp_path / "in")
        folder = tmp_path / "in"
    config = make_config(folder, dtype)
    export(load_on_mesh(folder, config), config, tmp_path / "out", folder, dtype, max_shard_bytes=20_000)
    left, right = read(folder), read(tmp_path / "out")
    assert right.dtype == getattr(torch, dtype)
    theirs, ours = left.state_dict(), right.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    np.testing.assert_array_equal(their_logits(torch, left), their_logits(torch, right))
    without_dtype = lambda path: {k: v for k, v in json.loads(path.read_text()).items() if "dtype" not in k}
    assert without_dtype(tmp_path / "out" / "config.json") == without_dtype(folder / "config.json")


def test_export_without_a_source(checkpoint, require_parity, tmp_path):
    torch, transformers = require_parity("torch", "transformers")
    model, folder = checkpoint
    config = make_config(folder)
    export(load_on_mesh(folder, config), config, tmp_path / "out", None, "float32")
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for start in STARTS:
        np.testing.assert_allclose(
            their_logits(torch, ours, start), their_logits(torch, model, start), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("targets", [pytest.param(("query", "value"), marks=pytest.mark.slow), PROJECTIONS])
def test_adapters_in_peft(checkpoint, require_parity, tmp_path, targets):
    torch, transformers, peft = require_parity("torch", "transformers", "peft")
    _, folder = checkpoint
    if make_config(folder).num_experts:  # whose kernels have no adapters
        targets = tuple(name for name in targets if name in ("query", "key", "value", "out"))
    config = make_config(folder, lora=LoraConfig(4, 6.0, targets))
    adapters, _ = decoder.split_adapters(init(config))
    noise = lambda x: x + 0.1 * np.random.default_rng(x.size).normal(size=x.shape).astype(x.dtype)  # lora_b begins at 0
    params = decoder.join(load_on_mesh(folder, config), jax.tree.map(noise, adapters))
    ours = our_logits(config, params)
    export_adapter(params, config, tmp_path / "adapter", str(folder))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    before = their_logits(torch, base)
    theirs = their_logits(torch, peft.PeftModel.from_pretrained(base, tmp_path / "adapter"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert np.abs(theirs - before).max() > 0.1
    export(params, config, tmp_path / "merged", folder, "float32")
    whole = their_logits(torch, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    np.testing.assert_allclose(ours, whole, rtol=0, atol=1e-4)
