"""Chat templates cut into token pieces, and what else of a tokenizer the training needs; it never reads a checkpoint.

A conversation is a list of messages as `transformers` knows them, whose contents may hold the names of pieces as
str.format fields (literal braces are doubled):

    [{"role": "system", "content": "Answer in \\boxed{{}}."}, {"role": "user", "content": "# Request\n{request}"}]

``cut`` renders it once with stand-ins for the pieces and turns the text between them into token ids: the Template that
``algorithm.prompts.render`` splices inside jit. What a template does to a message must therefore not depend on what a
piece says. Escaping and the like is an error. Three dependencies are common and harmless if the domain writes its
pieces accordingly:

    stripped      Llama 3 trims messages: a piece at the edge of one has no white space around it
    not empty     and the wording next to an empty piece would be trimmed, too
    no thinking   Qwen3 and R1 drop what precedes </think> in an earlier answer: a solution holds the final answer alone

Pieces that a host writes are encoded by ``encode_piece``; control tokens go from those that a model wrote by ``shown``. Where
turns end and what stands between them: turns.py. That tokenizer and model belong together: tokenizer.py and ``requirements``.
"""

import itertools
import json
import re
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from exit_jax.algorithm.prompts import Template
from exit_jax.domains.text.thoughts import END, START, final_answer, is_thinking
from exit_jax.errors import UserError
from exit_jax.types import PIECES

Tokenizer = Any  # one of transformers, whose import costs a second and is not needed here
Message = Mapping[str, Any]
NO_INPUTS: Mapping[str, Any] = {}
CANNOT = "the chat template cannot be cut into token pieces:"  # how an error begins

# Stand-ins for pieces: private-use characters, which no template looks for and no trimming removes.
STAND_IN = "\ue000{}\ue001"
NO_DATE = "\ue002"
# transformers hands no functions to a template, so its own strftime_now is hidden by a macro of that name.
STOPPED_CLOCK = "{% macro strftime_now(format) %}{{ frozen_date }}{% endmacro %}\n"
GAP = "\n[...]\n"  # stands for a middle that was cut out
PLAIN = "a"
PECULIAR = """a "b" 'c' \\d <e> & {f} {{ g }} {% h %}\ni"""  # escaping, as of JSON or HTML, shows in it


class ChatError(UserError):
    """A chat template that cannot be cut, or messages that it does not take; the message says why and what helps."""


def cut(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    inputs: Mapping[str, Any] = NO_INPUTS,
    add_generation_prompt: bool = True,
    pieces: Sequence[str] = PIECES,
) -> Template:
    """Cut a conversation into static token ids and names of pieces.

    With contents of the pieces put in, the ids decode to the text of ``apply_chat_template``. They equal the ids of that
    text wherever pieces border on special tokens; elsewhere a word may be split at a seam.

    Args:
      inputs: what else the template reads, such as ``date_string``, ``enable_thinking`` or ``tools``. A ``date_string``
        also takes the place of the clock (``strftime_now``), for a prompt must not change from day to day.
      pieces: names that contents may hold.

    Raises:
      ChatError: for unknown fields and inputs, a date left open, or a template that cannot be cut; it says why.
    """
    texts, names, render = _cut_text(tokenizer, messages, inputs, add_generation_prompt, pieces)
    template: list[str | tuple[int, ...]] = [_encode_start(tokenizer, texts[0])]
    for name, text in zip(names, texts[1:]):
        template += [name, _encode(tokenizer, text)]
    template = [item for item in template if item]
    plain = render([PLAIN] * len(names))
    _check_decoding(tokenizer, splice(template, dict.fromkeys(names, _encode(tokenizer, PLAIN))), plain)
    return tuple(template)


def parse_inputs(items: Sequence[str]) -> dict[str, Any]:
    """Return a template's inputs from "name=value" each; a value is JSON where it is such, as true or 3, else text."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    return {name: value(text) for name, _, text in (item.partition("=") for item in items)}


def opens_thought(tokenizer: Tokenizer, inputs: Mapping[str, Any] = NO_INPUTS) -> bool:
    """Return whether the prompt for a response ends within a thought, as R1's, which ends with "<think>\n"."""
    asked = [{"role": "user", "content": PLAIN}]
    asked_text, prompt = (
        _apply(tokenizer, asked, add_generation_prompt, inputs) for add_generation_prompt in (False, True)
    )
    return is_thinking(prompt.removeprefix(asked_text))


