"""Environments of several turns: the protocol at load, episodes in processes that hang and crash, copies, and resuming."""

import dataclasses
import json
import pathlib
import random
import subprocess
import sys
from collections import deque

import games
import jax
import numpy as np
import pytest

from exit_jax import domains
from exit_jax.algorithm.prompts import piece_rows
from exit_jax.domains.domain import ENDS, DomainError
from exit_jax.domains.multi_turn.domain import FIGURES, MultiTurn, make_domain
from exit_jax.domains.multi_turn.episode import Episode, Turn
from exit_jax.domains.multi_turn.settings import MultiTurnConfig
from exit_jax.domains.text import chat
from exit_jax.domains.text.settings import SPAN
from exit_jax.domains.workers import Job, Pool
from exit_jax.errors import GradingError, UserError
from exit_jax.types import BASE, IMPROVE, Instances, Rollouts

FILE = pathlib.Path(games.__file__)


def config(data_dir, game="Guess", **fields):
    wide = {
        "num_train": 6,
        "num_test": 3,
        "num_workers": 1,
        "max_tokens": 16,
        "max_transcript_tokens": 300,
        "max_turns": 5,
    }
    fields = wide | {"environment": f"{FILE}:{game}", "data_dir": str(data_dir)} | fields
    made = MultiTurnConfig(**fields)
    assert made.faults() == []
    return made


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a domain's inside, with a log of what its environments did; processes end with the test."""
    made = []

    def build(game="Guess", log=True, **fields):
        arguments = (f"log={tmp_path / 'log'}",) if log else ()
        made.append(MultiTurn(config(tmp_path / "data", game, **{"environment_args": arguments} | fields)))
        return made[-1]

    yield build
    for one in made:
        if "opened" in vars(one):
            one.opened.world.close()


def notes(tmp_path):
    """Return what environments did since the last call."""
    log = tmp_path / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def rows(domain, split="train", numbers=(0,)):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[list(numbers)], domain.tasks(split))


def said(domain, text):
    return np.array(domain.demonstrate(text))


def step(domain, episodes, texts):
    pairs = [(episode, said(domain, text)) for episode, text in zip(episodes, texts, strict=True)]
    return domain.environment(test=False).step(pairs)


def play(domain, history, texts):
    """Return instances [1] of a history, and the rollout [1, 1] in which it is played with texts, as episodes.py plays it."""
    environment = domain.environment(test=False)
    (episode,) = environment.begin(history, 1)
    tokens, mask, end = [], [], None
    for turn, text in enumerate(texts, int(history.turn[0]) + 1):
        spoken = said(domain, text).tolist()
        ((episode, answer),) = environment.step([(episode, np.array(spoken))])
        tokens, mask, end = tokens + spoken, mask + [True] * len(spoken), answer.end
        if end is not None or turn == environment.max_turns:
            break
        shown = [*answer.observation, *environment.generation_prompt]
        tokens, mask = tokens + shown, mask + [False] * len(shown)

    def row(values, dtype):
        array = np.zeros((1, 1, environment.max_transcript), dtype)
        array[0, 0, : len(values)] = values
        return array

    zeros, no = row([], np.float32), np.zeros(1, bool)
    instances = Instances(
        history, np.where(history.step < 0, BASE, IMPROVE), no, no, row([], np.int32)[:, 0], history.turn
    )
    fields = (row(tokens, np.int32), row(mask, bool), zeros, zeros, np.array([[end == ENDS.index("valid")]]))
    usable = row(np.array(mask, bool) & (end != ENDS.index("invalid")), bool)
    return instances, Rollouts(*fields, zeros[..., :1], usable), [episode]


# Conversations and histories


