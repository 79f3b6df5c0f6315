"""Test encoders without torch: texts to vectors on tiny checkpoints, what their files say, and what is wrong with them."""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from small import tiny_math

from exit_jax import run, settings
from exit_jax.embedding import encoder as encoders
from exit_jax.embedding.config import read, read_recipe
from exit_jax.embedding.embed import EncoderConfig, make_embed, width
from exit_jax.embedding.load import load
from exit_jax.errors import ConfigError
from exit_jax.parallel.mesh import MeshConfig, make_mesh
from exit_jax.policy.hf.config import CheckpointError
from exit_jax.workdir.metrics import Timing, read_jsonl

ROOT = pathlib.Path(__file__).parents[2]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 130,
}
MODELS = {
    "bert": {"model_type": "bert", **SIZES},
    "roberta": {"model_type": "roberta", **SIZES},
    "modernbert": {"model_type": "modernbert", **SIZES, "local_attention": 8, "global_attn_every_n_layers": 2},
}
WORDS = [f"w{i}" for i in range(35)]
MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def write_config(folder, model="bert", **fields):
    folder.mkdir(exist_ok=True)
    content = {name: value for name, value in (MODELS[model] | fields).items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def write_sentence_transformer(folder, pooling=MEAN, normalize=True):
    kinds = {"Transformer": "", "Pooling": "1_Pooling", **({"Normalize": "2_Normalize"} if normalize else {})}
    rows = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(rows))
    if pooling:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


