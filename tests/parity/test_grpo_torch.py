"""The learner's log-probs, loss and gradients of all parameters against torch autograd on the same checkpoints, in float32.

The GRPO loss is written out in torch, over one row of prompt and response for each rollout, ragged and padded on the right.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm import grpo
from exit_jax.policy import decoder, sampler
from exit_jax.policy.decoder import DecoderConfig, LoraConfig
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf.load import load
from exit_jax.policy.hf.names import flatten, is_transposed, tensors
from exit_jax.types import Instances, Rollouts

pytestmark = pytest.mark.parity

B, G, P, T, V = 2, 3, 7, 6, 48
PROMPT_LENGTH_B = np.array([7, 3])
LENGTH_BG = np.array([[6, 1, 4], [3, 6, 2]])
REWARD_BG = np.array([[1.0, 0.0, 0.25], [0.5, 0.5, 0.0]])
TEMPERATURE, CLIP_LOW, CLIP_HIGH, BETA, EPS = 0.8, 0.2, 0.28, 0.04, 1e-6
FAMILIES = {"Llama": {"tie_word_embeddings": False}, "Qwen2": {"tie_word_embeddings": True}}
SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
}


@pytest.fixture(
    scope="module",
    params=[name if name == "Qwen2" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def checkpoints(request, require_parity, tmp_path_factory):
    """Return two of their models, the policy and the reference, and the folders that they wrote."""
    torch, transformers = require_parity("torch", "transformers")
    rng = np.random.default_rng(1)
    rope = {"rope_type": "default", "rope_theta": 1000.0}
    config = getattr(transformers, f"{request.param}Config")(
        **SHAPE, **FAMILIES[request.param], rope_parameters=rope, bos_token_id=None, eos_token_id=None
    )
    policy, reference = (getattr(transformers, f"{request.param}ForCausalLM")(config).float() for _ in range(2))
    folders = []
    for model, other in ((policy, None), (reference, policy)):
        others = other.parameters() if other else [None] * len(list(model.parameters()))
        for parameter, base in zip(model.parameters(), others):
            mean, std = (1.0, 0.3) if parameter.ndim == 1 else (0.0, parameter.shape[-1] ** -0.5)
            noise = torch.tensor(rng.normal(mean, std, parameter.shape), dtype=torch.float32)
            # the reference is near, so that the KL term is not all exp(x)
            parameter.data.copy_(noise if base is None else 0.95 * base.data + 0.05 * noise)
        folders.append(tmp_path_factory.mktemp(request.param))
        model.save_pretrained(folders[-1])
    return (policy, reference), folders


def make_rollouts():
    """Return prompts [B, P], responses [B, G, T], their mask, and noise [B, G, T] that parts old log-probs from new."""
    rng = np.random.default_rng(0)
    mask = np.arange(T) < LENGTH_BG[..., None]
    prompt, tokens = rng.integers(V, size=(B, P)), rng.integers(V, size=(B, G, T))
    return prompt, tokens, mask, 0.3 * rng.normal(size=(B, G, T))


def their_logprobs(torch, model, prompt, tokens):
    """Return log-probs [B, G, T] from one row a rollout; the response follows the prompt's last real token."""
    rows, real = torch.zeros((B * G, P + T), dtype=torch.long), torch.zeros((B * G, P + T), dtype=torch.long)
    predicted_by = torch.zeros((B * G, T), dtype=torch.long)
    for row in range(B * G):
        length, count = PROMPT_LENGTH_B[row // G], LENGTH_BG.flat[row]
        rows[row, :length] = torch.tensor(prompt[row // G, :length])
        rows[row, length : length + count] = torch.tensor(tokens[row // G, row % G, :count])
        real[row, : length + count] = 1
        predicted_by[row] = length - 1 + torch.arange(T)
    logits = model(rows, attention_mask=real).logits / TEMPERATURE
    logp = logits.log_softmax(-1)
    at = logp.gather(1, predicted_by[..., None].expand(-1, -1, V))
    return at.gather(2, torch.tensor(tokens).reshape(B * G, T, 1)).reshape(B, G, T)


def their_loss(torch, logp, old, reference, mask):
    """GRPO with a clip of its own on each side, k3, and each response's mean over its tokens."""
    reward = torch.tensor(REWARD_BG)
    std = reward.std(1, keepdim=True, correction=0)
    advantage = ((reward - reward.mean(1, keepdim=True)) / (std + EPS)).float()[..., None]
    ratio = (logp - old).exp()
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantage)
    x = reference - logp
    value = -objective + BETA * (x.exp() - x - 1)
    value = torch.where(mask, value, 0.0)
    return (value.sum(-1) / mask.sum(-1)).mean()


def our_config(folder) -> DecoderConfig:
    how = {"dtype": "float32", "param_dtype": "float32", "attention": "xla", "remat": "none"}
    how |= {"unroll_layers": False, "decode_stages": 1}
    return DecoderConfig(**hf_config.read(folder), **how, lora=LoraConfig(0, 1.0, ()))


@pytest.mark.parametrize("token_chunk", [0, 4])
def test_gradients_of_all_parameters_equal_those_of_torch(checkpoints, require_parity, exit_config, token_chunk):
    """Distance of a tensor's gradient, relative to its norm, at most 1e-5. Measured: 2.4e-6."""
    (torch,) = require_parity("torch")
    (policy, reference), folders = checkpoints
    prompt, tokens, mask, noise = make_rollouts()
    policy.zero_grad()
    logp = their_logprobs(torch, policy, prompt, tokens)
    old = logp.detach() + torch.tensor(noise, dtype=torch.float32)
    with torch.no_grad():
        reference_logp = their_logprobs(torch, reference, prompt, tokens)
    expected = their_loss(torch, logp, old, reference_logp, torch.tensor(mask))
    expected.backward()

    algorithm = exit_config(
        clip_low=CLIP_LOW, clip_high=CLIP_HIGH, kl_coef=BETA, advantage_eps=EPS, temperature=TEMPERATURE
    )
    config = our_config(folders[0])
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    where = jax.tree.map(lambda _: one_device, shapes)
    ours, our_reference = (load(folder, config, where) for folder in folders)
    score = functools.partial(sampler.logprobs, config, TEMPERATURE, token_chunk)
    arrays = tuple(jnp.asarray(x, jnp.int32) for x in (prompt, PROMPT_LENGTH_B, tokens))

    @jax.jit
    def step(params, reference):
        rollouts = Rollouts(arrays[2], jnp.asarray(mask), jnp.asarray(old.numpy()), None, jnp.ones((B, G), bool), None)
        instances = Instances(None, None, None, None, prompt=arrays[0], prompt_length=arrays[1])
        advantage = grpo.advantages(jnp.asarray(REWARD_BG, jnp.float32), "group", EPS)
        batch = grpo.make_batch(algorithm, instances, rollouts, advantage, score(reference, *arrays)[0], T)

        def objective(params):
            logp, entropy = score(params, *arrays)
            value, metrics = grpo.loss(algorithm, logp, entropy, batch)
            return value, (logp, metrics)

        return jax.value_and_grad(objective, has_aux=True)(params)

    (value, (our_logp, metrics)), grads = step(ours, our_reference)
    np.testing.assert_allclose(our_logp[mask], logp.detach().numpy()[mask], rtol=0, atol=1e-5)
    np.testing.assert_allclose(value, expected.item(), rtol=0, atol=2e-6)  # a sum of terms of either sign, of size 1
    assert metrics["clip_fraction"] > 0.1
    assert metrics["kl_reference"] > 1e-3

    wanted = {name: parameter.grad.numpy() for name, parameter in policy.named_parameters()}
    compared, worst = set(), 0.0
    for path, leaf in flatten(grads).items():
        for index, name in tensors(config, path, leaf.shape):
            mine = np.asarray(leaf[index])
            mine = mine.T if is_transposed(path) else mine
            assert np.linalg.norm(wanted[name]) > 1e-4, name  # no parameter is left out of the loss
            distance = np.linalg.norm(mine - wanted[name]) / np.linalg.norm(wanted[name])
            assert distance < 1e-5, (name, distance)
            compared.add(name)
            worst = max(worst, float(distance))
    print(f"largest distance of a gradient: {worst:.1e} of its norm")
    assert compared == wanted.keys()