@pytest.mark.parametrize("game", ["Guess", "Chatty"])
def test_a_history_is_the_chat_and_can_be_gone_on_with(make, game):
    domain = make(game, system="Be brief.", max_turns=12)
    history, apply = rows(domain), domain.tokenizer.apply_chat_template
    secret = random.Random(0).randint(0, 9)
    wrong = [str(guess) for guess in range(9) if guess != secret]
    texts = ["hm", *wrong[:4], f"I say {secret}."]
    instances, rollouts, episodes = play(domain, history, texts)
    grades = domain.grade(instances, rollouts, episodes)
    assert grades.quality.tolist() == [[pytest.approx(1 / 6)]]
    assert grades.insertable[0, 0].tolist() == [turn < 6 for turn in range(12)]
    system = {"Guess": "Be brief.", "Chatty": "A game."}[game]
    messages = [{"role": "system", "content": system}]
    if game == "Chatty":
        messages += [{"role": "user", "content": "Guess: 0 to 1."}, {"role": "assistant", "content": "1"}]
    messages.append({"role": "user", "content": "Guess a number from 0 to 9."})
    own = games.Guess()
    own.reset({"seed": 0})
    for turn, text in enumerate(texts):
        child = jax.tree.map(lambda leaf, turn=turn: leaf[0, 0, [turn]], grades.children)
        for mode, more in (("base", []), ("improve", [domain.config.improve.format(solution=text)])):
            asked = [*messages, *({"role": "user", "content": content} for content in more)]
            pieces = {name: piece_rows(child, name)[0].tolist() for name in ("context", "request", "solution")}
            prompt = chat.splice(domain.templates[mode], pieces)
            assert len(prompt) <= domain.prompt_width
            assert domain.tokenizer.decode(prompt) == apply(asked, tokenize=False, add_generation_prompt=True)
        (begun,) = domain.environment(test=False).begin(child, 1)
        assert begun == episodes[0].before(turn)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": own.step(text)[0]}]
    o, u = domain.encode("o")[0], domain.encode("u")[0]
    other = dataclasses.replace(child, tokens=np.where(child.tokens == o, u, child.tokens))
    assert domain.environment(test=False).begin(other, 2) == [None, None], "recorded: 'mure'"


def test_a_request_is_quoted_and_an_iterate_leaves_no_trace(make):
    words = "Better than {solution} for {request}"
    domain = make(improve=words, max_request_tokens=24, system="")
    environment = domain.environment(test=True)
    (episode,) = environment.begin(rows(domain, "test"), 1)
    asked = environment.ask_again(episode, said(domain, "hm"))
    text = domain.tokenizer.decode(asked)
    assert "Better than hm for Guess" in text
    assert "[...]" in text, "the middle of a long request is left out"
    assert len(asked) <= environment.max_ask
    assert episode.turns == ()


# Episodes


def brute_force(seed, texts):
    """Return what a game says to texts, played here."""
    game = games.Guess()
    game.reset({"seed": seed})
    found = []
    for text in texts:
        found.append(Turn(text, *game.step(text)))
        if found[-1].done:
            break
    return tuple(found)


