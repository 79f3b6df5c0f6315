"""The tool-use domain in the tiny world: prompts, clean histories, replayed environments, runs that resume."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from small import tiny_tools

from exit_jax import run
from exit_jax.algorithm.prompts import render_by_mode
from exit_jax.domains.domain import ENDS, DomainError
from exit_jax.domains.tool_use import domain as tools
from exit_jax.domains.tool_use.episode import Episode, Turn, Verdict
from exit_jax.domains.tool_use.tiny import expert as tiny_expert
from exit_jax.domains.tool_use.tiny.world import system_prompt
from exit_jax.errors import ConfigError
from exit_jax.step.program import make_program
from exit_jax.training import train
from exit_jax.types import BASE, DIVERGE, IMPROVE, Instances, Rollouts
from exit_jax.workdir.metrics import read_jsonl


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def world(data_dir):
    return tools.Tools(tiny_tools(data_dir, domain__max_turns=12, domain__max_transcript_tokens=160).domain)


def rows(history, numbers):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[numbers], history)


def played(world, history, responses, begun=None):
    """Return instances [1] of a history, rollouts [1, G] in which its episode is played with given texts, and the episodes."""
    environment = world.environment(test=False)
    group = len(responses)
    episodes = begun or environment.begin(history, group)
    tokens = np.zeros((1, group, environment.max_transcript), np.int32)
    mask, finished = np.zeros(tokens.shape, bool), np.zeros((1, group), bool)
    for g, texts in enumerate(responses):
        row, own = tools.Demonstrations(world).transcript(episodes[g], texts)
        tokens[0, g, : len(row)], mask[0, g, : len(own)] = row, own
        for text in texts:
            spoken = np.array([*world.encode(text), world.stop_tokens[0]])
            ((episodes[g], answer),) = environment.step([(episodes[g], spoken)])
            finished[0, g] = answer.end == ENDS.index("valid")
    zeros = np.zeros(tokens.shape, np.float32)
    no = np.zeros(1, bool)
    mode = np.where(history.step < 0, BASE, IMPROVE)
    instances = Instances(history, mode, no, no, tokens[:, 0], history.turn)
    return instances, Rollouts(tokens, mask, zeros, zeros, finished, zeros[..., :1]), episodes


def expert(world, seed=0, noise=0.0, task=0):
    return tiny_expert.demonstrate(world.tasks_of("train")[task], noise, np.random.default_rng(seed), 12)


def conversation(world, task, episode, texts):
    """Return the messages of an episode as a chat."""
    requests = iter(task.requests)
    system = system_prompt(task)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": next(requests)}]
    for text, turn in zip(texts, episode.turns):
        role = "user" if turn.kind == "finished" else world.config.observation_role
        messages += [{"role": "assistant", "content": text}, {"role": role, "content": turn.observation.strip()}]
    return messages


def test_a_history_is_the_chat_without_self_iteration_prompts(world):
    """Every turn of an episode is a history, whose context is what the chat template makes of the conversation."""
    task = world.tasks_of("train")[0]
    base = rows(world.tasks("train"), [0])
    texts = expert(world)
    instances, rollouts, episodes = played(world, base, [texts, texts])
    grades = world.grade(instances, rollouts, episodes)
    assert grades.quality.tolist() == [[1.0, 1.0]]
    assert grades.insertable[0, 0, : len(texts)].all()
    assert not grades.insertable[0, 0, len(texts) :].any()
    apply = world.tokenizer.apply_chat_template
    for u, text in enumerate(texts):
        child = rows(grades.children, (0, 0, [u]))
        assert (child.turn, child.step, child.task) == (u, 0, 0)
        episode = episodes[0]
        messages = conversation(world, task, dataclasses.replace(episode, turns=episode.turns[:u]), texts[:u])
        prompt, length = render_by_mode(world.templates, base if u == 0 else child, np.array([BASE]), 256)
        decoded = world.tokenizer.decode(np.asarray(prompt)[0, : int(length[0])].tolist())
        assert decoded == apply(messages, tokenize=False, add_generation_prompt=True)
        assert world.describe(child) == [text.strip()]
        asked = task.requests[min(sum(m["content"] in task.requests for m in messages), len(task.requests)) - 1]
        again = world.config.improve.format(request=asked, solution=text.strip())
        prompt, length = render_by_mode(world.templates, child, np.array([IMPROVE]), 256)
        decoded = world.tokenizer.decode(np.asarray(prompt)[0, : int(length[0])].tolist())
        assert decoded == apply(
            [*messages, {"role": "user", "content": again}], tokenize=False, add_generation_prompt=True
        )


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_an_environment_is_brought_to_where_a_history_starts(world, noise):
    environment = world.environment(test=False)
    num_checked = 0
    for task in range(6):
        base = rows(world.tasks("train"), [task])
        texts = expert(world, task, noise, task)
        instances, rollouts, episodes = played(world, base, [texts])
        rollouts = dataclasses.replace(rollouts, finished=np.ones((1, 1), bool))
        grades = world.grade(instances, rollouts, episodes)
        children = rows(grades.children, (0, 0, np.flatnonzero(grades.insertable[0, 0])))
        for episode, turn in zip(environment.begin(children, 1), children.turn):
            assert episode == episodes[0].before(int(turn))
            num_checked += turn > 0
    assert num_checked > 20


def test_what_cannot_be_played_again_is_lost(world):
    base = rows(world.tasks("train"), [0])
    texts = expert(world)
    instances, rollouts, episodes = played(world, base, [texts])
    children = rows(world.grade(instances, rollouts, episodes).children, (0, 0, np.arange(len(texts))))
    other = children.tokens.copy()
    place = len(world.head(world.tasks_of("train")[0].id))
    last = int(children.lengths[-1, 0]) - 2  # within the last observation
    assert last > place
    other[-1, last] = other[-1, last] + 1 if other[-1, last] < 700 else 500
    environment = world.environment(test=False)
    found = environment.begin(dataclasses.replace(children, tokens=other), 2)
    assert found[-2:] == [None, None]
    assert None not in found[:-2]
    instances = Instances(rows(children, [-1]), np.array([IMPROVE]), *[np.zeros(1, bool)] * 2, other[-1:], np.ones(1))
    empty = jax.tree.map(np.zeros_like, rollouts)
    grades = world.grade(instances, empty, found[-1:])
    assert grades.lost.tolist() == [True]
    assert not grades.valid.any()
    assert not grades.insertable.any()


def test_a_step_yields_its_turn_and_all_later_ones(world):
    """From a history at turn 1: k + 1 there, 0 afterwards; the improve prompt is in no context, nor is the old response."""
    base = rows(world.tasks("train"), [0])
    texts = expert(world)
    instances, rollouts, episodes = played(world, base, [texts])
    child = rows(world.grade(instances, rollouts, episodes).children, (0, 0, [1]))
    begun = world.environment(test=False).begin(child, 1)
    task = world.tasks_of("train")[0]
    better = tiny_expert.write(tiny_expert.read(texts[1], task), "purpose")
    instances, rollouts, episodes = played(world, child, [[better, *texts[2:]]], begun)
    grades = world.grade(instances, rollouts, episodes)
    count = len(texts) - 1
    assert grades.insertable[0, 0].tolist() == [u < count for u in range(12)]
    assert grades.children.turn[0, 0, :count].tolist() == list(range(1, count + 1))
    assert grades.children.step[0, 0, :count].tolist() == [1] + [0] * (count - 1)
    for u in range(count):
        context = world.decode(grades.children.tokens[0, 0, u, : grades.children.lengths[0, 0, u, 0]])
        assert "Better." not in context
        assert (better in context) == (u > 0)


def test_figures_and_limits(world):
    base = rows(world.tasks("train"), [0, 1])
    environment = world.environment(test=False)
    first, _ = environment.begin(base, 1)
    say = lambda episode, text: environment.step([(episode, np.array([*world.encode(text), world.stop_tokens[0]]))])[0]
    episode, answer = say(first, "hm")
    assert answer.end is None
    assert world.tokenizer.decode(list(answer.observation)).startswith("<|tool|>")
    assert len(answer.observation) > 4, "an invalid response is told so"
    assert len(answer.observation) <= environment.max_observation
    assert environment.figures(episode)["invalid_calls"] == 1.0
    _, answer = say(episode, "<error>")
    assert ENDS[answer.end] == "valid"
    assert environment.figures(None)["quality"] == 0.0
    assert environment.show(None) == ""
    num_requests = len(world.tasks_of("train")[0].requests)
    episode = first
    for text in expert(world):
        episode, _ = say(episode, text)
    assert environment.figures(episode)["requests_fulfilled"] == num_requests
    only_first = world.begin(base, 1, max_turns=12, num_requests=1)[0]
    for text in expert(world):
        (only_first, answer) = world.step([(only_first, np.array([*world.encode(text), world.stop_tokens[0]]))], 12, 1)[
            0
        ]
        if answer.end is not None:
            break
    assert ENDS[answer.end] == "valid"
    assert only_first.request == 1
    assert world.figures(only_first, 1)["quality"] == 1.0


def test_demonstrations_are_episodes(world):
    history, mode, tokens, mask = tools.Demonstrations(world)(jax.random.key(0), 3, 12, 2)
    assert set(mode.tolist()) == {BASE, IMPROVE, DIVERGE}
    assert (history.step == np.where(mode == BASE, -1, 0)).all()
    assert ((history.turn == 0) | (mode != BASE)).all()
    again = tools.Demonstrations(world)(jax.random.key(0), 3, 12, 2)
    for one, other in zip(jax.tree.leaves((history, mode, tokens, mask)), jax.tree.leaves(again)):
        np.testing.assert_array_equal(one, other)
    assert not mask[..., -1].all()
    starts = mask & ~np.pad(mask, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    ends = mask & ~np.pad(mask, ((0, 0), (0, 0), (0, 1)))[..., 1:]
    assert starts.sum() > 40
    assert np.isin(tokens[ends], world.stop_tokens).mean() > 0.9


def test_faults_are_told(data_dir):
    with pytest.raises(ValueError, match=r"(?s)world = 'moon'.*num_requests = -1.*transcript_tokens = 8"):
        tiny_tools(
            data_dir,
            domain__world="moon",
            domain__num_requests=-1,
            domain__max_transcript_tokens=8,
            domain__max_tokens=9,
        )
    with pytest.raises(ConfigError, match="rollout_lag = 1"):
        make_program(tiny_tools(data_dir, algorithm__rollout_lag=1))
    with pytest.raises(DomainError, match="prompt_width = 100 is too narrow"):
        tools.Tools(tiny_tools(data_dir, domain__prompt_width=100).domain).templates  # noqa: B018
    with pytest.raises(DomainError, match=r"no task of the split train fits into domain.max_context_tokens = 4"):
        tools.Tools(tiny_tools(data_dir, domain__max_context_tokens=4).domain).tasks("train")
    with pytest.raises(ValueError, match="train_split = 'tuning'"):
        tiny_tools(data_dir, domain__train_split="tuning")
    bfcl = dataclasses.replace(tiny_tools(data_dir).domain, world="bfcl", tokenizer="any")
    assert bfcl.splits == ("train", "test"), "validation is a part of train"
    assert dataclasses.replace(bfcl, train_split="tuning").splits == ("train", "validation", "test")


@pytest.mark.slow
def test_training_resumes_exactly_and_evaluates(data_dir, tmp_path):
    """Two iterations, a restart and two more equal four; an evaluation that was cut off goes on to the same end."""
    config = tiny_tools(data_dir)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run.train(config, whole)
    run.train(dataclasses.replace(config, run=dataclasses.replace(config.run, num_iterations=2)), broken)
    (broken / "evaluation.json").unlink()
    run.train(config, broken)
    kept = lambda row: {k: v for k, v in row.items() if not k.startswith("time/") and v == v}
    one, other = ([kept(row) for row in read_jsonl(folder / "train.jsonl")] for folder in (whole, broken))
    assert one == other
    assert {"turns", "end/valid", "buffer/lost", "grade/first_request"} <= one[-1].keys()
    assert sum(row["buffer/lost"] for row in one) == 0
    evaluation = json.loads((whole / "evaluation.json").read_text())
    assert evaluation == json.loads((broken / "evaluation.json").read_text())
    figures = evaluation["splits"]["test"]["scaffolds"]["chain"]["figures"]
    assert set(figures) == set(tools.FIGURES)
    assert len(figures["turns"]) == 3

    stored = whole / "answers/test.jsonl"
    lines = stored.read_bytes().splitlines(keepends=True)
    stored.write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"half')
    (whole / "evaluation.json").unlink()
    state, params = train.train(config, whole)
    from exit_jax.evaluation.evaluate import evaluate

    assert evaluate(config, params, whole) == evaluation
    assert stored.read_bytes() == b"".join(lines)
    del state


def test_an_iterate_that_is_not_executed_leaves_no_trace(world):
    """With K steps the episode holds as many turns as without: only last iterates are played."""
    environment = world.environment(test=True)
    episode = environment.begin(rows(world.tasks("test"), [0]), 1)[0]
    asked = environment.ask_again(episode, np.array([*world.encode("hm"), world.stop_tokens[0]]))
    text = world.tokenizer.decode(list(asked))
    task = world.tasks_of("test")[0]
    assert task.requests[0] in text
    assert "hm" in text
    assert len(asked) <= environment.max_ask
    assert list(asked[-len(environment.generation_prompt) :]) == list(environment.generation_prompt)
    assert isinstance(episode, Episode)
    assert list(itertools.chain(episode.turns)) == []


@pytest.mark.parametrize("verdicts", [(True, False), (False, True)])
def test_the_first_request_is_the_first(world, verdicts):
    """The paper's headline figure: whatever came of the requests after it (ExIt §5)."""
    task = world.tasks_of("train")[0]
    turns = tuple(Turn("finished", "", verdict=Verdict(fulfilled, True)) for fulfilled in verdicts)
    figures = world.environment(test=True).figures(Episode(task.id, turns))
    assert figures["first_request"] == verdicts[0]
    assert figures["requests_fulfilled"] == 1
