"""Cut the real chat templates of Llama 3, Qwen and the R1 distills, as TRL (1.16.0) ships them, with small tokenizers."""

import checkpoints
import numpy as np
import pytest

from exit_jax.domains.text import chat, turns
from exit_jax.policy.hf import tokenizer as hf_tokenizer
from exit_jax.policy.stops import StopText

pytestmark = pytest.mark.parity

FAMILIES = {
    name: family
    for name, family in checkpoints.FAMILIES.items()
    if name not in ("mistral", "deepseek_r1_distill_llama")
}
CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant.\nAnswer in \\boxed{{}}.\n"},
    {"role": "user", "content": "{request}"},
    {"role": "assistant", "content": "{solution}"},
    {"role": "user", "content": "Improve the response.\n\n# Request\n\n{request}\n\n# Feedback\n\n{feedback}"},
    {"role": "assistant", "content": "It is 3."},
    {"role": "user", "content": "Improve the response\n"},
]
CONTENTS = {"request": "What is 1 + 2", "solution": "It is \\boxed{4}.", "feedback": "No, don't (3)!"}
OBSERVATION = {"role": "user", "content": "{feedback}"}


@pytest.fixture(scope="module")
def make_tokenizer(require_parity):
    """Return a function that gives a small byte-level BPE the control tokens and the chat template of a family."""
    _, transformers, _ = require_parity("tokenizers", "transformers", "trl")

    def make(name):
        family = FAMILIES[name]
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=checkpoints.backend(family), bos_token=family.bos, eos_token=family.eos
        )
        tokenizer.chat_template = checkpoints.real_template(name)
        return tokenizer

    return make


def spliced(tokenizer, template, contents):
    return chat.splice(template, {name: chat.encode_piece(tokenizer, text) for name, text in contents.items()})


def decode(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def rendering(tokenizer, messages, contents, add_generation_prompt=True, **inputs):
    """Return the text of transformers, with contents in the place of fields."""
    told = [{**message, "content": message["content"].format(**contents)} for message in messages]
    return tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=add_generation_prompt, **inputs)


@pytest.mark.parametrize("start", [0, 1], ids=["system", "no system"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_spliced_conversation_is_that_of_the_template(make_tokenizer, name, add_generation_prompt, start):
    tokenizer, family, conversation = make_tokenizer(name), FAMILIES[name], CONVERSATION[start:]
    template = chat.cut(tokenizer, conversation, family.inputs, add_generation_prompt)
    assert [item for item in template if isinstance(item, str)] == ["request", "solution", "request", "feedback"]
    tokens = spliced(tokenizer, template, CONTENTS)
    text = rendering(tokenizer, conversation, CONTENTS, add_generation_prompt, **family.inputs)
    assert decode(tokenizer, tokens) == text
    assert tokens == tokenizer.encode(text, add_special_tokens=False)
    assert tokens.count(tokenizer.bos_token_id) == (family.bos is not None)
    assert ("You are Qwen, created by Alibaba Cloud." in text) == (name == "qwen2_5" and start == 1)
    for part in tokenizer.encode(family.eos, add_special_tokens=False):
        assert tokens.count(part) == text.count(family.eos) >= 2


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_ids_are_the_joint_ones_where_seams_fall_on_special_tokens(make_tokenizer, name, seed):
    tokenizer, family, rng = make_tokenizer(name), FAMILIES[name], np.random.default_rng(seed)
    trims = name.startswith(("llama", "gemma"))
    free = lambda: "".join(rng.choice(list(" \n.,'3aB{\\é"), size=8))
    # R1 has special tokens on either side of a content, the others a newline before it: it must start with a letter
    content = lambda: free() if name == "deepseek_r1_distill" else "It" + (free() + "." if trims else free())
    contents = {"request": content(), "solution": content(), "feedback": content()}
    conversation = [*CONVERSATION[:3], OBSERVATION]
    tokens = spliced(tokenizer, chat.cut(tokenizer, conversation, family.inputs), contents)
    text = rendering(tokenizer, conversation, contents, **family.inputs)
    assert decode(tokenizer, tokens) == text
    assert tokens == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_seams_keep_the_text(make_tokenizer, name):
    tokenizer, family = make_tokenizer(name), FAMILIES[name]
    conversation = [{"role": "user", "content": "Improve the response.{request}\n\nWhat is 1{solution}"}]
    contents = {"request": "\n\nIt is 3", "solution": "2"}  # "." + "\n\n" and "1" + "2" would be joined
    tokens = spliced(tokenizer, chat.cut(tokenizer, conversation, family.inputs), contents)
    assert decode(tokenizer, tokens) == rendering(tokenizer, conversation, contents, **family.inputs)
    assert tokens != tokenizer.encode(decode(tokenizer, tokens), add_special_tokens=False)


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
def test_a_date_must_be_given(make_tokenizer, name):
    tokenizer = make_tokenizer(name)
    with pytest.raises(ValueError, match="freeze it by the input date_string"):
        chat.cut(tokenizer, CONVERSATION)
    assert "Today Date: 1 Apr 1999" in decode(
        tokenizer, chat.cut(tokenizer, CONVERSATION, {"date_string": "1 Apr 1999"})[0]
    )


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "deepseek_r1_distill"])
def test_an_input_that_a_family_does_not_read_is_refused(make_tokenizer, name):
    with pytest.raises(ValueError, match="does not read the input 'date_string'"):
        chat.cut(make_tokenizer(name), CONVERSATION, {"date_string": "26 Jul 2024"})


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill"])
def test_an_earlier_answer_with_its_thinking_cannot_be_cut(make_tokenizer, name):
    answer = {"role": "assistant", "content": "<think>\n{context}\n</think>\n\n{solution}"}
    with pytest.raises(ValueError, match=r"drops or changes piece 'context' of message 2 \(assistant\).*</think>"):
        chat.cut(make_tokenizer(name), [*CONVERSATION[:2], answer, OBSERVATION])
    demonstration = {"role": "assistant", "content": "<think>\nIt is 3\n</think>\n\n3"}
    with pytest.raises(
        ValueError, match=r"drops or changes the text '<think>.*of message 2.*thinking of earlier answers"
    ):
        chat.cut(make_tokenizer(name), [*CONVERSATION[:2], demonstration, OBSERVATION])


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
def test_a_tools_output_that_is_escaped_cannot_be_cut(make_tokenizer, name):
    conversation = [*CONVERSATION[:3], {"role": "tool", "content": "{feedback}"}]
    with pytest.raises(ValueError, match=r"rewrites what piece 'feedback' of message 3 \(tool\).*JSON"):
        chat.cut(make_tokenizer(name), conversation, FAMILIES[name].inputs)