def arrays(folder):
    """Return random weights of every name that the folder's config.json asks for."""
    rng, shapes = np.random.default_rng(0), {}
    encoder = read(folder)
    for name, shape in encoders.tensors(encoder).items():
        layers = range(encoder.num_layers) if "*" in name else [0]
        shapes |= {name.replace("*", str(layer)): shape for layer in layers}
    shapes.pop("layers.0.attn_norm.weight", None)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {token: i for i, token in enumerate(["[PAD]", "<pad>", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folders = {name: write_config(tmp_path_factory.mktemp(name), name) for name in MODELS}
    for folder in folders.values():
        save_file(arrays(folder), folder / "model.safetensors")
        write_tokenizer(folder)
    return folders


@pytest.fixture(params=[name if name == "bert" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS])
def checkpoint(request, checkpoints):
    return checkpoints[request.param]


@pytest.fixture
def bert(checkpoints):
    return checkpoints["bert"]


@functools.cache
def embedder(folder, num_devices=1, **fields):
    config = EncoderConfig(
        **{"checkpoint": str(folder), "pooling": "auto", "max_tokens": 100, "batch_size": 6} | fields
    )
    return make_embed(config, make_mesh(MeshConfig(num_devices, 1, 1)))


def sentences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def test_rows_are_those_of_their_texts(checkpoint):
    texts = sentences([3, 90, 1, 0, 14, 15, 40, 3, 7, 60])
    embed = embedder(checkpoint)
    together = embed(texts)
    assert together.shape == (10, width(str(checkpoint)))
    assert together.dtype == np.float32
    alone = np.concatenate([embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    far = np.linalg.norm(together[:, None] - together[None], axis=-1)[np.triu_indices(10, 1)]
    assert far.min() > 0.01  # so that 1e-5 tells them apart


def test_no_texts(bert):
    assert embedder(bert)([]).shape == (0, 16)


def test_texts_alike_are_equal_to_the_bit(bert):
    """Also where a batch ends between them: 11 others come before the equal ones, which are 100 tokens after the cut."""
    long = " ".join(WORDS * 4)
    vectors = embedder(bert)([*sentences(range(1, 12)), long, long.replace(" ", "  "), long + " w1", *sentences([50])])
    np.testing.assert_array_equal(vectors[11], vectors[12])
    np.testing.assert_array_equal(vectors[11], vectors[13])
    assert np.abs(vectors[11] - vectors[14]).max() > 0.01


def test_text_beyond_max_tokens_is_cut_off(bert):
    embed = embedder(bert, max_tokens=16)
    head, tail = sentences([14, 30])
    np.testing.assert_array_equal(*embed([head, f"{head} {tail}"]))


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "w1 \ud800 w2", "\udfff", "\U0010ffff\ufeff", "[PAD] <pad> [SEP]", "a" * 10**6]
)
def test_malformed_texts_have_vectors(checkpoint, text):
    assert np.isfinite(embedder(checkpoint)([text, "w1"])).all()


def test_padding_does_not_matter(checkpoint):
    encoder = read(checkpoint)
    params = load(checkpoint, encoder, "float32")
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 40, size=(2, 20))
    mask = np.arange(20)[None] < np.array([[20], [7]])
    other = np.where(mask, tokens, rng.integers(5, 40, size=(2, 20)))
    run = jax.jit(lambda params, tokens: encoders.apply(encoder, params, tokens, mask, "float32"))
    np.testing.assert_array_equal(run(params, tokens)[mask], run(params, other)[mask])


def test_devices_do_not_matter(checkpoint):
    texts = sentences(range(1, 30))
    one, eight = embedder(checkpoint)(texts), embedder(checkpoint, num_devices=8)(texts)
    np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-5)


def test_axes_of_the_mesh_do_not_matter(bert):
    config = EncoderConfig(str(bert), "auto", 100, 6)
    texts = sentences(range(1, 9))
    vectors = make_embed(config, make_mesh(MeshConfig(2, 2, 2)))(texts)
    np.testing.assert_array_equal(vectors, embedder(bert, num_devices=8)(texts))


def test_few_programs(bert):
    embed = make_embed(EncoderConfig(str(bert), "auto", 100, 6), make_mesh(MeshConfig(1, 1, 1)))
    timing = Timing()
    with timing.phase("all"):
        for seed, length in enumerate(range(1, 100, 7)):
            embed(sentences([length, length // 2], seed))
    assert timing.summary()["all"]["num_compilations"] == 4  # 16, 32, 64 and 100 tokens


def test_bfloat16_is_near(checkpoint):
    """Bfloat16 has 8 bits: differences of a few hundredths of the vectors' size, and no more."""
    texts = sentences([3, 30, 90])
    narrow = make_embed(EncoderConfig(str(checkpoint), "auto", 100, 6), make_mesh(MeshConfig(1, 1, 1)), "bfloat16")(
        texts
    )
    wide = embedder(checkpoint)(texts)
    assert narrow.dtype == np.float32
    assert 0 < np.linalg.norm(narrow - wide) < 0.1 * np.linalg.norm(wide)


PROCESS = """
import sys
import jax
jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from exit_jax.embedding.embed import EncoderConfig, make_embed
from exit_jax.parallel.mesh import MeshConfig, make_mesh

embed = make_embed(EncoderConfig(sys.argv[3], "auto", 100, 6), make_mesh(MeshConfig(4, 1, 1)))
texts = ["w1 w2", "w3 " * 40][: 1 + int(sys.argv[2])]  # one text here, two of other widths there
print(np.abs(embed(texts)).sum())
"""


@pytest.mark.slow
def test_processes_do_not_wait_for_each_other(bert):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", PROCESS, port]
    start = lambda i: subprocess.Popen([*command, str(i), str(bert)], env=env, stdout=subprocess.PIPE, text=True)
    processes = [start(0), start(1)]
    try:
        out = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    one, two = (np.abs(embedder(bert)(["w1 w2", "w3 " * 40][:n])).sum() for n in (1, 2))
    np.testing.assert_allclose([float(text.split()[-1]) for text in out], [one, two], rtol=1e-5)


# Pooling

HIDDEN = np.array([[[3.0, 0.0], [1.0, 8.0], [np.nan, 5.0]], [[9.0, 9.0], [np.nan, 1.0], [2.0, 2.0]]], np.float32)
MASK = np.array([[True, True, False], [False, False, False]])


@pytest.mark.parametrize(
    ("pooling", "normalize", "expected"),
    [
        ("mean", False, [[2.0, 4.0], [0.0, 0.0]]),  # (3 + 1) / 2, (0 + 8) / 2; over all three 4.33 and NaN
        ("mean", True, [[5**-0.5, 2 * 5**-0.5], [0.0, 0.0]]),
        ("cls", False, [[3.0, 0.0], [9.0, 9.0]]),
        ("cls", True, [[1.0, 0.0], [2**-0.5, 2**-0.5]]),
    ],
)
def test_pooling(pooling, normalize, expected):
    vectors = encoders.pool(jnp.asarray(HIDDEN), jnp.asarray(MASK), pooling, normalize)
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)


def test_roberta_counts_positions_from_its_padding_id(tmp_path):
    encoder = read(write_config(tmp_path, "roberta"))
    assert encoders.positions(encoder, jnp.array([[0, 7, 1, 8, 2]])).tolist() == [[2, 3, 1, 4, 5]]
    assert encoder.max_tokens == 128  # rows 2 .. 129


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        (MEAN, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_pooling_is_the_folders_unless_given(tmp_path, pooling, mode):
    assert read_recipe(tmp_path, "auto") == ("mean", False, False)  # nothing is said
    write_sentence_transformer(tmp_path, pooling)
    assert read_recipe(tmp_path, "auto") == (mode, True, False)
    assert read_recipe(tmp_path, "cls") == ("cls", True, False)
    write_sentence_transformer(tmp_path, pooling, normalize=False)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 512, "do_lower_case": true}')
    assert read_recipe(tmp_path, "mean") == ("mean", False, True)


def test_vectors_are_normalized_where_the_folder_says_so(bert, tmp_path):
    for path in bert.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    texts = sentences([3, 30])
    plain, scaled = embedder(bert)(texts), embedder(write_sentence_transformer(tmp_path))(texts)
    np.testing.assert_allclose(scaled, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-5)
    first = embedder(tmp_path, pooling="cls")(texts)
    assert np.abs(first - scaled).max() > 1e-3


def test_texts_are_lowered_where_the_folder_says_so(bert, tmp_path):
    texts = ["w1 w2", "W1 w2"]
    assert np.abs(np.subtract(*embedder(bert)(texts))).max() > 0.01
    for path in bert.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_sentence_transformer(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    np.testing.assert_array_equal(*embedder(tmp_path)(texts))


def test_pooling_that_is_not_supported(tmp_path):
    write_sentence_transformer(tmp_path, {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True})
    with pytest.raises(CheckpointError, match=r'max_tokens, mean_tokens; mean or cls.*in place of "auto"'):
        read_recipe(tmp_path, "auto")
    (tmp_path / "1_Pooling/config.json").unlink()
    with pytest.raises(CheckpointError, match="is absent, although modules"):
        read_recipe(tmp_path, "auto")
    assert read_recipe(tmp_path, "mean").pooling == "mean"
    (tmp_path / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    with pytest.raises(CheckpointError, match="its prompt 'query' before every text"):
        read_recipe(tmp_path, "mean")
    (tmp_path / "config_sentence_transformers.json").write_text('{"default_prompt_name": null, "prompts": {}}')
    rows = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps([*rows, {"type": "models.Dense", "path": "3_Dense"}]))
    with pytest.raises(CheckpointError, match="Dense in 3_Dense, which is not supported"):
        read_recipe(tmp_path, "mean")
    for damaged in ('{"a": 1}', "[" * 100_000):
        (tmp_path / "modules.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_recipe(tmp_path, "mean")
    (tmp_path / "modules.json").write_text(json.dumps(rows))
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": "no"}')
    with pytest.raises(CheckpointError, match="do_lower_case is 'no', which must be true or false"):
        read_recipe(tmp_path, "mean")


# config.json


def test_both_spellings_of_modernbert_are_the_same(tmp_path):
    old = {"global_rope_theta": 5000.0, "local_rope_theta": 300, "rope_parameters": None, "layer_norm_eps": 1e-5}
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    new = {"global_attn_every_n_layers": "absent", "layer_types": ["full_attention", "sliding_attention"]}
    new["rope_parameters"] = {"full_attention": rope, "sliding_attention": {"rope_theta": 300.0}}
    encoder = read(write_config(tmp_path / "old", "modernbert", **old))
    assert encoder == read(write_config(tmp_path / "new", "modernbert", **new))
    assert encoder.rope_theta == (5000.0, 300.0)
    assert encoder.is_local == (False, True)
    assert encoder.window == 4


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("bert", {"model_type": "t5"}, "model_type 't5', which is not supported\nsupported: model_type bert"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key'; only 'absolute' is supported"),
        ("bert", {"is_decoder": True}, "is_decoder is True; only False"),
        ("bert", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu', which is not one of gelu"),
        ("bert", {"hidden_size": 15}, "must be a multiple of num_attention_heads = 2"),
        ("bert", {"type_vocab_size": 0}, "type_vocab_size is 0"),
        ("bert", {"auto_map": {}}, "not known here: auto_map"),
        ("bert", {"local_attention": 8}, "not known here: local_attention"),
        ("roberta", {"pad_token_id": None}, "pad_token_id is None"),
        ("modernbert", {"hidden_size": 6}, "must be an even multiple"),
        ("modernbert", {"norm_bias": 1}, "norm_bias is 1, which must be true or false"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types is .*, which must be 2 words"),
        ("modernbert", {"rope_scaling": {"type": "yarn"}}, "rope_scaling is .*; only None"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "type 'yarn'; only 'default'"),
        ("modernbert", {"rope_parameters": {"full_attention": {"factor": 2}}}, "only rope_type and rope_theta"),
    ],
)
def test_unsupported_fields_are_named(tmp_path, model, fields, message):
    with pytest.raises(CheckpointError, match=message):
        width(str(write_config(tmp_path / "folder", model, **fields)))


def test_all_faults_of_a_config_at_once(tmp_path):
    folder = write_config(
        tmp_path, "bert", vocab_size=0, hidden_size="absent", layer_norm_eps="1", is_decoder=True, new=1
    )
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    for part in ("vocab_size is 0", "hidden_size is None", "layer_norm_eps is '1'", "is_decoder is True", "here: new"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "max"}, "encoder.pooling = 'max' is not one of"),
        ({"max_tokens": 4}, "encoder.max_tokens = 4 is below 16"),
        ({"batch_size": 0}, "encoder.batch_size = 0 is below 1"),
    ],
)
def test_wrong_settings(fields, message):
    config = EncoderConfig(**{"checkpoint": "", "pooling": "auto", "max_tokens": 64, "batch_size": 8} | fields)
    assert [fault for fault in settings.faults(config, "encoder.") if fault.startswith(message)]


# Folders


def test_bad_folders(tmp_path):
    mesh = make_mesh(MeshConfig(1, 1, 1))
    make = lambda **fields: make_embed(
        EncoderConfig(**{"checkpoint": str(tmp_path), "pooling": "auto", "max_tokens": 64, "batch_size": 8} | fields),
        mesh,
    )
    with pytest.raises(CheckpointError, match="checkpoint is empty"):
        make(checkpoint="")
    with pytest.raises(CheckpointError, match="is no folder"):
        make(checkpoint=str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        make()
    write_config(tmp_path)
    with pytest.raises(ValueError, match="max_tokens = 131 is above 130, the positions that"):
        make(max_tokens=131)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        make()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no tokenizer that the library tokenizers reads"):
        make()
    write_tokenizer(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin only; convert it"):
        make()
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        make()
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="has damaged files"):
        make()
    write_config(tmp_path, vocab_size=39)
    with pytest.raises(CheckpointError, match="the tokenizer has 40 tokens but the model's vocab_size is 39"):
        make()


def test_all_wrong_tensors_at_once(tmp_path):
    stored = arrays(write_config(tmp_path))
    layer = "encoder.layer.{}.output.dense.weight"
    del stored[layer.format(0)], stored[layer.format(1)]
    stored["encoder.layer.1.attention.self.query.bias"] = np.zeros(3, np.float32)
    stored["embeddings.LayerNorm.bias"] = np.zeros(16, np.int8)
    stored["extra"] = np.zeros(1, np.float32)
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, read(tmp_path), "float32")
    for part in (
        "missing: encoder.layer.*.output.dense.weight (layers 0 1)",
        "not of this architecture: extra",
        "attention.self.query.bias (layers 1) is (3,), and must be (16,)",
        "embeddings.LayerNorm.bias is I8, and must be one of F32, BF16, F16",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("model", MODELS)
def test_heads_and_old_names_are_harmless(tmp_path, model):
    """As bert-base-uncased, roberta-base and ModernBERT-base are on the hub: with a head, and BERT with gamma and beta."""
    plain = arrays(write_config(tmp_path, model))
    prefix = {"bert": "bert.", "roberta": "roberta.", "modernbert": "model."}[model]
    old = {prefix + name: value for name, value in plain.items()}
    if model == "bert":
        rename = lambda name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
        old = {rename(name): value for name, value in old.items()}
    heads = ("cls.predictions.bias", "lm_head.bias", "head.dense.weight", "decoder.bias", f"{prefix}pooler.dense.bias")
    old |= dict.fromkeys(heads, np.zeros(3, np.float32))
    old[f"{prefix}embeddings.position_ids"] = np.arange(3)
    for name, content in (("plain", plain), ("old", old)):
        save_file(content, write_config(tmp_path / name, model) / "model.safetensors")
    one, other = (load(tmp_path / name, read(tmp_path), "float32") for name in ("plain", "old"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_several_files_and_dtypes(tmp_path, stored):
    content = {name: value.astype(jnp.dtype(stored)) for name, value in arrays(write_config(tmp_path)).items()}
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(content)}
    for file in set(files.values()):
        save_file({name: content[name] for name in content if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    params = load(tmp_path, read(tmp_path), "float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    name = "encoder.layer.1.output.dense.weight"
    np.testing.assert_array_equal(params["layers"]["output"]["dense"]["weight"][1], content[name].astype(np.float32))


# In a run


@pytest.mark.slow
def test_responses_are_embedded_between_grading_and_learning(bert, tmp_path):
    """An encoder's vectors decide the diversity bonus and the map of instances; without one, all are alike and d is 1."""
    named = {"checkpoint": str(bert), "pooling": "mean", "max_tokens": 64, "batch_size": 8}
    grades = {
        "algorithm__diversity_embedding": "grades",
        "algorithm__group_size": 4,
    }  # two are equally far from their mean
    given = {f"encoder__{name}": value for name, value in named.items()} | grades
    for name, changes in (("without", grades), ("with", given)):
        config = tiny_math(tmp_path / "data", warm_start__num_steps=0, run__num_iterations=2, **changes)
        run.train(config, tmp_path / name)
    largest = [read_jsonl(tmp_path / name / "train.jsonl")[0]["diversity_max"] for name in ("without", "with")]
    assert largest[0] == 1.0
    assert largest[1] > 0.9
    assert largest[1] != 1.0
    with np.load(tmp_path / "with/instances.npz") as arrays:
        assert arrays["embedding"].shape[1] == SIZES["hidden_size"]
    with pytest.raises(ConfigError, match="would not be used"):
        tiny_math(tmp_path, **given | {"algorithm__diversity_embedding": "policy"})
