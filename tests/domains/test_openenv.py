"""Test the adapter of OpenEnv against real servers of the package, and against one that fails on purpose."""

import collections
import json
import random
import socket
import subprocess
import sys
import threading
import time

import pytest
from openenv_process import Server


@pytest.fixture(scope="module", autouse=True)
def adapter(require_parity):
    """Return the adapter's module."""
    require_parity("websockets")
    from exit_jax.domains.multi_turn import openenv

    return openenv


@pytest.fixture
def make(adapter):
    """Return a function that makes an OpenEnv; they are closed at the end."""
    made = []

    def one(url, **settings):
        made.append(adapter.OpenEnv(url, **{"wait_secs": 5.0} | settings))
        return made[-1]

    yield one
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def server(require_parity):
    require_parity("openenv", "fastapi", "fastmcp", "uvicorn")
    server = Server()
    yield server
    server.kill()


def play(game, row, texts):
    return [game.reset(row), *(game.step(text) for text in texts)]


# ---- real servers


def test_echo(make, server):
    game = make(server.url("echo"))
    shown = lambda text, length: json.dumps({"echoed_message": text, "message_length": length})
    first = shown("ready 3 [('level', 'easy')]", 0)
    assert game.reset({"seed": 3, "level": "easy"}) == first
    assert game.step("hello") == (shown("hello", 5), 0.5, False)
    assert game.step('{"message": "in JSON"}') == (shown("in JSON", 7), 0.7, False)
    other = '{"note": "no action"}'  # JSON, but not of this action's fields: a message as any other
    assert game.step(other)[0] == shown(other, len(other))
    assert game.reset({}) == shown("ready None []", 0)


def test_a_field_of_the_observation_can_be_named(make, server):
    game = make(server.url("echo"), observation="echoed_message", action="message")
    assert play(game, {}, ["Ü"]) == ["ready None []", ("Ü", 0.1, False)]


def guess_by_hand(seed, high, guesses):
    number = random.Random(seed).randint(0, high)
    answers = []
    for left, guess in zip((3, 2, 1, 0), guesses, strict=False):
        if guess == number:
            return [*answers, ("Right.", 1.0, True)]
        answers.append((f"It is {'higher' if guess < number else 'lower'}.", -0.1, left == 0))
    return answers


@pytest.mark.parametrize("seed", range(6))
def test_a_game_follows_from_its_row_and_the_texts(make, server, seed):
    game, guesses = make(server.url("guess")), [2, 1, 0, 3]
    right = guess_by_hand(seed, 4, guesses)
    texts = [f" {guess}\n" for guess in guesses][: len(right)]
    for _ in range(2):
        opening, *turns = play(game, {"seed": seed, "high": 4, "unknown to it": 1}, texts)
        assert (opening, turns) == ("Guess a number from 0 to 4.", right)


def test_episodes_side_by_side_are_apart(make, server):
    a, b = make(server.url("guess")), make(server.url("guess"))
    assert a.concurrent is True
    a.reset({"seed": 1})
    b.reset({"seed": 2})
    answers = {a: [], b: []}
    for guess in (5, 7, 3, 9):
        for game, seed in ((a, 1), (b, 2)):
            right = guess_by_hand(seed, 9, (5, 7, 3, 9))
            if len(answers[game]) < len(right):
                answers[game].append(game.step(str(guess)))
                assert answers[game] == right[: len(answers[game])]


def test_bad_text_is_answered_and_earns_nothing(make, server):
    game = make(server.url("guess"))
    game.reset({"seed": 0})
    for text in ("four", "4.5", "true", '{"number": "x"', '"4"', "", "[" * 100_000):
        assert game.step(text) == (
            "This is no action: it is not a whole number. Answer with a whole number.",
            0.0,
            False,
        )
    answer = game.step('{"number": "x"}')  # by the server's own rule
    assert answer[0].startswith("This is no action: number: Input should be a valid integer")
    assert answer[1:] == (0.0, False)
    assert game.step('```json\n{"number": 100}\n```') == ("It is lower.", -0.1, False)


def test_actions_of_several_fields_are_json(make, server):
    game = make(server.url("board"))
    fields = '"piece": one of "rook", "king", "squares": a whole number, "note": text (may be left out)'
    expected = f"Answer with one JSON object: {{{fields}}}."
    assert game.reset({}) == f"Your move.\n{expected}"
    assert game.step('{"piece": "rook", "squares": 3}') == ("rook 3", 1.0, False)
    assert game.step("rook 3") == (f"This is no action: it is no JSON object. {expected}", 0.0, False)
    wrong = "This is no action: there is no field color; it lacks squares"
    assert game.step('{"piece": "rook", "color": 1}') == (f"{wrong}. {expected}", 0.0, False)
    assert "squares: Input should be greater than or equal to 1" in game.step('{"piece": "king", "squares": 0}')[0]
    assert "piece: Input should be 'rook' or 'king'" in game.step('{"piece": "pawn", "squares": 1}')[0]


