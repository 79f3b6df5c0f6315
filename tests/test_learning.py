"""Settings under which nothing is learnt are refused or told of, and what is logged shows how much is."""

import dataclasses
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sudoku
from test_train import LORA, rows, smoke

from exit_jax import run
from exit_jax.algorithm.grpo import moved_share
from exit_jax.config import learning
from exit_jax.config.parse import validate
from exit_jax.errors import ConfigError
from exit_jax.evaluation import evaluate
from exit_jax.step import program
from exit_jax.step.finite import NonFiniteError, explain, require_finite
from exit_jax.step.optimizer import make_optimizer
from exit_jax.training import start, train
from exit_jax.training.start import frozen_params, initial_params, untrained
from exit_jax.workdir.metrics import Watch, read_jsonl

ROOT = pathlib.Path(__file__).parents[1]


def content(arg="", name="", **changes):
    get_config = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"] if name else tiny_sudoku.get_config
    settings = get_config(arg)
    with settings.ignore_type():
        settings.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return settings


BF16_LORA = LORA | {"policy.param_dtype": "bfloat16"}
NO_RL = {"run.num_iterations": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy.param_dtype": "bfloat16"}, "float32 parameters, .* or train adapters"),
        # 40 optimiser steps: 20 iterations of 2 epochs
        (
            {"optimizer.decay_steps": 39, "algorithm.num_epochs": 2},
            "below the 40 optimiser steps .* for the last 1; set",
        ),
        ({"warm_start.num_steps": 80}, "warm_start.optimizer.decay_steps = 40 is below the 80 .* set it to 80"),
        ({"optimizer.learning_rate": 0.0}, "would change no float32 weight"),
        ({"optimizer.learning_rate": 1e-12}, "would change no float32 weight"),
        ({"warm_start.optimizer.learning_rate": 0.0}, "warm_start.optimizer.learning_rate = 0.0 would"),
        ({"optimizer.warmup_steps": 3, "run.num_iterations": 1, "run.steps_per_call": 1}, "0 in the one step"),
        ({"optimizer.learning_rate": float("inf")}, "optimizer.learning_rate = inf is no finite"),
        ({"algorithm.entropy_coef": float("nan")}, "algorithm.entropy_coef = nan is no finite"),
        ({"optimizer.weight_decay": float("inf")}, "weight_decay = inf is no finite"),
        ({"optimizer.max_grad_norm": float("nan")}, "max_grad_norm = nan is no finite"),
        ({"policy.norm_eps": float("nan")}, "policy.norm_eps = nan is no finite"),
        ({"eval.temperature": float("inf")}, "eval.temperature = inf is no finite"),
        ({"eval.repetition_penalty": float("inf")}, "eval.repetition_penalty = inf is no finite"),
        ({"algorithm.clip_high": 0.0}, "clip_high = 0 would clip"),
        ({"algorithm.clip_low": 0.0}, "clip_low = 0 would clip"),
        ({"algorithm.diversity_cap": 0.0}, "multiply all advantages by 0"),
        ({"algorithm.temperature": 1e-6}, "is greedy"),
        ({"sampling.top_k": 1}, "only the likeliest token"),
        ({"sampling.min_p": 1.0}, "only the likeliest token"),
        ({"algorithm.rounds.iterations": 21}, "no round would end"),
        (LORA | {"policy.lora.alpha": 0.0}, "alpha = 0.0 is not above 0"),
        ({"algorithm.group_size": 1}, "below 2"),
        ({"optimizer.max_grad_norm": 0.0}, "clip every gradient to nothing"),
    ],
)
def test_what_learns_nothing_is_refused(changes, words):
    settings = content(**changes)
    with pytest.raises(ConfigError, match=words):
        validate(settings, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.decay_steps": 20},
        {"optimizer.decay_steps": 40, "algorithm.num_epochs": 2},
        {"optimizer.decay_steps": 19, "run.allow_idle_updates": True},
        {"optimizer.learning_rate": 0.0, "run.allow_idle_updates": True},
        {"optimizer.learning_rate": 0.0, "run.num_iterations": 0},
        {"warm_start.num_steps": 0, "warm_start.optimizer.decay_steps": 6},
        {"optimizer.max_grad_norm": float("inf")},
        {"algorithm.diversity_bonus": False, "algorithm.diversity_cap": 0.0},
        BF16_LORA,
        {"policy.param_dtype": "bfloat16", "warm_start.num_steps": 0} | NO_RL,
    ],
)
def test_what_learns_is_not(changes):
    validate(content(**changes), 1)


