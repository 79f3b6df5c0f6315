"""Test the tiny world of tools: its rules against a second reading of them, its tasks, and the expert."""

import collections
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from exit_jax.domains.text import tokenizer as tokenizers
from exit_jax.domains.tool_use.episode import Call, Episode, ReplayMismatch, describe
from exit_jax.domains.tool_use.parser import MARKERS, render_call
from exit_jax.domains.tool_use.tiny import expert, goals
from exit_jax.domains.tool_use.tiny import tasks as tiny_tasks
from exit_jax.domains.tool_use.tiny.tasks import MAX_TURNS, tasks
from exit_jax.domains.tool_use.tiny.world import FUNCTIONS, INVALID, WORDS, TinyWorld, observe, system_prompt

DONE, GIVE_UP = "<finished>", "<error>"
SPLITS = ("train", "validation", "test")
VOCAB_SIZE = 704  # more than the texts have use for


def make_world(split="train", count=150, seed=0) -> TinyWorld:
    return TinyWorld({task.id: task for task in tasks(split, count, seed)})


def play(world, scripts, max_turns=MAX_TURNS, num_requests=None) -> list[Episode]:
    """Play (task id, responses), each until it or its episode ends."""
    episodes = []
    for task_id, responses in scripts:
        episode, _ = world.reset(task_id)
        for response in responses:
            if not episode.ended:
                episode = world.step(episode, response, max_turns, num_requests).episode
        episodes.append(episode)
    return episodes


def script(requests) -> list[str]:
    """Return the responses that make these calls, by request."""
    return [text for calls in requests for text in (*(render_call(call.name, call.arguments) for call in calls), DONE)]


# ---- the rules, once more: a state is a flat table, and calls are compared as text


class Table:
    """What calls do, read from the descriptions of the functions."""

    def __init__(self, config):
        self.cells = {}
        for part in config.values():
            for thing, attributes in part.items():
                self.cells |= {(thing, name): value for name, value in attributes.items()}

    def make(self, name, a):
        cells = self.cells
        if name in ("move", "pay"):
            source, target = (a["box"], a["to"]) if name == "move" else (a["name"], a["to"])
            what = a["item"] if name == "move" else "coins"
            if source == target:
                return {"error": "same place"}
            if cells[source, what] < a["count"]:
                return {"error": f"only {cells[source, what]}"}
            cells[source, what], cells[target, what] = (
                cells[source, what] - a["count"],
                cells[target, what] + a["count"],
            )
            return {"left": cells[source, what]}
        if name in ("door", "light"):
            if name == "light" and cells[a["room"], "door"] == "shut":
                return {"error": "door shut"}
            if cells[a["room"], name] == a["to"]:
                return {"error": f"already {a['to']}"}
            cells[a["room"], name] = a["to"]
            return {name: a["to"]}
        if name == "look":
            return {item: n for (thing, item), n in cells.items() if thing == a["box"] and n}
        if name == "find":
            return {thing: n for (thing, item), n in cells.items() if item == a["item"] and n}
        if name == "coins":
            return {a["name"]: cells[a["name"], "coins"]}
        if name == "accounts":
            return {thing: n for (thing, item), n in cells.items() if item == "coins"}
        if name == "show":
            return {part: cells[a["room"], part] for part in ("door", "light")}
        assert name == "rooms"
        chosen = lambda part, value: [thing for (thing, what), v in cells.items() if (what, v) == (part, value)]
        return {"open": chosen("door", "open"), "lit": chosen("light", "on")}


def judge(task, episode) -> list[bool]:
    """Return whether each finished request is fulfilled, and check the observations on the way."""
    table, truth = Table(task.initial_config), Table(task.initial_config)
    made, found = collections.Counter(), []
    text = lambda name, arguments: json.dumps([name, sorted(arguments.items())])
    for turn in episode.turns:
        if turn.kind == "call":
            assert json.loads(turn.observation) == table.make(turn.name, turn.arguments)
            made[text(turn.name, turn.arguments)] += 1
        elif turn.kind == "finished":
            calls = task.truth[len(found)]
            for call in calls:
                truth.make(call.name, call.arguments)
            needed = collections.Counter(text(call.name, call.arguments) for call in calls)
            found.append(table.cells == truth.cells and needed <= made)
    return found


