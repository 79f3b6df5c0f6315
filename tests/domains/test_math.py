"""The math domain: prompts as the chat template has them, grades, pieces, training one batch ahead, evaluation that resumes."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from small import tiny_math as tiny

from exit_jax import domains, run
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.domains.domain import DomainError
from exit_jax.domains.math import domain as maths
from exit_jax.domains.math.grader import Grader, Verdict
from exit_jax.domains.text import chat
from exit_jax.domains.text.settings import SPAN
from exit_jax.errors import ConfigError
from exit_jax.evaluation import programs
from exit_jax.evaluation.evaluate import evaluate
from exit_jax.step.program import make_program
from exit_jax.training import train
from exit_jax.types import BASE, DIVERGE, IMPROVE, Instances, Rollouts
from exit_jax.workdir.evaluation import chain_of
from exit_jax.workdir.metrics import read_jsonl


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def math(data_dir):
    return maths.Math(tiny(data_dir).domain)


def test_prompts_decode_to_the_chat_template(math):
    history = math.tasks("train")
    solution = math.tokenizer.encode("1 + 1 = 2\n\\boxed{2}", add_special_tokens=False)
    requests = [tuple(row[:n]) for row, n in zip(history.tokens[:3], history.lengths[:3, 1])]
    held = math.pack([((), request, solution, ()) for request in requests], task=0)
    mode = np.array([BASE, IMPROVE, DIVERGE])
    tokens, lengths = render_by_mode(math.templates, held, mode, math.config.prompt_width)
    for i, name in enumerate(("base", "improve", "diverge")):
        problem = math.kept("train")[0][i].problem
        content = getattr(math.config, name).format(request=problem, solution="1 + 1 = 2\n\\boxed{2}")
        expected = math.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        assert math.tokenizer.decode(np.asarray(tokens[i, : lengths[i]])) == expected


def respond(math, texts, finished=True):
    """Return instances of base tasks, two responses each, and their rollouts."""
    n, stop = len(texts) // 2, math.stop_tokens[0]
    tokens = np.zeros((n, 2, math.config.max_tokens), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, text in enumerate(texts):
        ids = [*math.tokenizer.encode(text), stop]
        tokens[i // 2, i % 2, : len(ids)], mask[i // 2, i % 2, : len(ids)] = ids, True
    history = jax.tree.map(lambda leaf: leaf[:n], math.tasks("test"))
    zero, zeros = np.zeros(n, np.int32), np.zeros(tokens.shape, np.float32)
    instances = Instances(history, zero, zero > 0, zero > 0, zero[:, None], zero)
    return instances, Rollouts(tokens, mask, zeros, zeros, np.full((n, 2), finished), zeros[:, :, :1])


def test_grades(math):
    problems, _ = math.kept("test")
    right = [f"so \\boxed{{{problem.answer}}}" for problem in problems[:2]]
    instances, rollouts = respond(math, [right[0], "\\boxed{123456}", "", f" {right[1]} \n"])
    grades = math.grade(instances, rollouts)
    np.testing.assert_array_equal(grades.quality, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(grades.insertable[..., 0], [[1, 1], [0, 1]])  # an empty response is no history
    np.testing.assert_array_equal(grades.notes["no_answer"], [[0, 0], [1, 0]])
    children = jax.tree.map(lambda leaf: leaf[:, :, 0].reshape(4, *leaf.shape[3:]), grades.children)
    assert math.texts_of(children, "solution") == [right[0], "\\boxed{123456}", "", right[1]], (
        "white space at the ends goes"
    )
    np.testing.assert_array_equal(children.step, 0)
    np.testing.assert_array_equal(children.task // SPAN, 2)
    assert math.answers(children)[1] == "123456"


def test_a_hanging_answer_costs_itself_alone(data_dir, tmp_path):
    math = maths.Math(tiny(tmp_path, domain__timeout_secs=1.0).domain)
    right = f"\\boxed{{{math.kept('test')[0][0].answer}}}"
    instances, rollouts = respond(math, [right, "\\boxed{9^{9^{9^{9^9}}}}"])
    grades = math.grade(instances, rollouts)
    assert grades.quality.tolist() == [[1.0, 0.0]]
    if not grades.valid[0, 1]:  # as fast as sympy is, it may see that no number can be that large
        assert grades.notes["ungraded"].tolist() == [[0.0, 1.0]]
        assert not grades.insertable[0, 1, 0]
        assert "9^" in (tmp_path / "ungraded.jsonl").read_text()
    math.grader.close()


def shown(math, ids):
    return chat.shown(math.tokenizer, ids, math.control, math.config.max_solution_tokens, math.config.truncate)


@pytest.mark.parametrize(("where", "kept"), [("front", "0 1 2 3"), ("middle", "9 8")])
def test_long_responses_are_cut_where_told(data_dir, where, kept):
    math = maths.Math(tiny(data_dir, domain__truncate=where, domain__max_solution_tokens=20).domain)
    ids = math.tokenizer.encode("9 8 7 6 5 4 3 2 1 0 " * 5 + "0 1 2 3")
    piece, was_cut = shown(math, ids)
    text = math.tokenizer.decode(piece)
    assert was_cut
    assert len(piece) == 20
    assert text.endswith("0 1 2 3")
    assert (chat.GAP in text) == (where == "middle")
    assert text.startswith(kept) == (where == "middle")
    assert shown(math, ids[:19])[0] == ids[:19], "what fits is shown as it was sampled"


def test_control_tokens_and_thoughts_leave_no_trace_in_a_piece(math):
    end = math.stop_tokens[0]
    ids = math.tokenizer.encode("let me see</think>\n\n\\boxed{7}", add_special_tokens=False)
    piece, was_cut = shown(math, [*ids[:3], end, *ids[3:], end])
    assert math.tokenizer.decode(piece) == "\\boxed{7}"
    assert not was_cut


def test_demonstrations_fit_as_tasks_do(math):
    lengths = math.tasks("train").lengths[:, 1]
    limit = int(np.median(lengths))
    assert limit < lengths.max()
    narrow = maths.Math(dataclasses.replace(math.config, max_request_tokens=limit))
    assert narrow.demonstrations(jax.random.key(0), 0, 64, 1)[0].lengths[:, 1].max() <= limit


def test_a_test_problem_that_is_too_long_counts_as_wrong(math, data_dir, tmp_path, monkeypatch, caplog):
    """A grader that finds every answer right cannot help it; what is trained on is left out, and both are said."""
    lengths = math.tasks("test").lengths[:, 1]
    limit = int(np.sort(lengths)[4])
    config = tiny(data_dir, domain__max_request_tokens=limit, domain__timeout_secs=4.5)
    domain = domains.make(config.domain_name, config.domain)
    num_too_long = int((lengths > limit).sum())
    assert 0 < num_too_long < 8
    np.testing.assert_array_equal(domain.too_long("test"), lengths > limit)
    shown = domain.tasks("test")
    assert shown.task.size == len(domain.about("test")) == 8
    np.testing.assert_array_equal(shown.lengths[:, 1], np.minimum(lengths, limit))
    assert not domain.too_long("train").any()
    assert domain.tasks("train").task.size == len(domain.too_long("train")) < 64
    for split, fate in (("test", "count as wrong"), ("train", "are left out")):
        assert f"problems of {split} are longer than domain.max_request_tokens = {limit} and {fate}" in caplog.text
    yes = Verdict(correct=True, answer="7", graded=True)
    monkeypatch.setattr(Grader, "grade", lambda self, pairs: [yes] * len(pairs))
    params = make_program(config).init_params(0)
    found = evaluate(config, params, None)["splits"]["test"]
    assert (found["num_tasks"], found["num_too_long"]) == (8, num_too_long)
    assert chain_of(found)["accuracy"] == [1 - num_too_long / 8] * 3


def test_a_demonstration_that_is_cut_off_does_not_teach_to_end_there(math):
    narrow = maths.Math(dataclasses.replace(math.config, max_tokens=24))
    _, _, tokens, mask = narrow.demonstrations(jax.random.key(0), 0, 64, 1)
    ends = (np.where(mask, tokens, 0) == math.stop_tokens[0]).any(-1)
    whole = np.array([text.endswith("}") for text in math.texts(tokens, mask)]).reshape(ends.shape)
    assert whole[ends].all()
    assert 0 < ends.mean() < 1


def test_gold_solutions_are_demonstrated_if_they_fit(math, tmp_path):
    math.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    texts = ["", "\\boxed{7}", "1 + 2 = 3\n\\boxed{3}", "1 + 2 + 3 = 6\n\\boxed{6}"]
    room = len(math.encode(texts[2])) + 1  # and its end
    gold = maths.Math(dataclasses.replace(math.config, data="competition", tokenizer=str(tmp_path), max_tokens=room))
    gold.kept = lambda split: (tuple(maths.Problem("1 + 6", "7", text, 1, "") for text in texts), ())
    _, _, tokens, mask = gold.demonstrations(jax.random.key(0), 0, 32, 1)
    assert set(gold.texts(tokens, mask)) == set(texts[1:3])
    unfit = maths.Math(dataclasses.replace(gold.config, max_tokens=2))
    unfit.kept = gold.kept
    with pytest.raises(DomainError, match=r"fits into domain.max_tokens = 2; raise it .* warm_start.num_steps to 0"):
        unfit.demonstrations(jax.random.key(0), 0, 1, 1)


def test_demonstrations_are_what_they_seem(math):
    key = jax.random.key(3)
    history, mode, tokens, mask = math.demonstrations(key, 5, 64, 2)
    again = math.demonstrations(key, 5, 64, 2)
    np.testing.assert_array_equal(tokens, again[2])
    assert not np.array_equal(tokens, math.demonstrations(key, 6, 64, 2)[2])
    assert {BASE, IMPROVE, DIVERGE} == set(mode.tolist())
    np.testing.assert_array_equal(history.step, np.where(mode == BASE, -1, 0))
    assert ((history.lengths[:, 2] > 0) == (mode != BASE)).all()
    texts = math.texts(tokens, mask)
    assert all("\\boxed{" in text and text.endswith("}") for text in texts)
    last = np.take_along_axis(tokens, mask.sum(-1, keepdims=True) - 1, axis=-1)
    assert (last == math.stop_tokens[0]).all()


def test_faults_of_the_config_say_what_to_do(data_dir):
    with pytest.raises(ConfigError, match="say by domain"):
        tiny(data_dir, domain__max_solution_tokens=20)
    with pytest.raises(ConfigError, match="name a checkpoint"):
        tiny(data_dir, domain__data="competition")
    with pytest.raises(DomainError, match=r"prompt_width = 70 is too narrow: improve takes up to \d+ tokens"):
        maths.make_domain(tiny(data_dir, domain__prompt_width=70).domain)
    with pytest.raises(DomainError, match="max_request_tokens = 2"):
        maths.Math(tiny(data_dir, domain__max_request_tokens=2).domain).tasks("train")
    with pytest.raises(ConfigError, match="'math500' is not one of"):
        tiny(data_dir, eval__splits=("math500",))
    unprepared = dataclasses.replace(tiny(data_dir).domain, data="competition", tokenizer="any")
    with pytest.raises(DomainError, match="--mode data"):
        maths.Math(dataclasses.replace(unprepared, data_dir=str(data_dir / "none"))).kept("train")


def rows(workdir):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_jsonl(workdir / "train.jsonl")]


@pytest.fixture(scope="module")
def paying(data_dir):
    """Return a function that makes a config whose responses are paid 0 to 6/8: an untrained policy would learn nothing."""
    grade = maths.Math.grade

    def pay(self, instances, rollouts):
        grades = grade(self, instances, rollouts)
        quality = ((rollouts.tokens * rollouts.mask).sum(-1) % 7 / 8).astype(np.float32)
        return dataclasses.replace(grades, quality=quality, valid=np.ones_like(grades.valid))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maths.Math, "grade", pay)
        # a limit of its own, since domains are kept by their config
        yield functools.partial(tiny, data_dir, domain__timeout_secs=5.5)


@pytest.fixture(scope="module")
def ahead(paying, tmp_path_factory):
    """Return a whole run that samples one batch ahead: config, workdir, state."""
    config, workdir = paying(algorithm__rollout_lag=1), tmp_path_factory.mktemp("ahead")
    return config, workdir, train.train(config, workdir)[0]


@pytest.mark.slow
def test_resume_with_a_batch_in_flight_is_bitwise(ahead, tmp_path):
    config, workdir, state = ahead
    short = dataclasses.replace(config, run=dataclasses.replace(config.run, num_iterations=2))
    train.train(short, tmp_path)
    resumed = train.train(config, tmp_path)[0]
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(state.buffer.history.tokens, resumed.buffer.history.tokens)
    assert rows(tmp_path) == rows(workdir)


def test_one_batch_ahead_draws_the_tasks_that_come_next(ahead, paying, tmp_path):
    """Batches in flight take up base tasks and steps of their own; the ratio is that of a policy one update older."""
    _, workdir, state = ahead
    plain, _ = train.train(paying(), tmp_path)
    assert int(state.step) == int(plain.step) == 4
    first, second = rows(workdir), rows(tmp_path)
    assert first[0]["reward"] == second[0]["reward"], "the first batch is the same"
    drawn = [row["distinct_instances"] for row in first[:2]]
    assert drawn == [8, 16], "the second batch, sampled before the first was learnt from, has tasks of its own"
    assert all(row["grad_norm"] > 0 for row in first)
    assert [row["gap/ratio_max"] > 1.001 for row in first] == [False, True, True, True]
    assert all(row["gap/ratio_max"] < 1.001 for row in second)


def test_an_evaluation_that_was_stopped_goes_on_and_can_be_graded_again(data_dir, tmp_path, monkeypatch):
    config = tiny(data_dir)
    params = make_program(config).init_params(0)
    whole = evaluate(config, params, tmp_path / "whole")
    part = tmp_path / "part"
    (part / "answers").mkdir(parents=True)
    for path in (tmp_path / "whole/answers").iterdir():
        content = path.read_bytes()
        (part / "answers" / path.name).write_bytes(content[: int(0.6 * len(content))])
    assert evaluate(config, params, part) == whole
    for path in (tmp_path / "whole/answers").iterdir():
        assert path.read_bytes() == (part / "answers" / path.name).read_bytes()

    def refuse(*_):
        raise AssertionError("sampled although everything is stored")

    programs.respond.cache_clear()  # a program that is compiled already would not ask for it
    monkeypatch.setattr("exit_jax.policy.sampler.sample", refuse)
    assert evaluate(config, params, part) == whole
    monkeypatch.undo()
    other = jax.tree.map(lambda leaf: leaf * 1.01, params)
    evaluate(config, other, part)
    header = json.loads((part / "answers/test.jsonl").open().readline())
    assert header != json.loads((tmp_path / "whole/answers/test.jsonl").open().readline()), (
        "another policy, other answers"
    )


@pytest.mark.slow
def test_training_leaves_all_files(data_dir, tmp_path):
    results = run.train(tiny(data_dir, algorithm__diversity_embedding="policy"), tmp_path)
    assert set(results["splits"]) == {"test"}
    chains = read_jsonl(tmp_path / "chains.jsonl")
    assert {"request", "gold", "quality", "modes", "answers", "responses", "split", "task", "sample"} == set(chains[0])
    assert chains[0]["modes"] == ["base", "improve", "improve"]
    with np.load(tmp_path / "instances.npz") as arrays:
        assert arrays["embedding"].shape == (arrays["step"].size, 32)
    last = rows(tmp_path)[-1]
    assert {"task/gold_steps", "grade/ungraded", "grade/truncated", "grade/no_answer"} <= set(last)
