"""The page that follows a run: what it reads of a workdir, whom it answers, and how it looks in a real headless browser."""

import functools
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pyarrow
import pyarrow.parquet
import pytest
from mutations import ROOT
from test_browser import HOSTILE, NARROW, WIDE, contrast, find, find_all, is_wider_than_the_screen, resize, text_of

from exit_jax.domains.text.surrogates import replace_surrogates
from exit_jax.errors import ConfigError
from exit_jax.report import watch

CONFIG = {"name": "toy", "variant": "exit", "seed": 3, "run": {"num_iterations": 40}, "warm_start": {"num_steps": 9}}


def row(step, **fields):
    base = {"step": step, "reward": 0.1 + step / 100, "time/secs_per_step": 2.0, "time/tokens_per_sec": 5000.0}
    base |= {
        "buffer/score_max": 0.25,
        "buffer/score_median": step / 200,
        "buffer/score_min": 0.0,
        "buffer/depth": step / 10,
    }
    evaluated = {f"eval/test/accuracy@{k}": (step + k) / 100 for k in (0, 2, 16)} if step % 5 == 0 else {}
    return (
        base
        | {"start_depth": 1.5, "zero_variance_groups": 0.2, "quality/base": 0.3, "quality/improve": None}
        | evaluated
        | fields
    )


def write(folder, rows, config=CONFIG, **recorded):
    (folder / "config.json").write_text(json.dumps({"config": config, "versions": {}} | recorded))
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))


def write_rollouts(folder, iteration, texts):
    (folder / "rollouts").mkdir(exist_ok=True)
    texts = [replace_surrogates(text) for text in texts]  # as the writer does
    about = {
        "iteration": iteration,
        "task": 7,
        "turn": 0,
        "id": 12,
        "parent": 4,
        "born": 3,
        "depth": 2,
        "held_quality": 0.5,
    }
    about |= {
        "group": 0,
        "mode": "improve",
        "learnability": 0.1,
        "prompt": texts[0],
        "held": texts[-1],
        "num_tokens": 3,
    }
    about |= {"quality": 0.75, "reward": 0.75, "advantage": -0.5, "valid": True, "finished": False}
    rows = [
        about | {"rollout": i, "response": text, "feedback": texts[-1 - i], "prompt": texts[0]}
        for i, text in enumerate(texts)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"rollouts/{iteration:08d}.parquet")


def test_what_is_read_of_a_run(tmp_path):
    write(tmp_path, [row(step) for step in range(1, 21)], later=[{"run.num_iterations": 100}, {"run.trackers": []}])
    write_rollouts(tmp_path, 10, ["old"])
    write_rollouts(tmp_path, 20, ["ask", "held", "new"])
    seen = watch.look(tmp_path)
    assert (seen["title"], seen["step"], seen["total"], seen["phase"]) == ("toy, exit, seed 3", 20, 100, "train")
    assert (seen["secs_per_step"], seen["tokens_per_sec"], seen["left_secs"]) == (2.0, 5000.0, 160.0)
    assert not seen["faults"]
    assert not seen["done"]
    shown = {panel["title"]: {line["name"]: line["points"] for line in panel["lines"]} for panel in seen["panels"]}
    assert list(shown["test: accuracy by k"]) == ["k = 0", "k = 2", "k = 16"], "by number, not by letter"
    assert shown["test: accuracy by k"]["k = 2"] == [[5, 0.07], [10, 0.12], [15, 0.17], [20, 0.22]]
    assert list(shown["buffer: score S"]) == ["max", "median", "min"]
    assert list(shown["depth (responses)"]) == ["trained on", "in the buffer"]
    assert list(shown["quality"]) == ["base"], "null has no line"
    assert [one["response"] for one in seen["rollouts"]] == ["ask", "held", "new"]
    json.dumps(seen, allow_nan=False)


def test_nothing_yet_a_warm_start_and_half_a_line(tmp_path):
    assert watch.look(tmp_path)["step"] == 0
    (tmp_path / "config.json").write_text(json.dumps({"config": CONFIG}))
    folder = tmp_path / "warm_start/abc"
    folder.mkdir(parents=True)
    (folder / "warm_start.jsonl").write_text(
        '{"step": 4, "warm_start/loss": 0.5, "time/secs_per_step": 1.0}\n{"step": 5, "wa'
    )
    seen = watch.look(tmp_path)
    assert (seen["phase"], seen["step"], seen["total"], seen["left_secs"]) == ("warm start", 4, 9, 5.0)
    assert [panel["title"] for panel in seen["panels"]] == ["seconds an iteration", "warm start: loss"]


def test_a_long_run_is_drawn_by_means(tmp_path):
    write(tmp_path, [row(step) for step in range(1, 5001)])
    (reward,) = [panel for panel in watch.look(tmp_path)["panels"] if panel["title"] == "reward"]
    points = reward["lines"][0]["points"]
    assert len(points) == watch.MAX_POINTS
    assert points[0][0] == pytest.approx(7)  # of the first 13
    assert points[0][1] == pytest.approx(0.1 + 0.07)


