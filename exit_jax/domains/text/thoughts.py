"""The final answer of a model that thinks aloud between <think> and </think>, as Qwen3 and DeepSeek-R1 do.

Whatever looks for an answer, a script or a tool call in a response looks in its final answer: a draft in the thoughts is none.
It works on text in which these two markers still stand, whether or not they are single tokens of the tokenizer. An answer
that quotes one of them cannot be told from one that thinks on: what precedes a quoted </think> is lost, and after a quoted
<think> there is no answer. The chat templates of Qwen3 and R1 cut an earlier answer at its last </think>, too.
"""

START, END = "<think>", "</think>"


def is_thinking(text: str) -> bool:
    """Return whether a text ends within a thought, as the generation prompt of R1 does."""
    return text.rfind(START) > text.rfind(END)


def final_answer(response: str, thinking: bool = False) -> str:
    """Return what follows the last </think> of a response, all of it where there is no thought, "" within an unfinished one.

    >>> final_answer("<think>Is it 7? No.</think> It is 9."), final_answer("It is 9."), final_answer("<think>Is it 7?")
    (' It is 9.', 'It is 9.', '')

    Args:
      thinking: whether the prompt has begun the thought already (``is_thinking`` of it).
    """
    if is_thinking(response) or (thinking and END not in response):
        return ""
    return response.rpartition(END)[2]
