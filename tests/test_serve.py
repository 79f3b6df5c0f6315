"""OpenAI's own client against a server of a small random policy: what it is told, refused, and what is left behind."""

import concurrent.futures
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import ROOT

from exit_jax import run
from exit_jax.errors import ConfigError
from exit_jax.policy import sampler
from exit_jax.policy.choice import truncate

openai, starlette = pytest.importorskip("openai"), pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from exit_jax.serve.answers import Reader  # noqa: E402
from exit_jax.serve.batcher import Update  # noqa: E402
from exit_jax.serve.engine import truncate_rows  # noqa: E402

HI = [{"role": "user", "content": "What is 1 + 2?"}]
SETTINGS = {"dtype": "float32", "port": 0, "context": 320, "rows": 4, "tokens_per_call": 4, "name": "tiny"}


class Running:
    """A server in a thread of its own, and a client of it."""

    def __init__(self, folder, **settings):
        self.server = run.make_server(folder, **SETTINGS | settings)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.client = openai.OpenAI(base_url=self.server.url, api_key="any", max_retries=0, timeout=300)

    def chat(self, messages=HI, **fields):
        return self.client.chat.completions.create(**{"model": "tiny", "messages": messages, "max_tokens": 8} | fields)

    def complete(self, prompt="What is", **fields):
        return self.client.completions.create(**{"model": "tiny", "prompt": prompt, "max_tokens": 8} | fields)

    def wait_until_idle(self):
        """Wait until no response has a row or waits for one."""
        deadline = time.monotonic() + 60
        while self.server.batcher.load != (0, 0):
            assert time.monotonic() < deadline, self.server.batcher.load
            time.sleep(0.01)

    def stop(self):
        self.server.stop()
        self.thread.join(timeout=120)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.random_qwen2(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def running(folder):
    found = Running(folder)
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def leaves_nothing(request):
    """Hold every test to it that nothing is sampled or waits afterwards."""
    yield
    if "running" in request.fixturenames:
        request.getfixturevalue("running").wait_until_idle()


def test_models(running):
    assert [model.id for model in running.client.models.list()] == ["tiny"]
    assert running.client.models.retrieve("tiny").id == "tiny"


def test_a_chat_has_n_choices_that_differ(running):
    found = running.chat(n=3, seed=5, temperature=1.0)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in found.choices}) == 3
    assert {choice.finish_reason for choice in found.choices} <= {"length", "stop"}
    lengths = [8 if choice.finish_reason == "length" else 1 for choice in found.choices]
    assert sum(lengths) <= found.usage.completion_tokens <= 24


def test_completions_of_several_prompts_and_of_ids(running):
    texts = [choice.text for choice in running.complete(["What is", "You are"], temperature=0).choices]
    ids = [running.server.service.words.raw(prompt) for prompt in ("What is", "You are")]
    assert [choice.text for choice in running.complete(ids, temperature=0).choices] == texts
    assert running.complete("You are", temperature=0).choices[0].text == texts[1]