def mutate(responses, task, rng) -> list[str]:
    """Drop, repeat, swap, spoil or insert one to three responses."""
    responses = list(responses)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(responses)))
        how = rng.integers(5)
        if how == 0 and len(responses) > 1:
            del responses[at]
        elif how == 1:
            responses.insert(at, responses[at])
        elif how == 2:
            responses[at - 1], responses[at] = responses[at], responses[at - 1]
        elif how == 3:
            responses[at] = expert.spoil(responses[at], task, rng)
        else:
            call = expert.draw_call(task, {}, rng)
            responses.insert(at, render_call(call.name, call.arguments))
    return responses


def test_verdicts_on_mutated_trajectories():
    world, rng = make_world(count=300), np.random.default_rng(0)
    counts = collections.Counter()
    for task in world.tasks.values():
        for responses in (script(task.truth), expert.demonstrate(task, 0.2, rng)):
            (episode,) = play(world, [(task.id, mutate(responses, task, rng))], max_turns=100)
            verdicts = [verdict.success for verdict in episode.verdicts]
            assert verdicts == judge(task, episode)
            counts.update(verdicts)
            counts.update(
                (verdict.states_equal, verdict.calls_contained) for verdict in episode.verdicts if not verdict.success
            )
    assert min(counts[True], counts[False]) > 300
    assert min(counts[False, True], counts[True, False], counts[False, False]) > 5


@pytest.mark.parametrize("split", SPLITS)
def test_the_ground_truth_is_right(split):
    world = make_world(split, 150, 3)
    for episode in play(world, [(task.id, script(task.truth)) for task in world.tasks.values()]):
        task = world.tasks[episode.task_id]
        assert (episode.how, episode.num_fulfilled) == ("finished", len(task.requests))
        assert all(verdict.official is None for verdict in episode.verdicts)
        assert not any("error" in turn.observation for turn in episode.turns)
        assert judge(task, episode) == [True] * len(task.requests)


# ---- tasks


def test_tasks_are_what_they_should_be():
    found = tasks("train", 600, 0)
    assert found[:50] == tasks("train", 50, 0)
    assert found[0] not in tasks("train", 50, 1)
    kinds = collections.Counter(goal.kind for task in found for goal in task.goals)
    assert kinds.keys() == goals.KINDS.keys()
    assert max(kinds.values()) < 0.2 * kinds.total()
    assert {len(task.requests) for task in found} == {2, 3, 4}
    assert {len(calls) for task in found for calls in task.truth} == {1, 2, 3}
    for task in found:
        assert len(task.requests) == len(task.truth) == len(task.goals)
        for call in (call for calls in task.truth for call in calls):
            parameters = task.functions[call.name]["parameters"]
            assert list(call.arguments) == parameters["required"] == list(parameters["properties"])
    several_ways = [len(goals.ways(goal)) > 1 for task in found for goal in task.goals]
    assert np.mean(several_ways) > 0.2


@pytest.mark.slow
def test_splits_are_disjoint_whatever_the_seeds():
    content = {}
    for split in SPLITS:
        rows = [task for seed in range(3) for task in tasks(split, 100, seed)]
        content[split] = {json.dumps([task.initial_config, task.requests]) for task in rows}
        assert len({task.id for task in tasks(split, 100, 0)}) == 100
    assert not content["train"] & content["validation"]
    assert not content["train"] & content["test"]
    assert not content["validation"] & content["test"]
    with pytest.raises(ValueError, match="split='dev' must be train, validation or test"):
        tasks("dev", 1, 0)


def test_later_requests_depend_on_those_before():
    """On state or talk: the share of later requests whose calls would be others as first requests; and what a slip costs."""
    world = make_world(count=300)
    later = [
        goals.resolve(goal, dict(task.initial_config), ()) != calls
        for task in world.tasks.values()
        for goal, calls in list(zip(task.goals, task.truth))[1:]
    ]
    assert 0.4 < np.mean(later) < 0.7
    without_first = [(task.id, script([(), *task.truth[1:]])) for task in world.tasks.values()]
    changing = [FUNCTIONS[task.truth[0][0].name].changes for task in world.tasks.values()]
    episodes = [episode for episode, changes in zip(play(world, without_first), changing) if changes]
    fulfilled = [verdict.success for episode in episodes for verdict in episode.verdicts]
    assert np.mean(fulfilled) < 0.25  # what they ask for may be done with what is there, too


