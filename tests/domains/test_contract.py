"""What a domain returns is held to its contract, in words that name the field and the rule."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sudoku

from exit_jax import domains
from exit_jax.config import validate
from exit_jax.domains import contract, lookup
from exit_jax.domains.contract import ContractError, checked
from exit_jax.step.program import _make_program
from exit_jax.training import train
from exit_jax.types import Instances, Rollouts

ROOT = pathlib.Path(__file__).parents[2]


def smoke(**changes):
    content = tiny_sudoku.get_config()
    content.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return validate(content, jax.device_count())


@pytest.fixture(scope="module")
def plain():
    config = smoke()
    return lookup.find("sudoku")(config.domain)


def batch(domain):
    """Return instances [2] and rollouts [2, 3] of zeros, which every domain can grade."""
    history = jax.tree.map(lambda leaf: leaf[:2], domain.tasks("train"))
    zeros, no = np.zeros(2, np.int32), np.zeros(2, bool)
    instances = Instances(history, zeros, no, no, np.zeros((2, domain.prompt_width), np.int32), zeros)
    shape = (2, 3, domain.max_tokens)
    floats = np.zeros(shape, np.float32)
    rollouts = Rollouts(
        np.zeros(shape, np.int32), np.ones(shape, bool), floats, floats, np.ones((2, 3), bool), floats[..., :1]
    )
    return instances, rollouts


def spoilt(domain, **changes):
    """Return the domain with some of what it returns replaced; functions are called with what was there."""

    def grade(*given):
        grades = domain.grade(*given)
        children = {name.removeprefix("children_"): f for name, f in changes.items() if name.startswith("children_")}
        held = {name: f(getattr(grades.children, name)) for name, f in children.items()}
        fields = {name: f(getattr(grades, name)) for name, f in changes.items() if not name.startswith("children_")}
        return dataclasses.replace(grades, children=dataclasses.replace(grades.children, **held), **fields)

    return checked(dataclasses.replace(domain, grade=grade))


def test_what_ships_keeps_its_contract(plain):
    grades = checked(plain).grade(*batch(plain))
    assert np.isfinite(grades.quality).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quality": lambda q: q + 3.0}, "Grades.quality holds 3 to 3; it should be finite and in [0, 1]"),
        ({"quality": lambda q: q * jnp.nan}, "Grades.quality holds nan to nan; it should be finite"),
        (
            {"quality": lambda q: q[:, 0]},
            "Grades.quality has shape (2,) and dtype float32; it should be float of shape (2, 3)",
        ),
        ({"valid": lambda v: v.astype(jnp.float32)}, "dtype float32; it should be bool of shape (2, 3)"),
        (
            {"insertable": lambda i: i[..., 0]},
            "Grades.insertable has shape (2, 3) and dtype bool; it should be bool of shape (2, 3, 1)",
        ),
        ({"embedding": lambda e: e.at[0].set(jnp.inf)}, "Grades.embedding holds"),
        ({"embedding": lambda e: e[..., :2]}, "Grades.embedding has shape (2, 3, 2)"),
        ({"notes": lambda n: n | {"extra": jnp.zeros((2, 3))}}, "declare ['extra'] and return []"),
        ({"children_tokens": lambda t: t[..., :-1]}, "Grades.children.tokens has shape"),
        ({"children_turn": lambda t: t.astype(jnp.float32)}, "Grades.children.turn has shape"),
        ({"insertable": jnp.ones_like, "children_tokens": lambda t: t + 10_000}, "it should be ids in [0, "),
        ({"insertable": jnp.ones_like, "children_lengths": lambda n: n - 10_000}, "no piece below 0 tokens"),
        ({"insertable": jnp.ones_like, "children_lengths": lambda n: n + 10_000}, "(Domain.history_width)"),
        ({"insertable": jnp.ones_like, "children_quality": lambda q: q - 1.0}, "Grades.children.quality holds -1"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_each_fault_is_named(plain, changes, words):
    with pytest.raises(ContractError) as caught:
        spoilt(plain, **changes).grade(*batch(plain))
    assert words in str(caught.value)
    assert "the domain 'sudoku" in str(caught.value)


def test_children_that_are_not_inserted_may_hold_anything(plain):
    domain = spoilt(
        plain, insertable=jnp.zeros_like, children_tokens=lambda t: t - 1, children_quality=lambda q: q - 1.0
    )
    domain.grade(*batch(plain))


def test_shapes_are_checked_where_a_program_is_traced(plain):
    with pytest.raises(ContractError, match=r"Grades\.quality has shape"):
        jax.eval_shape(spoilt(plain, quality=lambda q: q[:, 0]).grade, *batch(plain))
    jax.eval_shape(spoilt(plain, quality=lambda q: q + 3.0).grade, *batch(plain))  # a value, which nobody sees there


def test_values_on_the_device_are_checked_if_asked_for(plain):
    three = lambda *given: dataclasses.replace(plain.grade(*given), quality=jnp.full((2, 3), 3.0))
    wrong = dataclasses.replace(plain, grade=three)
    assert float(jax.jit(wrong.grade)(*batch(plain)).quality[0, 0]) == 3.0
    watched = jax.jit(contract.with_values_checked(wrong).grade)

    def grade():
        jax.block_until_ready(watched(*batch(plain)))
        jax.effects_barrier()

    with pytest.raises(Exception, match="breaks its contract"):
        grade()


def test_a_run_ends_at_once_where_a_domain_on_the_host_breaks_its_contract(monkeypatch, tmp_path):
    config = smoke(domain__on_host=True, run__steps_per_call=1, warm_start__num_steps=0)
    right = domains.make(config.domain_name, config.domain)
    wrong = spoilt(right, quality=lambda q: q + 3.0)
    _make_program.cache_clear()
    monkeypatch.setattr(domains, "make", lambda *_: wrong)
    try:
        with pytest.raises(ContractError, match=r"Grades.quality holds 3 to 3"):
            train.train(config, tmp_path)
    finally:
        _make_program.cache_clear()


def test_starts_have_the_shapes_of_histories(plain):
    history, level, key = plain.tasks("train"), jnp.zeros(plain.tasks("train").task.shape), jax.random.key(0)
    shorter = lambda history: dataclasses.replace(history, tokens=history.tokens[:, :-1])
    variants = {
        "good": lambda gold, history, level, key: (history, level == 0),
        "narrow": lambda gold, history, level, key: (shorter(history), level == 0),
        "float": lambda gold, history, level, key: (history, level),
    }
    domain = checked(dataclasses.replace(plain, variants=variants))
    domain.variants["good"](None, history, level, key)
    with pytest.raises(ContractError, match=r"variants\['narrow'\] returns: tokens has shape"):
        jax.eval_shape(domain.variants["narrow"], None, history, level, key)
    with pytest.raises(ContractError, match=r"variants\['float'\] returns: ok has shape .* it should be bool"):
        jax.eval_shape(domain.variants["float"], None, history, level, key)