@pytest.mark.parametrize(
    ("game", "most", "fields"),
    [
        ("Guess", 0, {}),
        ("Guess", 0, {"max_instances": 3, "num_workers": 2}),
        ("Copied", 0, {"num_workers": 2}),
        ("Copied", 0, {"max_instances": 1}),
        ("Serial", 1, {"num_workers": 2}),
        ("Few", 4, {"max_instances": 4, "num_workers": 2}),
        ("Few", 1, {"max_instances": 1, "num_workers": 2}),
    ],
)
def test_episodes_are_the_games_whatever_is_live(make, tmp_path, game, most, fields):
    """Side by side, in groups from one state, from the start and from the midst, with copies and without."""
    (tmp_path / "sessions").mkdir()
    if most:
        fields["environment_args"] = (f"folder={tmp_path / 'sessions'}", f"most={most}")
    domain, rng = make(game, **fields), np.random.default_rng(0)
    episodes = domain.environment(test=False).begin(rows(domain, numbers=range(6)), 3)
    assert len(episodes) == 18
    texts = [[str(rng.integers(10)) if rng.random() < 0.8 else "hm" for _ in range(5)] for _ in episodes]
    for row in texts:
        row[0] = "4"  # so that the states after it are equal, too
    told = {i: episode for i, episode in enumerate(episodes)}
    for turn in range(5):
        going = [i for i, episode in told.items() if not episode.how]
        for i, (episode, _) in zip(going, step(domain, [told[i] for i in going], [texts[i][turn] for i in going])):
            told[i] = episode
    for i, episode in told.items():
        expected = brute_force(i // 3, texts[i])
        assert episode.turns == expected
        assert episode.how == ("done" if expected[-1].done else "turns")


@pytest.mark.parametrize("game", ["Guess", "Copied"])
def test_a_group_starts_from_a_copy_where_there_is_one(make, tmp_path, game):
    domain = make(game)
    episode = Episode(domain.tasks_of("train")[0])
    secret = random.Random(0).randint(0, 9)
    wrong = [str(guess) for guess in range(10) if guess != secret]
    ((episode, _),) = step(domain, [episode], [wrong[0]])
    ((episode, _),) = step(domain, [episode], [wrong[1]])
    notes(tmp_path)
    found = step(domain, [episode] * 4, wrong[2:6])
    assert [e.turns[-1].observation[:2] for e, _ in found] == ["3:"] * 4
    done = notes(tmp_path)
    if game == "Copied":
        assert (done.count("save"), done.count("load"), done.count("reset 0")) == (1, 3, 0)
        assert sum(line.startswith("step") for line in done) == 4
    else:
        assert done.count("reset 0") == 3, "the first one goes on in the instance that is live"
        assert sum(line.startswith("step") for line in done) == 4 + 3 * 2


ACCIDENTS = ("spin", "sleep", "leak", "exit", "cancel", "raise", "nan", "two")


def test_an_accident_costs_its_episode_and_happens_once(make, tmp_path):
    domain = make("Fragile", num_workers=2, step_secs=1.0, memory_mb=256)
    texts = [*ACCIDENTS, "hm"]
    episodes = [Episode(domain.tasks_of("train")[0])] * len(texts)
    episodes = [episode for episode, _ in step(domain, episodes, ["well"] * len(texts))]
    found = step(domain, episodes, texts)
    assert [e.how for e, _ in found] == ["crashed"] * 8 + [""]
    assert [a.end for _, a in found] == [ENDS.index("invalid")] * 8 + [None]
    assert found[-1][0].turns[-1].observation == "2: no number"
    figures = domain.environment(test=False).figures(found[0][0])
    assert (figures["crashed"], figures["quality"], figures["turns"]) == (1.0, 0.0, 2.0)
    listed = [json.loads(line) for line in (tmp_path / "data/crashed.jsonl").read_text().splitlines()]
    reasons = {row["text"]: row["reason"] for row in listed}
    assert set(reasons) == set(ACCIDENTS)
    # on a busy machine the limit by the clock comes before that of processor time
    wanted = {"spin": "limit", "sleep": "wall-clock limit", "leak": "out of memory", "exit": "status 3"}
    wanted |= {
        "cancel": "it raised CancelledError",
        "raise": "KeyError",
        "nan": "finite number",
        "two": "(observation, reward, done)",
    }
    assert not [text for text, words in wanted.items() if words not in reasons[text]], reasons
    notes(tmp_path)
    again = make("Fragile", num_workers=2, step_secs=1.0, memory_mb=256)
    (episode,) = {e for e, _ in step(again, [Episode(again.tasks_of("train")[0])], ["well"])}
    assert [(e.how, a.end) for e, a in step(again, [episode] * 9, texts)] == [(e.how, a.end) for e, a in found]
    assert not [line for line in notes(tmp_path) if line.split()[-1] in ACCIDENTS], "none of them is called again"


def test_a_process_that_grows_is_replaced_and_costs_nothing(make):
    domain = make("Fragile", memory_mb=300)
    ((episode, _),) = step(domain, [Episode(domain.tasks_of("train")[0])], ["hoard"])
    pool = domain.opened.world._pool
    assert pool.num_replaced == 1
    ((episode, _),) = step(domain, [episode], ["hm"])
    assert [turn.observation for turn in episode.turns] == ["1: no number", "2: no number"]
    assert not domain.opened.world.stats["crashed"]


def test_where_each_step_fails_it_is_no_accident(make, tmp_path):
    domain = make("Raising")
    episodes = [Episode(task) for task in domain.tasks_of("train")] * 2
    step(domain, episodes, ["1"] * 12)
    (tmp_path / "broken").touch()
    with pytest.raises(GradingError, match="failed in all of 12 steps: it raised OSError: no disk"):
        step(domain, episodes, ["2"] * 12)
    assert not (tmp_path / "data/crashed.jsonl").exists()
    (tmp_path / "broken").unlink()
    assert not [e for e, _ in step(domain, episodes, ["2"] * 12) if e.how == "crashed"]
    picky = make("Fragile")
    found = step(picky, [Episode(task) for task in picky.tasks_of("train")] * 2, ["raise"] * 12)
    assert {e.how for e, _ in found} == {"crashed"}, "here it is the responses' own doing"


def test_a_server_that_is_away_is_one_error(make, tmp_path):
    domain = make("Gone")
    episodes = [Episode(task) for task in domain.tasks_of("train")]
    (tmp_path / "after").write_text("3")
    with pytest.raises(
        UserError,
        match=r"games.py:Gone' is not available \(no answer from port 1\); bring it back, or lower domain.max_instances",
    ):
        step(domain, episodes, ["1"] * 6)
    assert [e.turns[0].text for e, _ in step(domain, episodes, ["1"] * 6)] == ["1"] * 6, "it is back"
    with pytest.raises(UserError, match="is not available"):
        make("Absent").opened  # noqa: B018


def test_what_plays_otherwise_ends_as_a_mismatch(make, tmp_path):
    (tmp_path / "mood").write_text("fine")
    domain = make("Moody", max_instances=1)
    episodes = [
        episode for episode, _ in step(domain, [Episode(task) for task in domain.tasks_of("train")], ["hm"] * 6)
    ]
    (tmp_path / "mood").write_text("bad")
    ((_, answer),) = step(domain, episodes[5:], ["hm"])
    assert answer.end is None, "what is live goes on"
    found = step(domain, episodes[:5], ["hm"] * 5)
    assert {(e.how, a.end) for e, a in found} == {("mismatch", ENDS.index("invalid"))}
    with pytest.raises(
        DomainError, match=r"plays otherwise than when .*openings-\w+.jsonl was made: .*fine.* is .*bad.* now"
    ):
        make("Moody", max_instances=1).opened  # noqa: B018


# Figures


def test_figures(make):
    domain = make(reward_range=(-1.0, 3.0))
    task = domain.tasks_of("train")[0]
    episode = lambda *rewards, how="done": Episode(
        task, tuple(Turn("a", "b", r, r == rewards[-1]) for r in rewards), how
    )
    figures = domain.environment(test=False).figures
    found = figures(episode(0.5, 1.5))
    assert found == {"quality": 0.75, "return": 2.0, "turns": 2.0, "done": 1.0} | dict.fromkeys(FIGURES[3:], 0.0)
    assert figures(None) == {"quality": 0.0} | dict.fromkeys(FIGURES, 0.0)
    assert figures(episode(-1.0, how="turns"))["quality"] == 0.0
    assert figures(episode(*[0.3] * 10))["quality"] == 1.0, "a sum's rounding is not out of range"
    outside = figures(episode(2.0, 1.5))
    assert (outside["quality"], outside["return"], outside["out_of_range"]) == (0.0, 3.5, 1.0)
    assert [domain.is_valid(e) for e in (episode(2.0), episode(2.0, 1.5), episode(2.0, how="crashed"), None)] == [
        *(True, False, False, False)
    ]
    downward = dataclasses.replace(domain.config, reward_range=(10.0, 0.0))
    domain.config = downward
    assert domain.figures(episode(1.0))["quality"] == 0.9
    assert domain.environment(test=True).show(episode(1.0)).splitlines()[-1] == "ended: done, return 1"


def test_a_long_observation_loses_its_middle_and_is_counted(make, tmp_path):
    domain = make(environment_args=("size=20",), max_observation_tokens=40)
    (episode,) = domain.environment(test=False).begin(rows(domain), 1)
    ((episode, answer),) = step(domain, [episode], ["hm"])
    assert len(answer.observation) == 40
    assert "[...]" in domain.tokenizer.decode(answer.observation)
    assert domain.environment(test=False).figures(episode)["truncated"] == 1.0
    with pytest.raises(DomainError, match="max_observation_tokens = 2 leaves no room beside the 2 tokens"):
        make_domain(dataclasses.replace(domain.config, max_observation_tokens=2))


# Tasks


def test_openings_are_asked_for_once(make, tmp_path):
    first = make()
    assert [task.row for task in first.tasks_of("train")] == [{"seed": i} for i in range(6)]
    assert [task.row["seed"] - 2 * SPAN for task in first.tasks_of("test")] == [0, 1, 2]
    resets = [line for line in notes(tmp_path) if line.startswith("reset")]
    assert len(resets) == 9 + 2, "each task once, and the first one twice more to see whether it is the same"
    files = first.opened.files
    assert [name for name in files if "openings" in name and files[name].parent == tmp_path / "data"]
    assert files["the environment games.py:Guess"] == FILE
    again = make()
    assert [task.opening for task in again.tasks_of("train")] == [task.opening for task in first.tasks_of("train")]
    assert len([line for line in notes(tmp_path) if line.startswith("reset")]) == 2
    path = files["the openings of the tasks"]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DomainError, match="is damaged; delete it"):
        make().opened  # noqa: B018


