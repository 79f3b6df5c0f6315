"""Environments of verifiers by the protocol of several turns: against its own client, refusals, faults, what is left."""

import asyncio
import http.server
import itertools
import json
import os
import resource
import sys
import threading
import time

import psutil
import pytest

from exit_jax.domains.multi_turn.protocol import Refused


@pytest.fixture(scope="module")
def adapter(require_parity):
    """Return the adapter's module; the example packages can be imported."""
    require_parity("verifiers")
    import verifiers_examples

    from exit_jax.domains.multi_turn import verifiers

    made = verifiers_examples.modules()
    sys.modules.update(made)
    yield verifiers
    for name in made:
        del sys.modules[name]


@pytest.fixture
def make(adapter):
    """Return a function that makes an instance, which is closed at the end."""
    made = []

    def make(*given, **arguments):
        made.append(adapter.Verifiers(*given, **arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def play(game, row, texts):
    """Return the first messages and what each text led to, up to the end."""
    opening, turns = game.reset(row), []
    for text in texts:
        turns.append(game.step(text))
        if turns[-1][2]:
            break
    return opening, turns


# What is carried


def test_one_turn_is_scored_by_the_weighted_sum(make):
    game = make("xj-sums")
    row = game.rows("train", 1, 0)[0]
    assert row["total"] == 102  # tasks 0 and 1 are for testing and validation
    opening, turns = play(game, row, ["102"])
    assert opening == [{"role": "system", "content": "A number only."}, {"role": "user", "content": "2 + 100 ="}]
    assert turns == [("", 1.25, True)]
    assert play(game, row, ["0102"])[1] == [("", 0.25, True)]  # equal to the program in the runtime only
    assert play(game, row, [""])[1] == [("", 0.0, True)]


def test_several_turns_go_on_until_the_environment_ends_them(make):
    game = make("xj-guess")
    row = {"secret": 7}
    opening, turns = play(game, row, ["4", "9", "7"])
    assert opening == [{"role": "user", "content": "Guess a number from 1 to 9."}]
    assert turns == [("Higher.\n\n3 left.", 0.0, False), ("Lower.\n\n2 left.", 0.0, False), ("", 0.5, True)]
    assert play(game, row, ["1"] * 4)[1][3] == ("", 0.0, True)


def test_turns_of_one_instance_do_not_depend_on_others(make):
    games = [make("xj-guess") for _ in range(3)]
    alone = [play(game, {"secret": 5 + i}, ["4", "6"])[1] for i, game in enumerate(games)]
    for i, game in enumerate(games):
        game.reset({"secret": 5 + i})
    first = [game.step("4") for game in reversed(games)][::-1]
    second = [game.step("6") for game in games]
    assert [list(turns) for turns in zip(first, second)] == alone


def test_a_limit_of_turns_ends_an_episode_which_is_scored(make):
    game = make("xj-guess", agent={"max_turns": 2})
    assert play(game, {"secret": 7}, ["1", "7"])[1] == [("Higher.\n\n3 left.", 0.0, False), ("", 0.5, True)]


def test_a_task_s_time_limit_does_not_run_while_the_policy_answers(make):
    game = make("xj-odd")
    game.reset({"kind": "hasty", "prompt": "Go.", "timeout": {"agent": 0.01}})
    time.sleep(0.1)
    assert game.step("here") == ("", 1.0, True)


class Scripted(http.server.BaseHTTPRequestHandler):
    """An endpoint that answers with the server's texts, one after another, and keeps what it was asked."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body["messages"])
        message = {"role": "assistant", "content": next(self.server.texts)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        raw = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        kind, answer = "application/json", json.dumps(raw)
        if body.get("stream"):
            raw |= {
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": message, "finish_reason": "stop"}],
            }
            kind, answer = "text/event-stream", f"data: {json.dumps(raw)}\n\ndata: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer.encode())))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("name", "harness", "row", "texts"),
    [
        ("xj-sums", {"id": "exit-jax-chat"}, {"prompt": "1 + 100 =", "system_prompt": "Só.", "total": 101}, ["101"]),
        ("xj-guess", {"id": "exit-jax-chat"}, {"secret": 7}, [" 4\n", "9", "7"]),
        ("xj-program", None, {"prompt": "2 + 3 =", "total": 10}, ["5 ", "10"]),
        ("xj-program", {"id": "xj-program", "stream": True}, {"prompt": "2 + 3 =", "total": 10}, ["five €", "11"]),
    ],
)
def test_requests_and_reward_are_those_of_the_package_s_own_client(make, name, harness, row, texts):
    """The other side is the package's way: its client, by HTTP, at an endpoint."""
    import verifiers.v1 as vf
    from verifiers.v1.utils.loaders import load_environment, resolve_env_config

    agent = {"runtime": {"type": "subprocess"}, **({"harness": harness} if harness else {})}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.asked, server.texts = [], iter(texts)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    async def theirs():
        env = load_environment(resolve_env_config({"taskset": {"id": name}, "agent": agent}))
        kind = type(env.taskset).task_type()
        client = vf.EvalClientConfig(base_url=f"http://127.0.0.1:{server.server_port}/v1")
        async with env.serving():
            return await env.run_episode(kind(kind.data_type().model_validate(row)), vf.ModelContext("m", client))

    try:
        episode = asyncio.run(theirs())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert episode.ok, episode

    opening, turns = play(make(name, agent=agent), row, texts)
    assert opening == server.asked[0]
    assert [said for said, _, _ in turns] == [
        "\n\n".join(message["content"] for message in after[len(before) + 1 :])
        for before, after in itertools.pairwise(server.asked)
    ] + [""]
    assert [reward for _, reward, _ in turns] == [0.0] * (len(texts) - 1) + [episode.traces[0].reward]
    assert len(server.asked) == len(texts)


# Tasks


def test_splits_are_apart_and_always_the_same(make):
    game = make("xj-sums")
    parts = {split: game.rows(split, 100, 0) for split in ("train", "validation", "test")}
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 32, "validation": 4, "test": 4}
    assert sorted(row["idx"] for rows in parts.values() for row in rows) == list(range(40))
    assert make("xj-sums").rows("train", 100, 7) == parts["train"] == json.loads(json.dumps(parts["train"]))
    assert game.rows("train", 5, 0) == parts["train"][:5]


def test_a_split_may_have_settings_of_the_taskset(make):
    game = make("xj-sums", splits={"test": {"split": "test"}}, taskset={"tasks": 20})
    assert [row["prompt"] for row in game.rows("test", 2, 0)] == ["0 + 1000 =", "1 + 1000 ="]
    assert [row["idx"] for row in game.rows("train", 99, 0)] == [i for i in range(20) if i % 10 != 1]
    with pytest.raises(Refused, match="there is no split 'dev'"):
        game.rows("dev", 1, 0)


def test_an_endless_taskset_gives_as_many_as_are_asked_for(make):
    game = make("xj-guess")
    assert [row["idx"] for row in game.rows("test", 3, 0)] == [0, 10, 20]
    assert len(game.rows("train", 50, 0)) == 50


# What is refused


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("xj-none", {}, "taskset 'xj-none' not found"),
        ("xj-v0", {}, "exports no Taskset"),
        ("xj-debate", {}, r"several agents play it \(pro, con\)"),
        ("xj-sums", {"id": "user-sim"}, r"several agents play it \(assistant, user\)"),
        ("xj-looks", {}, r"offers tools \(Look\)"),
        ("xj-sums", {"agent": {"max_output_tokens": 9}}, "agent.max_output_tokens would count no tokens"),
        ("xj-sums", {"taskset": {"task_count": 3}}, "task_count"),
        ("xj-sums", {"agent": {"harness": {"id": "no-harness"}}}, "harness 'no-harness' not found"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(adapter, name, arguments, why):
    with pytest.raises(Refused, match=f"verifiers:{name}: .*{why}"):
        adapter.Verifiers(name, **arguments)


def test_another_version_is_refused(adapter, monkeypatch):
    monkeypatch.setattr(adapter, "VERSION", "0.3.9")
    adapter.load.cache_clear()
    with pytest.raises(Refused, match=r"goes with verifiers 0\.3\.9, not 0\.4\.0; pip install verifiers==0\.3\.9"):
        adapter.Verifiers("xj-sums")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("picture", "a user message has image_url; only text"),
        ("answered", "messages are user, assistant; a user should ask"),
        ("image", "requires image 'python:3.11', but the subprocess runtime has no container"),
        ("files", "asks for files"),
    ],
)
def test_tasks_that_cannot_be_carried_are_refused(make, kind, why):
    game = make("xj-odd")
    row = next(
        row for split in ("train", "validation", "test") for row in game.rows(split, 9, 0) if row["kind"] == kind
    )
    with pytest.raises(Refused, match=f"verifiers:xj-odd: .*{why}"):
        game.reset(row)


