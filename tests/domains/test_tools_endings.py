"""Where a response of tool use ends, which of them are learnt from, and tasks that do not fit: in the tiny world."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from small import tiny_tools

from exit_jax import domains
from exit_jax.algorithm import buffer as buffers
from exit_jax.algorithm.iteration import make_children
from exit_jax.domains.domain import ENDS
from exit_jax.domains.tool_use import domain as tools
from exit_jax.domains.tool_use.parser import has_ending
from exit_jax.domains.tool_use.tiny import expert as tiny_expert
from exit_jax.domains.tool_use.tiny.world import system_prompt
from exit_jax.evaluation.evaluate import evaluate
from exit_jax.policy.stops import StopText
from exit_jax.step.policy import sampling_config
from exit_jax.step.program import make_program
from exit_jax.types import BASE, IMPROVE, Instances, Rollouts

HOUSE = 1  # a training task with rooms
CALL = '<tool_call>{"name": "rooms", "arguments": {}}</tool_call>'


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module", params=[True, False], ids=["stop at a call", "go on"])
def world(request, data_dir):
    limits = {"domain__max_turns": 12, "domain__max_transcript_tokens": 240, "domain__overlong_unit": "response"}
    return tools.Tools(tiny_tools(data_dir, domain__stop_at_call=request.param, **limits).domain)


def base(world, task=0, split="train"):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[[task]], world.tasks(split))


def play(world, history, texts, max_turns=12):
    """Return instances [1] of a history, and the rollout [1, 1] in which it is played with texts, as episodes.py plays it."""
    environment = world.environment(test=False)
    (episode,) = environment.begin(history, 1)
    tokens, mask, ended, end = [], [], [], None
    for turn, text in enumerate(texts, int(history.turn[0]) + 1):
        spoken = world.demonstrate(text)
        ((episode, answer),) = environment.step([(episode, np.array(spoken))])
        tokens, mask, ended = tokens + spoken, mask + [True] * len(spoken), ended + [answer.ended] * len(spoken)
        end = answer.end
        if end is not None or turn == max_turns:
            break
        said = [*answer.observation, *environment.generation_prompt]
        tokens, mask, ended = tokens + said, mask + [False] * len(said), ended + [False] * len(said)

    def row(values, dtype):
        array = np.zeros((1, 1, environment.max_transcript), dtype)
        array[0, 0, : len(values)] = values
        return array

    zeros, no = row([], np.float32), np.zeros(1, bool)
    mode = np.where(history.step < 0, BASE, IMPROVE)
    instances = Instances(history, mode, no, no, row([], np.int32)[:, 0], history.turn)
    fields = (row(tokens, np.int32), row(mask, bool), zeros, zeros, np.array([[end == ENDS.index("valid")]]))
    return instances, Rollouts(*fields, zeros[..., :1], row(ended, bool)), [episode]


def chat_of(world, task, episode, texts):
    """Return the messages of an episode."""
    requests = iter(task.requests)
    messages = [
        {"role": "system", "content": system_prompt(task)},
        {"role": "user", "content": next(requests)},
    ]
    for text, turn in zip(texts, episode.turns):
        role = "user" if turn.kind == "finished" else world.config.observation_role
        messages += [{"role": "assistant", "content": text}, {"role": role, "content": turn.observation.strip()}]
    return messages


def test_a_conversation_is_the_chat_whatever_ended_its_responses(world):
    """The template's own stop token follows a call that has ended its response: read, and not the policy's."""
    stop, count = world.stop_tokens[0], 0
    for task in range(4):
        texts = tiny_expert.demonstrate(world.tasks_of("train")[task], 0.0, np.random.default_rng(task), 12)
        instances, rollouts, episodes = play(world, base(world, task), texts)
        grades = world.grade(instances, rollouts, episodes)
        assert grades.insertable[0, 0].sum() == len(texts)
        for u in range(1, len(texts)):
            context = grades.children.tokens[0, 0, u, : grades.children.lengths[0, 0, u, 0]].tolist()
            before = dataclasses.replace(episodes[0], turns=episodes[0].turns[:u])
            messages = chat_of(world, world.tasks_of("train")[task], before, texts[:u])
            assert world.tokenizer.decode(context) == world.tokenizer.apply_chat_template(messages, tokenize=False)
        tokens, mask = rollouts.tokens[0, 0], rollouts.mask[0, 0]
        closed_by_policy = tokens[mask].tolist().count(stop)
        calls = sum(turn.kind == "call" for turn in episodes[0].turns)
        assert closed_by_policy == len(texts) - calls * world.config.stop_at_call
        count += calls
    assert count > 5, "a test of few calls"


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_an_environment_is_brought_to_where_a_history_starts(world, noise):
    environment, num_checked = world.environment(test=False), 0
    for task in range(5):
        texts = tiny_expert.demonstrate(world.tasks_of("train")[task], noise, np.random.default_rng(task), 12)
        instances, rollouts, episodes = play(world, base(world, task), texts)
        grades = world.grade(instances, rollouts, episodes)
        chosen = np.flatnonzero(grades.insertable[0, 0])
        children = jax.tree.map(lambda leaf, chosen=chosen: leaf[0, 0, chosen], grades.children)
        for episode, turn in zip(environment.begin(children, 1), children.turn):
            assert episode == episodes[0].before(int(turn))
            num_checked += turn > 0
    assert num_checked > 15


@pytest.mark.parametrize("more", ["", " and", f" {CALL}", "\n<finished>"])
def test_what_is_said_after_a_call(world, more):
    """It is never said where a call ends its response; else there is one call a response, and nothing after it."""
    spoken = world.demonstrate(f"see {CALL}{more}")
    told = world.tokenizer.decode(spoken, skip_special_tokens=False)
    environment = world.environment(test=False)
    (episode,) = environment.begin(base(world, HOUSE), 1)
    ((episode, answer),) = environment.step([(episode, np.array(spoken))])
    if world.config.stop_at_call:
        assert told.startswith(f"see {CALL}")
        assert len(told) - len(f"see {CALL}") < 3, "no more than what the token of the end holds"
        assert episode.turns[0].kind == "call"
        assert answer.observation[0] == world.stop_tokens[0], "and its turn is closed"
    else:
        assert episode.turns[0].kind == ("invalid" if more else "call")
        assert answer.observation[0] != world.stop_tokens[0]
    assert len(answer.observation) <= environment.max_observation


def test_each_response_of_an_episode_is_learnt_from_by_its_own_ending(world):
    """An episode that runs out of turns, with one response of no ending among calls: only that one is left out."""
    texts = [CALL, "hm", '<tool_call>{"name": "rooms"</tool_call>', CALL]
    instances, rollouts, episodes = play(world, base(world, HOUSE), texts, max_turns=4)
    assert not rollouts.finished.any()
    grades = world.grade(instances, rollouts, episodes)
    assert grades.insertable[0, 0].tolist() == [True, False, True, True, *[False] * 8]
    assert grades.children.turn[0, 0, :4].tolist() == [0, 1, 2, 3]
    assert "hm" in world.decode(grades.children.tokens[0, 0, 2])
    algorithm = tiny_tools(world.data_dir).algorithm
    given = algorithm, buffers.create(8, world.width), instances
    wanted = lambda rollouts, grades: make_children(*given, rollouts, grades, 1, jax.random.key(0))[1].sum()
    assert wanted(rollouts, grades) == 3
    by_episode = dataclasses.replace(rollouts, ended=None)
    assert wanted(by_episode, grades) == wanted(by_episode, world.grade(instances, by_episode, episodes)) == 0
    nothing = jax.tree.map(np.zeros_like, rollouts)
    assert not world.grade(instances, nothing, episodes).insertable.any(), "begun, and not a turn left"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, True),
        (f"so {CALL}\n```\n", True),
        ("<finished> ", True),
        ("I cannot. <error>", True),
        ("<tool_call>{</tool_call>", True),
        (f"{CALL} and", False),
        ("<finished> at last", False),
        ("", False),
        ('<tool_call>{"name"', False),
    ],
)
def test_endings(text, expected):
    assert has_ending(text) == expected


@pytest.mark.slow
def test_sampling_stops_where_the_domain_says(data_dir, monkeypatch):
    """In evaluated episodes as in training; a letter stands for the end of a call, which an untrained policy never makes."""
    letter = lambda self: StopText.of("e", self.tokenizer.convert_ids_to_tokens(list(range(self.vocab_size))))
    step, said = tools.Tools.step, []

    def listen(self, pairs, **limits):
        said.extend(np.asarray(response).tolist() for _, response in pairs)
        return step(self, pairs, **limits)

    monkeypatch.setattr(tools.Tools, "stop_text", property(letter))
    monkeypatch.setattr(tools.Tools, "step", listen)
    config = tiny_tools(data_dir, domain__stop_at_call=True, domain__call_secs=4.5, eval__steps=(0, 1))
    domain = domains.make(config.domain_name, config.domain)
    assert sampling_config(config, domain, 8).stop_text is domain.stop_text
    evaluate(config, make_program(config).init_params(0), None)
    token = domain.stop_text.table[0] > 0
    assert [token[response].tolist().index(True) for response in said if token[response].any()] == [
        len(response) - 1 for response in said if token[response].any()
    ]
    assert sum(token[response[-1]] for response in said) > 10
    assert all(token[response[-1]] or response[-1] in domain.stop_tokens for response in said)


def test_demonstrations_end_as_samples_do(world):
    _, _, tokens, mask = tools.Demonstrations(world)(jax.random.key(0), 3, 12, 2)
    before = np.pad(mask, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    num_calls, num_stops = 0, 0
    for row, own, start in zip(tokens.reshape(24, -1), mask.reshape(24, -1), (mask & ~before).reshape(24, -1)):
        for first in np.flatnonzero(start):
            response = list(itertools.takewhile(lambda pair: pair[1], zip(row[first:].tolist(), own[first:])))
            response = [token for token, _ in response]
            end = world.end_of(response)
            if end is None:
                assert len(response) == world.config.max_tokens or first + len(response) == own.size, "cut off"
                continue
            assert end == len(response) - 1
            num_calls += response[-1] not in world.stop_tokens
            num_stops += response[-1] in world.stop_tokens
    assert num_stops > 5
    assert (num_calls > 20) == world.config.stop_at_call


def test_a_test_task_that_is_too_long_counts_as_failed(data_dir, monkeypatch, caplog):
    """A world in which every episode succeeds cannot help it; a task to train on is left out, and both are said."""
    figures = tools.Tools.figures
    won = lambda self, episode, num_requests: (
        figures(self, episode, num_requests) | {"quality": float(episode is not None)}
    )
    monkeypatch.setattr(tools.Tools, "figures", won)
    whole = tools.Tools(tiny_tools(data_dir).domain)
    heads = [len(whole.head(task.id)) for task in whole.tasks_of("test")]
    limit = int(np.sort(heads)[4])
    changes = {"domain__max_context_tokens": limit, "domain__call_secs": 3.5}
    config = tiny_tools(data_dir, **changes, eval__steps=(0,))
    domain = domains.make(config.domain_name, config.domain)
    num_too_long = sum(head > limit for head in heads)
    assert 0 < num_too_long < 8
    assert domain.too_long("test").tolist() == [head > limit for head in heads]
    assert domain.tasks("test").task.size == len(domain.about("test")) == 8
    assert domain.tasks("train").task.size == domain.too_long("train").size < 24
    assert f"{num_too_long} of 8 tasks of test count as failed" in caplog.text
    assert "tasks of train are left out" in caplog.text
    found = evaluate(config, make_program(config).init_params(0), None)["splits"]["test"]
    assert (found["num_tasks"], found["num_too_long"]) == (8, num_too_long)
    assert found["scaffolds"]["chain"]["accuracy"] == [1 - num_too_long / 8]


@pytest.mark.parametrize(
    ("mark", "inputs", "warned"), [("</think>", (), 1), ("</think>", ("enable_thinking=false",), 0), ("", (), 0)]
)
def test_calls_in_thoughts_are_warned_of(data_dir, caplog, mark, inputs, warned):
    world = tools.Tools(tiny_tools(data_dir, domain__stop_at_call=True, domain__template_inputs=inputs).domain)
    world.tokenizer.chat_template = f"{{# {mark} #}}{world.tokenizer.chat_template}"
    assert world.stop_text is not None
    assert [record.levelname for record in caplog.records if "stop_at_call" in record.message] == ["WARNING"] * warned