def test_openings_go_on_where_they_were_cut_off(make, tmp_path):
    with pytest.raises(UserError, match="is not available"):
        make("Slow").opened  # noqa: B018
    (partial,) = (tmp_path / "data").glob("*.partial")
    lines = partial.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    partial.write_text("".join(lines)[:-5])
    notes(tmp_path)
    domain = make("Slow")
    assert len(domain.tasks_of("train")) == 6
    resets = [line for line in notes(tmp_path) if line.startswith("reset")]
    assert sorted({*resets} - {"reset 0"}) == sorted(
        f"reset {seed}" for seed in (3, 4, 5, *range(2 * SPAN, 2 * SPAN + 3))
    )
    assert not partial.exists()


def test_a_first_row_that_cannot_be_begun_costs_itself(make):
    assert [task.row["seed"] for task in make("Late").tasks_of("train")] == [1, 2, 3, 4, 5]


def test_rows_that_cannot_be_begun_are_left_out(make, tmp_path, caplog):
    domain = make("Picky", num_train=16, num_test=8)
    assert [task.row["seed"] for task in domain.tasks_of("train")] == [0, 3, 4, 6, 7, 8, 11, 12, 14, 15]
    assert "9 tasks are left out" in caplog.text
    listed = [json.loads(line) for line in (tmp_path / "data/left_out.jsonl").read_text().splitlines()]
    assert {row["place"] for row in listed} >= {"rows:train:2", "rows:train:3"}
    assert any("no board 1" in row["reason"] for row in listed)
    assert any("messages of the roles (none)" in row["reason"] for row in listed)