def test_choices_are_named(make, server):
    game = make(server.url("camera"), observation="caption")
    assert game.reset({}) == "a wall"
    assert game.step("left\n") == ("after left", 0.0, False)
    right = 'This is no action: it is not one of "left", "right". Answer with one of "left", "right".'
    assert game.step("up") == (right, 0.0, False)


def test_tools_are_listed_and_called(make, server):
    game = make(server.url("tools"))
    opening = game.reset({})
    assert opening.startswith('Tools:\n{"name": "add", "description": "Add two numbers."')
    assert opening.endswith("(may be left out)}.")
    observation, reward, done = game.step('{"tool_name": "add", "arguments": {"a": 2, "b": 40}}')
    assert "42" in observation
    assert (reward, done) == (0.0, False)
    assert "42" in game.step('{"type": "call_tool", "tool_name": "add", "arguments": {"a": 2, "b": 40}}')[0]
    assert game.step("add 2 and 40")[0].startswith("This is no action: it is no JSON object.")


@pytest.mark.parametrize("encoded", [False, True])
def test_pictures_are_refused(make, server, adapter, encoded):
    what = "a picture or other binary data" if encoded else r"2,000 numbers, as of a picture,"
    with pytest.raises(adapter.Refused, match=rf"{what} which cannot be shown; .* as observation \(there is caption"):
        make(server.url("camera")).reset({"encoded": encoded})


def test_what_the_environment_raises_is_said(make, server, adapter):
    game = make(server.url("echo"), observation="echoed_message")
    game.reset({})
    with pytest.raises(adapter.ServerError, match="it broke"):
        game.step("raise")


def test_a_step_has_a_limit(make, server, adapter):
    game = make(server.url("echo"), observation="echoed_message", timeout_secs=0.5)
    game.reset({})
    with pytest.raises(adapter.NoAnswer, match=r"no answer to step within 0.5 seconds"):
        game.step("hang")
    assert play(game, {}, ["again"])[1] == ("again", 0.1 * 5, False)


def test_a_server_for_one_session(make, server, adapter):
    game = make(server.url("alone"))
    assert game.concurrent is False
    game.reset({"seed": 0})
    with pytest.raises(adapter.Unavailable, match=r"/alone: it has 1 session\(s\), and all are taken; start it with"):
        make(server.url("alone"), wait_secs=0.3).reset({"seed": 0})
    game.close()
    assert make(server.url("alone")).reset({"seed": 0}) == "Guess a number from 0 to 9."


def test_an_environment_that_cannot_be_made(make, server, adapter):
    with pytest.raises(adapter.Unavailable, match="it cannot make an environment"):
        make(server.url("broken"), wait_secs=0.3).reset({})


def test_what_is_wrong_is_said_when_it_is_made(make, server, adapter):
    with pytest.raises(adapter.Refused, match="has no action field 'code', but message"):
        make(server.url("echo"), action="code")
    with pytest.raises(adapter.Refused, match="has no observation field 'x', but echoed_message, message_length"):
        make(server.url("echo"), observation="x")
    with pytest.raises(adapter.Refused, match="answers 404 to /schema, so it is no server of OpenEnv"):
        make(server.url("nothing"))
    with pytest.raises(adapter.Refused, match=r"openenv:127\.0\.0\.1:8000 is no server's address"):
        make("127.0.0.1:8000")


def test_addresses(adapter):
    for given in ("http://127.0.0.1:8000/", "ws://127.0.0.1:8000"):
        assert adapter.address_of(given) == "http://127.0.0.1:8000"
    assert adapter.address_of("wss://some.where/a/b/") == "https://some.where/a/b"
    assert adapter.is_loopback("http://localhost:1/a")
    assert not adapter.is_loopback("https://some.where/localhost")


def test_a_killed_server_that_comes_back(make, require_parity):
    """In the middle of an episode, which goes on as if nothing had been."""
    require_parity("openenv", "fastapi", "fastmcp", "uvicorn")
    server = Server()
    try:
        game = make(server.url("guess"), wait_secs=120.0)
        guesses = [0, 9, 1, 8]
        right = guess_by_hand(11, 9, guesses)
        assert len(right) == 4
        assert play(game, {"seed": 11}, ["0", "9"])[1:] == right[:2]
        server.kill()
        again = []
        thread = threading.Thread(target=lambda: again.append(Server(server.port)))
        thread.start()
        assert game.step("1") == right[2]
        thread.join()
        server = again[0]
        assert game.step("8") == right[3]
    finally:
        server.kill()


# ---- a server that fails on purpose


