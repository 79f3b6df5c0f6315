"""Tokenizers as their files say, stop tokens as chat templates close a response, and files that are refused in one line."""

import dataclasses
import json
import logging
import shutil

import checkpoints
import pytest
from checkpoints import FAMILIES, SPLIT
from tokenizers import AddedToken, Tokenizer, models

from exit_jax.domains.text import chat, turns
from exit_jax.domains.text.chat import ChatError
from exit_jax.policy.hf import tokenizer as hf_tokenizer
from exit_jax.policy.hf.config import CheckpointError, read_eos

TEXTS = [  # other than the loader's own probe
    "Tom buys 12 pens for 1250 cents; 7,000,000 - 1 = 6999999?",
    "\n\n\t x = {'a': [1, 22, 333, 4444]}\r\n",
    "Zoe\u0308 isn't here<|im_end|>\n<think>No 100</think> <tool_call>{}</tool_call> ",
]
CHATML = checkpoints.short_template(FAMILIES["qwen2_5"])


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("split", [None, SPLIT], ids=["own", "three digits"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_encodes_as_its_file_says(tmp_path, name, split):
    """Transformers' own choice for model_type qwen2 would split every digit, whatever the file says."""
    family = dataclasses.replace(FAMILIES[name], split=split or FAMILIES[name].split)
    folder = checkpoints.write(tmp_path, family, CHATML)
    tokenizer, plain = hf_tokenizer.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = plain.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == plain.decode(ids, skip_special_tokens=False)
    assert tokenizer.eos_token == family.eos
    added = {*family.special, *family.added}
    assert {plain.id_to_token(token) for token in chat.control_tokens(tokenizer)} == added
    if split:
        assert plain.encode("345", add_special_tokens=False).tokens == ["345"]


@pytest.mark.parametrize("field", ["tokenizer_class", "model_type"])
def test_a_tokenizer_that_transformers_would_replace_is_refused(tmp_path, monkeypatch, field):
    """The loader proves itself: were it to use the class that AutoTokenizer takes for qwen2, it would refuse its ids."""
    import transformers

    folder = checkpoints.write(tmp_path, dataclasses.replace(FAMILIES["qwen2_5"], split=SPLIT), CHATML)
    taken = {"tokenizer_class": transformers.Qwen2Tokenizer, "model_type": transformers.AutoTokenizer}[field]
    monkeypatch.setattr(transformers, "PreTrainedTokenizerFast", taken)
    with pytest.raises(
        CheckpointError, match=r"encodes 'Mia has 10 shells.* where tokenizer.json says \[.*another version"
    ):
        hf_tokenizer.load(folder)


def vocabulary_alone(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def configure(**fields):
    return lambda folder: change(folder / "tokenizer_config.json", **fields)


def replace_by_folder(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def of_another(folder):
    other = checkpoints.make(folder / "other", "qwen3")
    shutil.copy(other / "tokenizer_config.json", folder / "tokenizer_config.json")


def truncate(name, count=200):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:count])


def alter_model(**fields):
    def alter(folder):
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"] |= fields
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return alter


def eat_spaces(folder):
    """Make tokenizer_config.json say that a token swallows the white space after it, which tokenizer.json does not."""
    path = folder / "tokenizer_config.json"
    added = json.loads(path.read_text())["added_tokens_decoder"]
    change(path, added_tokens_decoder={number: token | {"rstrip": True} for number, token in added.items()})


def test_a_tokenizer_needs_no_more_than_its_file(tmp_path):
    checkpoints.write(tmp_path, FAMILIES["llama3"], CHATML)
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        (tmp_path / name).unlink()
    assert hf_tokenizer.load(tmp_path).encode("345", add_special_tokens=False)
    assert read_eos(tmp_path) == ()


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    folder = checkpoints.write(tmp_path, FAMILIES["llama3"], CHATML)
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    assert hf_tokenizer.load(folder, size)
    with pytest.raises(CheckpointError, match=f"has {size} tokens but the model's vocab_size is {size - 1}"):
        hf_tokenizer.load(folder, size - 1)


FAULTS = {
    "nothing but tokenizer_config.json": (
        remove("tokenizer.json"),
        r"holds no tokenizer.json; copy that of the same model",
    ),
    "vocab.json and merges.txt": (vocabulary_alone, r"holds no tokenizer.json \(merges.txt, vocab.json can be turned"),
    "SentencePiece": (
        lambda f: (remove("tokenizer.json")(f), put("tokenizer.model", b"\x0a\x09")(f)),
        "tokenizer.model can",
    ),
    "an empty file": (put("tokenizer.json", ""), "is no tokenizer that the library tokenizers reads"),
    "half a file": (truncate("tokenizer.json"), "is no tokenizer that the library tokenizers reads"),
    "binary": (put("tokenizer.json", b"\x80\x04\xff\x00"), "is no tokenizer that the library tokenizers reads"),
    "a list": (put("tokenizer.json", "[]"), "is no tokenizer that the library tokenizers reads"),
    "an older format": (put("tokenizer.json", '{"model": {"vocab": {"a": 0}}}'), "is no tokenizer that the library"),
    "a folder of that name": (replace_by_folder("tokenizer.json"), "holds no tokenizer.json"),
    "half a tokenizer_config.json": (truncate("tokenizer_config.json"), "tokenizer_config.json cannot be read"),
    "tokenizer_config.json is a list": (put("tokenizer_config.json", "[1]"), r"holds \[1\], not an object"),
    "tokenizer_config.json is a folder": (
        replace_by_folder("tokenizer_config.json"),
        "tokenizer_config.json cannot be read",
    ),
    "deeply nested": (put("tokenizer_config.json", "[" * 100_000), "tokenizer_config.json cannot be read"),
    "special_tokens_map.json is null": (put("special_tokens_map.json", "null"), "holds None, not an object"),
    "an added token is a number": (configure(added_tokens_decoder={"5": 5}), "transformers cannot read the tokenizer"),
    "added tokens are a list": (configure(added_tokens_decoder=["a"]), "transformers cannot read the tokenizer"),
    "eos_token is a number": (configure(eos_token=3), "transformers cannot read the tokenizer"),
    "an empty EOS": (configure(eos_token=""), r"special tokens are \[''\], which are none of tokenizer.json"),
    "an empty unknown token": (configure(unk_token=""), "transformers cannot read the tokenizer"),
    "a length in words": (configure(model_max_length="long"), "transformers cannot read the tokenizer"),
    "a template that is a number": (configure(chat_template=7), "the chat template is 7, which must be text"),
    "an EOS that the file has not": (configure(eos_token="<end>"), "name tokens that it does not have: '<end>'"),
    "the config of another tokenizer": (of_another, "name tokens that it does not have: '<tool_response>'"),
    "tokens that swallow spaces": (eat_spaces, r"encodes .*tokenizer.json says"),
    "dropout": (alter_model(dropout=0.5), "has a dropout, so that a text has other ids each time"),
    "control tokens as text": (
        configure(split_special_tokens=True),
        r"encodes .*tokenizer.json says.*split_special_tokens",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tokenizer_that_cannot_be_trusted_is_refused(tmp_path, fault):
    damage, message = FAULTS[fault]
    folder = checkpoints.write(tmp_path / "checkpoint", FAMILIES["qwen2_5"], CHATML)
    assert hf_tokenizer.load(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        hf_tokenizer.load(folder)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_words_is_refused(tmp_path):
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer.json makes '' of 'Mia has 10 shells"):
        hf_tokenizer.load(tmp_path)


def test_a_tokenizer_without_digits_is_refused(tmp_path):
    """Byte-level BPE has no unknown token: what it has no token for is dropped."""
    folder = checkpoints.write(tmp_path, FAMILIES["llama3"], CHATML)
    content = json.loads((folder / "tokenizer.json").read_text())
    model = content["model"]
    model["vocab"] = {
        ("x" + token if any(map(str.isdigit, token)) else token): i for token, i in model["vocab"].items()
    }
    model["merges"] = [merge for merge in model["merges"] if not any(map(str.isdigit, "".join(merge)))]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"makes 'Mia has  shells,  stones and  .* of 'Mia has 10 shells"):
        hf_tokenizer.load(folder)


def cut_short(folder):
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.enable_truncation(4)
    plain.enable_padding(length=4)
    plain.save(str(folder / "tokenizer.json"))


def test_truncation_and_padding_of_a_file_do_not_touch_what_is_encoded(tmp_path):
    folder = checkpoints.write(tmp_path, FAMILIES["qwen3"], CHATML)
    whole = hf_tokenizer.load(folder).encode(TEXTS[0], add_special_tokens=False)
    cut_short(folder)
    assert hf_tokenizer.load(folder).encode(TEXTS[0], add_special_tokens=False) == whole


# pairs


def test_a_checkpoint_takes_its_own_tokenizer_whatever_else_is_in_its_files(tmp_path):
    ours = checkpoints.write(tmp_path / "instruct", FAMILIES["qwen2_5"], CHATML)
    base = checkpoints.write(tmp_path / "base", FAMILIES["qwen2_5"], "{{ messages }}", eos_token="<|endoftext|>")
    hf_tokenizer.check_pair(hf_tokenizer.load(ours), "ours", base)
    (base / "tokenizer.json").unlink()  # weights alone say nothing
    hf_tokenizer.check_pair(hf_tokenizer.load(ours), "ours", base)


def more_tokens(folder):
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.add_special_tokens([AddedToken("<|new|>", special=True)])
    plain.save(str(folder / "tokenizer.json"))


def other_ids(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def other_digits(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = checkpoints.DIGIT_SPLIT
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (more_tokens, r"1 tokens have other ids, as '<\|new\|>', none there and \d+ here"),
        (other_ids, "2 tokens have other ids, as 'a'"),
        (other_digits, "it encodes 'Mia has 10 shells"),
    ],
    ids=["more tokens", "other ids", "other digits"],
)
def test_two_tokenizers_of_nearly_one_size_are_told_apart(tmp_path, alter, message):
    family = dataclasses.replace(FAMILIES["qwen2_5"], split=SPLIT)
    ours = hf_tokenizer.load(checkpoints.write(tmp_path / "ours", family, CHATML))
    theirs = checkpoints.write(tmp_path / "theirs", family, CHATML)
    alter(theirs)
    with pytest.raises(CheckpointError, match=f"ours is not the tokenizer of .*{message}.*name the checkpoint's own"):
        hf_tokenizer.check_pair(ours, "ours", theirs)


# stop tokens


def stops(folder, **inputs):
    """Return the stop tokens of a folder as text."""
    tokenizer = hf_tokenizer.load(folder)
    return tokenizer.convert_ids_to_tokens(list(turns.stop_tokens(tokenizer, read_eos(folder), inputs)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_stops_where_its_template_closes_a_response(tmp_path, name):
    family = FAMILIES[name]
    assert stops(checkpoints.write(tmp_path, family, checkpoints.short_template(family))) == [family.eos]


@pytest.mark.parametrize(
    ("name", "eos", "closing"),
    [
        ("qwen2_5", "<|endoftext|>", "<|im_end|>"),
        ("qwen3", "<|endoftext|>", "<|im_end|>"),
        ("llama3", "<|end_of_text|>", "<|eot_id|>"),
    ],
)
def test_a_base_model_stops_at_the_end_of_a_turn_and_is_taught_to(tmp_path, caplog, name, eos, closing):
    """As Qwen's base models, which have ChatML, and early copies of Llama 3's instruct models: their EOS alone never comes."""
    family = FAMILIES[name]
    folder = checkpoints.write(tmp_path, family, checkpoints.short_template(family), eos_token=eos)
    number = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(eos)
    for file in ("generation_config.json", "config.json"):
        change(folder / file, eos_token_id=number)
    with caplog.at_level(logging.WARNING, logger="exit_jax"):
        assert stops(folder) == [closing, eos]  # demonstrations end in the first
    assert f"sampling stops at '{closing}', too" in caplog.text


def test_white_space_may_stand_before_the_closing_token(tmp_path):
    """Llama 2's template does so; between turns it is not repeated."""
    template = "{{- bos_token }}{% for m in messages %}{{ '[INST] ' if m.role == 'user' else '' }}{{ m.content }}"
    template += "{{ '[/INST]' if m.role == 'user' else ' \\n' + eos_token }}{% endfor %}"
    folder = checkpoints.write(tmp_path, FAMILIES["mistral"], template)
    assert stops(folder) == ["</s>"]
    tokenizer = hf_tokenizer.load(folder)
    after = turns.between(tokenizer, [{"role": "user", "content": "{feedback}"}], [tokenizer.eos_token_id])
    assert tokenizer.decode(chat.splice(after, {"feedback": chat.encode_piece(tokenizer, "No")})) == "[INST] No[/INST]"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", "closes a response with nothing"),
        ("{% for m in messages %}{{ m.content }}\n\n### {% endfor %}", r"closes a response with the text '\\n\\n###"),
        ("{% for m in messages %}{{ m.content }} END<|im_end|>{% endfor %}", "closes a response with the text ' END"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", r"closes a response with the text '\\n'"),
    ],
)
def test_a_template_that_closes_a_response_with_no_control_token_is_refused(tmp_path, template, message):
    with pytest.raises(ChatError, match=f"{message}.*let the template write eos_token"):
        stops(checkpoints.write(tmp_path, FAMILIES["qwen2_5"], template))


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("ids", ["<|im_end|>", "398", [[398]], [1, "2"], True, [False], -1, 2.0, {"eos": 2}], ids=repr)
def test_an_eos_that_is_no_token_is_refused(tmp_path, file, ids):
    folder = checkpoints.write(tmp_path, FAMILIES["qwen2_5"], CHATML)
    change(folder / "generation_config.json", eos_token_id=None)
    change(folder / file, eos_token_id=ids)
    with pytest.raises(CheckpointError, match=rf"{file}: eos_token_id is .*, which must be a token's number"):
        stops(folder)


@pytest.mark.parametrize("number", [500, 512, 151645, 1 << 40])
def test_an_eos_beyond_the_tokenizer_is_refused(tmp_path, number):
    """Numbers below the model's padded vocabulary of 512 among them, which no text ever has."""
    folder = checkpoints.write(tmp_path, FAMILIES["qwen2_5"], CHATML)
    change(folder / "generation_config.json", eos_token_id=[3, number])
    with pytest.raises(ChatError, match=rf"eos_token_id lists \[{number}\], but the tokenizer has no such token"):
        stops(folder)


def test_generation_config_has_the_last_word_on_stops_unless_it_is_silent(tmp_path):
    folder = checkpoints.write(tmp_path, FAMILIES["qwen2_5"], CHATML, {"eos_token_id": 5})
    change(folder / "generation_config.json", eos_token_id=[7, 9])
    assert read_eos(folder) == (7, 9)
    for silent in (None, []):
        change(folder / "generation_config.json", eos_token_id=silent)
        assert read_eos(folder) == (5,)


# chat templates that fail

BROKEN = {
    "a syntax error": ("{% for m in messages %}{{ m.content", "refuses a conversation of the roles user, assistant:"),
    "an unknown tag": ("{% frob %}", "unknown tag 'frob'"),
    "an unknown name": ("{{ nobody.content }}", "'nobody' is undefined"),
    "an unknown filter": ("{{ messages | frobnicate }}", "No filter named 'frobnicate'"),
    "a loop over tools": ("{% for t in tools %}{{ t }}{% endfor %}" + CHATML, r"TypeError.*input, as tools=\[\]"),
    "an index": ("{{ messages[7].content }}", "list object has no element 7"),
    "a division": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "an operation on text": ("{{ messages[0].content + 5 }}", "TypeError"),
    "a method on nothing": ("{{ messages[0].content.frob() }}", "has no attribute 'frob'"),
    "an endless range": ("{% for i in range(10000000) %}a{% endfor %}", "OverflowError"),
    "an endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a way out of the sandbox": ("{{ messages.__class__.__mro__ }}", "is unsafe"),
    "an include": ("{% include 'other' %}", "TypeError|no loader"),
    "nothing": ("{# none #}", "drops or changes"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_template_that_fails_is_one_line(tmp_path, fault):
    template, message = BROKEN[fault]
    with pytest.raises(ChatError, match=message) as error:
        stops(checkpoints.write(tmp_path, FAMILIES["qwen2_5"], template))
    assert "\n" not in str(error.value)


def test_a_loop_over_tools_takes_none(tmp_path):
    folder = checkpoints.write(tmp_path, FAMILIES["qwen2_5"], BROKEN["a loop over tools"][0])
    assert stops(folder, tools=[]) == ["<|im_end|>"]


def test_several_templates_need_a_default(tmp_path):
    named = [{"name": "default", "template": CHATML}, {"name": "rag", "template": "{{ documents }}"}]
    assert stops(checkpoints.write(tmp_path / "a", FAMILIES["qwen2_5"], named)) == ["<|im_end|>"]
    with pytest.raises(ChatError, match="several chat templates and no default one"):
        stops(checkpoints.write(tmp_path / "b", FAMILIES["qwen2_5"], [{"name": "x", "template": CHATML}, named[1]]))