def test_rows_come_from_files_too(make, tmp_path):
    lines = [{"seed": i, "level": i % 2, "prompt": f"p{i % 8}"} for i in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*lines, lines[0], "no row"]))
    (tmp_path / "b.jsonl").write_text('{"seed": 99}\n')
    sources = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    domain = make(tasks=sources, num_test=2)
    made = make_domain(domain.config)
    found = [task for split in ("train", "test") for task in domain.tasks_of(split)]
    assert sorted(task.row["seed"] for task in found) == [*range(12), 99]
    assert all(task.row == (lines[task.row["seed"]] if task.row["seed"] < 99 else {"seed": 99}) for task in found)
    listed = [json.loads(line)["reason"] for line in (tmp_path / "data/left_out.jsonl").read_text().splitlines()]
    assert listed == ["duplicate", "not an object"]
    assert set(made.category("train")["source"]) == {"a", "b"}
    assert {"request", "source", "seed"} <= set(made.about("test")[0])
    by_prompt = make(tasks=sources[:1], num_test=2, prompt_column="prompt")
    assert len([*by_prompt.tasks_of("train"), *by_prompt.tasks_of("test")]) == 8
    assert by_prompt.tasks_of("test")[0].row == lines[by_prompt.tasks_of("test")[0].row["seed"]]


