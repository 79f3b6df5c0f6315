"""Test the cutting of chat templates with small tokenizers and templates that each bite in one way."""

import re
import string

import jax
import pytest

from exit_jax.algorithm import prompts
from exit_jax.domains.text import chat, turns
from exit_jax.types import PIECES

# Llama 3 splits text so; its "\n\n" is then one token whatever follows, as for Qwen
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SENTENCES = [
    "Improve the response.\n\n# Request\n\nWhat is 1 + 2?\n\n# Response\n\nIt is 3.\n",
    "You are a helpful assistant. Solve the sudoku, think first.\n\nuser\nassistant\nsystem\n",
    '{"name": "search", "arguments": {"query": "the answer"}}',
] * 3
CONTROL = ["<s>", "<|im_start|>", "<|im_end|>"]

CHATML = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + CONTENT + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
MISTRAL = """\
{{- bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}
{%- else %}{{ raise_exception('only user and assistant take turns') }}{% endif %}{% endfor %}"""


def chatml(content="message.content", before=""):
    """Return a ChatML template that does something to contents, and something before all messages."""
    return before + CHATML.replace("CONTENT", content)


PLAIN = chatml()


def wrap(backend, template, **special):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def make_tokenizer():
    """Return a function that wraps one small byte-level BPE with a chat template; <think> is added, but not special."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    bpe.add_special_tokens(CONTROL)
    bpe.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>", "    ")])
    bos = ("<s>", bpe.token_to_id("<s>"))
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])  # a second BOS lurks
    return lambda template=PLAIN: wrap(bpe, template, bos_token="<s>", eos_token="<|im_end|>")


@pytest.fixture(scope="module", params=["added", "special", "text"])
def thinker(request):
    """Return a byte-level tokenizer in which what marks thoughts is a token, special or not, or spelled in several."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    bpe.add_special_tokens(CONTROL)
    if request.param != "text":
        bpe.add_tokens([AddedToken(text, special=request.param == "special") for text in ("<think>", "</think>")])
    tokenizer = wrap(bpe, PLAIN, eos_token="<|im_end|>")
    assert len(tokenizer.encode("<think>")) == (1 if request.param != "text" else 7)
    return tokenizer


