"""Starts of the tiny world's tasks, against episodes that are played from the start."""

import jax
import numpy as np
import pytest
from small import tiny_tools
from test_text_starts import equal, on_device, prompts, start

from exit_jax.algorithm.prompts import piece_rows
from exit_jax.domains import contract
from exit_jax.domains.domain import VALID
from exit_jax.domains.text.prompts import HINT
from exit_jax.domains.tool_use import domain as tools
from exit_jax.domains.tool_use.episode import Episode, Turn
from exit_jax.domains.tool_use.tiny import expert
from exit_jax.domains.tool_use.tiny.world import TinyWorld
from exit_jax.types import BASE, Instances, Rollouts

COUNT = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    sizes = {"domain__max_turns": 12, "domain__max_transcript_tokens": 160, "domain__num_train": COUNT}
    return tiny_tools(tmp_path_factory.mktemp("data"), **sizes).domain


@pytest.fixture(scope="module")
def world(config):
    return tools.Tools(config)


@pytest.fixture(scope="module")
def domain(config):
    return contract.checked(tools.make_domain(config))


@pytest.fixture(scope="module")
def history(domain):
    return on_device(domain.tasks("train"))


def gold_responses(task):
    """Return the responses of somebody who knows all."""
    player, episode, said = TinyWorld({task.id: task}), Episode(task.id), []
    while not episode.ended:
        said.append(expert.correct(episode, task)[0])
        episode = player.step(episode, said[-1], 12).episode
    return said


def play(world, domain, history, responses):
    """Return the grades of histories [n] whose episodes go on with given responses, and how the episodes end."""
    environment, tokens, own, finished, ends = domain.environment, [], [], [], []
    episodes = environment.begin(history, 1)
    for i, texts in enumerate(responses):
        row, mine = tools.Demonstrations(world).transcript(episodes[i], texts)
        tokens.append(np.pad(np.array(row, np.int32), (0, environment.max_transcript - len(row))))
        own.append(np.pad(np.array(mine, bool), (0, environment.max_transcript - len(mine))))
        end = None
        for text in texts:
            if end is None:
                spoken = np.array([*world.encode(text), world.stop_tokens[0]])
                ((episodes[i], answer),) = environment.step([(episodes[i], spoken)])
                end = answer.end
        ends.append(end)
        finished.append([end == VALID])
    tokens, own = np.stack(tokens)[:, None], np.stack(own)[:, None]
    zeros, mode = np.zeros(own.shape, np.float32), np.full(len(responses), BASE, np.int32)
    rollouts = Rollouts(tokens, own, zeros, zeros, np.array(finished), zeros[..., :1])
    return domain.grade(Instances(history, mode, *4 * [None]), rollouts, episodes), ends


@pytest.mark.parametrize("name", ["hint", "prefix", "fewer"])
def test_level_0_is_the_identity(domain, history, name):
    started, ok = start(domain, name, history, 0.0)
    assert ok.all()
    assert equal(started, history)
    assert prompts(domain, started) == prompts(domain, started, templates=domain.templates)


def test_prefixes_are_where_a_gold_episode_comes_by(world, domain, history):
    found = world.tasks_of("train")
    said = [gold_responses(task) for task in found]
    whole, ends = play(world, domain, jax.device_get(history), said)
    assert ends == [VALID] * COUNT
    assert (whole.quality == 1.0).all()
    children = [jax.tree.map(lambda leaf, i=i: leaf[i, 0], whole.children) for i in range(COUNT)]
    for level in (0.2, 0.5, 1.0):
        started, ok = start(domain, "prefix", history, level)
        assert ok.all()
        for i, texts in enumerate(said):
            turn = int(np.ceil(level * (len(texts) - 1) - 1e-6))
            assert started.turn[i] == turn
            for name in ("context", "request"):
                due = piece_rows(children[i], name)[turn]
                assert piece_rows(started, name)[i].tolist() == due.tolist()
        rest = [texts[turn:] for texts, turn in zip(said, started.turn, strict=True)]
        grades, ends = play(world, domain, started, rest)
        assert ends == [VALID] * COUNT
        assert (grades.quality == 1.0).all()
        np.testing.assert_array_equal(grades.children.turn[:, 0, 0], started.turn)
        np.testing.assert_array_equal(grades.children.step[:, 0, 0], 0)
    assert {len(texts) for texts in rest} == {1}  # one response is left at level 1


def test_a_hint_is_a_message_that_no_child_has(world, domain, history):
    said = [gold_responses(task) for task in world.tasks_of("train")]
    started, ok = start(domain, "hint", history, 0.25)
    assert ok.all()
    for plain, shown, texts in zip(prompts(domain, history), prompts(domain, started), said, strict=True):
        opening = plain.removesuffix(world.tokenizer.decode(list(world.generation_prompt)))
        assert shown.startswith(opening)
        assert shown.endswith(plain[len(opening) :])
        message = shown[len(opening) : len(shown) - len(plain) + len(opening)]
        assert HINT.strip() in message
        text = "\n".join(texts)
        ids = world.encode(text)
        assert world.tokenizer.decode(list(ids[: -(-len(ids) // 4)]), clean_up_tokenization_spaces=False) in message
    hinted, _ = play(world, domain, started, said)
    plain, _ = play(world, domain, jax.device_get(history), said)
    assert equal(hinted, plain)


def test_fewer_requests_are_made_of_which_children_know_nothing(world, domain, history):
    found = world.tasks_of("train")
    numbers = [len(task.requests) for task in found]
    assert len({*numbers}) > 1
    said = [gold_responses(task) for task in found]
    qualities = []
    for level in (0.0, 0.34, 0.5, 1.0):
        started, ok = start(domain, "fewer", history, level)
        assert ok.all()
        assert prompts(domain, started) == prompts(domain, history)
        episodes = domain.environment.begin(started, 1)
        made = [n - episode.left_out for n, episode in zip(numbers, episodes, strict=True)]
        assert made == [max(int(np.ceil((1 - level) * n - 1e-6)), 1) for n in numbers]
        markers = [[k for k, text in enumerate(texts) if expert.MARKERS.finished in text] for texts in said]
        due = [texts[: places[m - 1] + 1] for texts, places, m in zip(said, markers, made, strict=True)]
        grades, ends = play(world, domain, started, due)
        assert ends == [VALID] * COUNT
        assert (grades.quality == 1.0).all()
        children = jax.tree.map(lambda leaf: leaf[:, 0, 0], grades.children)
        np.testing.assert_allclose(children.quality, [m / n for m, n in zip(made, numbers, strict=True)], rtol=1e-6)
        assert children.lengths[:, 2].all()  # they hold a response, which is no mark of requests that are left out
        assert [episode.left_out for episode in domain.environment.begin(children, 1)] == [0] * COUNT
        qualities.append(children.quality.mean())
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[-1] < 0.6


def test_an_episode_that_is_cut_back_still_has_fewer_requests():
    turns = (Turn("call", "1"), Turn("call", "2"))
    assert Episode("a", turns, "finished", 2).before(1) == Episode("a", turns[:1], "", 2)
