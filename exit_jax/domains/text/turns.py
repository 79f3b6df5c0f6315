"""Where a turn of a conversation ends, and what stands between two turns, in token ids."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from exit_jax.algorithm.prompts import Template
from exit_jax.domains.text.chat import CANNOT, NO_INPUTS, PLAIN, ChatError, Message, Tokenizer, control_tokens, cut
from exit_jax.types import PIECES

log = logging.getLogger(__name__)

_OPENING = ({"role": "user", "content": PLAIN}, {"role": "assistant", "content": "{ response }"})


def stop_tokens(
    tokenizer: Tokenizer, eos_token_ids: Sequence[int] = (), inputs: Mapping[str, Any] = NO_INPUTS
) -> tuple[int, ...]:
    """Return the ids that end a response.

    The first one is the token with which the chat template closes a response, so that is what demonstrations end in. The
    tokenizer's EOS follows, then ``eos_token_ids``. Base models show why: Qwen2.5's has ChatML, which closes a response with
    "<|im_end|>", and names "<|endoftext|>" alone as its EOS.

    Args:
      eos_token_ids: those of a generation config.

    Raises:
      ChatError: as ``cut``, if the template closes a response with no control token, or an id is none of the tokenizer's.
    """
    after = _after_response(cut(tokenizer, _OPENING, inputs, add_generation_prompt=False, pieces=(" response ",)))
    closing = after[_closing_place(tokenizer, after)]
    listed = [token for token in (tokenizer.eos_token_id, *eos_token_ids) if token is not None]
    unknown = [token for token in listed if token >= 1 << 31 or tokenizer.convert_ids_to_tokens(token) is None]
    if unknown:
        raise ChatError(
            f"eos_token_id lists {unknown}, but the tokenizer has no such token, of its {len(tokenizer)}: no response would "
            "end there; mend generation_config.json or config.json, or take the tokenizer of the same model"
        )
    if closing not in listed:
        names = tokenizer.convert_ids_to_tokens([closing, *listed])
        log.warning(
            "sampling stops at %r, too, with which the chat template closes a response; tokenizer and generation config say %s",
            names[0],
            names[1:] or "no EOS",
        )
    return tuple(dict.fromkeys([closing, *listed]))


def _after_response(template: Template) -> Sequence[int]:
    """Return the ids that follow the piece of a response up to the next piece."""
    after = template[template.index(" response ") + 1 :]
    return () if not after or isinstance(after[0], str) else after[0]


def _closing_place(tokenizer: Tokenizer, after: Sequence[int]) -> int:
    """Return the place of the control token that closes a response, among the ids after it; white space may precede it."""
    control = control_tokens(tokenizer)
    for place, token in enumerate(after):
        if token in control:
            return place
        if tokenizer.decode([token]).strip():
            break
    text = tokenizer.decode(list(after[:8]))
    raise ChatError(
        f"the chat template closes a response with {f'the text {text!r}' if text else 'nothing'}, which no stop token stands "
        "for: a response would not end where its turn does; let the template write eos_token after an assistant's content"
    )


def between(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    stops: Sequence[int],
    inputs: Mapping[str, Any] = NO_INPUTS,
    add_generation_prompt: bool = True,
    with_stop: bool = False,
) -> Template:
    """Return what follows a response whose stop token was sampled: ``messages``, and the prompt for the next response.

    With [{"role": "user", "content": "{feedback}"}] ChatML gives "\\n<|im_start|>user\\n", feedback,
    "<|im_end|>\\n<|im_start|>assistant\\n", as ids. A transcript is thus extended by tokens and never rendered again. It
    equals the rendering of the whole conversation for Llama 3 and Qwen2.5; but not for Qwen3 and R1 where these would
    rewrite the past: both drop an earlier answer's thinking (Qwen3 keeps it until the user speaks, R1 drops also the
    "<think>" that its generation prompt ends with). There the transcript shows what the model really read and wrote.

    Args:
      stops: the stop tokens that responses are sampled with. One that was cut off lacks its own: nothing can follow it.
      with_stop: begin with what the template closes a response with, for one that something else has ended.

    Raises:
      ChatError: as ``cut``, and if the template does not close a response with one of ``stops``.
    """
    template = cut(tokenizer, [*_OPENING, *messages], inputs, add_generation_prompt, (*PIECES, " response "))
    after = _after_response(template)
    place = _closing_place(tokenizer, after)
    if after[place] not in stops:
        closing, known = tokenizer.convert_ids_to_tokens(after[place]), tokenizer.convert_ids_to_tokens(list(stops))
        raise ChatError(
            f"the chat template closes a response with {closing!r} (id {after[place]}), where sampling stops at {known}: "
            "a response would not end where its turn does; add that token to the stop tokens"
        )
    rest = template[template.index(" response ") + 2 :]
    first = after if with_stop else after[place + 1 :]
    return tuple(item for item in (tuple(first), *rest) if item)


def more(tokenizer: Tokenizer, messages: Sequence[Message], inputs: Mapping[str, Any] = NO_INPUTS) -> Template:
    """Return what follows a conversation that ends with a user's message: ``messages``, and the prompt for a response.

    Without messages that is the prompt alone: "<|im_start|>assistant\\n" in ChatML.

    Raises:
      ChatError: as ``cut``, and if the template writes the user's message in another way when something follows it.
    """
    user = {"role": "user", "content": PLAIN}
    before: Any = cut(tokenizer, [user], inputs, add_generation_prompt=False, pieces=())[0]
    whole: Any = cut(tokenizer, [user, *messages], inputs)
    first, rest = whole[0], whole[1:]
    if first[: len(before)] != before:
        raise ChatError(f"{CANNOT} it closes a user's message in another way when {len(messages)} messages follow it")
    return tuple(item for item in (first[len(before) :], *rest) if item)
