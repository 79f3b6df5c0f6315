"""Schedules of coefficients: their values by hand, their faults in words, and what they do in an iteration."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exit_jax.algorithm import schedules
from exit_jax.algorithm.learnability import length_reward
from exit_jax.algorithm.settings import ExItConfig
from exit_jax.step.hosted import HostedSteps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("constant(0.3)", {0: 0.3, 50: 0.3}),
        ("linear(0.1, 0.5, 40)", {0: 0.1, 10: 0.2, 40: 0.5, 90: 0.5}),
        ("cosine(0.4, 0.0, 60)", {0: 0.4, 20: 0.2 * (1 + math.cos(math.pi / 3)), 30: 0.2, 60: 0.0, 99: 0.0}),
        ("exponential(0.4, 0.1, 20)", {0: 0.4, 10: 0.2, 20: 0.1, 30: 0.1}),
        ("stairs(0.4, 0.5, 10)", {0: 0.4, 9: 0.4, 10: 0.2, 25: 0.1}),
    ],
)
def test_values_by_hand(text, expected):
    config = ExItConfig(schedules=(f"entropy_coef = {text}",))
    value = jax.jit(lambda step: schedules.at(config, step).entropy_coef)
    for step, value_then in expected.items():
        np.testing.assert_allclose(value(jnp.int32(step)), value_then, rtol=1e-6, atol=1e-8)


def test_what_has_no_schedule_stays_as_it_is():
    config = ExItConfig(schedules=("clip_low = constant(0.1)",))
    assert schedules.at(ExItConfig(), jnp.int32(3)) == ExItConfig()
    assert dataclasses.replace(schedules.at(config, jnp.int32(3)), clip_low=config.clip_low) == config
    assert schedules.is_off(0.0)
    assert not schedules.is_off(jnp.float32(0.0))
    assert not schedules.is_off(0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entropy_coef 0.1", "not of the form"),
        ("num_epochs = constant(2)", "num_epochs has no schedule; those that may have one are entropy_coef, "),
        ("entropy_coef = step(1)", "step is none of constant, linear"),
        ("entropy_coef = linear(1, 2)", "linear takes 3 numbers, and 2 are given"),
        ("entropy_coef = linear(a, b, c)", "are not numbers"),
        ("entropy_coef = linear(1, 0, 0)", "0 iterations are none"),
        ("entropy_coef = exponential(1, 0, 5)", "between numbers above 0"),
        ("kl_coef = linear(0, 1, 5)", "kl_coef needs algorithm.kl_coef above 0"),
    ],
)
def test_faults_say_what_is_wrong(text, message):
    (fault,) = ExItConfig(schedules=(text,), kl_coef=0.0).faults()
    assert text in fault
    assert message in fault


@dataclasses.dataclass
class Environment:
    max_turns: int


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [12, 12, 12, 12]),
        ({"turn_limit": 5.0}, [5, 5, 5, 5]),
        ({"schedules": ("turn_limit = linear(4, 20, 16)",)}, [4, 8, 9, 12]),  # never more than the environment's own
        ({"schedules": ("clip_low = constant(0.1)",)}, [12, 12, 12, 12]),
    ],
)
def test_an_episode_of_training_has_the_turns_of_its_iteration(fields, expected):
    given = types.SimpleNamespace
    domain, programs = given(environment=Environment(12)), given(select=lambda *_: None)
    turns = []
    for step, in_flight in ((0, ()), (4, ()), (4, ("a batch",)), (90, ())):
        steps = HostedSteps(given(algorithm=ExItConfig(**fields)), domain, None, programs, None)
        steps.select(given(step=jnp.int32(step)), in_flight)
        turns.append(steps.environment.max_turns)
    assert turns == expected


def test_a_field_has_one_schedule():
    twice = ("clip_low = constant(0.1)", "clip_low = constant(0.2)")
    assert ExItConfig(schedules=twice).faults() == ["algorithm.schedules: clip_low has several"]


def test_lengths_are_paid_by_a_triangle():
    # a budget of 40: nothing at 0 and from 80 on, half at 20 and 60
    np.testing.assert_allclose(length_reward(jnp.array([0, 20, 40, 60, 80, 100]), 40.0), [0, 0.5, 1, 0.5, 0, 0])
    (fault,) = ExItConfig(length_weight=0.3).faults()
    assert "length_budget = 0: say how many tokens" in fault
    assert not ExItConfig(length_weight=0.3, schedules=("length_budget = stairs(256, 0.7, 150)",)).faults()