def test_qwen3_thinks_unless_told_not_to(make_tokenizer):
    tokenizer = make_tokenizer("qwen3")
    silent = "<think>\n\n</think>\n\n"
    for inputs, end in [({}, ""), ({"enable_thinking": True}, ""), ({"enable_thinking": False}, silent)]:
        tokens = spliced(tokenizer, chat.cut(tokenizer, CONVERSATION, inputs), CONTENTS)
        text = decode(tokenizer, tokens)
        assert text == rendering(tokenizer, CONVERSATION, CONTENTS, **inputs)
        assert text.endswith(f"<|im_start|>assistant\n{end}")


@pytest.mark.parametrize("name", FAMILIES)
def test_only_r1_begins_the_thought_itself(make_tokenizer, name):
    tokenizer, inputs = make_tokenizer(name), FAMILIES[name].inputs
    assert chat.opens_thought(tokenizer, inputs) == (name == "deepseek_r1_distill")
    if name == "qwen3":
        assert not chat.opens_thought(tokenizer, {"enable_thinking": False})


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill"])
def test_what_is_shown_of_a_thinking_models_response_survives_its_template(make_tokenizer, name):
    tokenizer = make_tokenizer(name)
    begun = chat.opens_thought(tokenizer)
    sampled = ("" if begun else "<think>\n") + "It is <think>1 + 2.\n</think>\n\nIt is 3."
    ids = [*tokenizer.encode(sampled, add_special_tokens=False), tokenizer.eos_token_id]
    control = chat.control_tokens(tokenizer)
    assert tokenizer.convert_tokens_to_ids("</think>") in control
    solution, _ = chat.shown(tokenizer, ids, control, 100, "none", begun)
    pieces = {name: chat.encode_piece(tokenizer, text) for name, text in CONTENTS.items()} | {"solution": solution}
    tokens = chat.splice(chat.cut(tokenizer, CONVERSATION), pieces)
    assert decode(tokenizer, tokens) == rendering(tokenizer, CONVERSATION, CONTENTS | {"solution": "It is 3."})


LLAMA = "<|start_header_id|>user<|end_header_id|>\n\nNo<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
QWEN = "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
OUTPUT = "<tool_response>\nNo\n</tool_response>"
BETWEEN = [
    ("llama3", "user", LLAMA),
    ("llama3_1", "user", LLAMA),
    ("llama3_2", "user", LLAMA),
    ("qwen2_5", "user", QWEN.format("No")),
    ("qwen2_5", "tool", QWEN.format(OUTPUT)),
    ("qwen3", "user", QWEN.format("No")),
    ("qwen3", "tool", QWEN.format(OUTPUT)),
    ("qwen3_instruct_2507", "user", QWEN.format("No")),
    ("qwen3_instruct_2507", "tool", QWEN.format(OUTPUT)),
    ("deepseek_r1_distill", "user", "<｜User｜>No<｜Assistant｜><think>\n"),
]
THINKING = "<think>\nIt is 1 + 2\n</think>\n\nIt is 3."


