"""A domain of a user's own: found by its name, faults in words; the one of docs/extend.md is trained and resumes exactly."""

import dataclasses
import json
import multiprocessing
import pathlib
import re
import runpy
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax import domains, run
from exit_jax.config import default, validate
from exit_jax.domains.contract import ContractError
from exit_jax.domains.domain import Domain, DomainError
from exit_jax.domains.text.scored import TextConfig, text_domain
from exit_jax.errors import ConfigError
from exit_jax.step.device import mean_difficulty
from exit_jax.step.program import make_program
from exit_jax.training.train import train
from exit_jax.types import Instances, Rollouts
from exit_jax.workdir.evaluation import chain_of
from exit_jax.workdir.identity import open_workdir, scientific
from exit_jax.workdir.metrics import read_jsonl

ROOT = pathlib.Path(__file__).parents[2]
WORDS, WORDS_CONFIG = re.findall(
    r"```python\n(.*?)```",
    (ROOT / "docs/extend.md").read_text().partition("## A domain of your own")[2].partition("\n## ")[0],
    re.DOTALL,
)
SMALL = {
    "policy.num_layers": 1,
    "policy.embed_dim": 16,
    "policy.num_heads": 2,
    "policy.num_kv_heads": 1,
    "policy.head_dim": 8,
    "policy.mlp_dim": 32,
    "warm_start.num_steps": 2,
    "warm_start.num_states": 8,
    "warm_start.optimizer.decay_steps": 2,
    "algorithm.num_prompts": 8,
    "algorithm.group_size": 2,
    "algorithm.buffer_size": 16,
    "algorithm.min_buffer_size": 4,
    "eval.steps": (0, 1),
    "eval.batch_size": 8,
    "run.num_iterations": 2,
    "run.checkpoint_every": 1,
    "run.mesh.data": 1,
}


@pytest.fixture
def folder(own_folder, monkeypatch):
    """Return a working directory outside the package with the files of the documentation."""
    (own_folder / "words.py").write_text(WORDS)
    (own_folder / "words_config.py").write_text(WORDS_CONFIG)
    monkeypatch.chdir(own_folder)
    domains.make.cache_clear()
    return own_folder


def words_config(**changes):
    content = runpy.run_path("words_config.py")["get_config"]()
    content.update_from_flattened_dict(SMALL | {name.replace("__", "."): value for name, value in changes.items()})
    return validate(content, jax.device_count())


