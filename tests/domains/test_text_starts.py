"""Starts of tasks in text: prompts against the chat template's own rendering, grades and children of what goes on from them."""

import json

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import tiny_math

from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.domains import contract
from exit_jax.domains.domain import DomainError
from exit_jax.domains.math import domain as maths
from exit_jax.domains.task.domain import Task, make_domain
from exit_jax.domains.task.settings import TaskConfig
from exit_jax.domains.text.prompts import ANSWER, HINT
from exit_jax.domains.text.scored import TextConfig, text_domain
from exit_jax.types import BASE, IMPROVE, Instances, Rollouts

ROWS = [
    {"prompt": "What is 1 + 1?", "work": "1 + 1 = 2 so 2", "answer": 2},
    {"prompt": "What is 3 - 3?", "work": "3 - 3 = 0 so 0", "answer": 0},
    {"prompt": "What is 5?", "work": "", "answer": None},
]


def on_device(history, count=None):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[:count]), history)


def start(domain, name, history, level):
    """Return histories with a start, in NumPy, and ok."""
    levels = jnp.full(history.task.shape, level, jnp.float32)
    table = jax.tree.map(jnp.asarray, domain.gold("train"))
    started, ok = jax.jit(domain.variants[name])(table, history, levels, jax.random.key(0))
    return jax.device_get(started), np.asarray(ok)


def equal(one, other):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), one, other)))


def prompts(domain, history, mode=BASE, templates=None):
    """Return the prompts of histories as text."""
    modes = np.full(history.task.shape, mode, np.int32)
    tokens, length = render_by_mode(templates or domain.start_templates, on_device(history), modes, domain.prompt_width)
    return [
        domain.tokenizer.decode(np.asarray(row[:n]), clean_up_tokenization_spaces=False)
        for row, n in zip(tokens, length)
    ]