def with_inputs(tokenizer: Tokenizer, inputs: Mapping[str, Any]) -> str:
    """Return the chat template with ``inputs`` as its defaults and the clock stopped, so that it renders what ``cut`` cuts."""
    source = tokenizer.get_chat_template(tools=inputs.get("tools"))
    defaults = dict(inputs)
    if "strftime_now" in source:
        source = STOPPED_CLOCK + source
        defaults["frozen_date"] = inputs.get("date_string", NO_DATE)
    unless = lambda name, value: f"{{%- if {name} is not defined %}}{{%- set {name} = {value!r} %}}{{%- endif %}}"
    return "".join(unless(name, value) for name, value in defaults.items()) + source


def answer(tokenizer: Tokenizer, ids: Any, control: Collection[int], thinking: bool = False) -> str:
    """Return the final answer of a response as text, without the ids ``control``; "" where its thoughts have no end.

    Args:
      ids: as sampled, a list or an array.
      thinking: whether the prompt has begun the thought (``opens_thought``).
    """
    return final_answer(with_thoughts(tokenizer, ids, control), thinking)


def shown(
    tokenizer: Tokenizer, ids: Any, control: Collection[int], room: int, truncate: str, thinking: bool = False
) -> tuple[list[int], bool]:
    """Return what a later prompt shows of a response, and whether some of it had to be cut out.

    It is the final answer (``answer``), in the tokens as sampled without the ids ``control``; where thoughts had to go, or
    white space at an end, which chat templates drop, what is left is encoded anew. What is longer than ``room`` tokens loses
    its "front" or its "middle", as ``truncate`` says.
    """
    text = with_thoughts(tokenizer, ids, control)
    stripped = final_answer(text, thinking).strip()
    whole = stripped == text
    kept = [int(token) for token in ids if int(token) not in control] if whole else encode_piece(tokenizer, stripped)
    return shorten(tokenizer, kept, room, truncate)


def with_thoughts(tokenizer: Tokenizer, ids: Any, control: Collection[int]) -> str:
    """Return the text of a response without the ids ``control``, but for those that mark thoughts, mostly two of them."""
    dropped = {*control}.difference(_ids_of(tokenizer, (START, END)))
    return _decode(tokenizer, [int(token) for token in ids if int(token) not in dropped])


def shorten(tokenizer: Tokenizer, tokens: Sequence[int], room: int, truncate: str) -> tuple[list[int], bool]:
    """Cut what is longer than ``room`` tokens at its "front", or else in its "middle"; and say whether it was."""
    kept = list(tokens)
    if len(kept) <= room:
        return kept, False
    if truncate == "front":
        return kept[len(kept) - room :], True
    gap = list(encode_piece(tokenizer, GAP))[:room]
    head = (room - len(gap)) // 2
    return kept[:head] + gap + kept[len(kept) - (room - len(gap) - head) :], True


def splice(template: Template, pieces: Mapping[str, Sequence[int]]) -> list[int]:
    """Put tokens of the pieces into a template, for one row on the host; inside jit ``prompts.render`` does it."""
    return [token for item in template for token in (pieces[item] if isinstance(item, str) else item)]


def encode_piece(tokenizer: Tokenizer, text: str, keep: Sequence[str] = ()) -> tuple[int, ...]:
    """Encode a text that stands inside a prompt: no BOS, no prefix space, and no control token but those in ``keep``.

    "<|im_end|>" in a task or in a program's output remains text: it is encoded in two parts, "<" and "|im_end|>".
    """
    control = [token for token in tokenizer.convert_ids_to_tokens(control_tokens(tokenizer, keep)) if len(token) > 1]
    pattern = "|".join(re.escape(token) for token in control) or "(?!)"  # (?!) matches nothing
    cuts = [0, *(match.start() + 1 for match in re.finditer(f"(?={pattern})", text)), len(text)]
    return tuple(token for start, end in itertools.pairwise(cuts) for token in _encode(tokenizer, text[start:end]))


