"""Critiques by the policy itself: how they are asked for, what later prompts show of them, training and chains with them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import tiny_math

from exit_jax import run
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.config.shipped import load
from exit_jax.domains.domain import DomainError
from exit_jax.domains.text.prompts import CRITIQUE as MESSAGE
from exit_jax.domains.text.scored import TextConfig, text_domain
from exit_jax.errors import ConfigError
from exit_jax.types import CRITIQUE, IMPROVE, Instances, Rollouts
from exit_jax.workdir.metrics import read_jsonl

ROWS = [{"prompt": "What is 1 + 1?"}, {"prompt": "What is 3 - 3?"}]


def make(**settings):
    config = TextConfig(max_request_tokens=40, max_tokens=24, **settings)
    return text_domain(config, lambda split: ROWS, lambda row, answer: (float(answer == "2"), "said by the score"))


@pytest.fixture(scope="module")
def domain():
    return make(critique=MESSAGE, max_feedback_tokens=12)


def respond(domain, history, mode, texts):
    """Return instances of histories [n] and one response each, a text that its stop token ends."""
    tokens = np.zeros((len(texts), 1, domain.max_tokens), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, text in enumerate(texts):
        ids = [*domain.tokenizer.encode(text, add_special_tokens=False), domain.stop_tokens[0]]
        tokens[i, 0, : len(ids)], mask[i, 0, : len(ids)] = ids, True
    zeros = np.zeros(tokens.shape, np.float32)
    instances = Instances(history, np.full(len(texts), mode, np.int32), *4 * [None])
    return instances, Rollouts(tokens, mask, zeros, zeros, mask[..., 0], zeros[..., :1])


def prompts(domain, history, mode):
    modes = np.full(history.task.shape, mode, np.int32)
    held = jax.tree.map(jnp.asarray, history)
    tokens, length = render_by_mode(domain.templates, held, modes, domain.prompt_width)
    return [domain.tokenizer.decode(np.asarray(row[:n])) for row, n in zip(tokens, length)]


def of_child(grades):
    return jax.tree.map(lambda leaf: leaf[:, 0, -1], grades.children)


def test_a_critique_becomes_the_feedback_of_the_response_it_is_about(domain):
    answered = of_child(domain.grade(*respond(domain, domain.tasks("train"), 0, ["3", "2"])))
    assert domain.feedback(answered) == ["", ""]  # the policy's own words take the place of the score's
    for asked, row, answer in zip(prompts(domain, answered, CRITIQUE), ROWS, "32"):
        assert MESSAGE.format(request=row["prompt"], solution=answer) in asked
    grades = domain.critique(*respond(domain, answered, CRITIQUE, ["one too many", " "]))
    child = of_child(grades)
    assert domain.feedback(child) == ["one too many", ""]
    assert domain.describe(child) == ["3", "2"]
    np.testing.assert_array_equal(grades.quality[:, 0], [0.0, 1.0])
    np.testing.assert_array_equal(child.step, answered.step)
    np.testing.assert_array_equal(child.quality, answered.quality)
    assert grades.insertable[:, 0, 0].tolist() == [True, False]  # nothing was said of the second
    assert "# Feedback\none too many" in prompts(domain, child, IMPROVE)[0]


def test_long_critiques_are_cut(domain):
    answered = of_child(domain.grade(*respond(domain, domain.tasks("train"), 0, ["3", "2"])))
    said = of_child(domain.critique(*respond(domain, answered, CRITIQUE, ["0123456789abcdef", "x"])))
    assert domain.feedback(said) == ["0123456789ab", "x"]


def test_an_improve_prompt_has_to_show_critiques():
    with pytest.raises(DomainError, match=r"have \{feedback\} in it"):
        make(critique=MESSAGE, max_feedback_tokens=12, improve="{request} {solution}")
    with pytest.raises(DomainError, match="max_feedback_tokens above 0"):
        make(critique=MESSAGE)


SETTINGS = {
    "domain__critique": "{request}\n{solution}\nWrong:\n",
    "domain__improve": "{request}\n{solution}\n{feedback}\nBetter:\n",
    "domain__max_feedback_tokens": 6,
    "domain__prompt_width": 128,
    "algorithm__protocol": "critique",
    "algorithm__diversity_bonus": False,
    "eval__scaffolds": ("self_refine",),
    "eval__restart_every": 0,
    "eval__steps": (0, 1, 2, 3, 4),
}


def test_training_and_chains_with_critiques(tmp_path):
    config = tiny_math(tmp_path / "data", **SETTINGS, run__num_iterations=2)
    results = run.train(config, tmp_path / "run")
    for row in read_jsonl(tmp_path / "run/train.jsonl", "step"):
        assert np.isfinite([row["critique/loss"], row["second/loss"], row["critique/approx_kl_old"]]).all()
        assert row["second/made"] > 0
        assert row["grading_faults"] == 0
    scaffolds = results["splits"]["test"]["scaffolds"]
    assert scaffolds["self_refine"]["tokens"][1] > scaffolds["self_refine"]["tokens"][0]
    chains = [json.loads(line) for line in (tmp_path / "run/chains.jsonl").read_text().splitlines()]
    refined = [chain for chain in chains if chain["split"] == "test-self_refine"]
    assert refined
    for chain in refined:
        assert chain["modes"] == ["base", "critique", "improve", "critique", "improve"]
        assert chain["quality"][1] == chain["quality"][0]
        assert chain["quality"][3] == chain["quality"][2]
    again = run.evaluate(config, tmp_path / "run")  # from the stored responses
    assert again == results


def test_who_asks_for_critiques_needs_a_domain_that_does(tmp_path):
    for settings in ({"algorithm__protocol": "critique"}, {"eval__scaffolds": ("self_refine",)}):
        with pytest.raises(ConfigError, match="asks for no critiques"):
            run.train(tiny_math(tmp_path / "data", **settings), tmp_path / "run")


def test_the_word_sets_all_that_it_needs():
    c = load("arithmetic_cpu:variant=grpo-critique")
    assert c.algorithm.protocol == "critique"
    assert c.algorithm.num_prompts == 10
    assert "{feedback}" in c.domain.improve
    assert c.domain.max_feedback_tokens == 128
    assert c.eval.scaffolds == ("self_refine",)
    with pytest.raises(ValueError, match="variant=grpo-critique"):
        load("sudoku:variant=grpo-critique")
