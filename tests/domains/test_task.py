"""Tasks of one's own as a domain: prompts as the chat template has them, grades, feedback, votes, demonstrations."""

import dataclasses
import json

import checkpoints
import jax
import numpy as np
import pytest

from exit_jax import domains
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.domains.domain import DomainError
from exit_jax.domains.task.domain import Task, make_domain
from exit_jax.domains.task.settings import TaskConfig
from exit_jax.types import BASE, DIVERGE, IMPROVE, Instances, Rollouts

SYSTEM = {"role": "system", "content": "Be brief."}
SHOTS = [{"role": "user", "content": "Say a"}, {"role": "assistant", "content": "a"}]
PROMPTS = {  # name of a source -> its prompts
    "plain": [f"What is {i} + 1?" for i in range(4)],
    "chat": [[SYSTEM, *SHOTS, {"role": "user", "content": f"Say {word}"}] for word in "bcde"],
}
REWARD = """
def score(prompt, completion, answer):
    assert "think" not in completion
    right = completion == answer
    return {"quality": right, "feedback": "right" if right else f"not {completion}", "answer": completion.upper()}
"""


@pytest.fixture
def make(own_folder):
    """Return a function that makes the Task of both sources with some settings; their processes end with the test."""
    made = []
    for name, prompts in PROMPTS.items():
        lines = [json.dumps({"prompt": prompt, "answer": str(place + 1)}) for place, prompt in enumerate(prompts)]
        (own_folder / f"{name}.jsonl").write_text("\n".join(lines))
    (own_folder / "reward_of_task.py").write_text(REWARD)

    def make(*sources, **fields):
        given = {
            "tasks": tuple(f"{own_folder / name}.jsonl" for name in sources or PROMPTS),
            "reward": (f"{own_folder / 'reward_of_task.py'}:score",),
            "reward_runs": "inline",
            "data_dir": str(own_folder / "data"),
            "num_test": 2,
            "max_tokens": 24,
            "max_request_tokens": 32,
            "max_feedback_tokens": 16,
        }
        made.append(Task(TaskConfig(**given | fields)))
        return made[-1]

    yield make
    for task in made:
        task.rewards.close()


@pytest.mark.parametrize("family", ["", "qwen3", "llama3", "deepseek_r1_distill"])
@pytest.mark.parametrize("system", ["", "You count."])
def test_prompts_are_what_the_chat_template_says(make, tmp_path, family, system):
    """Of all modes, whether a prompt is a text or a chat, against the template's own rendering of whole conversations."""
    folder = str(checkpoints.make(tmp_path / "checkpoint", family)) if family else ""
    task = make(tokenizer=folder, system=system)
    rows, history = task.kept("train")[0], task.tasks("train")
    solution, feedback = "It is 7.", "not 7"
    for place, row in enumerate(rows):
        base = jax.tree.map(lambda leaf, place=place: leaf[place : place + 1], history)
        held = [(task.context(row), task.encode(row.prompt), task.encode(solution), task.encode(feedback))] * 3
        packed = task.pack(held, task=int(base.task[0]))
        mode = np.array([BASE, IMPROVE, DIVERGE])
        tokens, lengths = render_by_mode(task.templates, packed, mode, task.prompt_width)
        first, first_length = render_by_mode(task.templates, base, mode[:1], task.prompt_width)
        assert np.array_equal(first[0, : first_length[0]], tokens[0, : lengths[0]])
        before = [{"role": role, "content": content} for role, content in row.messages]
        if system and not row.messages:
            before = [{"role": "system", "content": system}]
        for i, name in enumerate(("base", "improve", "diverge")):
            message = task.message(name).format(request=row.prompt, solution=solution, feedback=feedback).strip()
            whole = [*before, {"role": "user", "content": message}]
            options = {"tokenize": False, "add_generation_prompt": True, **task.inputs}
            expected = task.tokenizer.apply_chat_template(whole, **options)
            assert task.tokenizer.decode(np.asarray(tokens[i, : lengths[i]])) == expected, (name, row.place)