def _ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the ids of those texts that are tokens of their own."""
    ids = zip(texts, tokenizer.convert_tokens_to_ids(list(texts)))
    return [number for text, number in ids if number is not None and tokenizer.convert_ids_to_tokens(number) == text]


def control_tokens(tokenizer: Tokenizer, keep: Sequence[str] = ()) -> tuple[int, ...]:
    """Return the ids that must not stand in a piece, ascending: special and added tokens.

    Added tokens count although they are not marked as special: R1's "<｜User｜>" and Qwen's "<tool_call>" are such.
    Those of white space alone are text.

    Args:
      keep: tokens, as text, that a domain wants to see in its pieces.
    """
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    return tuple(sorted((added | {*tokenizer.all_special_ids}).difference(_ids_of(tokenizer, keep))))


def unused_ids(tokenizer: Tokenizer) -> tuple[tuple[int, int], ...]:
    """Return the ranges [start, stop) of ids below the largest that are no token's; ids 0, 1 and 4 leave out ((2, 4),)."""
    used = sorted({*tokenizer.get_vocab().values()})
    return tuple((last + 1, first) for last, first in itertools.pairwise([-1, *used]) if first > last + 1)


def _cut_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    inputs: Mapping[str, Any],
    add_generation_prompt: bool,
    pieces: Sequence[str],
) -> tuple[list[str], list[str], Callable[[Sequence[str]], str]]:
    """Return the n + 1 texts around the n pieces, the pieces' names, and a function from contents to the whole text."""
    _check_inputs(tokenizer, inputs)
    parts = [parse(message, index, pieces) for index, message in enumerate(messages)]
    fields = [(name, index) for index, part in enumerate(parts) for _, name in part if name]

    def render(contents: Sequence[str], **more) -> str:
        left = iter(contents)
        filled = ["".join(text + (next(left) if name else "") for text, name in part) for part in parts]
        rendered = [{**message, "content": content} for message, content in zip(messages, filled)]
        return _apply(tokenizer, rendered, add_generation_prompt, {**inputs, **more})

    stand_ins = [STAND_IN.format(index) for index in range(len(fields))]
    text = render(stand_ins)
    if "date_string" not in inputs and (NO_DATE in text or render(stand_ins, date_string=NO_DATE) != text):
        raise ChatError(
            "the chat template puts a date into the prompt, so a run would change from day to day; "
            'freeze it by the input date_string, such as "26 Jul 2024"'
        )
    _check_pieces(text, fields, messages)
    _check_wording(text, parts, messages)
    texts = re.split(STAND_IN.format(r"\d+"), text)
    for index, (name, message) in enumerate(fields):
        contents = [PLAIN] * len(fields)
        contents[index] = PECULIAR
        if render(contents) != _join(texts, contents):
            raise ChatError(
                f"{CANNOT} it rewrites what piece {name!r} of message {message} ({messages[message]['role']}) says, as "
                "Llama 3.1 does, which writes a tool's output as JSON; give the message another role, such as user"
            )
    return texts, [name for name, _ in fields], render


def _join(texts: Sequence[str], contents: Sequence[str]) -> str:
    return texts[0] + "".join(content + text for content, text in zip(contents, texts[1:]))


def parse(message: Message, index: int, pieces: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return a message's content as (text, name of the piece after it, None at the end)."""
    content, where = message.get("content"), f"message {index} ({message.get('role')})"
    if not isinstance(content, str) or not isinstance(message.get("role"), str):
        raise ChatError(f"{where}: role and content must be text, got {dict(message)!r}")
    try:
        parsed = list(string.Formatter().parse(content))
    except ValueError as error:
        raise ChatError(f"{where}: {error} in {content!r}; write literal braces twice, {{{{ and }}}}") from error
    for text, name, form, conversion in parsed:
        if "\ue000" in text or "\ue001" in text:
            raise ChatError(f"{where}: U+E000 and U+E001 stand for pieces while a template is cut; leave them out")
        if name is not None and (name not in pieces or form or conversion):
            raise ChatError(
                f"{where}: the field {name!r} in {content!r} is none of the pieces {', '.join(pieces) or '(none)'}, "
                "alone between braces; write literal braces twice, {{ and }}"
            )
    return [(text, name) for text, name, _, _ in parsed]


def _check_inputs(tokenizer: Tokenizer, inputs: Mapping[str, Any]) -> None:
    source = _source(tokenizer, inputs)
    if "strftime_now" in source:
        source += " date_string"
    for name in inputs:
        if name in ("messages", "add_generation_prompt", "strftime_now") or not re.search(rf"\b{name}\b", source):
            raise ChatError(f"the chat template does not read the input {name!r}; remove it or mend its spelling")


def _source(tokenizer: Tokenizer, inputs: Mapping[str, Any]) -> str:
    """Return the text of the chat template, of several that for ``tools`` where they are given."""
    if not getattr(tokenizer, "chat_template", None):
        raise ChatError(
            "the tokenizer has no chat template, as those of base models; "
            "use the instruct model's tokenizer or add a chat_template.jinja to its folder"
        )
    try:
        return tokenizer.get_chat_template(tools=inputs.get("tools"))
    except ValueError as error:  # several, none of them named default
        raise ChatError(f"the tokenizer has several chat templates and no default one: {error}") from error


def _apply(tokenizer: Tokenizer, messages: list[dict], add_generation_prompt: bool, inputs: Mapping[str, Any]) -> str:
    """Return the text of ``apply_chat_template`` with the clock stopped at ``date_string``, or at NO_DATE without one."""
    source = _source(tokenizer, inputs)
    if "strftime_now" in source:
        source = STOPPED_CLOCK + source
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=source,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **{"frozen_date": inputs.get("date_string", NO_DATE), **inputs},
        )
    except Exception as error:  # a template is code of the checkpoint, and raises what it likes
        roles = ", ".join(message["role"] for message in messages)
        cause = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        needs = "; it may need an input, as tools=[] in domain.template_inputs" * (
            "tools" in source and "tools" not in inputs
        )
        raise ChatError(f"the chat template refuses a conversation of the roles {roles}: {cause}{needs}") from error