def graded(domain, history, texts):
    """Return the grades of one response each, a text that its stop token ends."""
    tokens = np.zeros((len(texts), 1, domain.max_tokens), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, text in enumerate(texts):
        ids = [*domain.tokenizer.encode(text, add_special_tokens=False), domain.stop_tokens[0]]
        tokens[i, 0, : len(ids)], mask[i, 0, : len(ids)] = ids, True
    zeros = np.zeros(tokens.shape, np.float32)
    modes = np.full(len(texts), BASE, np.int32)
    rollouts = Rollouts(tokens, mask, zeros, zeros, mask[..., 0], zeros[..., :1])
    return domain.grade(Instances(history, modes, *4 * [None]), rollouts)


def of_last_child(grades):
    return jax.tree.map(lambda leaf: leaf[:, 0, -1], grades.children)


# Competition math and arithmetic


@pytest.fixture(scope="module")
def math(tmp_path_factory):
    """Return the domain of arithmetic, with room for its gold solutions in a response."""
    return contract.checked(maths.make_domain(tiny_math(tmp_path_factory.mktemp("data"), domain__num_train=16).domain))


@pytest.fixture(scope="module")
def problems(math):
    config = tiny_math("unused", domain__num_train=16).domain
    return maths.Math(config).rows("train")


@pytest.mark.parametrize("name", ["hint", "prefix", "answer"])
def test_level_0_is_the_identity_also_in_the_prompt(math, name):
    history = on_device(math.tasks("train"))
    started, ok = start(math, name, history, 0.0)
    assert ok.all()
    assert equal(started, history)
    assert prompts(math, started) == prompts(math, started, templates=math.templates)


def test_math_prompts_are_what_the_chat_template_says(math, problems):
    history = on_device(math.tasks("train"))

    def rendered(content, begun=""):
        messages = [{"role": "user", "content": content}]
        return math.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + begun

    found = {(name, level): start(math, name, history, level) for name in math.variants for level in (0.5, 1.0)}
    assert all(ok.all() for _, ok in found.values())
    shown = {key: prompts(math, started) for key, (started, _) in found.items()}
    for i, p in enumerate(problems):
        ids = math.tokenizer.encode(p.solution, add_special_tokens=False)
        half = math.tokenizer.decode(ids[: -(-len(ids) // 2)], clean_up_tokenization_spaces=False)
        assert p.solution.startswith(half)
        for level, part in ((0.5, half), (1.0, p.solution)):
            assert shown["hint", level][i] == rendered(f"{p.problem}{HINT}{part}")
            assert shown["prefix", level][i] == rendered(p.problem, part)
            assert shown["answer", level][i] == rendered(f"{p.problem}{ANSWER}{p.answer}")


def test_a_response_is_graded_with_the_prefix_that_it_began_with(math, problems):
    history = on_device(math.tasks("train"), 4)
    for level in (0.0, 0.5, 1.0):
        started, _ = start(math, "prefix", history, level)
        rest = []
        for i, p in enumerate(problems[:4]):
            ids = math.tokenizer.encode(p.solution, add_special_tokens=False)
            rest.append(math.tokenizer.decode(ids[int(started.lengths[i, 2]) :], clean_up_tokenization_spaces=False))
        grades = graded(math, started, [*rest[:3], "\\boxed{123}"])
        assert grades.quality[:3, 0].tolist() == [1.0] * 3
        assert grades.quality[3, 0] == 0.0
        children = of_last_child(grades)
        assert math.describe(children)[:3] == [p.solution for p in problems[:3]]
        np.testing.assert_array_equal(children.step, 0)
        np.testing.assert_array_equal(children.lengths[:, 1], history.lengths[:, 1])
    assert rest[:3] == [""] * 3  # the whole solution is the prefix, and the end token solves it


def test_a_response_that_is_held_is_no_prefix(math, problems):
    history = on_device(math.tasks("train"), 2)
    first = graded(math, jax.device_get(history), [problems[0].solution, "\\boxed{-7}"])
    second = graded(math, of_last_child(first), ["no answer", problems[1].solution])
    assert second.quality[:, 0].tolist() == [0.0, 1.0]
    assert math.describe(of_last_child(second)) == ["no answer", problems[1].solution]


@pytest.mark.parametrize("name", ["hint", "answer"])
def test_children_know_nothing_of_a_hint(math, problems, name):
    history = on_device(math.tasks("train"), 2)
    started, _ = start(math, name, history, 1.0)
    texts = [problems[0].solution, "\\boxed{-7}"]
    plain, hinted = (graded(math, jax.device_get(h), texts) for h in (history, started))
    assert equal(plain, hinted)
    assert prompts(math, of_last_child(hinted), IMPROVE) == prompts(math, of_last_child(plain), IMPROVE, math.templates)


def test_a_start_that_does_not_fit_is_left_out(tmp_path):
    sizes = {"domain__max_tokens": 24, "domain__max_solution_tokens": 24, "domain__prompt_width": 72}
    narrow = maths.make_domain(tiny_math(tmp_path, domain__num_train=16, **sizes).domain)
    history, table = on_device(narrow.tasks("train")), narrow.gold("train")
    static = sum(len(item) for item in narrow.templates["base"] if not isinstance(item, str))
    outcomes = set()
    for name, words in (("hint", table.before_hint.size), ("prefix", 0)):
        started, ok = start(narrow, name, history, 1.0)
        pieces = history.lengths[:, 1] + words + table.length
        np.testing.assert_array_equal(ok, (pieces <= narrow.history_width) & (pieces + static <= narrow.prompt_width))
        left = jax.tree.map(lambda leaf, ok=ok: np.asarray(leaf)[~ok], (started, history))
        assert equal(*left)
        outcomes |= {*ok.tolist()}
    assert outcomes == {True, False}


# Tasks of one's own


@pytest.fixture
def make(own_folder):
    """Return a function that makes the domain of ROWS with some settings."""
    (own_folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (own_folder / "test.jsonl").write_text(json.dumps({"prompt": "What?", "work": "b", "answer": 1}))
    (own_folder / "starts_reward.py").write_text(
        "def score(completion, answer):\n    return completion == str(answer)\n"
    )

    def make(**fields):
        given = {
            "tasks": (f"{own_folder / 'rows.jsonl'}",),
            "test_tasks": (f"{own_folder / 'test.jsonl'}",),
            "reward": (f"{own_folder / 'starts_reward.py'}:score",),
            "reward_runs": "inline",
            "data_dir": str(own_folder / "data"),
            "max_tokens": 48,
            "max_request_tokens": 32,
        }
        return TaskConfig(**given | {"gold_column": "work", "answer_column": "answer"} | fields)

    return make


@pytest.mark.parametrize("family", ["", "qwen3", "llama3", "deepseek_r1_distill"])
def test_own_tasks_with_the_chat_templates_of_families(make, tmp_path, family):
    folder = str(checkpoints.make(tmp_path / "checkpoint", family)) if family else ""
    config = make(tokenizer=folder, system="You count.", base="Solve. {request} Be brief.", max_solution_tokens=128)
    domain = contract.checked(make_domain(config))
    history = on_device(domain.tasks("train"))
    thinks = family == "deepseek_r1_distill"  # its prompt begins a thought, in which no solution stands
    assert {*domain.variants} == {"hint", "answer"} | (set() if thinks else {"prefix"})
    for name in domain.variants:
        started, ok = start(domain, name, history, 1.0)
        assert ok.tolist() == [True, True, False]
        for row, text in zip(ROWS, prompts(domain, started), strict=True):
            work, answer = row["work"], row["answer"]
            hint = {"hint": work and HINT + work, "answer": "" if answer is None else f"{ANSWER}{answer}"}.get(name, "")
            content = f"Solve. {row['prompt']}{hint} Be brief."
            whole = [{"role": "system", "content": "You count."}, {"role": "user", "content": content}]
            options = {"tokenize": False, "add_generation_prompt": True, **domain.template_inputs}
            expected = domain.tokenizer.apply_chat_template(whole, **options)
            assert text == expected + (work if name == "prefix" else "")
        same, _ = start(domain, name, history, 0.0)
        assert prompts(domain, same) == prompts(domain, history, templates=domain.templates)


def test_own_tasks_without_gold_have_no_starts(make):
    domain = make_domain(make(gold_column="", answer_column=""))
    assert not domain.variants
    assert domain.gold is None
    assert not domain.start_templates
    assert {*make_domain(make(gold_column="")).variants} == {"answer"}


def test_a_column_that_no_row_has_is_told(make):
    with pytest.raises(DomainError, match=r"no train row has the column domain.answer_column = 'anwser'.*'answer'"):
        make_domain(make(answer_column="anwser")).gold("train")


def test_a_gold_response_of_0_is_one(make):
    task = Task(make(gold_column="answer"))
    assert [task.solution_of(row) for row in task.kept("train")[0]] == ["2", "0", ""]
    assert {task.demonstration(number, 1)[2][0] for number in range(4)} == {"2", "0"}


def test_two_functions_make_a_domain_with_starts():
    tasks = lambda split: [{"prompt": f"Reverse {word}.", "word": word[::-1]} for word in ("abcd", "bcde")]
    domain = text_domain(
        TextConfig(max_request_tokens=32, max_tokens=16, max_solution_tokens=64),
        tasks,
        lambda task, answer: float(answer == task["word"]),
        gold=lambda task: task["word"],
        answer=lambda task: task["word"].upper(),
    )
    history = on_device(domain.tasks("train"))
    shown = prompts(domain, start(domain, "answer", history, 0.5)[0])
    assert all(f"{ANSWER}{word}" in text for word, text in zip(("DCBA", "EDCB"), shown, strict=True))
    started, _ = start(domain, "prefix", history, 0.5)
    assert [text[-2:] for text in prompts(domain, started)] == ["dc", "ed"]
    grades = graded(domain, started, ["ba", "dcb"])
    assert grades.quality[:, 0].tolist() == [1.0, 0.0]
    assert domain.describe(of_last_child(grades)) == ["dcba", "eddcb"]