def test_what_was_trained_so_may_be_evaluated():
    settings = content(**{"policy.param_dtype": "bfloat16", "optimizer.decay_steps": 1})
    with pytest.raises(ConfigError, match=r"2 fault\(s\)"):
        validate(settings, 1)
    assert validate(settings, 1, trains=False).policy.param_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer.warmup_steps": 40}, "not below the 20 optimiser steps, so that the rate ends at 0.000142"),
        ({"algorithm.rounds.iterations": 6}, "the last 2 are sampled and not learnt from"),
        ({"optimizer.kind": "adafactor", "optimizer.learning_rate": 1e-6}, "a share of 2e-05 at most"),
        ({"optimizer.kind": "adafactor", "optimizer.weight_decay": 0.1}, "shrink weights to 0.14"),
        ({"optimizer.weight_decay": 500.0}, "shrink weights to 0.05"),
        ({"optimizer.max_grad_norm": 1e-6}, "AdamW's epsilon"),
        ({"warm_start.num_steps": 0}, "random weights"),
        ({"algorithm.kl_coef": 10.0}, "holds the policy where it began"),
        ({"algorithm.entropy_coef": -2.0}, "entropy_coef = -2.0 outweighs"),
        ({"algorithm.temperature": 0.05}, "hardly differ"),
        ({"algorithm.temperature": 9.0}, "close to noise"),
        ({"sampling.top_p": 0.01}, "few tokens"),
        ({"algorithm.advantage_eps": 1.0}, "advantages shrink"),
        ({"algorithm.objective": "nft"}, "diversity_bonus scales advantages"),
        ({"algorithm.selection_prob": 0.0}, "nothing is"),
        ({"algorithm.selection_prob": 1.0}, "no base task is drawn"),
        (NO_RL, "evaluated as it is"),
    ],
)
def test_what_may_be_meant_is_told_in_a_line(changes, words):
    (line,) = learning.warnings_of(validate(content(**changes), 1))
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize("name", ["sudoku", "smoke", "sudoku9", "arithmetic_cpu", "tools_tiny", "mle_tiny", "gym_cpu"])
def test_nothing_is_said_of_our_own_configs(name):
    for arg in ("variant=exit", "variant=grpo", "variant=curriculum"):
        assert learning.warnings_of(validate(content(arg, name), None)) == []


def test_a_study_is_warned_once(caplog):
    run.warn.cache_clear()
    for _ in range(2):
        run.warn("a line")
    assert [record.getMessage() for record in caplog.records] == ["a line"]


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        # 16 prompts of 4 rollouts: 16 base tasks + 64 children a batch; the third is selected when two are learnt from
        ({"min_buffer_size": 160}, (3, 999, 1), ""),
        ({"min_buffer_size": 161}, (3, 999, 1), "3 iterations put at most 160"),
        ({"min_buffer_size": 160, "rollout_lag": 1}, (3, 999, 1), "put at most 80"),
        ({"min_buffer_size": 160, "rollout_lag": 1}, (4, 999, 1), ""),
        ({"min_buffer_size": 150}, (3, 10, 1), "put at most 138"),
        ({"min_buffer_size": 65, "children": "best"}, (3, 999, 1), "put at most 64"),
        ({"min_buffer_size": 64}, (999, 63, 0), "of which there are 63"),
        ({"min_buffer_size": 64}, (999, 64, 0), ""),
        ({"min_buffer_size": 64, "selection_prob": 0.0}, (1, 1, 0), ""),
    ],
)
def test_a_buffer_that_is_never_drawn_from(exit_config, settings, arguments, words):
    fault, never = learning.buffer_fault(
        exit_config(num_prompts=16, group_size=4, buffer_size=512, **settings), *arguments
    )
    assert words in fault
    assert bool(words) == bool(fault)
    assert never == ("of which" in words)