def test_tasks_that_json_does_not_hold_are_refused(make):
    with pytest.raises(Refused, match="task 0 is another one when it is read back"):
        make("xj-hidden").rows("test", 1, 0)


def test_harness_that_needs_a_container_is_refused(make):
    with pytest.raises(Refused, match="'codex' needs a container runtime"):
        make("xj-sums", agent={"harness": {"id": "codex"}}).reset({"prompt": "1 + 1 =", "total": 2})


@pytest.mark.parametrize(
    ("flaw", "why"),
    [
        ("tools", "offers tools"),
        ("rewrites", "rewrites what was said"),
        ("at once", "asks twice at a time"),
        ("role", "messages are system, user, assistant, system, user;"),
    ],
)
def test_programs_that_do_not_hold_one_conversation_are_refused(make, flaw, why):
    game = make("xj-program", agent={"harness": {"id": "xj-program", "flaw": flaw}})
    with pytest.raises(Refused, match=f"verifiers:xj-program: .*{why}"):
        play(game, {"prompt": "2 + 3 =", "total": 10}, ["five", "ten", "ten"])


def test_several_plays_in_an_episode_are_refused(make):
    row = {"prompt": "1 + 1 =", "total": 2}
    assert play(make("xj-sums", id="best-of-n", n=1), row, ["2"])[1] == [("", 1.25, True)]
    with pytest.raises(Refused, match="plays its task several times"):
        play(make("xj-sums", id="best-of-n", n=2), row, ["2", "2"])