@pytest.mark.slow
def test_the_same_in_every_process():
    program = (
        "import hashlib, json, numpy as np\n"
        "from exit_jax.domains.tool_use.tiny import expert, tasks as tiny_tasks, world\n"
        "tasks, rng = tiny_tasks.tasks('test', 20, 7), np.random.default_rng(1)\n"
        "shown = [[t.id, t.requests, t.initial_config, world.system_prompt(t)] for t in tasks]\n"
        "said = [expert.demonstrate(t, 0.3, rng) for t in tasks], expert.texts(tasks, 0.1, 0)\n"
        "print(hashlib.sha256(json.dumps([shown, said]).encode()).hexdigest())\n"
    )
    outputs = set()
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1


# ---- episodes


def test_an_episode_turn_by_turn():
    world, rng = make_world(), np.random.default_rng(0)
    task = next(task for task in world.tasks.values() if task.apis == ("Store", "Bank"))
    episode, text = world.reset(task.id)
    assert text == task.requests[0]
    move = {"count": 9, "item": "apples", "box": "red", "to": "red"}
    responses = ["hm", render_call("rm", {}), render_call("move", move), *script(task.truth[:1]), GIVE_UP]
    kinds = []
    for response in responses:
        result = world.step(episode, response, max_turns=60)
        episode = result.episode
        kinds.append(episode.turns[-1].kind)
        assert result.observation == episode.turns[-1].observation
        assert result.request_finished == (kinds[-1] == "finished")
        assert result.episode_finished == (kinds[-1] == "error") == episode.ended
    assert kinds == ["invalid", "invalid", "call", *["call"] * len(task.truth[0]), "finished", "error"]
    assert [turn.observation for turn in episode.turns[:3]] == [INVALID, INVALID, '{"error": "same place"}']
    assert episode.turns[-2].observation == task.requests[1]
    assert (episode.how, episode.request, episode.num_fulfilled, episode.num_invalid) == ("error", 1, 1, 2)
    stats = world.stats
    assert (stats.num_steps, stats.num_invalid, stats.num_judged) == (len(responses), 2, 1)
    assert stats.num_calls == 1 + len(task.truth[0])
    with pytest.raises(ValueError, match="1 episodes have ended already"):
        world.step(episode, DONE, max_turns=60)
    with pytest.raises(ValueError, match="has ended: error"):
        expert.correct(episode, task)
    assert not {"error", "invalid"} & set(expert.demonstrate(task, 0.0, rng))
    world.close()


@pytest.mark.parametrize(
    ("max_turns", "num_requests", "how"),
    [(100, None, "finished"), (100, 99, "finished"), (100, 1, "finished"), (2, None, "turns"), (1, 1, "turns")],
)
def test_limits(max_turns, num_requests, how):
    world = make_world()
    task = next(task for task in world.tasks.values() if len(task.truth[0]) > 1)
    (episode,) = play(world, [(task.id, script(task.truth))], max_turns, num_requests)
    assert episode.how == how
    assert episode.num_fulfilled == (min(num_requests or 99, len(task.requests)) if how == "finished" else 0)


def test_replay_gives_the_same():
    world, rng = make_world(), np.random.default_rng(0)
    scripts = [(task.id, expert.demonstrate(task, 0.3, rng)) for task in world.tasks.values()]
    episodes = play(world, scripts)
    cuts = [int(rng.integers(len(episode.turns))) for episode in episodes]
    befores = [episode.before(cut) for episode, cut in zip(episodes, cuts)]
    other = TinyWorld(world.tasks)
    assert not any(isinstance(other.replay(episode), ReplayMismatch) for episode in episodes + befores)
    while befores:
        responses = [dict(scripts)[before.task_id][len(before.turns)] for before in befores]
        results = other.step_many(list(zip(befores, responses)), MAX_TURNS)
        assert all(result.episode in episodes for result in results if result.episode_finished)
        befores = [result.episode for result in results if not result.episode_finished]


def test_a_past_that_comes_out_otherwise_is_reported():
    world = make_world()
    task = next(iter(world.tasks.values()))
    (episode,) = play(world, [(task.id, script(task.truth[:1])[:-1])])
    honest = episode.turns[0]
    forged = dataclasses.replace(
        episode, turns=(dataclasses.replace(honest, observation="it went well"), *episode.turns[1:])
    )
    mismatch = ReplayMismatch(0, "it went well", honest.observation)
    assert not isinstance(world.replay(episode), ReplayMismatch)
    result = world.step(forged, DONE, MAX_TURNS)
    assert (result.mismatch, result.episode.how, result.episode_finished) == (mismatch, "mismatch", True)
    assert world.stats.num_mismatches == 1


