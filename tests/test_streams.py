"""Every draw has a key of its own: of a policy that knows no context, draws that shared one would be equal."""

import dataclasses
import itertools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sudoku
from small import LLAMA, random_params
from test_episodes import LEAD, SAMPLING, B, M, S, T, make_instances, make_programs, run, toy

from exit_jax import domains
from exit_jax.algorithm.in_flight import state_for_next_selection
from exit_jax.algorithm.iteration import init_state, iterate
from exit_jax.algorithm.selection import select
from exit_jax.config.parse import validate
from exit_jax.domains.domain import VALID
from exit_jax.evaluation import episodes as evaluated
from exit_jax.evaluation.chains import run_chains
from exit_jax.evaluation.scaffolds import CHAIN, RESTARTS
from exit_jax.policy import decode, decoder, prefill
from exit_jax.step.device import Constants, DeviceSteps
from exit_jax.step.episodes import PlayedSteps, TurnPrograms, play_steps
from exit_jax.step.program import make_program
from exit_jax.types import MODES

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def blind():
    """Return parameters that give every token the same probability, whatever came before."""
    return decoder.unstack(LLAMA, jax.tree.map(jnp.zeros_like, random_params(LLAMA)))


def share_of_equals(pairs) -> float:
    pairs = list(pairs)
    assert len(pairs) >= B, "a test of few draws"
    return sum(one == other for one, other in pairs) / len(pairs)


def test_turns_and_rows_of_an_episode(blind):
    episodes = [episode for episode in run(blind, toy(max_turns=8)).episodes if episode]
    assert share_of_equals(pair for episode in episodes for pair in itertools.combinations(episode, 2)) < 0.2
    assert share_of_equals(itertools.combinations([episode[0] for episode in episodes], 2)) < 0.2


def test_self_iterations_of_a_turn(blind):
    environment, asked = toy(), []

    def ask_again(episode, response):
        asked.append(tuple(int(token) for token in response))
        return environment.ask_again(episode, response)

    width = T + S + 2 * M + len(LEAD) + 7
    programs = TurnPrograms(
        make_programs().part,
        jax.jit(lambda copy, *prompt: prefill.start(LLAMA, copy, 1, width, *prompt)),
        jax.jit(lambda copy, *args: decode.generate(LLAMA, SAMPLING, copy, *args)),
        jax.jit(lambda copy, *args: prefill.extend(LLAMA, copy, *args)),
    )
    instances = make_instances()
    context = instances.prompt, instances.prompt_length
    once = dataclasses.replace(environment, ask_again=ask_again, max_turns=1)
    play_steps(programs, once, blind, context, instances.history, jax.random.key(3), 2)
    assert len(asked) == 2 * B, "the first and the second iterate of every row"
    assert share_of_equals(zip(asked[:B], asked[B:])) < 0.5


@pytest.fixture(scope="module")
def config():
    content = tiny_sudoku.get_config()
    content.eval.splits = ("validation",)
    content.eval.samples_per_task = 2
    content.eval.restart_every = 1
    content.eval.batch_size = 24  # of 32 chains: two batches
    content.run.mesh.data = 1
    return validate(content, jax.device_count())


def test_responses_batches_kinds_and_seeds_of_an_evaluation(config):
    params = jax.tree.map(jnp.zeros_like, make_program(config).init_params(0))
    chains = lambda scaffold, config=config: run_chains(config, params, "validation", scaffold).chains.tokens
    length_KR = chains(RESTARTS)  # of responses that all begin at the base task
    assert len(np.unique(length_KR)) > 3
    assert len(np.unique(length_KR, axis=0)) == len(length_KR)
    assert (length_KR[:, 24:] != length_KR[:, :8]).any()
    assert (length_KR[0] != chains(CHAIN)[0]).any()
    assert (length_KR[0] != chains(RESTARTS, dataclasses.replace(config, seed=1))[0]).any()


def test_batches_and_steps_of_evaluated_episodes(config, monkeypatch):
    """Episodes at each k are others, not the same with more self-iterations: their first responses differ, too."""
    keys = []

    def played(*args):
        keys.extend(tuple(jax.random.key_data(x).tolist()) for x in args if isinstance(x, jax.Array) and is_key(x))
        rows = np.arange(24)
        return PlayedSteps(0 * rows + VALID, rows, [None] * 24, rows, False)

    is_key = lambda array: jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    domain = domains.make(config.domain_name, config.domain)
    environment = types.SimpleNamespace(figures=lambda episode: {"quality": 0.0}, show=str)
    with_environment = dataclasses.replace(domain, test_environment=environment)
    monkeypatch.setattr(domains, "make", lambda *_: with_environment)
    for name in ("reshard", "conversations", "turns"):
        monkeypatch.setattr(evaluated, name, lambda *_: lambda given: None)
    monkeypatch.setattr(evaluated, "play_steps", played)
    evaluated.run_episodes(config, {}, "validation", None)
    assert len(set(keys)) == len(keys) == 2 * len(config.eval.steps)


def test_iterations(config):
    """Of one program, and of several: each samples with the key of its step."""
    program = make_program(config)
    state = program.init(program.init_params(0), 0)
    domain = domains.make(config.domain_name, config.domain)
    constants = Constants(domain.tasks("train"), None)

    def key_at(step: int):
        keys = []
        steps = types.SimpleNamespace(
            select=DeviceSteps(config, domain, program.mesh, constants).select,
            rollout=lambda params, instances, key: keys.append(key),
            grade=lambda *_: None,
            attempt_again=lambda *_: None,
            learn=lambda *_: (None, {}),
        )
        iterate(steps, dataclasses.replace(state, step=jnp.int32(step)))
        return tuple(jax.random.key_data(keys[0]).tolist())

    assert len({key_at(step) for step in range(3)}) == 3

    instances, key = program.steps.select(constants, state, ())
    second = program.steps.select(constants, dataclasses.replace(state, step=jnp.int32(1)), ())
    # beside a batch in flight selection is at the next step, and the next base tasks
    beside = program.steps.select(constants, state, (instances,))
    assert jax.random.key_data(second[1]).tolist() == jax.random.key_data(beside[1]).tolist()
    assert jax.random.key_data(second[1]).tolist() != jax.random.key_data(key).tolist()
    drawn = np.concatenate([instances.history.task, beside[0].history.task])
    assert len(set(drawn.tolist())) == len(drawn)


def test_an_entry_in_flight_is_not_fresh(exit_config, make_history):
    """Drawn twice before it is learnt from once, it is one distinct entry, whether or not the buffer holds it by then."""
    tasks = make_history(1, tokens=[5, 0, 0, 0], lengths=[0, 1, 0, 0])
    config = exit_config(selection_prob=1.0, min_buffer_size=1)
    state = init_state(config, {}, (), jax.random.key(0), 4)
    held = make_history(8, id=np.arange(8), step=0, tokens=[5, 6, 0, 0], lengths=[0, 1, 1, 0])
    score = jnp.where(jnp.arange(8) < 2, 1.0, 0.0)  # so that two entries are drawn again and again
    state = dataclasses.replace(state, buffer=dataclasses.replace(state.buffer, history=held, score=score))
    templates = dict.fromkeys(MODES, ("request",))
    first = select(config, templates, 3, tasks, state)
    second = select(config, templates, 3, tasks, state_for_next_selection(state, (first,)), (first,))
    assert first.fresh.all()
    both = set(first.history.id.tolist()) & set(second.history.id.tolist())
    assert both
    assert second.fresh.tolist() == [id not in both for id in second.history.id.tolist()]