def test_a_stream_says_what_the_answer_says(running):
    asked = {"n": 2, "seed": 3, "max_tokens": 30, "logprobs": True}
    whole = running.chat(**asked)
    parts, ends, logp, num_events = ["", ""], {}, [[], []], 0
    for event in running.chat(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in event.choices:
            parts[choice.index] += choice.delta.content or ""
            logp[choice.index] += [each.logprob for each in choice.logprobs.content] if choice.logprobs else []
            num_events += bool(choice.delta.content)
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
        usage = event.usage
    assert parts == [choice.message.content for choice in whole.choices]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert logp == [[each.logprob for each in choice.logprobs.content] for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert num_events > 4, "it comes while it is sampled"
    text = "".join(event.choices[0].text for event in running.complete(seed=3, stream=True))
    assert text == running.complete(seed=3).choices[0].text


def test_a_stop_cuts_the_text(running):
    whole = running.complete(seed=11, max_tokens=40, logprobs=0)
    text = whole.choices[0].text
    stop = text[12:15]
    found = running.complete(seed=11, max_tokens=40, stop=["never said", stop], logprobs=0)
    assert found.choices[0].text == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens < whole.usage.completion_tokens
    count = len(found.choices[0].logprobs.tokens)
    assert found.choices[0].logprobs.token_logprobs == whole.choices[0].logprobs.token_logprobs[:count]
    events = running.complete(seed=11, max_tokens=40, stop=[stop], stream=True)
    assert "".join(event.choices[0].text for event in events) == found.choices[0].text


@pytest.mark.slow
def test_a_seed_gives_the_same_tokens_whatever_else_is_asked(running):
    alone = running.chat(seed=7, max_tokens=24, temperature=1.0).choices[0].message.content
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        ask = lambda i: running.chat([{"role": "user", "content": f"No. {i}" * (i % 9 + 1)}], temperature=i / 40)
        others = [pool.submit(ask, i) for i in range(32)]
        again = pool.submit(running.chat, seed=7, max_tokens=24, temperature=1.0)
        others += [pool.submit(ask, i) for i in range(32, 63)]
        assert again.result().choices[0].message.content == alone
        assert all(other.result().choices[0].message.content is not None for other in others)
    assert running.chat(seed=8, max_tokens=24, temperature=1.0).choices[0].message.content != alone


def test_logprobs_are_the_learners(running):
    service = running.server.service
    engine, words = running.server.batcher.engine, service.words
    prompt = words.raw("What is 1")
    found = running.complete(prompt, seed=2, temperature=0.7, top_p=0.9, max_tokens=16, logprobs=0).choices[0]
    tokens = words.raw(found.text)
    theirs = sampled(running, prompt, seed=2)
    assert len(theirs) == len(found.logprobs.token_logprobs)
    score = jax.jit(lambda *given: sampler.logprobs(engine.config, 1.0, 0, engine.params, *given)[0])
    learner = score(jnp.array([prompt]), jnp.array([len(prompt)]), jnp.array([[theirs]]))
    np.testing.assert_allclose(found.logprobs.token_logprobs, np.asarray(learner)[0, 0], atol=2e-4)
    assert found.logprobs.text_offset[1] == len(found.logprobs.tokens[0])
    assert tokens


def sampled(running, prompt, seed):
    """Return the ids behind the text of the request above, by a reader of its own."""
    kept = []
    feed = Reader.feed

    def listen(self, update):
        kept.extend(update.tokens)
        return feed(self, update)

    Reader.feed = listen
    try:
        again = running.complete(prompt, seed=seed, temperature=0.7, top_p=0.9, max_tokens=16, logprobs=0).choices[0]
    finally:
        Reader.feed = feed
    return kept[: len(again.logprobs.token_logprobs)]


@pytest.mark.slow
def test_k_steps_are_those_of_improve(running, folder):
    chats = [HI, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say it."}]]
    settings = {"temperature": 0.0, "max_tokens": 10, "dtype": "float32", "data": 1}
    ours = run.improve(folder, chats, 2, **settings)
    found = [running.chat(chat, temperature=0, max_tokens=10, extra_body={"k": 2}) for chat in chats]
    assert [each.choices[0].iterates for each in found] == ours
    assert [each.choices[0].message.content.strip() for each in found] == [row[-1] for row in ours]
    *_, last = running.chat(temperature=0, max_tokens=10, extra_body={"k": 2}, stream=True)
    assert last.choices[0].iterates == ours[0]
    assert found[0].usage.completion_tokens > 10
    assert not hasattr(running.chat().choices[0], "iterates")


FAULTS = [
    ({"model": "other"}, 404, "model", "no model 'other'"),
    ({"messages": []}, 400, "messages", "at least one"),
    ({"messages": [{"role": "user", "content": ""}]}, 400, "messages", "empty prompt"),
    ({"messages": [*HI, *HI]}, 400, "messages", "in turn"),
    ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages[0].role", "'tool'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content", "no text"),
    ({"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
    ({"top_logprobs": 3, "logprobs": True}, 400, "top_logprobs", "not supported"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
    ({"temperature": -1}, 400, "temperature", "-1"),
    ({"top_p": 0}, 400, "top_p", "(0, 1]"),
    ({"n": 0}, 400, "n", "at least 1"),
    ({"n": 5000}, 400, "n", "serve.max_queue"),
    ({"seed": "one"}, 400, "seed", "whole number"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop", "up to 4"),
    ({"max_tokens": 0}, 400, "max_tokens", "at least 1"),
    ({"max_tokens": 320}, 400, "max_tokens", "context of 320"),
    ({"max_tokens": 128, "extra_body": {"k": 1}}, 400, "max_tokens", "with an answer to improve"),
    ({"messages": [{"role": "user", "content": "a b " * 300}]}, 400, "messages", "the context has 320"),
    ({"extra_body": {"k": 17}}, 400, "k", "serve.max_steps = 16"),
    ({"extra_body": {"k": -1}}, 400, "k", "at least 0"),
]


@pytest.mark.parametrize(("fields", "status", "param", "words"), FAULTS, ids=[f"{f[2]}-{f[3]}" for f in FAULTS])
def test_a_bad_request_is_a_clear_error(running, fields, status, param, words):
    with pytest.raises(openai.APIStatusError) as caught:
        running.chat(**fields)
    error = caught.value
    assert (error.status_code, error.param) == (status, param)
    assert words in error.body["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[999]]}, "prompt"),
        ({"logprobs": 2}, "logprobs"),
        ({"extra_body": {"k": 1}}, "k"),
    ],
)
def test_a_bad_completion_is_a_clear_error(running, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        running.complete(**fields)
    assert caught.value.param == param


def post(running, body, path="/chat/completions", **headers):
    import httpx

    headers = {"content-type": "application/json"} | headers
    return httpx.post(running.server.url + path, content=body, headers=headers, timeout=60)


def test_what_is_no_request(running):
    assert "no JSON" in post(running, b"{").json()["error"]["message"]
    assert "JSON object" in post(running, b"[]").json()["error"]["message"]
    assert post(running, b"[" * 100_000).status_code == 400
    assert post(running, b"{}", path="/nothing").json()["error"]["message"].startswith("POST /v1/nothing: Not Found")
    assert post(running, b" " * (1 << 21)).status_code == 413
    assert post(running, b"{}", **{"content-type": "text/plain"}).status_code == 415
    assert post(running, b"{}", host="evil.example").status_code == 403


def test_harmless_fields_change_nothing(running):
    plain = running.chat(seed=1)
    more = {"user": "me", "tool_choice": "none", "frequency_penalty": 0, "extra_body": {"k": 0, "brand_new": 1}}
    assert running.chat(seed=1, **more).choices[0].message.content == plain.choices[0].message.content


def test_a_client_that_goes_away_frees_its_rows(running):
    gone = running.server.service.num_gone
    body = {"model": "tiny", "messages": HI, "max_tokens": 240, "n": 8, "temperature": 0}
    for number, stream in enumerate((False, True), 1):
        sent = json.dumps(body | {"stream": stream}).encode()
        host, port = running.server.url.split("/")[2].split(":")
        with socket.create_connection((host, int(port))) as wire:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            wire.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
            deadline = time.monotonic() + 60
            while running.server.batcher.load[0] < 4 and time.monotonic() < deadline:
                time.sleep(0.001)
        running.wait_until_idle()
        assert running.server.service.num_gone == gone + number, f"stream={stream}"
    assert running.chat().choices


def test_cuts_of_each_row_are_those_of_the_sampler():
    logits = np.random.default_rng(0).normal(size=(5, 1, 40)).astype(np.float32) * 3
    cuts = [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.7, 0.0), (7, 0.5, 0.0), (9, 0.95, 0.2)]
    columns = [jnp.array(column) for column in zip(*cuts, strict=True)]
    found = jax.jit(truncate_rows)(jnp.array(logits), *columns)
    for row, (top_k, top_p, min_p) in enumerate(cuts):
        np.testing.assert_array_equal(found[row, 0], truncate(jnp.array(logits[row, 0]), top_k, top_p, min_p))


class Words:
    """Letters for tokens; 26 and 27 are the two bytes of a character."""

    def said(self, ids):
        return bytes(b"\xc3\xa9"[i - 26] if i > 25 else 97 + i for i in ids).decode(errors="replace")


def test_a_reader_holds_back_what_is_not_certain():
    reader = Reader(Words(), ("xyz",), streams=True)
    feed = lambda *tokens, **about: reader.feed(
        Update([*tokens], [0.0] * len(tokens), **{"ended": False, "over": False} | about)
    )
    assert [feed(0, 26), feed(27), feed(23, 24), feed(0), feed(23), feed(24, 25, 1)] == ["a", "é", "", "xya", "", ""]
    assert (reader.text, reader.finish, len(reader.tokens), reader.num_visible) == ("aéxya", "stop", 9, 6)


# Servers of their own


def test_others_than_this_machine_need_a_token(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("EXIT_JAX_SERVE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"'0\.0\.0\.0' may be reached by others, so it takes a token"):
        run.make_server(folder, host="0.0.0.0", port=0)
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        run.make_server(folder, token_file=str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="cannot be read"):
        run.make_server(folder, token_file=str(tmp_path / "absent"))


def test_a_port_in_use_and_wrong_settings_are_told_before_anything_loads(folder, running, monkeypatch):
    monkeypatch.setattr("exit_jax.evaluation.asking.load_policy", lambda config: pytest.fail("weights were loaded"))
    port = int(running.server.url.rsplit(":", 1)[1].split("/")[0])
    with pytest.raises(ConfigError, match="cannot listen"):
        run.make_server(folder, port=port)
    with pytest.raises(ConfigError, match=r"(?s)serve\.rows = 0.*serve\.port = 70000|serve\.port.*serve\.rows"):
        run.make_server(folder, port=70000, rows=0)
    with pytest.raises(ConfigError, match=r"serve\.prt is unknown; did you mean port"):
        run.make_server(folder, prt=1)


def test_token_queue_and_shutdown(folder, monkeypatch):
    monkeypatch.setenv("EXIT_JAX_SERVE_TOKEN", "open sesame")
    own = Running(folder, rows=1, max_queue=2, grace=0.0)
    try:
        with pytest.raises(openai.AuthenticationError):
            own.chat()
        assert post(own, b"{}", host="evil.example").status_code == 401
        own.client = own.client.with_options(api_key="open sesame")
        assert own.chat().choices
        long = {"max_tokens": 240, "temperature": 0}  # greedily, this policy never ends
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            slow = pool.submit(own.chat, n=2, **long)
            deadline = time.monotonic() + 60
            while own.server.batcher.load != (1, 1):
                assert time.monotonic() < deadline
                assert not slow.done(), slow.result()
                time.sleep(0.001)
            with pytest.raises(openai.RateLimitError) as caught:
                own.chat(n=2)
            assert caught.value.response.headers["retry-after"] == "1"
            assert caught.value.code == "queue_full"
            own.stop()
            with pytest.raises(openai.InternalServerError, match="shutting down"):
                slow.result()
    finally:
        own.stop()


@pytest.mark.slow
def test_a_signal_ends_the_command_after_what_was_asked(folder, tmp_path):
    flags = ["--config.serve.port=0", "--config.serve.context=320", "--config.serve.dtype=float32"]
    command = [
        sys.executable,
        "-m",
        "exit_jax.main",
        "--mode",
        "serve",
        "--config",
        f"configs/serve.py:policy={folder}",
    ]
    with subprocess.Popen([*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        url = next(word for word in first.split() if word.startswith("http"))
        client = openai.OpenAI(base_url=url, api_key="any", max_retries=0)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            ask = {"model": "tiny", "messages": HI, "max_tokens": 200, "temperature": 0}
            answer = pool.submit(client.chat.completions.create, **ask)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert answer.result().choices[0].message.content
        assert process.stdout.read().startswith("stopped: 1 requests answered")
    assert process.returncode == 0