def test_errors_are_observed_and_change_nothing():
    state = {
        "Store": {box: {"apples": 2, "nuts": 0, "eggs": 0} for box in WORDS["box"]},
        "Bank": {name: {"coins": 3} for name in WORDS["name"]},
        "House": {room: {"door": "shut", "light": "on"} for room in WORDS["room"]},
    }
    before = json.dumps(state)
    move = {"count": 1, "item": "apples", "box": "red", "to": "blue"}
    for name, arguments, error in (
        ("move", move | {"count": 3}, "only 2"),
        ("move", move | {"to": "red"}, "same place"),
        ("move", move | {"box": "pink"}, "no such box"),
        ("move", move | {"item": ["apples"]}, "no such item"),
        ("move", move | {"count": 0}, "count is 1 to 9"),
        ("move", move | {"count": -1}, "count is 1 to 9"),
        ("move", move | {"count": 10**30}, "count is 1 to 9"),
        ("move", move | {"count": True}, "count is 1 to 9"),
        ("move", move | {"count": 1.0}, "count is 1 to 9"),
        ("move", move | {"count": "1"}, "count is 1 to 9"),
        ("pay", {"count": 4, "name": "Ann", "to": "Ben"}, "only 3"),
        ("look", {"box": None}, "no such box"),
        ("look", {"box": {"red": {}}}, "no such box"),
        ("light", {"room": "hall", "to": "off"}, "door shut"),
        ("light", {"room": "hall", "to": "open"}, "no such light"),
        ("door", {"room": "hall", "to": "shut"}, "already shut"),
    ):
        assert json.loads(observe(state, Call(name, arguments))) == {"error": error}
    assert json.dumps(state) == before


def test_hostile_texts_never_run_and_never_crash(tmp_path):
    canary = tmp_path / "canary"
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    world = make_world()
    task = next(task for task in world.tasks.values() if "Store" in task.apis)
    values = [code, f"red'); {code}#", "{{0.__class__}}", "%s%n", "\x00\ud800", "A" * 100_000, None, [], {"red": code}]
    responses = [render_call("look", {"box": value}) for value in values]
    responses += [render_call(name, {}) for name in (code, "__init__", "run", "eval", "os.system", "rooms.__globals__")]
    responses += [code, "<tool_call>" * 50, '<tool_call>{"name": "look", "arguments": ' + "[" * 5000, "\ud800", "", "<"]
    responses += ['<tool_call>{"name": "look", "arguments": {"box": ' + "9" * 5000 + "}}</tool_call>"]
    responses += ['<tool_call>{"name": "look", "arguments": {"box": "red", "box": "blue"}}</tool_call>']
    (episode,) = play(world, [(task.id, responses)], max_turns=1000)
    assert len(episode.turns) == len(responses)
    assert {turn.observation for turn in episode.turns} == {INVALID, '{"error": "no such box"}'}
    assert not canary.exists()
    assert not isinstance(world.replay(episode), ReplayMismatch)


def test_a_description_for_people():
    world = make_world()
    task = next(task for task in world.tasks.values() if task.truth[0][0].name == "pay")
    (episode,) = play(world, [(task.id, ["hm", *script(task.truth[:1]), DONE])], num_requests=2)
    text = world.describe(episode)
    assert f"request 1: {task.requests[0]}" in text
    assert f"request 2: {task.requests[1]}" in text
    assert "pay(count=" in text
    assert "finished: fulfilled" in text
    assert "finished: not fulfilled, " in text
    assert text.count("state: ") == 2
    assert text.endswith(f"ended: finished, 1 of {len(task.requests)} requests fulfilled")
    assert "state: " not in describe(episode, task)


# ---- the expert


def test_the_expert_fulfils_all_requests_if_it_never_slips():
    rng, found = np.random.default_rng(0), collections.defaultdict(set)
    for split in SPLITS:
        world = make_world(split, 100, 4)
        for task in world.tasks.values():
            responses = expert.demonstrate(task, 0.0, rng)
            (episode,) = play(world, [(task.id, responses)])
            assert (episode.how, episode.num_fulfilled) == ("finished", len(task.requests))
            assert len(responses) <= tiny_tasks.MAX_NEEDED
            for response in responses:
                found[expert.style_of(response)].add(response)
    assert found.keys() == set(expert.STYLES)


