"""Thoughts in the domains of text: what is graded, played, run, embedded, voted on, shown and taught is the final answer."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from small import tiny_math, tiny_mle, tiny_tools

from exit_jax.domains.math import domain as maths
from exit_jax.domains.math.grader import Grader
from exit_jax.domains.ml_engineering import domain as mle
from exit_jax.domains.text import tokenizer as tokenizers
from exit_jax.domains.tool_use import domain as tools
from exit_jax.domains.tool_use.parser import render_call
from exit_jax.sandbox import Result
from exit_jax.types import BASE, Instances, Rollouts

MARKS = ("added", "special", "text")  # what <think> and </think> are to a tokenizer
PROMPTS = {
    "asks": "<|assistant|>",
    "thinks": "<|assistant|><think>\n",
    "silences": "<|assistant|><think>\n\n</think>\n\n",
}


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory):
    """Return a function that writes a tokenizer with marks of a kind, whose chat template asks for a response in some way."""
    from tokenizers import AddedToken

    root = tmp_path_factory.mktemp("tokenizers")

    def make(marks, prompt):
        made = tokenizers.train(["a"], 300, root)
        tags = ["<tool_call>", "</tool_call>", *(["<think>", "</think>"] if marks != "text" else [])]
        made.add_tokens([AddedToken(text, special=marks == "special", normalized=False) for text in tags])
        made.chat_template = tokenizers.CHAT_TEMPLATE.replace("<|assistant|>", PROMPTS[prompt])
        folder = root / f"{marks}-{prompt}"
        made.save_pretrained(folder)
        (folder / "config.json").write_text("{}")
        return str(folder)

    return make


def rollouts_of(world, history, texts, width):
    """Return instances of base tasks [1] and rollouts [1, G] with the tokens that a model would have sampled for texts."""
    tokens = np.zeros((1, len(texts), width), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for g, text in enumerate(texts):
        ids = [*world.tokenizer.encode(text, add_special_tokens=False), world.stop_tokens[0]]
        tokens[0, g, : len(ids)], mask[0, g, : len(ids)] = ids, True
    zero, zeros = np.zeros(1, np.int32), np.zeros(tokens.shape, np.float32)
    instances = Instances(history, zero + BASE, zero > 0, zero > 0, zero[:, None], zero)
    return instances, Rollouts(tokens, mask, zeros, zeros, np.ones(mask.shape[:2], bool), zeros[:, :, :1])


@pytest.fixture(scope="module")
def make_math(make_folder, tmp_path_factory):
    """Return a function that makes the math domain with a tokenizer; all share the workers that grade."""
    data_dir, grader = tmp_path_factory.mktemp("math"), Grader(1)

    def make(marks, prompt):
        c = tiny_math(data_dir).domain
        room = {"max_request_tokens": 400, "max_tokens": 400, "max_solution_tokens": 40, "prompt_width": 1200}
        fields = {"tokenizer": make_folder(marks, prompt), "num_test": 2, "truncate": "front", **room}
        math = maths.Math(dataclasses.replace(c, **fields))
        math.grader = grader
        return math

    yield make
    grader.close()


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_math_grades_the_final_answer(make_math, marks, prompt):
    math = make_math(marks, prompt)
    right = math.kept("test")[0][0].answer
    begin = "" if prompt == "thinks" else "<think>"
    texts = [
        f"{begin}It is \\boxed{{{right}}}.</think> No: \\boxed{{999999}}.",
        f"{begin}It is \\boxed{{999999}}." + " Hm." * 20 + f"\n</think>\n\nNo: \\boxed{{{right}}}.",
        f"{begin}I find \\boxed{{{right}}} and must check",
        f"{begin}a</think>\\boxed{{{right}}}<think>or is it",
        f"\\boxed{{{right}}}",  # where the prompt began the thought, it has no end
    ]
    instances, rollouts = rollouts_of(math, jax.tree.map(lambda leaf: leaf[:1], math.tasks("test")), texts, 400)
    grades = math.grade(instances, rollouts)
    plain = float(prompt != "thinks")
    assert grades.quality.tolist() == [[0, 1, 0, 0, plain]]
    assert grades.insertable[0, :, 0].tolist() == [True, True, False, False, bool(plain)]
    assert grades.notes["no_answer"].tolist() == [[0, 0, 1, 1, 1 - plain]]
    assert not grades.notes["truncated"].any(), "thoughts take no room"
    children = jax.tree.map(lambda leaf: leaf[0, :, 0], grades.children)
    final = ["No: \\boxed{999999}.", f"No: \\boxed{{{right}}}.", "", "", f"\\boxed{{{right}}}" * int(plain)]
    assert math.texts_of(children, "solution") == final
    known = math.grader.grade([(final[1], right)])[0].answer  # as votes count it
    assert math.answers(children) == ["999999", known, "", "", known * int(plain)]
    assert [text.strip() for text in math.texts(rollouts.tokens, rollouts.mask)] == final


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_demonstration_has_an_answer(make_math, marks, prompt):
    math = make_math(marks, prompt)
    assert math.thinking == (prompt == "thinks")
    _, _, tokens, mask = math.demonstrations(jax.random.key(0), 0, 4, 1)
    texts = math.texts(tokens, mask)
    assert all(text.strip().endswith("}") for text in texts)
    first = math.tokenizer.decode(tokens[0, 0])
    assert first.startswith("\n</think>\n\n") == (prompt == "thinks")
    thoughtful = math.demonstrate("<think>\nIs it 7?\n</think>\n\nIt is 9.")
    assert math.answer(thoughtful) == "\n\nIt is 9."
    assert math.tokenizer.decode(thoughtful[:-1]).startswith("<think>") == (prompt != "thinks")
    end = math.tokenizer.convert_tokens_to_ids("</think>")
    assert (end in thoughtful) == (marks != "text")


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_tools_carry_out_the_final_answer(make_folder, tmp_path, marks, prompt):
    wide = {"max_context_tokens": 3000, "max_request_tokens": 300, "prompt_width": 4000, "max_observation_tokens": 300}
    c = tiny_tools(tmp_path).domain
    room = {"max_tokens": 400, "max_solution_tokens": 200, "num_train": 4, "num_test": 2}
    room |= {"max_transcript_tokens": 3000, "test_max_transcript_tokens": 3000}
    world = tools.Tools(dataclasses.replace(c, tokenizer=make_folder(marks, prompt), **wide, **room))
    environment = world.environment(test=False)
    task = world.tasks_of("train")[0]
    call = task.truth[0][0]
    made = render_call(call.name, call.arguments)
    begin = "" if prompt == "thinks" else "<think>"
    said = [
        (f"{begin}Should it be {made} or <finished>?</think>\n\n{made}", "call"),
        (f"{begin}I could say <error>.</think><finished>", "finished"),
        (f"{begin}I shall say {made}", "invalid"),
        (f"{begin}I shall say <finished>", "invalid"),
        (made, "invalid" if prompt == "thinks" else "call"),
    ]
    (episode,) = environment.begin(jax.tree.map(lambda leaf: np.asarray(leaf)[:1], world.tasks("train")), 1)
    for text, kind in said:
        ids = np.array([*world.tokenizer.encode(text, add_special_tokens=False), world.stop_tokens[0]])
        ((after, _),) = environment.step([(episode, ids)])
        assert after.turns[0].kind == kind, text
        shown = world.decode(world.solution(ids))
        assert shown == ("" if kind == "invalid" else text.rpartition("</think>")[2].strip())
    responses = [world.tokenizer.encode(text, add_special_tokens=False) for text, _ in said[:2]]
    row = list(itertools.chain(responses[0], world.encode("7\n<|x|>"), responses[1]))
    own = np.zeros(len(row), bool)
    own[: len(responses[0])] = own[-len(responses[1]) :] = True
    assert world.texts(np.array([row]), own[None]) == [f"\n\n{made}<finished>"]
    quoted = world.decode(world.observation("call", "the file says <think>no</think> yes <think>"))
    assert "the file says <think>no</think> yes <think>" in quoted, "what is observed was not thought"


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_scripts_in_thoughts_are_not_run(make_folder, tmp_path_factory, monkeypatch, marks, prompt):
    c = tiny_mle(tmp_path_factory.getbasetemp() / "mle").domain
    room = {"max_tokens": 400, "max_solution_tokens": 400, "max_request_tokens": 300, "prompt_width": 2000}
    room |= {"max_goal_tokens": 60, "max_feedback_tokens": 60, "isolation": "none"}
    world = mle.MlEngineering(dataclasses.replace(c, tokenizer=make_folder(marks, prompt), **room))
    block = lambda name: f"```python\n{name} = 1\n```"
    begin = "" if prompt == "thinks" else "<think>"
    texts = [
        f"{begin}{block('draft')}</think>I cannot do it.",
        f"{begin}{block('draft')}</think>{block('final')}",
        f"{begin}so:\n{block('draft')}",
        f"{begin}\n{block('draft')}\n</think>\n\n{block('final')}\nIt prints:\n```\n0.93\n```",
    ]
    run = []
    monkeypatch.setattr(
        world.sandbox, "run", lambda jobs, owners: [run.append(job.code) or Result("error", "no") for job in jobs]
    )
    instances, rollouts = rollouts_of(world, jax.tree.map(lambda leaf: leaf[:1], world.tasks("train")), texts, 400)
    grades = world.grade(instances, rollouts)
    assert run == ["final = 1\n"] * 2
    assert grades.notes["no_code"].tolist() == [[1, 0, 1, 0]]
    assert world.texts(rollouts.tokens, rollouts.mask) == ["", "final = 1\n", "", "final = 1\n"]