def _check_pieces(text: str, fields: Sequence[tuple[str, int]], messages: Sequence[Message]) -> None:
    """Raise unless each stand-in occurs once in the text, all in order."""
    found = [int(index) for index in re.findall(STAND_IN.format(r"(\d+)"), text)]
    for index, (name, message) in enumerate(fields):
        if found.count(index) == 1:
            continue
        deed = "repeats" if index in found else "drops or changes"
        thinking = "; of an answer with </think> it keeps what follows alone" * (
            "</think>" in messages[message]["content"]
        )
        raise ChatError(
            f"{CANNOT} it {deed} piece {name!r} of message {message} ({messages[message]['role']}){thinking}"
        )
    if found != sorted(found):
        order = ", ".join(fields[index][0] for index in found)
        raise ChatError(f"{CANNOT} it changes the order of pieces, to {order}; bring the messages into that order")
    if "\ue000" in re.sub(STAND_IN.format(r"\d+"), "", text):
        raise ChatError(f"{CANNOT} it writes parts of pieces, besides the pieces themselves")


def _check_wording(text: str, parts: Sequence[Sequence[tuple[str, str | None]]], messages: Sequence[Message]) -> None:
    """Raise if a message's own words are not in the text."""
    for index, part in enumerate(parts):
        for words in (words.strip() for words, _ in part):
            if words not in text:
                thinking = ", as the thinking of earlier answers" * ("</think>" in words)
                raise ChatError(
                    f"{CANNOT} it drops or changes the text {words!r} of message {index} "
                    f"({messages[index]['role']}){thinking}; leave out what it would not show, and use roles it knows"
                )


def _decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _encode_start(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Encode a text from its start. The template writes the BOS itself, so the tokenizer must add none."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Encode a text that continues another.

    SentencePiece begins each text with a space that is not there: "\\n" + "a" would decode to "\\n a". So there a newline
    is encoded with the text and removed again. Elsewhere this could split a merge of newlines, and is not needed.
    """
    head, tokens = _encode_start(tokenizer, "\n"), _encode_start(tokenizer, text)
    if _decode(tokenizer, head + _encode_start(tokenizer, PLAIN)) == "\n" + PLAIN:
        return tokens
    joined = _encode_start(tokenizer, "\n" + text)
    return joined[len(head) :] if joined[: len(head)] == head else tokens


def _check_decoding(tokenizer: Tokenizer, tokens: Sequence[int], text: str) -> None:
    """Raise if tokens decode neither to the text nor, in tokenizers that lose something, to what is left of it."""
    decoded = _decode(tokenizer, tokens)
    if decoded in (text, _decode(tokenizer, _encode_start(tokenizer, text))):
        return
    at = next((i for i, (a, b) in enumerate(zip(decoded, text)) if a != b), min(len(decoded), len(text)))
    raise ChatError(
        f"{CANNOT} the tokenizer turns its text {text[max(at - 20, 0) : at + 20]!r} into "
        f"{decoded[max(at - 20, 0) : at + 20]!r}; word the messages so that it survives"
    )