def test_a_domain_of_which_nothing_is_learnt_is_refused_before_compile(tmp_path, caplog):
    few = {"domain.num_train": 15, "algorithm.min_buffer_size": 16}
    with pytest.raises(ConfigError, match="only base tasks enter it, of which there are 15"):
        train.train(smoke("variant=curriculum", few), tmp_path)
    with pytest.raises(ConfigError, match=r"sampling.min_tokens = 20 leaves no room"):
        train.train(smoke(changes={"sampling.min_tokens": 20}), tmp_path)
    train.require_learnable(smoke(num_iterations=1, steps_per_call=1))
    assert "algorithm.min_buffer_size = 16 is never reached" in caplog.text
    assert learning.response_faults(smoke(), 1)
    assert not learning.response_faults(smoke(), 2)
    assert not (tmp_path / "warm_start").exists()


# What is logged


def test_share_of_parameters_that_moved():
    """Of 4 entries one moves: 1 + 1e-9 is 1 in float32, and 1 + 1e-3 is 1 in bfloat16."""
    before = {"a": jnp.array([[1.0, 0.0]]), "b": jnp.array([1.0, 2.0], jnp.bfloat16)}
    after = {"a": before["a"] + 1e-9, "b": before["b"] + jnp.bfloat16(1e-3)}
    assert float(jax.jit(moved_share)(before, after)) == 0.25
    assert float(moved_share(before, before)) == 0.0


@pytest.mark.slow
def test_rate_and_movement_are_logged(tmp_path):
    """By hand: two epochs an iteration, a warm-up over 4 steps, then a cosine over 8; optax's state has counted as many."""
    changes = {"optimizer.warmup_steps": 4, "optimizer.decay_steps": 12, "algorithm.num_epochs": 2}
    changes |= {"run.num_iterations": 5, "run.checkpoint_every": 5}
    state, _ = train.train(smoke(changes=changes), tmp_path)
    peak = 3e-4
    cosine = [peak * 0.5 * (1 + np.cos(np.pi * step / 8)) for step in range(9)]
    rate = [0.0, peak / 4, peak / 2, peak * 3 / 4, *cosine]
    found = rows(tmp_path)
    expected = [(rate[2 * i] + rate[2 * i + 1]) / 2 for i in range(5)]
    np.testing.assert_allclose([row["learning_rate"] for row in found], expected, rtol=1e-5)
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert all(int(count) == 10 for count in counts)
    assert found[0]["params_moved"] == pytest.approx(0.5, abs=0.01), "the first of two updates has rate 0"
    assert all(row["params_moved"] > 0.95 for row in found[1:])
    assert {row["finite_logits"] for row in found} == {1.0}
    (file,) = tmp_path.glob("warm_start/*/warm_start.jsonl")
    warm = read_jsonl(file)
    assert [row["warm_start/learning_rate"] for row in warm[:3]] == pytest.approx([0.0, 8e-4, 1.6e-3])
    assert warm[0]["warm_start/params_moved"] == 0.0
    assert warm[-1]["warm_start/params_moved"] > 0.95


@pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor"])
def test_adapters_over_bfloat16_are_trained_in_float32(kind):
    """At 1e-6 every entry with a gradient moves; in bfloat16 almost none would. All moments are float32, too."""
    config = smoke(changes=BF16_LORA | {"optimizer.kind": kind, "optimizer.learning_rate": 1e-6})
    params = initial_params(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    frozen = frozen_params(config)
    assert frozen["embedding"].dtype == jnp.bfloat16
    optimizer = make_optimizer(config.optimizer)
    state = optimizer.init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    big = jax.tree.map(lambda leaf: leaf + 0.02, params)
    updates, _ = optimizer.update(jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), big), state, big)
    moved = lambda params: float(
        moved_share(params, jax.tree.map(lambda x, u: (x + u).astype(x.dtype), params, updates))
    )
    assert moved(big) > 0.99
    assert moved(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), big)) < 0.1