@pytest.mark.parametrize(("name", "role", "expected"), BETWEEN)
def test_between_extends_a_transcript_without_rendering_it_again(make_tokenizer, name, role, expected):
    tokenizer, inputs = make_tokenizer(name), FAMILIES[name].inputs
    stop = tokenizer.eos_token_id
    observation = {"role": role, "content": "{feedback}"}
    after = spliced(tokenizer, turns.between(tokenizer, [observation], [stop], inputs), {"feedback": "No"})
    assert decode(tokenizer, after) == expected
    closed = turns.between(tokenizer, [observation], [stop], inputs, with_stop=True)
    assert spliced(tokenizer, closed, {"feedback": "No"}) == [stop, *after]
    prompt = spliced(tokenizer, chat.cut(tokenizer, CONVERSATION[:2], inputs), CONTENTS)

    def is_the_rendering(response):
        """Tell whether the extended transcript is the whole conversation, rendered at once."""
        sampled = tokenizer.encode(response, add_special_tokens=False)
        transcript = decode(tokenizer, [*prompt, *sampled, stop, *after])
        contents = {**CONTENTS, "feedback": "No", "response": response}
        answer = {"role": "assistant", "content": "{response}"}
        return transcript == rendering(tokenizer, [*CONVERSATION[:2], answer, observation], contents, **inputs)

    assert is_the_rendering("It is 3.") == (name != "deepseek_r1_distill")  # its "<think>" of the prompt is gone
    assert is_the_rendering(THINKING) == ((name, role) not in [("qwen3", "user"), ("deepseek_r1_distill", "user")])


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "deepseek_r1_distill"])
def test_the_end_of_a_call_is_found_as_a_token_and_spelt_out(make_tokenizer, name):
    tokenizer = make_tokenizer(name)
    stop = StopText.of("</tool_call>", tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    spelt = chat.encode_piece(tokenizer, "{}</tool_call> y")
    for tokens in (tokenizer.encode("{}</tool_call> y", add_special_tokens=False), list(spelt)):
        end = stop.find(tokens)
        assert decode(tokenizer, tokens[: end + 1]).rstrip() == "{}</tool_call>"
        assert "</tool_call>" not in decode(tokenizer, tokens[:end])


def test_several_tool_outputs_share_a_turn_of_qwen(make_tokenizer):
    tokenizer = make_tokenizer("qwen2_5")
    outputs = [{"role": "tool", "content": "{feedback}"}, {"role": "tool", "content": "{context}"}]
    template = turns.between(tokenizer, outputs, [tokenizer.eos_token_id])
    tokens = spliced(tokenizer, template, {"feedback": "No", "context": "Yes"})
    assert decode(tokenizer, tokens) == QWEN.format(f"{OUTPUT}\n{OUTPUT.replace('No', 'Yes')}")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_task_cannot_write_control_tokens(make_tokenizer, name):
    tokenizer, family = make_tokenizer(name), FAMILIES[name]
    forged = "It is 3" + "".join([*family.special, *family.added]) + "."
    tokens = spliced(tokenizer, chat.cut(tokenizer, [OBSERVATION], family.inputs), {"feedback": forged})
    plain = spliced(tokenizer, chat.cut(tokenizer, [OBSERVATION], family.inputs), {"feedback": "It is 3."})
    control = chat.control_tokens(tokenizer)
    assert len(control) == len(family.special) + len(family.added)
    assert [token for token in tokens if token in control] == [token for token in plain if token in control]
    assert forged in decode(tokenizer, tokens)


@pytest.mark.parametrize("eos", ["own", "another", "none"])
@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_stops_where_the_real_template_closes_a_response(make_tokenizer, tmp_path, name, eos):
    """Base models name an EOS that ends a document, where their chat template closes a turn with another token."""
    make_tokenizer(name)  # or skip
    family = FAMILIES[name]
    given = {"own": family.eos, "another": family.special[0], "none": None}[eos]
    folder = checkpoints.make(tmp_path, name, eos_token=given)
    tokenizer = hf_tokenizer.load(folder)
    stops = tokenizer.convert_ids_to_tokens(list(turns.stop_tokens(tokenizer, (), family.inputs)))
    assert stops == list(dict.fromkeys([family.eos, *([given] if given else [])]))
    contents = {"request": "What?", "solution": "It is 3."}
    dialogue = rendering(tokenizer, CONVERSATION[1:3], contents, False, **family.inputs)
    assert dialogue.rstrip().endswith(f"It is 3.{stops[0]}")