def rows(path):
    """Return the rows of metrics without timings."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_jsonl(path)]


def test_the_example_of_the_documentation_is_short():
    assert len(WORDS.strip().splitlines()) <= 40


@pytest.mark.slow
def test_the_example_trains_evaluates_and_resumes_exactly(folder):
    results = run.train(words_config(), folder / "whole")
    assert 0.0 <= chain_of(results["splits"]["test"])["accuracy"][0] <= 1.0
    assert run.evaluate(words_config(), folder / "whole") == results
    train(words_config(run__num_iterations=1), open_workdir(folder / "halves", words_config()))
    assert run.train(words_config(), folder / "halves") == results
    assert rows(folder / "halves/train.jsonl") == rows(folder / "whole/train.jsonl")
    assert json.loads((folder / "whole/config.json").read_text())["config"]["domain_name"] == "words.py:make_domain"

    (folder / "words.py").write_text(WORDS.replace("hits / max", "1.0 * hits / max"))
    with pytest.raises(ConfigError, match=r"changed since: the code of the domain words.py:make_domain"):
        run.train(words_config(), folder / "whole")


def test_a_score_is_what_a_policy_is_paid(folder):
    config = words_config()
    domain = domains.make(config.domain_name, config.domain)
    tasks = jax.tree.map(lambda leaf: leaf[:2], domain.tasks("test"))
    asked = [row["request"] for row in domain.about_tasks("test")[:2]]
    words = [text.removeprefix("Reverse ").removesuffix(".") for text in asked]
    said = [words[0][::-1], words[0], words[1][::-1][:2] + "zz", ""]
    tokens: Any = np.zeros((2, 2, 8), np.int32)
    mask: Any = np.zeros(tokens.shape, bool)
    for i, text in enumerate(said):
        ids = [*domain.tokenizer.encode(text), *domain.stop_tokens]
        tokens[i // 2, i % 2, : len(ids)], mask[i // 2, i % 2, : len(ids)] = ids, True
    zeros: Any = np.zeros(2, np.int32)
    no, done, blank = zeros > 0, zeros[:, None] == [[0, 0]], 0.0 * tokens
    instances = Instances(tasks, zeros, no, no, zeros, zeros)
    grades = domain.grade(instances, Rollouts(tokens, mask, blank, blank, done, blank))
    hits = sum(a == b for a, b in zip(words[0], words[0][::-1]))
    np.testing.assert_allclose(grades.quality, [[1.0, hits / 4], [0.5, 0.0]])
    assert grades.insertable[..., 0].tolist() == [[True, True], [True, False]]  # an empty answer holds nothing
    children = jax.tree.map(lambda leaf: leaf.reshape(4, *leaf.shape[3:]), grades.children)
    assert domain.describe(children) == said
    assert domain.feedback
    assert domain.feedback(children) == ["4 right", f"{hits} right", "2 right", "0 right"]


def test_it_is_the_same_experiment_however_its_path_is_written(folder):
    content = runpy.run_path("words_config.py")["get_config"]()
    config = validate(content, jax.device_count())
    content.domain_name = f"{folder}/words.py:make_domain"
    assert scientific(validate(content, jax.device_count())) == scientific(config)
    assert domains.identity("exit_jax.domains.sudoku.domain:make_domain") == "sudoku"
    assert domains.source("sudoku") is None
    assert domains.settings_of("words:make_domain").__name__ == "WordsConfig"  # as a module, too


def test_a_spawned_process_can_import_it(folder):
    make = sys.modules[domains.settings_of("words.py:make_domain").__module__].make_domain
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(dataclasses.asdict, (domains.settings_of("words.py:make_domain")(),))["num_letters"] == 4
    assert make.__module__ == "words"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.py:make", None, "there is no file .*none.py; a path is relative to the working directory"),
        ("no_such_module_at_all:make", None, "there is no module 'no_such_module_at_all'; install it"),
        ("chess", None, r"'chess' is not one of \('sudoku', .* nor a domain of your own, module:function"),
        ("own.py:other", "def make(config): ...", "there is no function 'other'; .*own.py has make"),
        (
            "own.py:make",
            "def make(config): ...",
            r"the settings of make are annotated as None.*def make\(config: Settings\)",
        ),
        ("own.py:make", "def make(config: dict): ...", "annotated as <class 'dict'>, which is no frozen dataclass"),
        ("own.py:make", "def make(config: 'Missing'): ...", "name 'Missing' is not defined"),
        ("own.py:make", "x = 1\nraise KeyError('so')", r"own.py, line 2, raises KeyError \('so'\); mend it"),
        ("own.py:make", "def make(:", "own.py, line 1, raises SyntaxError"),
        ("own.py:make", "import no_such_module_at_all", "line 1, raises ModuleNotFoundError .*no_such_module_at_all"),
        (
            "json.py:make",
            "def make(config): ...",
            "cannot be imported as 'json', which is another module .*rename the file",
        ),
    ],
)
def test_what_is_wrong_with_a_name_is_told_with_the_other_faults(folder, name, text, words):
    if text is not None:
        (folder / name.partition(":")[0]).write_text(text)
    content = default("sudoku").unlock()
    content.domain_name, content.algorithm.typo = name, 1
    with pytest.raises(ConfigError, match="2 fault") as caught:
        validate(content, 1)
    assert re.search(words, str(caught.value))
    assert "config.algorithm.typo is unknown" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


@dataclasses.dataclass(frozen=True)
class Plain(TextConfig):
    """Settings with a contradiction of their own."""

    odd: int = 1

    def faults(self):
        return [] if self.odd % 2 else [f"domain.odd = {self.odd} is even; add 1"]


def plain(config: Plain, score=lambda task, answer: 0.5, tasks=lambda split: [{"prompt": "Hello"}]) -> Domain:
    return text_domain(config, tasks, score)


def test_faults_of_a_domains_own_come_with_the_others_and_before_it_is_built(monkeypatch):
    monkeypatch.setattr("exit_jax.domains.lookup.find", lambda name: plain)
    content = default("plain:plain")
    content.domain.odd, content.domain.max_tokens = 2, 0
    content.run.steps_per_call, content.run.checkpoint_every = 2, 2
    content.eval.splits = ("validation",)
    content.algorithm.group_size = 1
    monkeypatch.setattr("exit_jax.domains.make", None)
    with pytest.raises(ConfigError) as caught:
        validate(content, 1)
    for part in (
        "domain.odd = 2 is even",
        "domain.max_tokens = 0 is below 1",
        "run.steps_per_call = 2: the domain plain:plain is graded on the host",
        "eval.splits: 'validation' is not one of ('train', 'test')",
        "algorithm.group_size = 1 is below 2",
    ):
        assert part in str(caught.value)


def test_a_warm_start_without_demonstrations_is_refused(monkeypatch):

    monkeypatch.setattr("exit_jax.domains.lookup.find", lambda name: plain)
    monkeypatch.setattr("exit_jax.domains.find", lambda name: plain)
    content = default("plain:warm")
    content.update_from_flattened_dict({k: v for k, v in SMALL.items() if k.startswith("policy.")})
    content.warm_start.num_steps = 3
    with pytest.raises(ConfigError, match=r"warm_start.num_steps = 3: the domain plain:warm has no demonstrations"):
        make_program(validate(content, 8))


def one_rollout(domain):
    """Return an instance of the first task, and a rollout that ends at once."""
    tasks, tokens = domain.tasks("train"), np.full((1, 1, 4), domain.stop_tokens[0], np.int32)
    zeros: Any = np.zeros(1, np.int32)
    no, mask, blank = zeros > 0, tokens > 0, 0.0 * tokens
    rollouts: Any = Rollouts(*map(jnp.asarray, (tokens, mask, blank, blank, mask[..., 0], blank)))
    return Instances(tasks, zeros, no, no, zeros, zeros), jax.device_get(rollouts)


@pytest.mark.parametrize("given", [1.5, -0.1, float("nan"), "good", None, (0.5, 3)])
def test_a_score_that_is_none_is_told_with_task_and_answer(given):
    domain = plain(Plain(), score=lambda task, answer: given)
    with pytest.raises(ContractError, match=r"the score of the task 'Hello' is .* for the answer ''; it should be"):
        domain.grade(*one_rollout(domain))


def test_half_of_a_surrogate_pair_in_feedback_is_a_question_mark():
    domain = plain(Plain(max_feedback_tokens=8), score=lambda task, answer: (0.5, "so \ud83d"))
    grades = domain.grade(*one_rollout(domain))
    children = jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0, 0], grades.children)
    assert domain.feedback is not None
    assert domain.feedback(children) == ["so ?"]


def test_tasks_that_are_none_are_told():
    with pytest.raises(DomainError, match=r"task 0 of train is \{'text': 'Hello'\}; .* a text as \"prompt\""):
        plain(Plain(), tasks=lambda split: [{"text": "Hello"}]).tasks("train")
    with pytest.raises(DomainError, match="the split test has no task"):
        plain(Plain(), tasks=lambda split: []).tasks("test")
    with pytest.raises(DomainError, match=r"no task of the split train fits into domain.max_request_tokens = 3"):
        plain(Plain(max_request_tokens=3)).tasks("train")


@pytest.mark.parametrize("mode", ["base", "diverge"])
def test_an_empty_message_without_a_default_is_told(mode):
    with pytest.raises(DomainError, match=rf"domain.{mode} is empty; say"):
        plain(Plain(**{mode: ""}))  # type: ignore[arg-type]


class Reordered(Plain):
    """Splits of which the one to train on is not the first."""

    splits = ("test", "train")


def test_difficulties_are_those_of_training_tasks_wherever_their_split_stands():
    domain = plain(Reordered(), tasks=lambda split: [{"prompt": "Hello"}] * 3)
    domain = dataclasses.replace(domain, difficulty=lambda split: {"length": np.array([10, 20, 60])})
    tasks = domain.tasks("train")
    assert tasks.task[0] > 0
    assert mean_difficulty(domain, tasks, jnp.asarray(tasks.task[[2, 0, 2]])) == {"task/length": pytest.approx(130 / 3)}


def test_traits_that_settings_do_not_tell_are_a_fault(monkeypatch):
    monkeypatch.setattr(
        "exit_jax.domains.find", lambda name: lambda config: dataclasses.replace(plain(config), on_host=False)
    )
    with pytest.raises(ContractError, match="it has on_host = False, but its settings say True"):
        domains.make("plain:traits", Plain())