def test_a_column_may_say_that_there_is_no_validation(make, tmp_path):
    lines = [{"seed": i, "part": ("test", "train")[i % 2]} for i in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    domain = make(tasks=(str(tmp_path / "a.jsonl"),), split_column="part")
    assert domains.make("multi_turn", domain.config).splits == ("train", "test")
    with pytest.raises(DomainError, match="no row says that it is of the split 'validation'; there are train, test"):
        domain.tasks("validation")


def test_rows_of_the_environments_own(make, caplog):
    domain = make("Own", num_validation=2)
    assert domain.splits == ("train", "validation", "test")
    assert [task.row["split"] for split in domain.splits for task in domain.tasks_of(split)] == [
        *["train"] * 6,
        *["validation"] * 2,
        *["test"] * 3,
    ]
    assert [task.row["seed"] for task in make("Own", num_train=9).tasks_of("train")] == [*range(6)]
    assert "6 tasks for train, of 9" in caplog.text
    assert [task.row["seed"] for task in make("SameRows").tasks_of("train")] == [3, 4, 5], (
        "what is tested on comes first"
    )
    with pytest.raises(DomainError, match="3 tasks for train, none that another split does not have"):
        make("SameRows", num_train=3).opened  # noqa: B018


def test_a_task_that_does_not_fit(make, caplog):
    with pytest.raises(DomainError, match=r"no task of the split train fits into domain.max_context_tokens = 10"):
        make(max_context_tokens=10).tasks("train")
    domain = make(max_context_tokens=60)
    base = rows(domain)
    instances, rollouts, episodes = play(domain, base, ["hm"] * 5)
    grades = domain.grade(instances, rollouts, episodes)
    assert grades.notes["context_too_long"].tolist() == [[1.0]]
    assert 0 < grades.insertable.sum() < 5


# Faults at load


@pytest.mark.parametrize(
    ("game", "arguments", "words"),
    [
        ("Gues", (), r"there is no 'Gues' in games, but Guess, "),
        ("NOT_CALLABLE", (), r"no class or function is 'NOT_CALLABLE'"),
        ("Guess", ("colour=3",), r"cannot be called with domain.environment_args = \{'colour': 3\}"),
        ("NoStep", (), r"NoStep has no method step\(text\)"),
        ("Arguments", (), r"Arguments.reset\(\) cannot be called as reset\(row\).*Arguments.step\(text, more\)"),
        ("HalfCopied", (), r"HalfCopied has one of save and load"),
        ("Refusing", (), r"it is refused: Poker has more than one player"),
        ("Random", (), r"not deterministic: turn 1: after '1' it said .*, and then after '1' it said .*: seed all"),
        ("Shared", (), r"not deterministic: turn 1: .*'0' .*'1'"),
        ("Alias", (), r"not deterministic: turn 1: .*, and from a copy"),
        ("NoRows", ("kind=set",), r"rows returned tasks that are no JSON"),
        ("NoRows", ("kind=number",), r"rows returned 3, a int; it should return a list of mappings, a task each"),
        ("NoRows", ("kind=none",), r"rows returned None, a NoneType; it should return a list of mappings"),
        ("NoRows", ("kind=row",), r"rows returned \{'seed': 1\}, a dict; it should return a list of mappings"),
        ("NoRows", ("kind=numbers",), r"rows returned 1 as a task; it should return mappings"),
        ("Returns", ("what=number",), r"reset returned 3; it should return a text, or messages"),
        ("Returns", ("what=nothing",), r"messages of the roles \(none\)"),
        ("Returns", ("what=assistant",), r"messages of the roles assistant; there should be"),
        ("Returns", ("what=parts",), r"role and content of each message should be texts"),
        ("Returns", ("what=blank",), r"a last message that is empty"),
        ("Returns", ("what=pair",), r"step returned \('', 0.0\); it should return \(observation, reward, done\)"),
        ("Returns", ("what=gym",), r"\{\}\); it should return \(observation, reward, done\); leave gym's info out"),
        ("Returns", ("what=gymnasium",), r"leave info out, with done = terminated or truncated"),
        ("Returns", ("what=info",), r"reset returned \('\?', \{\}\);.* return the observation alone"),
        ("Returns", ("what=None",), r"the observation None, a NoneType"),
        ("Returns", ("what=nan",), r"the reward nan; it should be a finite number"),
        ("Returns", ("what=words",), r"the reward '1'"),
        ("Returns", ("what=int",), r"done = 1, a int; it should be True or False"),
        (
            "Exits",
            (),
            r"ended with status 3, in the constructor, reset or step; domain.reset_secs = .* domain.memory_mb",
        ),
        ("Returns", ("what=raises",), r"on each of domain.check_texts = .*, it raised ValueError: no move '1'"),
    ],
)
def test_what_is_wrong_with_an_environment_is_told_at_load(make, game, arguments, words):
    with pytest.raises(UserError, match=words):
        make(game, environment_args=arguments).opened  # noqa: B018


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ("nowhere.py:Game", r"there is no file .*nowhere.py"),
        ("games_of_nobody:Game", r"there is no module 'games_of_nobody'"),
        ("openenv2:http://127.0.0.1:1", r"did you mean the adapter 'openenv'\?"),
        ("Game", r"neither module:name nor file.py:name"),
    ],
)
def test_an_environment_that_is_not_there(make, environment, words):
    with pytest.raises(UserError, match=words):
        make(environment=environment).opened  # noqa: B018


