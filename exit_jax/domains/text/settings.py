"""Settings of every domain of text from tasks and a score; a config is read before jax is imported."""

import dataclasses

from exit_jax.domains.text.prompts import DIVERGE
from exit_jax.settings import setting

SPAN = 1 << 20  # tasks of a split: their numbers are split · SPAN + row
TRUNCATE = ("front", "middle")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """What every domain of ``text_domain`` can be told; a domain's own settings inherit it."""

    tokenizer: str = setting("", 'folder or hub id; "" for one of bytes')
    template_inputs: tuple[str, ...] = setting((), 'what else the chat template reads, as "date_string=26 Jul 2024"')
    system: str = setting("", 'message before each prompt; "" for none')
    # the user's message in each mode; {request}, {solution} and {feedback} stand for pieces, literal braces are doubled
    base: str = setting("{request}", "the user's message for a first response")
    improve: str = setting(
        "", 'the user\'s message for an improved one; "" for the default, with feedback if there is any'
    )
    diverge: str = setting(DIVERGE, "the user's message for one with another approach")
    max_request_tokens: int = setting(
        512, "tokens of a task; longer ones are not trained on, and count as wrong in other splits", within="[1, inf)"
    )
    max_tokens: int = setting(512, "tokens of a response", within="[1, inf)")
    max_solution_tokens: int = setting(
        0, "tokens of the previous response in a prompt; 0 for max_tokens", within="[0, inf)"
    )
    critique: str = setting(
        "",
        "the user's message for a critique of a response, which improve shows as its feedback (algorithm.protocol, the "
        'scaffold self_refine); "" for none',
        younger=True,
    )
    max_feedback_tokens: int = setting(0, "tokens of its feedback in a prompt; 0 shows none", within="[0, inf)")
    truncate: str = setting("middle", "where a longer previous response is cut", choices=TRUNCATE)
    prompt_width: int = setting(0, "tokens of the longest prompt; 0 for what the prompts take", within="[0, inf)")
