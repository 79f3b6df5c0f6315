"""Our GRPO loss and gradient against those of TRL's GRPOTrainer (1.16.0), on the log-probs of one torch model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm import grpo
from exit_jax.types import Instances, Rollouts

pytestmark = pytest.mark.parity

B, G, P, T, V = 2, 3, 4, 6, 16
AGGREGATION = {"grpo": "sequence_mean", "bnpo": "token_mean", "dr_grpo": "dr_grpo"}


@pytest.fixture(scope="module")
def make_trainer(require_parity, tmp_path_factory):
    """Return a function that makes a GRPOTrainer around the same tiny random Llama, with the arguments given."""
    torch, tokenizers, transformers, datasets, trl = require_parity(
        "torch", "tokenizers", "transformers", "datasets", "trl.trainer.grpo_trainer"
    )
    folder = tmp_path_factory.mktemp("llama")
    words = tokenizers.models.WordLevel({str(i): i for i in range(V)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="0", eos_token="1"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = transformers.LlamaConfig(vocab_size=V, num_key_value_heads=2, initializer_range=0.5, **sizes)
    transformers.LlamaForCausalLM(llama).save_pretrained(folder)
    prompts = datasets.Dataset.from_dict({"prompt": ["2 3"]})

    def make(**arguments):
        config = trl.GRPOConfig(
            output_dir=str(folder / "run"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            num_generations=G,
            per_device_train_batch_size=B * G,
            max_completion_length=T,
            use_bias_correction_kl=False,
            **arguments,
        )
        trainer = trl.GRPOTrainer(str(folder), lambda **_: [0.0], config, prompts, processing_class=tokenizer)
        trainer.current_gradient_accumulation_steps = 1  # the training loop sets it
        return trainer

    return make


def make_inputs(torch, trainer):
    """Return what TRL's loss reads of ragged prompts and responses, the log-probs as a leaf, and entropies."""
    rng = np.random.default_rng(0)
    prompt_mask = np.arange(P)[::-1] < rng.integers(1, P + 1, size=(B * G, 1))  # padded on the left
    completion_mask = np.arange(T) < np.array([[T], [1], [3], [5], [2], [T]])
    inputs = {
        "prompt_ids": torch.tensor(rng.integers(2, V, size=(B * G, P))),
        "prompt_mask": torch.tensor(prompt_mask.astype(int)),
        "completion_ids": torch.tensor(rng.integers(2, V, size=(B * G, T))),
        "completion_mask": torch.tensor(completion_mask.astype(int)),
        "advantages": torch.tensor(rng.normal(size=B * G)),
    }
    joined = [torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1) for name in ("ids", "mask")]
    logp, entropy, _ = trainer._get_per_token_logps_and_entropies(trainer.model, *joined, T, compute_entropy=True)
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        inputs[name] = logp.detach() + 0.4 * torch.tensor(rng.normal(size=logp.shape))
    return inputs, logp.detach().double().requires_grad_(), entropy


@pytest.mark.parametrize("loss_type", AGGREGATION)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("clip_high", [0.2, 0.28])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_and_gradient_equal_those_of_trl(
    require_parity, make_trainer, exit_config, beta, clip_high, level, loss_type
):
    (torch,) = require_parity("torch")
    trainer = make_trainer(
        loss_type=loss_type, beta=beta, epsilon=0.2, epsilon_high=clip_high, importance_sampling_level=level
    )
    inputs, logp, entropy = make_inputs(torch, trainer)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, entropy, None)
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()

    config = exit_config(
        aggregation=AGGREGATION[loss_type], kl_coef=beta, clip_low=0.2, clip_high=clip_high, ratio_level=level
    )
    with jax.enable_x64(True):
        to_jax = lambda x: jnp.asarray(x.detach().numpy()).reshape(B, G, *x.shape[1:])
        rollouts = Rollouts(
            tokens=None,
            mask=to_jax(inputs["completion_mask"]) == 1,
            logp=to_jax(inputs["old_per_token_logps"]),
            sampled_logp=None,
            finished=jnp.ones((B, G), bool),
            hidden=None,
        )
        reference = to_jax(inputs["ref_per_token_logps"]) if beta else None
        no_prompts = Instances(None, None, None, None, None, None)
        batch = grpo.make_batch(
            config, no_prompts, rollouts, to_jax(inputs["advantages"]), reference, to_jax(logp).shape[-1]
        )
        loss = lambda logp: grpo.loss(config, logp, to_jax(entropy), batch)
        (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(to_jax(logp))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(grad, to_jax(logp.grad), rtol=1e-6, atol=1e-9)
    logged = trainer._metrics["train" if trainer.model.training else "eval"]
    if level == "token":  # for sequences TRL means over rows, we over tokens
        np.testing.assert_allclose(metrics["clip_fraction"], logged["clip_ratio/region_mean"], rtol=1e-5)
        assert metrics["clip_fraction"] > 0.1
    if beta:
        np.testing.assert_allclose(metrics["kl_reference"], logged["kl"], rtol=1e-5)