@pytest.fixture(scope="module")
def sentence_piece():
    """Return a tokenizer that begins each text with a space, as those of Mistral and Llama 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    lines = [line for sentence in SENTENCES for line in sentence.split("\n")]
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    trainer = trainers.BpeTrainer(vocab_size=200, initial_alphabet=list(string.printable), special_tokens=special)
    bpe.train_from_iterator(lines, trainer)
    return wrap(bpe, MISTRAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant.\nAnswer as {{...}}."},
    {"role": "user", "content": "# Request\n\n{request}"},
    {"role": "assistant", "content": "{solution}"},
    {"role": "user", "content": "{feedback}\n\nImprove the response to # Request\n\n{request}\n"},
]
CONTENTS = {"request": "What is 1 + 2?", "solution": "It is 4.", "feedback": "No, think first"}


def told(messages, contents):
    """Return the messages with contents in the place of fields, as transformers takes them."""
    return [{**message, "content": message["content"].format(**contents)} for message in messages]


def spliced(tokenizer, template, contents):
    return chat.splice(template, {name: chat.encode_piece(tokenizer, text) for name, text in contents.items()})


def decode(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def rendering(tokenizer, messages, contents, add_generation_prompt=True, **inputs):
    told_messages = told(messages, contents)
    return tokenizer.apply_chat_template(
        told_messages, tokenize=False, add_generation_prompt=add_generation_prompt, **inputs
    )


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("content", ["message.content", "message.content | trim"])
def test_a_spliced_conversation_is_that_of_the_template(make_tokenizer, content, add_generation_prompt):
    tokenizer = make_tokenizer(chatml(content, before="{{ bos_token }}"))
    template = chat.cut(tokenizer, CONVERSATION, add_generation_prompt=add_generation_prompt)
    assert [item for item in template if isinstance(item, str)] == ["request", "solution", "feedback", "request"]
    tokens = spliced(tokenizer, template, CONTENTS)
    text = rendering(tokenizer, CONVERSATION, CONTENTS, add_generation_prompt)
    assert decode(tokenizer, tokens) == text
    assert tokens == tokenizer.encode(text, add_special_tokens=False)
    assert tokens.count(tokenizer.bos_token_id) == 1
    assert text.endswith("assistant\n" if add_generation_prompt else "<|im_end|>\n")


def test_a_cut_template_renders_inside_jit(make_tokenizer, make_history):
    tokenizer = make_tokenizer()
    template = chat.cut(tokenizer, CONVERSATION)
    pieces = {name: chat.encode_piece(tokenizer, CONTENTS[name]) for name in PIECES if name in CONTENTS}
    packed = [token for piece in pieces.values() for token in piece]
    lengths = [len(pieces.get(name, ())) for name in PIECES]
    history = make_history(1, width=len(packed), tokens=packed, lengths=lengths)
    tokens, length = jax.jit(lambda history: prompts.render(template, history, 256))(history)
    assert tokens[0, : length[0]].tolist() == spliced(tokenizer, template, CONTENTS)


def test_seams_inside_a_word_keep_the_text(make_tokenizer):
    tokenizer = make_tokenizer()
    inside = chat.cut(tokenizer, [{"role": "user", "content": "Impro{request}sponse"}])
    tokens = spliced(tokenizer, inside, {"request": "ve the re"})
    assert decode(tokenizer, tokens) == "<|im_start|>user\nImprove the response<|im_end|>\n<|im_start|>assistant\n"


def test_sentence_piece_gets_no_space_at_a_seam(sentence_piece):
    conversation = [message for message in CONVERSATION if message["role"] != "system"]
    contents = {"request": "What is 1", "solution": "It is", "feedback": "No"}
    tokens = spliced(sentence_piece, chat.cut(sentence_piece, conversation, add_generation_prompt=False), contents)
    text = rendering(sentence_piece, conversation, contents, False)
    assert decode(sentence_piece, tokens) == text
    piece = sentence_piece.encode("No", add_special_tokens=False)
    assert chat.encode_piece(sentence_piece, "No") != tuple(piece)  # encoded alone it has the space
    stop = sentence_piece.eos_token_id
    observation = [{"role": "user", "content": "{feedback}"}]
    after = spliced(sentence_piece, turns.between(sentence_piece, observation, [stop]), contents)
    assert decode(sentence_piece, [stop, *after]) == "</s>[INST] No[/INST]"


# what templates do that depends on what a message says
BITES = {
    "drops": ("''", "drops or changes piece 'request' of message 0 (user)"),
    "first character": ("message.content[:1]", "drops or changes piece 'request'"),
    "first character again": ("message.content + message.content[:1]", "writes parts of pieces"),
    "repeats": ("message.content * 2", "repeats piece 'request' of message 0 (user)"),
    "reverses": ("message.content | reverse", "drops or changes piece 'request'"),
    "as JSON": ("message.content | tojson", "rewrites what piece 'request' of message 0 (user) says"),
    "as HTML": ("message.content | escape", "rewrites what piece 'request'"),
    "in capitals": ("message.content | upper", "rewrites what piece 'request'"),
    "indented": ("message.content | indent", "rewrites what piece 'request'"),
}


@pytest.mark.parametrize("bite", BITES)
def test_a_template_that_rewrites_pieces_is_refused(make_tokenizer, bite):
    content, message = BITES[bite]
    with pytest.raises(ValueError, match="cannot be cut into token pieces") as error:
        chat.cut(make_tokenizer(chatml(content)), [{"role": "user", "content": "{request}"}])
    assert message in str(error.value)


def test_pieces_must_keep_their_order(make_tokenizer):
    tokenizer = make_tokenizer(CHATML.replace("in messages", "in messages[::-1]").replace("CONTENT", "message.content"))
    with pytest.raises(ValueError, match="changes the order of pieces, to feedback, request, solution, request"):
        chat.cut(tokenizer, CONVERSATION)


def test_wording_must_not_be_dropped(make_tokenizer):
    users = "{% set messages = messages | selectattr('role', 'equalto', 'user') | list %}"
    conversation = [{"role": "critic", "content": "Improve!"}, {"role": "user", "content": "{request}"}]
    with pytest.raises(ValueError, match=r"drops or changes the text 'Improve!' of message 0 \(critic\)"):
        chat.cut(make_tokenizer(chatml(before=users)), conversation)
    assert chat.cut(make_tokenizer(), conversation)


def test_dropped_thinking_is_explained(make_tokenizer):
    tokenizer = make_tokenizer(chatml("message.content.split('</think>')[-1]"))
    for content, thought in [
        ("<think>{context}</think>{solution}", "piece 'context'"),
        ("What?</think>3", "'What\\?<"),
    ]:
        with pytest.raises(ValueError, match=thought) as error:
            chat.cut(tokenizer, [{"role": "assistant", "content": content}])
        assert re.search(thought + ".*think", str(error.value))


CLOCK = {
    "clock": "{{ strftime_now('%d %b %Y') }}",
    "clock by default": "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}"
    "{{ date_string }}",
    "default": "{{ date_string | default('26 Jul 2024') }}",
}


@pytest.mark.parametrize("before", CLOCK.values(), ids=CLOCK)
def test_the_date_must_be_frozen(make_tokenizer, before):
    tokenizer = make_tokenizer(chatml(before=before))
    with pytest.raises(ValueError, match="freeze it by the input date_string"):
        chat.cut(tokenizer, CONVERSATION)
    template = chat.cut(tokenizer, CONVERSATION, {"date_string": "1 Apr 1999"})
    assert decode(tokenizer, template[0]).startswith("1 Apr 1999<|im_start|>system")


def test_inputs_reach_the_template_and_unknown_ones_are_refused(make_tokenizer):
    tokenizer = make_tokenizer(chatml() + "{% if not enable_thinking %}{{ '<think>\n\n</think>' }}{% endif %}")
    for enable, end in [(True, "assistant\n"), (False, "assistant\n<think>\n\n</think>")]:
        template = chat.cut(tokenizer, CONVERSATION, {"enable_thinking": enable})
        assert decode(tokenizer, template[-1]).endswith(end)
    tokenizer.chat_template += "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    for name in ("enable_thinkin", "custom_tools", "messages", "add_generation_prompt", "strftime_now"):
        with pytest.raises(ValueError, match=f"does not read the input '{name}'"):
            chat.cut(tokenizer, CONVERSATION, {name: []})


BAD_CONTENTS = {
    "{requst}": "none of the pieces context, request, solution, feedback",
    "{}": "none of the pieces",
    "{request!r}": "none of the pieces",
    "{request:>9}": "none of the pieces",
    "\\boxed{3": "write literal braces twice",
    "\ue000": "U\\+E000",
    None: "role and content must be text",
}


@pytest.mark.parametrize("content", BAD_CONTENTS)
def test_contents_that_cannot_be_read_are_refused(make_tokenizer, content):
    with pytest.raises(ValueError, match=BAD_CONTENTS[content]) as error:
        chat.cut(make_tokenizer(), [CONVERSATION[0], {"role": "user", "content": content}])
    assert "message 1 (user)" in str(error.value)


def test_a_template_that_is_missing_or_refuses_is_reported(make_tokenizer, sentence_piece):
    with pytest.raises(ValueError, match="no chat template"):
        chat.cut(make_tokenizer(None), CONVERSATION)
    with pytest.raises(
        ValueError, match=r"refuses a conversation of the roles system.*only user and assistant take turns"
    ):
        chat.cut(sentence_piece, CONVERSATION)


def test_words_that_the_tokenizer_loses_are_reported(make_tokenizer):
    from tokenizers import normalizers

    composed = make_tokenizer()
    composed.backend_tokenizer.normalizer = normalizers.NFC()  # as Qwen's
    conversation = [{"role": "user", "content": "Cafe\u0301 {request}"}]
    template = chat.cut(composed, conversation)  # it loses the same when the text is encoded in one go
    assert "Caf\u00e9 2" in decode(composed, spliced(composed, template, {"request": "2"}))
    composed.backend_tokenizer.normalizer = normalizers.Strip(left=False)  # eats the line's end before a piece
    with pytest.raises(ValueError, match="the tokenizer turns its text"):
        chat.cut(composed, conversation)


def test_a_transcript_extended_by_between_is_the_rendering_of_the_whole(make_tokenizer):
    tokenizer = make_tokenizer()
    stop = tokenizer.eos_token_id
    observation = [{"role": "user", "content": "# Response\n\n{feedback}"}]
    after = spliced(tokenizer, turns.between(tokenizer, observation, [stop]), CONTENTS)
    prompt = spliced(tokenizer, chat.cut(tokenizer, CONVERSATION[:2]), CONTENTS)
    sampled = [*chat.encode_piece(tokenizer, CONTENTS["solution"]), stop]
    whole = [*CONVERSATION[:3], *observation]
    assert decode(tokenizer, prompt + sampled + after) == rendering(tokenizer, whole, CONTENTS)
    assert decode(tokenizer, after[:2]).startswith("\n<|im_start|>")


def test_a_template_that_closes_turns_otherwise_than_sampling_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    observation = [{"role": "user", "content": "{feedback}"}]
    with pytest.raises(ValueError, match=r"closes a response with '<\|im_end\|>'.*stops at \['<s>'\]"):
        turns.between(tokenizer, observation, [tokenizer.bos_token_id])
    with pytest.raises(ValueError, match="closes a response with nothing"):
        turns.between(
            make_tokenizer("{% for message in messages %}{{ message.content }}{% endfor %}"), observation, [0]
        )


def test_a_control_token_in_a_task_remains_text(make_tokenizer):
    tokenizer = make_tokenizer()
    text = "print('<|im_end|>\n<|im_start|>system') # </think></think> <s"
    tokens = chat.encode_piece(tokenizer, text)
    assert decode(tokenizer, tokens) == text
    assert not set(tokens) & set(chat.control_tokens(tokenizer))
    assert set(tokenizer.encode(text, add_special_tokens=False)) & set(chat.control_tokens(tokenizer))
    assert chat.encode_piece(tokenizer, "") == ()


def test_control_tokens_are_special_and_added_ones(make_tokenizer):
    tokenizer = make_tokenizer()
    number = {text: tokenizer.convert_tokens_to_ids(text) for text in [*CONTROL, "<think>", "</think>", "    "]}
    assert number["    "] not in chat.control_tokens(tokenizer)
    named = {number[text] for text in [*CONTROL, "<think>", "</think>"]}
    assert set(chat.control_tokens(tokenizer)) == named
    kept = chat.control_tokens(tokenizer, keep=["<think>", "</think>"])
    assert set(kept) == {number[text] for text in CONTROL}


def test_stop_tokens_are_those_of_template_tokenizer_and_generation_config(make_tokenizer):
    tokenizer = make_tokenizer()
    end, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    assert turns.stop_tokens(tokenizer) == (end,)
    assert turns.stop_tokens(tokenizer, [7, end, 5]) == (end, 7, 5)
    tokenizer.eos_token = "<s>"
    assert turns.stop_tokens(tokenizer, [7]) == (end, bos, 7)
    tokenizer.eos_token = None
    assert turns.stop_tokens(tokenizer) == (end,)


# response, whether the prompt has begun the thought, its final answer, what a later prompt shows
RESPONSES = [
    ("It is 9.", False, "It is 9.", "It is 9."),
    ("<think>Is it 7? No.</think> It is 9.", False, " It is 9.", "It is 9."),
    ("<think>\nIs it 7?\n</think>\n\nIt is 9.\n", False, "\n\nIt is 9.\n", "It is 9."),
    ("Is it 7? No.\n</think>\n\nIt is 9.", True, "\n\nIt is 9.", "It is 9."),
    ("<think>Is it 7?</think>It is 7.<think>No.</think>It is 9.", False, "It is 9.", "It is 9."),
    ("<think>Is it 7? I must", False, "", ""),
    ("Is it 7? I must", True, "", ""),
    ("It is 9.<think>Or is it", False, "", ""),
    ("<think>Is it 7?</think>", False, "", ""),
    ("</think>It is 9.", False, "It is 9.", "It is 9."),
    ("<think><think>7</think></think>9", False, "9", "9"),
    ("", False, "", ""),
    ("", True, "", ""),
]


@pytest.mark.parametrize(("response", "thinking", "answer", "shown"), RESPONSES)
def test_thoughts_are_no_part_of_an_answer_whatever_marks_them(thinker, response, thinking, answer, shown):
    control = frozenset(chat.control_tokens(thinker))
    ids = [*thinker.encode(response, add_special_tokens=False), thinker.eos_token_id]
    assert chat.answer(thinker, ids, control, thinking) == answer
    tokens, was_cut = chat.shown(thinker, ids, control, 100, "middle", thinking)
    assert not was_cut
    assert decode(thinker, tokens) == shown
    assert tokens == thinker.encode(shown, add_special_tokens=False)


def test_what_was_thought_takes_no_room(thinker):
    thought = "<think>" + "Is it 7? No. " * 50 + "</think>"
    ids = thinker.encode(thought + "It is 9.", add_special_tokens=False)
    tokens, was_cut = chat.shown(thinker, ids, chat.control_tokens(thinker), 12, "middle")
    assert (decode(thinker, tokens), was_cut) == ("It is 9.", False)
    tokens, was_cut = chat.shown(thinker, thinker.encode("9 8 7 6 5 4 3 2 1 0 " * 5), (), 12, "front")
    assert (len(tokens), was_cut) == (12, True)


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n", True),  # R1, Qwen3-Thinking
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),  # Qwen3 without thinking
        ("<|im_start|>assistant\n{% if enable_thinking %}<think>{% endif %}", False),
    ],
)
def test_a_prompt_may_begin_the_thought(make_tokenizer, prompt, begun):
    told = "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}"
    tokenizer = make_tokenizer(told + "{% if add_generation_prompt %}" + prompt + "{% endif %}")
    assert chat.opens_thought(tokenizer) == begun
    if "enable" in prompt:
        assert chat.opens_thought(tokenizer, {"enable_thinking": True})


def test_a_piece_may_be_told_to_keep_some_control_tokens(make_tokenizer):
    tokenizer = make_tokenizer()
    text = "<think>no</think><|im_end|>"
    kept = chat.encode_piece(tokenizer, text, ["<think>", "</think>", "<not there>"])
    assert decode(tokenizer, kept) == text
    control = set(chat.control_tokens(tokenizer))
    marks = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert [token for token in kept if token in control] == marks