def test_iterations_from_which_nothing_is_learnt_are_told_of_once(caplog):
    watch = Watch("train")
    ones, zeros = np.ones(3), np.zeros(3)
    for step in range(1, 31, 3):
        share = {"zero_variance_groups": ones * 0.99, "params_moved": zeros, "end/overlong_response": ones}
        watch.look(step, {"unfinished": ones} | share)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == ["train"] * 3
    assert "steps 1 to 5: every episode ended with a response that was cut off" in caplog.text
    assert "steps 1 to 5: no response ended" in caplog.text
    assert "steps 1 to 5: no update changed" in caplog.text
    caplog.clear()
    watch = Watch("train")
    for step in range(1, 31, 3):
        watch.look(step, {"zero_variance_groups": ones})
    assert [record.getMessage() for record in caplog.records] == [caplog.records[0].getMessage()]
    assert "steps 1 to 5: the responses of each group were all paid alike" in caplog.text
    caplog.clear()
    watch = Watch("warm_start")
    watch.look(1, {"warm_start/params_moved": np.array([0.0, 0.0, 0.0, 0.0, 1e-3, 0.0])})
    assert not caplog.text, "four in a row are chance"
    watch.look(7, {"warm_start/params_moved": np.zeros(4)})
    assert "warm_start, steps 6 to 10" in caplog.text
    caplog.clear()
    watch = Watch("train", every=3)
    watch.look(1, {"params_moved": np.zeros(14)})
    assert not caplog.text, "updates come every third iteration"
    watch.look(15, {"params_moved": np.zeros(1)})
    assert "steps 1 to 15: no update changed" in caplog.text


# Logits that are not finite


def spoilt(params, value=jnp.nan):
    """Return the parameters with one weight that is not finite."""
    spoil = lambda path, leaf: leaf.at[(0,) * leaf.ndim].set(value) if path[-2:][0].key == "up" else leaf
    return jax.tree.map_with_path(spoil, params)


def test_a_policy_that_is_not_finite_is_named_in_training(tmp_path, monkeypatch):
    """In the warm start and without one: not the learning rate is at fault."""
    loaded = spoilt(untrained(smoke()))
    for module in (start, train):
        monkeypatch.setattr(module, "untrained", lambda config: jax.tree.map(jnp.copy, loaded))
    monkeypatch.setattr(program, "require_checkpoint_fits", lambda *_: None)  # there is no such checkpoint
    monkeypatch.setattr(start.inputs, "check", lambda *_, **__: None)
    for changes in ({"warm_start.num_steps": 5}, {"warm_start.num_steps": 0}):
        config = dataclasses.replace(smoke(changes=changes, num_iterations=5), checkpoint="owner/model")
        with pytest.raises(
            ConfigError, match=r"config.checkpoint = 'owner/model' .*blocks/mlp/up/kernel hold NaN"
        ) as caught:
            train.train(config, tmp_path / str(len(changes)))
        assert "learning rate" not in str(caught.value)
    assert not list(tmp_path.rglob("checkpoints/[0-9]*"))


@pytest.mark.parametrize(("on_host", "iterations"), [(False, 5), (True, 5), (False, 0)])
def test_a_policy_that_is_not_finite_has_no_accuracy(on_host, iterations, tmp_path):
    """Without RL, too, it is one of the warm start, not the one to begin with."""
    changes = {"domain.on_host": on_host, "eval.steps": (0, 1)}
    config = smoke(changes=changes, num_iterations=iterations, steps_per_call=1)
    params = spoilt(untrained(config), jnp.inf)
    with pytest.raises(
        ConfigError,
        match=rf"the policy of {tmp_path}.* are not finite: blocks/mlp/up/kernel hold NaN or infinity; go on",
    ):
        evaluate.evaluate(config, params, tmp_path)
    assert not (tmp_path / "evaluation.json").exists()
    assert not any(file.read_bytes().count(b"\n") > 1 for file in tmp_path.glob("answers/*"))


def test_logits_that_overflow_are_told_from_weights_that_are_not_finite():
    config = smoke()
    with (
        pytest.raises(ConfigError, match=r'its parameters are finite, .* "float32" holds the most'),
        explain(config, lambda: {"weight": jnp.ones(3)}, None),
    ):
        raise NonFiniteError
    require_finite(jnp.array([0.0, jnp.nan]), jnp.array([True, False]))
    with pytest.raises(NonFiniteError):
        require_finite(jnp.array([0.0, -jnp.inf]), jnp.array([True, True]))