class Faulty:
    """A server whose sessions count their steps. ``faults`` says what becomes of the next messages, one by one."""

    def __init__(self, port=0):
        from websockets.sync.server import serve

        self.faults = collections.deque()
        self.num_sessions = 0
        self.drift = 0
        self.server = serve(self.session, "127.0.0.1", port, process_request=self.schema)
        self.port = self.server.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def schema(self, connection, request):
        if request.path == "/schema":
            text = {"type": "string"}
            action, observation = (
                {"properties": {name: text}, "required": [name], "additionalProperties": False}
                for name in ("say", "text")
            )
            return connection.respond(200, json.dumps({"action": action, "observation": observation}))
        return None

    def session(self, socket):
        self.num_sessions += 1
        steps = 0
        for message in socket:
            fault = self.faults.popleft() if self.faults else None
            if fault == "drop":
                return
            data = json.loads(message).get("data", {})
            steps += json.loads(message)["type"] == "step"
            text = f"{data.get('say', data.get('seed'))} {steps + self.drift}"
            reply = {"type": "observation", "data": {"observation": {"text": text}, "reward": 0.25, "done": False}}
            socket.send(fault or json.dumps(reply))

    def close(self):
        self.server.shutdown()
        self.thread.join()


@pytest.fixture
def faulty():
    server = Faulty()
    yield server
    server.close()


def said(text):
    return text, 0.25, False


GARBAGE = ["no JSON", "[]", "{}", '{"type": "observation", "data": {"observation": "x", "reward": 0, "done": false}}']


@pytest.mark.parametrize("fault", ["drop", *GARBAGE])
def test_a_session_that_is_lost_is_played_again(make, faulty, fault):
    game = make(faulty.url)
    assert play(game, {"seed": 7}, ["a", "b"]) == ["7 0", said("a 1"), said("b 2")]
    faulty.faults.extend([fault, None, None, fault])  # of step c; of the replay's reset, step a, step b
    assert game.step("c") == said("c 3")
    assert faulty.num_sessions == 3
    assert game.step("d") == said("d 4")


def test_a_reset_is_tried_again(make, faulty):
    game = make(faulty.url)
    faulty.faults.extend(["drop", "no JSON"])
    assert game.reset({"seed": 7}) == "7 0"
    assert faulty.num_sessions == 3


def test_a_replay_that_differs_costs_the_episode(make, faulty):
    game = make(faulty.url)
    play(game, {"seed": 7}, ["a"])
    faulty.faults.append("drop")
    faulty.drift = 1
    with pytest.raises(RuntimeError, match="in a new one the same actions were answered otherwise"):
        game.step("b")
    faulty.drift = 0
    assert game.reset({"seed": 8}) == "8 0"


def test_an_error_is_raised_and_ends_nothing(make, faulty, adapter):
    game = make(faulty.url)
    game.reset({})
    faulty.faults.append('{"type": "error", "data": {"message": "division by zero", "code": "EXECUTION_ERROR"}}')
    with pytest.raises(adapter.ServerError, match="division by zero"):
        game.step("a")
    assert faulty.num_sessions == 1


def test_garbage_for_good_is_one_clear_error(make, faulty, adapter):
    game = make(faulty.url, wait_secs=0.5)
    faulty.faults.extend(["<html>"] * 100)
    with pytest.raises(
        adapter.Unavailable, match=r"127.0.0.1:\d+: it answers with what is no message of OpenEnv \('<html>'\)"
    ):
        game.reset({})


def test_a_server_that_never_comes_back(make, adapter, monkeypatch):
    faulty = Faulty()
    game = make(faulty.url, wait_secs=0.5)
    game.reset({"seed": 1})
    faulty.close()
    pattern = rf"{faulty.url}: the server is not there \(.*\); start it, and run the same command"
    with pytest.raises(adapter.Unavailable, match=pattern):
        game.step("a")
    adapter.schema_of.cache_clear()
    pauses, sleep = [], time.sleep
    monkeypatch.setattr(time, "sleep", lambda secs: pauses.append(secs) or sleep(secs))
    with pytest.raises(adapter.Unavailable, match=pattern):
        make(faulty.url, wait_secs=0.5)
    assert pauses[0] == 0.1  # it was tried again
    assert pauses == [0.1 * 2**i for i in range(len(pauses))]


def test_a_server_that_comes_back_in_time(make):
    faulty = Faulty()
    game = make(faulty.url, wait_secs=60.0)
    assert play(game, {"seed": 1}, ["a"])[1] == said("a 1")
    faulty.close()
    again = []
    timer = threading.Timer(0.5, lambda: again.append(Faulty(faulty.port)))
    timer.start()
    assert game.step("b") == said("b 2")
    timer.join()
    again[0].close()


def test_what_is_no_server_of_openenv(make, adapter):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer():
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(adapter.Refused, match="/schema is no schema of OpenEnv"):
            make(f"http://127.0.0.1:{port}")
        thread.join()


def test_the_client_imports_neither_jax_nor_the_package():
    code = (
        "import sys; from exit_jax.domains.multi_turn import openenv; "
        "assert not {'jax', 'openenv', 'pydantic', 'fastapi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