def respond(task, split, texts):
    """Return instances of the first base tasks of a split, two responses each, and their rollouts."""
    n, stop = len(texts) // 2, task.stop_tokens[0]
    tokens = np.zeros((n, 2, task.config.max_tokens), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, text in enumerate(texts):
        ids = [*task.tokenizer.encode(text, add_special_tokens=False), stop]
        tokens[i // 2, i % 2, : len(ids)], mask[i // 2, i % 2, : len(ids)] = ids, True
    history = jax.tree.map(lambda leaf: leaf[:n], task.tasks(split))
    zero, zeros = np.zeros(n, np.int32), np.zeros(tokens.shape, np.float32)
    instances = Instances(history, zero, zero > 0, zero > 0, zero[:, None], zero)
    return instances, Rollouts(tokens, mask, zeros, zeros, np.full((n, 2), True), zeros[:, :, :1])


def test_grades_feedback_and_votes(make):
    task = make("plain", votes=True)
    rows = task.kept("train")[0]
    right = rows[0].columns["answer"]
    grades = task.grade(*respond(task, "train", [right, "x", " y ", ""]))
    assert grades.quality.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert grades.insertable[..., 0].tolist() == [[True, True], [True, False]], "an empty answer holds nothing"
    children = jax.tree.map(lambda leaf: leaf.reshape(4, *leaf.shape[3:]), grades.children)
    assert task.texts_of(children, "solution") == [right, "x", "y", ""]
    assert task.texts_of(children, "feedback") == ["right", "not x", "not y", "not "]
    assert task.texts_of(children, "request") == [rows[0].prompt] * 2 + [rows[1].prompt] * 2
    assert make_domain(task.config).answers(children) == [right, "X", "Y", ""]


def test_thoughts_are_neither_graded_nor_carried_on(make, tmp_path):
    task = make("plain", tokenizer=str(checkpoints.make(tmp_path / "checkpoint", "qwen3")), max_tokens=64)
    right = task.kept("train")[0][0].columns["answer"]
    grades = task.grade(*respond(task, "train", [f"<think>\nthink\n</think>\n\n{right}", "<think>\nthink"]))
    assert grades.quality.tolist() == [[1.0, 0.0]], "a thought without an end has no answer"
    children = jax.tree.map(lambda leaf: leaf.reshape(2, *leaf.shape[3:]), grades.children)
    assert task.texts_of(children, "solution") == [right, ""]
    assert grades.insertable[0, :, 0].tolist() == [True, False]


def test_what_people_read_of_tasks(make):
    task = make()
    domain = domains.make("task", task.config)  # which checks it against its contract
    domains.make.cache_clear()
    assert {*domain.category("train")["source"]} <= {"plain", "chat"}
    assert make_domain(make("plain").config).category("train") == {}, "there is one source"
    about = domain.about_tasks("test")
    assert [row["request"] for row in about] == [row.prompt for row in task.kept("test")[0]]
    assert all(row["answer"] and row["source"] for row in about)
    assert sorted(domain.files()) == sorted(task.table.files | task.rewards.files)


def test_results_are_broken_down_by_a_column_with_numbers(make, own_folder):
    lines = [json.dumps({"prompt": f"Say {i}", "answer": "", "level": i / 1, "share": i / 8}) for i in range(9)]
    (own_folder / "plain.jsonl").write_text("\n".join(lines))
    assert make_domain(make("plain").config).difficulty("train") == {}
    for column, scale in (("level", 1), ("share", 8)):
        task = make("plain", difficulty_column=column)
        for split in ("train", "test"):
            (found,) = make_domain(task.config).difficulty(split).items()
            assert found[0] == column
            assert (scale * found[1]).tolist() == [int(row.prompt.split()[1]) for row in task.kept(split)[0]]
            assert np.issubdtype(found[1].dtype, np.integer) == (column == "level")
    taught = [
        make_domain(make("plain", gold_column="answer", **more).config) for more in ({}, {"difficulty_column": "level"})
    ]
    assert len({domain.demonstrations_id for domain in taught}) == 1, "demonstrations are the same"


@pytest.mark.parametrize("value", ["hard", None, True, float("nan"), [1], "absent"])
def test_a_difficulty_that_is_no_number_is_one_error(make, own_folder, value):
    rows = [{"prompt": f"Say {i}", "answer": "", "level": i} for i in range(9)]
    rows[5] |= {"level": value}
    if value == "absent":
        del rows[5]["level"]
    (own_folder / "plain.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = "is missing in" if value == "absent" else "is .* in"
    config = make("plain").config
    with pytest.raises(DomainError, match=rf"domain.difficulty_column = 'level' {words} .*plain.jsonl:6; each row"):
        Task(dataclasses.replace(config, difficulty_column="level")).table  # noqa: B018
    with pytest.raises(DomainError, match=r"'levels' is missing; did you mean 'level'\? in .*plain.jsonl"):
        Task(dataclasses.replace(config, difficulty_column="levels")).table  # noqa: B018


def test_demonstrations_are_the_answers_of_a_column(make):
    task = make(gold_column="answer")
    history, mode, tokens, mask = make_domain(task.config).demonstrations(jax.random.key(0), np.int32(0), 4, 2)
    assert set(np.asarray(mode).tolist()) == {BASE}
    said = [task.decode(row[on]) for group, m in zip(tokens, mask) for row, on in zip(group, m)]
    by_prompt = {row.prompt: row.columns["answer"] for row in task.kept("train")[0]}
    expected = [by_prompt[prompt] for prompt in task.texts_of(history, "request") for _ in range(2)]
    assert [text.removesuffix(task.tokenizer.decode(task.stop_tokens[:1])) for text in said] == expected
    with pytest.raises(
        DomainError, match=r"has a response in its column 'answer' that fits into domain.max_tokens = 1;"
    ):
        make_domain(make(gold_column="answer", max_tokens=1).config).demonstrations(
            jax.random.key(0), np.int32(0), 4, 2
        )
    with pytest.raises(DomainError, match=r"no training row has the column domain.gold_column = 'anwser'.*'answer'"):
        make_domain(make(gold_column="anwser").config).demonstrations(jax.random.key(0), np.int32(0), 4, 2)


def test_what_is_too_long_is_left_out_of_training_and_counts_as_wrong_in_tests(make, own_folder):
    long = {"prompt": "Count " + "on and " * 20, "answer": "1"}
    short = [{"prompt": f"Count to {i}", "answer": "1"} for i in range(3)]
    (own_folder / "long.jsonl").write_text("\n".join(map(json.dumps, [long, *short])))
    task = make("long", test_tasks=(str(own_folder / "plain.jsonl"),))
    assert [row.prompt for row in task.kept("train")[0]] == [row["prompt"] for row in short]
    (left_out,) = [json.loads(line) for line in (own_folder / "data/left_out.jsonl").read_text().splitlines()]
    assert left_out["place"].endswith("long.jsonl:1")
    task = make("plain", test_tasks=(str(own_folder / "long.jsonl"),))
    assert task.too_long("test").tolist() == [True, False, False, False]
    assert task.grade(*respond(task, "test", ["1", "1", "1", "1"])).quality.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_a_split_that_no_row_says_is_told(make, own_folder):
    rows = [{"prompt": f"Say {i}", "answer": "1", "part": "train" if i else "test"} for i in range(4)]
    (own_folder / "parts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    domain = make_domain(make("parts", split_column="part").config)
    assert domain.splits == ("train", "test")
    with pytest.raises(DomainError, match=r"no row says that it is of the split 'validation'; there are train, test"):
        domain.tasks("validation")