# Faults


@pytest.mark.parametrize(
    ("name", "row", "texts", "why"),
    [
        ("xj-guess", {"secret": 7}, ["seven"], "EnvError: .*invalid literal for int"),
        ("xj-odd", {"kind": "raises", "prompt": "Go."}, ["x"], "TaskError: .*KeyError: 'gold'"),
        ("xj-odd", {"kind": "slow", "prompt": "Go.", "timeout": {"scoring": 0.01}}, ["x"], "scoring_timeout"),
        ("xj-odd", {"kind": "endless", "prompt": "Go.", "timeout": {"finalize": 0.01}}, ["x"], "finalize_timeout"),
        ("xj-odd", {"kind": "silent"}, [], "task has no prompt"),
        ("xj-unrewarded", {"prompt": "Go."}, ["x"], "its rewards are {}"),
    ],
)
def test_faults_of_an_environment_are_raised_and_the_next_episode_is_sound(make, name, row, texts, why):
    game = make(name)
    with pytest.raises(RuntimeError, match=f"verifiers:{name}: (?s:.*){why}"):
        play(game, row, texts)
    with pytest.raises(RuntimeError, match="there is no episode"):
        game.step("x")
    if name == "xj-guess":
        assert play(game, row, ["7"])[1] == [("", 0.5, True)]


def test_a_program_that_fails_is_raised(make):
    game = make("xj-program", agent={"harness": {"id": "xj-program", "flaw": "fails"}})
    with pytest.raises(RuntimeError, match=r"HarnessError: (?s:.*)the program fell over"):
        play(game, {"prompt": "2 + 3 =", "total": 10}, ["5"])


# What is left behind


def left_behind():
    """Return the threads, open files and children of this process, and the folders of rollouts."""
    from verifiers.v1.utils.paths import CACHE_DIR

    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    kinds = sorted(os.readlink(link).split(":")[0] for link in links if os.path.lexists(link))
    rollouts = CACHE_DIR / "runtimes" / "subprocess"
    folders = len(list(rollouts.iterdir())) if rollouts.is_dir() else 0
    return threading.active_count(), kinds, len(psutil.Process().children()), folders


def test_episodes_given_up_leave_nothing(make):
    game = make("xj-guess")
    play(game, {"secret": 7}, ["7"])
    game.close()
    before = left_behind()
    play(game, {"secret": 7}, ["7"])
    assert left_behind() == before  # nor does one that came to its end
    for i in range(200):
        game.reset({"secret": 7})
        if i % 2:
            game.step("1")
        if i % 3:  # else the next reset gives it up
            game.close()
    many = [make("xj-guess") for _ in range(5)]
    for one in many:
        one.reset({"secret": 7})
    assert len(left_behind()[1]) >= len(before[1]) + 5 * 4  # there is something to be left
    for one in (game, *many):
        one.close()
        one.close()
    assert left_behind() == before


def test_many_episodes_may_be_alive(make):
    """Each one holds six files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        games = [make("xj-guess") for _ in range(50)]
        for game in games:
            game.reset({"secret": 7})
        assert [game.step("7") for game in games] == [("", 0.5, True)] * 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_programs_of_episodes_given_up_are_ended(make):
    game = make("xj-program")
    before = left_behind()
    for _ in range(3):
        game.reset({"prompt": "2 + 3 =", "total": 10})
        assert psutil.Process().children()[-1].is_running()
        assert left_behind()[2] == before[2] + 1
        game.close()
    for thread in threading.enumerate():
        if thread.name.startswith("waitpid"):  # asyncio's, which has told of the end of a process, and ends
            thread.join()
    assert left_behind() == before
