"""The final answer of a model that thinks aloud."""

import pytest

from exit_jax.domains.text.thoughts import final_answer, is_thinking


@pytest.mark.parametrize(
    ("response", "thinking", "answer"),
    [
        ("no thoughts", False, "no thoughts"),
        ("<think>draft</think>I cannot do it.", False, "I cannot do it."),
        ("draft</think>I cannot do it.", True, "I cannot do it."),  # the prompt ended with <think>
        ("<think>a</think>b<think>c</think>d", False, "d"),
        ("<think>I find 7 and must check", False, ""),
        ("I find 7 and must check", True, ""),
        ("<think>a</think>It is 7.<think>or", False, ""),
        ("", True, ""),
        ("", False, ""),
    ],
)
def test_final_answer(response, thinking, answer):
    assert final_answer(response, thinking) == answer


@pytest.mark.parametrize(
    ("prompt", "thinking"),
    [("<|Assistant|><think>\n", True), ("<think>\n\n</think>\n\n", False), ("<|im_start|>assistant\n", False)],
)
def test_a_prompt_may_begin_the_thought(prompt, thinking):
    assert is_thinking(prompt) == thinking