def test_the_expert_plays_on_from_a_first_response():
    world, rng = make_world(), np.random.default_rng(0)
    for task in list(world.tasks.values())[:50]:
        (played,) = play(world, [(task.id, script(task.truth))])
        start = played.before(int(rng.integers(len(played.turns))))
        first = str(rng.choice(expert.correct(start, task)))
        responses = expert.demonstrate(task, 0.0, rng, start=start, first=first)
        episode = start
        for response in responses:
            episode = world.step(episode, response, MAX_TURNS).episode
        assert responses[0] == first
        assert {expert.style_of(response) for response in responses} == {expert.style_of(first)}
        assert (episode.how, episode.num_fulfilled) == ("finished", len(task.requests))


def test_slips_leave_room_to_learn():
    world, shares = make_world(count=200), []
    for noise in (0.1, 0.2, 0.3, 0.4):
        rng = np.random.default_rng(0)
        scripts = [(task.id, expert.demonstrate(task, noise, rng)) for task in world.tasks.values()]
        assert max(len(responses) for _, responses in scripts) <= MAX_TURNS
        num_requests = sum(len(task.requests) for task in world.tasks.values())
        shares.append(sum(episode.num_fulfilled for episode in play(world, scripts)) / num_requests)
    assert shares == sorted(shares, reverse=True)
    assert 0.8 < shares[0] < 0.95
    assert 0.3 < shares[3] < 0.5


def test_the_expert_mends_whatever_happened_before():
    world, rng, num_mended = make_world(), np.random.default_rng(0), 0
    for task in world.tasks.values():
        responses = expert.demonstrate(task, 0.5, rng)
        episode, _ = world.reset(task.id)
        for response in responses[: rng.integers(1, len(responses) + 1)]:
            following = world.step(episode, response, 1000).episode
            episode = episode if following.ended else following
        first = episode.request
        while not episode.ended:
            right = expert.correct(episode, task)
            episode = world.step(episode, right[rng.integers(len(right))], 1000).episode
        assert all(verdict.success for verdict in episode.verdicts[first:])
        num_mended += not all(verdict.success for verdict in episode.verdicts[:first])
    assert num_mended > 20


def test_what_improves_and_what_diverges():
    world, rng = make_world(), np.random.default_rng(0)
    counts = collections.Counter()
    for task in world.tasks.values():
        (episode,) = play(world, [(task.id, expert.demonstrate(task, 0.2, rng))])
        past = episode.before(int(rng.integers(len(episode.turns))))
        right = expert.correct(past, task)
        wrong = expert.spoil(right[0], task, rng)
        assert expert.improve(past, right[0], task, 0.0, rng) == right[0]
        for held in (right[0], wrong):
            assert expert.improve(past, held, task, 0.0, rng) in right
            other = expert.diverge(past, held, task, 0.0, rng)
            assert other in right
            assert expert.style_of(other) != expert.style_of(held)
        counts["same call"] += other.endswith(right[0])
        counts["several"] += len(right) > len(expert.STYLES)
        counts["wrong"] += wrong not in right
        assert expert.improve(past, wrong, task, 1.0, rng) == wrong or wrong in right
    assert counts["several"] > 0.1 * len(world.tasks)
    assert counts["wrong"] > 0.95 * len(world.tasks)


# ---- tokens


def test_texts_are_short_in_tokens(tmp_path):
    rng, sample = np.random.default_rng(1), tasks("validation", 150, 5)
    texts = expert.texts(tasks("train", 200, 0), 0.3, 0)
    tokenizer = tokenizers.train(texts, VOCAB_SIZE, tmp_path)
    tokens = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    for kind, words in WORDS.items():
        for word in words:
            (token,) = tokens(word)
            assert token in tokens(f"from {word}.") and token in tokens(f'"{kind}": "{word}"}}')  # noqa: PT018
    world = TinyWorld({task.id: task for task in sample})
    lengths = collections.defaultdict(list)
    for task in sample:
        lengths["system"].append(len(tokens(system_prompt(task))))
        lengths["request"] += [len(tokens(text)) for text in task.requests]
        responses = expert.demonstrate(task, 0.3, rng)
        (episode,) = play(world, [(task.id, responses)])
        lengths["response"] += [len(tokens(text)) for text in responses]
        lengths["observation"] += [len(tokens(turn.observation)) for turn in episode.turns if turn.kind == "call"]
        assert all(tokenizer.decode(tokens(text)) == text for text in responses)
    limits = {"system": 60, "request": 16, "response": 16, "observation": 18}
    assert {kind: max(lengths[kind]) for kind in limits if max(lengths[kind]) > limits[kind]} == {}
    assert np.mean(lengths["request"]) < 8
    assert np.mean(lengths["response"]) < 8
    assert MARKERS.finished in tokenizer.decode(tokens(f"Done. {DONE}"))