def test_faults_are_told(tmp_path):
    rows = [row(step, grading_faults=float(step in (3, 4)), zero_variance_groups=1.0) for step in range(1, 11)]
    write(tmp_path, rows)
    long_ago = time.time() - 600
    os.utime(tmp_path / "train.jsonl", (long_ago, long_ago))
    told = watch.look(tmp_path)["faults"]
    assert told[0].startswith("no new row for 600 s, where one came at least every 2 s")
    assert "the responses of each group were all paid alike in the last 5 iterations: nothing is learnt" in told
    assert "grading failed as a whole in 2 of the iterations: 4, 3" in told
    write(tmp_path, [*rows, row(11)])
    assert watch.look(tmp_path)["faults"] == ["grading failed as a whole in 2 of the iterations: 4, 3"]


@pytest.fixture
def address(tmp_path):
    with watch.make_server(tmp_path, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address
        server.shutdown()


def test_only_this_machine_is_answered_and_only_what_the_page_asks(address, tmp_path):
    write(tmp_path, [row(1)])

    def ask(path, host=None, method="GET"):
        connection = http.client.HTTPConnection(*address)
        connection.request(method, path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert address[0] == "127.0.0.1"
    assert [ask(path) for path in ("/", "/look", "/chains")] == [200, 200, 200]
    assert ask("/look", f"localhost:{address[1]}") == 200
    assert ask("/look", f"elsewhere.example:{address[1]}") == 403, "a site whose name leads here must not read along"
    assert [ask(path) for path in ("/config.json", "/../config.json", "//etc/passwd", "/look/..")] == [404] * 4
    assert ask("/look", method="POST") == 501
    with pytest.raises(ConfigError, match=rf"--port {address[1]} cannot be had"):
        watch.make_server(tmp_path, address[1])
    with pytest.raises(ConfigError, match="is no folder"):
        watch.make_server(tmp_path / "none", 0)


@pytest.mark.slow
def test_the_command_line_serves_it_until_it_is_interrupted(tmp_path):
    write(tmp_path, [row(1)])
    flags = ("--config", "configs/smoke.py", "--mode", "watch", "--workdir", str(tmp_path), "--port", "0")
    command = [sys.executable, "-m", "exit_jax.main", *flags]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=heed, **pipes) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            place = re.search(r"http://127\.0\.0\.1:(\d+) ", line)
            assert place, line
            connection = http.client.HTTPConnection("127.0.0.1", int(place[1]))
            connection.request("GET", "/look")
            assert json.loads(connection.getresponse().read())["step"] == 1
            connection.close()
            process.send_signal(signal.SIGINT)
            _, faults = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert not faults


def wait(driver, condition):
    deadline = time.monotonic() + 30
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, pytest.param(NARROW, marks=pytest.mark.slow)], ids=["wide", "narrow"])
def test_the_page_follows_a_run_and_runs_no_text_of_a_model(driver, address, tmp_path, size, scheme):
    compiles = {"time/secs_per_step": 60.0}
    write(
        tmp_path, [row(step, grading_faults=float(step == 3), **compiles if step == 1 else {}) for step in range(1, 21)]
    )
    write_rollouts(tmp_path, 20, [text for text in HOSTILE if text])
    resize(driver, size)
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    driver.get(f"http://127.0.0.1:{address[1]}/")
    wait(driver, lambda: find_all(driver, "figure"))
    assert text_of(driver, "h1") == "toy, exit, seed 3"
    assert text_of(driver, "#facts").startswith("20 of 40 iterations2 s each5,000 tokens/s0:40 left")
    assert text_of(driver, "#faults") == "grading failed as a whole in 1 of the iterations: 3"
    assert text_of(driver, "figure figcaption") == "test: accuracy by k"
    assert text_of(driver, "figure .legend") == "k = 0: 0.2k = 2: 0.22k = 16: 0.36"
    assert len(find_all(driver, "figure:first-child polyline")) == 3
    captions = [caption.text for caption in find_all(driver, "figcaption")]
    assert "seconds an iteration, cut: up to 60" in captions, "the first compiles"
    assert "reward" in captions
    first = find(driver, "details")
    first.find_element("css selector", "summary").click()
    assert text_of(driver, "summary") == (
        "group 0, rollout 0 · improve, depth 2 · task 7 · from entry 12 of iteration 3, made from entry 4 · "
        "quality 0.5 → 0.75 · reward 0.75, advantage -0.5 · unfinished"
    )
    assert text_of(driver, "details .text") == HOSTILE[0]
    for one in find_all(driver, "summary")[1:]:
        one.click()
    assert not is_wider_than_the_screen(driver)
    assert driver.execute_script("return window.hacked") is None
    assert len(find_all(driver, "script")) == 1
    for selector in ("#facts b", ".soft", ".legend span", "figcaption", "#faults li", "summary"):
        assert contrast(driver, selector) >= 4.5, selector
    driver.save_screenshot(str(tmp_path / "page.png"))

    # the run goes on: curves and facts change, and what is open stays open until there are newer rollouts
    write(tmp_path, [row(step) for step in range(1, 26)])
    wait(driver, lambda: text_of(driver, "#facts").startswith("25 of 40"))
    assert text_of(driver, "figure .legend").startswith("k = 0: 0.25")
    assert not find(driver, "#faults").is_displayed()
    assert find(driver, "details").get_attribute("open")
    write_rollouts(tmp_path, 25, ["newer"])
    wait(driver, lambda: "Of iteration 25" in text_of(driver, "#about"))
    assert len(find_all(driver, "details")) == 1
    find(driver, "#about a").click()
    wait(driver, lambda: find_all(driver, "#split option"))
    assert [option.text for option in find_all(driver, "#split option")] == [
        "training, iteration 25",
        "training, iteration 20",
    ]
    assert driver.get_log("browser") == []