def test_an_adapter_without_its_package_names_the_command():
    code = "from exit_jax.domains.multi_turn import protocol\n"
    code += "protocol.ADAPTERS['x'] = protocol.Adapter('none.such:A', 'pip it')\n"
    code += "try:\n    protocol.factory('x:y', {})\nexcept protocol.PluginError as error:\n    print(error)\n"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "domain.environment = 'x:y': the adapter cannot be imported (No module named 'none'); pip it\n"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"environment": ""}, 'domain.environment = "" names none'),
        ({"test_tasks": ("a",)}, "domain.test_tasks = ('a',), but domain.tasks = () leaves"),
        ({"environment_args": ("3",)}, "'3' is not name=value"),
        ({"reward_range": (1.0, 1.0)}, "is not two different numbers"),
        ({"reward_range": (1.0,)}, "is not two different numbers"),
        ({"check_texts": ()}, "domain.check_texts = ()"),
        ({"max_transcript_tokens": 8}, "domain.max_transcript_tokens = 8 is below domain.max_tokens"),
        ({"test_max_transcript_tokens": 8}, "domain.test_max_transcript_tokens = 8 is below"),
        ({"num_test": 0}, "domain.num_test = 0 leaves no rows to test on"),
    ],
)
def test_contradictions_of_settings(fields, words):
    (fault,) = MultiTurnConfig(**{"environment": "a.py:B"} | fields).faults()
    assert words in fault


def test_a_job_waits_for_its_worker_if_that_is_the_shorter_way():
    pool = Pool(pathlib.Path("none"), [], 3, "nothing")
    free, busy, gone = (object() for _ in range(3))
    pool._workers = [free, busy]
    jobs = [Job(None, 1.0, "s", again=again) for again in (0, 2, 2, 2, 5)]
    queue_for = lambda **queues: pool._queue_for(
        free,
        {
            None: deque(queues.get("nobody", ())),
            busy: deque(queues.get("busy", ())),
            gone: deque(queues.get("gone", ())),
        },
        jobs,
    )
    assert queue_for(busy=[0]) == deque([0]), "which it can do as well"
    assert queue_for(busy=[1, 2]) is None, "two would be played again for it"
    assert queue_for(busy=[1, 2, 3]) == deque([1, 2, 3])
    assert queue_for(busy=[1, 2, 3], nobody=[0]) == deque([0])
    assert queue_for(busy=[1, 2], gone=[4]) == deque([4]), "whose worker died"


def test_processes_import_no_jax():
    """What a worker imports before the environment."""
    code = "import sys\nfrom exit_jax.domains.gym import worker\nfrom exit_jax.domains.multi_turn import worker\n"
    code += "from exit_jax.domains.task import calls, worker\nfrom exit_jax.domains.tool_use import worker\n"
    code += "print([name for name in ('jax', 'numpy', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
