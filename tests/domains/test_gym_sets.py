"""Every set of reasoning-gym is made and scored: gold answers earn 1, and what fails is refused by its name. Minutes long."""

import importlib.util
import json

import pytest

from exit_jax.domains.gym import entries, scorer, sets
from exit_jax.domains.gym.settings import GymConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason='needs pip install -e ".[gym]"'),
]
COUNT = 6  # tasks of a set, of those that are tested
# what earns 1 on all tasks of a set says nothing about the task
CONSTANT = ("0", "1", "-1", "7", "zzz", "a", "True", "False", "yes", "No", "[]", "{}", "()", "6*4*1*1", "I don't know")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def other():
    """Return a worker that makes none of the files."""
    pool = entries.Pool(entries.WORKER, [str(entries.MEMORY_BYTES)], 1, needs=entries.PACKAGE)
    yield pool
    pool.close()


def load(data_dir, name, **changes):
    config = GymConfig(
        **{"sets": (name,), "data_dir": str(data_dir), "num_train": 2, "num_validation": 1, "num_test": COUNT} | changes
    )
    assert not [fault for fault in config.faults() if "refused" not in fault]
    return config, entries.load(config, name)["test"]


def test_the_package_has_these_sets():
    from reasoning_gym.factory import CURRICULA, DATASETS

    assert entries.version() == sets.VERSION, "try the sets of another version before it is taken"
    assert {*sets.NAMES} == {*DATASETS}
    without = {name for name, why in sets.WITHOUT_LEVELS.items() if why == "it has none"}
    assert without == {*DATASETS} - {*CURRICULA} - {"composite"}


@pytest.mark.parametrize("name", sorted({*sets.NAMES} - {*sets.REFUSED}))
def test_gold_answers_earn_1_and_no_constant_does(data_dir, name):
    config, tasks = load(data_dir, name)
    made = scorer.Scorer(config)
    assert all(bool(task.gold) != (name in sets.WITHOUT_GOLD) for task in tasks)
    if name not in sets.WITHOUT_GOLD:
        verdicts = made.score([(task, task.gold) for task in tasks])
        assert [verdict.score for verdict in verdicts] == [1.0] * COUNT
        stripped = made.score([(task, task.gold.strip()) for task in tasks])  # as it comes out of its tags
        assert [verdict.score for verdict in stripped] == [1.0] * COUNT
    for answer in CONSTANT:
        verdicts = made.score([(task, answer) for task in tasks])
        assert all(0.0 <= verdict.score <= 1.0 for verdict in verdicts)
        assert not all(verdict.score == 1.0 for verdict in verdicts), f"{answer!r} earns 1 on each of {COUNT} tasks"
    assert {verdict.score for verdict in made.score([(task, "") for task in tasks])} == {0.0}


@pytest.mark.parametrize("name", ["coin_flip", "game_of_life_halting", "puzzle24"])
def test_sets_are_refused_for_what_they_do(data_dir, name):
    config, tasks = load(data_dir, name)
    answer = {"coin_flip": "0", "game_of_life_halting": "zzz", "puzzle24": "6*4*1*1"}[name]
    verdicts = scorer.Scorer(config).score([(task, answer) for task in tasks])
    assert sum(verdict.score == 1.0 for verdict in verdicts) >= COUNT - 1  # a coin's 1.0 does not begin with 0


@pytest.mark.parametrize("name", sorted({*sets.NAMES} - {*sets.REFUSED}))
def test_two_processes_make_the_same_entries(data_dir, other, name):
    """Another process, and in another order: one by one, from the last."""
    config, _ = load(data_dir, name)
    recipe = entries.recipe(config, name)
    _, *lines = map(json.loads, entries.find(config, name).read_text().splitlines())
    tests = [line for line in lines if line["split"] == "test"]
    request = {"set": name, "level": -1, "seed": recipe["seeds"]["test"], "size": entries.size_of(COUNT), "secs": 60.0}
    jobs = [entries.Job(request | {"make": [line["index"]]}, 300.0) for line in reversed(tests)]
    made = dict(other.run(jobs))
    for place, line in enumerate(reversed(tests)):
        assert made[place]["entries"] == [{"entry": line["entry"]}], f"{name}: entry {line['index']} differs"


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("name", sorted({*sets.NAMES} - {*sets.REFUSED} - {*sets.WITHOUT_LEVELS}))
def test_levels_make_tasks(data_dir, name, level):
    if level in sets.BAD_LEVELS.get(name, ()):
        pytest.skip("refused")
    if (name, level) == ("sokoban", 0):
        pytest.skip("it takes more than half a minute a task")
    _, tasks = load(data_dir, name, levels=(level,), num_train=1, num_test=1)
    assert tasks[0].level == level


def test_levels_that_are_refused_fail_by_themselves():
    from reasoning_gym.factory import CURRICULA

    def is_allowed(name, level):
        from exit_jax.domains.gym import worker

        try:
            return worker.dataset(name, level, 0, 1) is not None
        except AssertionError:
            return False

    bad = {}
    for name, curriculum in CURRICULA.items():
        levels = range(max(len(attribute.levels) for attribute in curriculum().attributes.values()))
        if wrong := tuple(level for level in levels if not is_allowed(name, level)):
            bad[name] = wrong
    assert bad.pop("knight_swap") == tuple(range(5))
    assert bad == sets.BAD_LEVELS
