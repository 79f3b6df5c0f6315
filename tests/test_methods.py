"""The table of the field's methods: its page, its words as variants, and a run by each."""

import pathlib
import runpy

import jax
import numpy as np
import pytest
import tiny_sudoku

from exit_jax.config import default, variants
from exit_jax.config.methods import METHODS
from exit_jax.config.methods.method import MECHANISMS
from exit_jax.config.parse import validate
from exit_jax.config.shipped import load
from exit_jax.errors import ConfigError
from exit_jax.training import train
from exit_jax.workdir.metrics import read_jsonl

ROOT = pathlib.Path(__file__).parents[1]
ELSEWHERE = {"qweb": "hint, prefix, edit", "star": "hint, prefix, edit"}  # not for sudoku, which offers these
OF_TOOLS = ("turns", "short")  # by a limit that sudoku's settings do not have
OF_TEXT = ("critique",)  # test_critiques.py runs it
RUN_ELSEWHERE = [word for word, method in METHODS.items() if method.mechanism == "objective"]  # test_objective_runs.py


def test_the_page_is_up_to_date():
    page = runpy.run_path(str(ROOT / "docs/write_methods.py"))["page"]()
    assert (ROOT / "docs/methods.md").read_text() == page, "python docs/write_methods.py > docs/methods.md"


@pytest.mark.parametrize("word", METHODS)
def test_a_method_says_where_it_is_from_and_how_true_it_is(word):
    method = METHODS[word]
    assert method.mechanism in MECHANISMS
    assert method.name
    assert method.source
    assert method.label == "faithful" or method.label.startswith(("adapted: ", "in kind: "))
    assert "-" not in word  # a hyphen begins the next word of a variant
    shipped = "tools_tiny" if word in OF_TOOLS else "arithmetic_cpu" if word in OF_TEXT else ""
    content = load(f"{shipped}:variant=grpo") if shipped else tiny_sudoku.get_config("variant=grpo")
    content.run.mesh.data = 1
    plain = validate(content, jax.device_count()).algorithm
    variants.apply(content, f"grpo-{word}")
    assert validate(content, jax.device_count()).algorithm != plain


def variant_of(variant):
    content = tiny_sudoku.get_config("variant=grpo")
    variants.apply(content, variant)
    return content


def test_words_are_crossed_in_their_order():
    a = validate(variant_of("exit-sec-permuted-refill-nft"), jax.device_count()).algorithm
    assert (a.curriculum.method, a.curriculum.permuted, a.refill, a.objective) == ("sec", True, True, "nft")
    assert a.selection_prob == 0.5
    assert validate(variant_of("exit-ranked-uniform"), jax.device_count()).algorithm.selection == "uniform"


def test_a_method_of_what_a_domain_does_not_have_is_told():
    with pytest.raises(ValueError, match=r"variant=grpo-turns: .*max_turns"):
        variants.apply(default("sudoku"), "grpo-turns")


@pytest.mark.parametrize("word", ELSEWHERE)
def test_starts_that_a_domain_does_not_offer_are_told(word, tmp_path):
    content = variant_of(f"grpo-{word}")
    content.warm_start.num_steps = 0
    with pytest.raises(ConfigError, match=rf"algorithm.starts.variant = .*the domain sudoku4 offers {ELSEWHERE[word]}"):
        train.train(validate(content, jax.device_count()), tmp_path)


@pytest.mark.parametrize(
    ("unit", "message"),
    [("size", "it tells task, clues"), ("clues", "does not have the weights of the units clues=4, ")],
)
def test_units_and_records_that_there_are_not_are_told(unit, message, tmp_path):
    content = variant_of("grpo-sec")
    method = {"method": "replay", "replay": str(tmp_path)} if unit == "clues" else {}
    content.algorithm.curriculum.update({"unit": unit} | method)
    if method:
        content.algorithm.curriculum.update({"rate": 0.1, "temperature": 1.0})
    content.warm_start.num_steps = 0
    with pytest.raises(ConfigError, match=message):
        train.train(validate(content, jax.device_count()), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("free_after_test")
@pytest.mark.parametrize("word", sorted(set(METHODS) - set(ELSEWHERE) - {*OF_TOOLS, *OF_TEXT, *RUN_ELSEWHERE}))
def test_a_run_learns_by_every_method(word, tmp_path):
    content = variant_of(f"exit-{word}")
    content.run.mesh.data, content.run.num_iterations = 1, 10
    content.algorithm.admission_band = (0.001, 0.999)  # a policy this small is paid little
    content.algorithm.right_at = 0.01
    if METHODS[word].mechanism == "curriculum" and "over" in content.algorithm.curriculum:
        content.algorithm.curriculum.over = min(content.algorithm.curriculum.over, 10)
    train.train(validate(content, jax.device_count()), tmp_path)
    found = read_jsonl(tmp_path / "train.jsonl")
    assert len(found) == 10
    assert all(np.isfinite([row["reward"], row["grad_norm"]]).all() for row in found)
    assert max(row["params_moved"] for row in found) > 0.5
