"""Test a user's own rewards: how they are found, checked and called, and that nothing they do costs more than its items."""

import dataclasses
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import numpy as np
import pytest

from exit_jax import settings
from exit_jax.domains.task import worker
from exit_jax.domains.task.rewards import Rewards
from exit_jax.domains.task.settings import TaskConfig
from exit_jax.errors import DomainError, GradingError
from exit_jax.plugins import PluginError

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Row:
    """What rewards need of a row."""

    prompt: str
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    messages: tuple[tuple[str, str], ...] = ()
    place: str = "tasks.jsonl:1"
    conversational: bool = False


@pytest.fixture
def make(own_folder, request):
    """Return a function that writes a module and makes the Rewards of functions in it; they are closed at the end."""
    made = []

    def make(code, *names, columns=None, log=None, **fields):
        path = own_folder / "own_reward.py"
        path.write_text(textwrap.dedent(code))
        config = TaskConfig(
            tasks=("tasks.jsonl",),
            reward=tuple(f"{path}:{name}" for name in names),
            **({"reward_workers": 2, "reward_secs": 1.0} | fields),
        )
        assert not settings.faults(config)
        made.append(Rewards(config, log, columns))
        return made[-1]

    yield make
    for rewards in made:
        rewards.close()


def score(rewards, completions, row=None, **given):
    return rewards.score([row or Row("What?")] * len(completions), completions, **given)


def qualities(scores):
    return [one.quality if one.graded else None for one in scores]


def is_running(pid: int) -> bool:
    """Return whether a process is there and not a zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, secs=20.0):
    limit = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


WHERE = pytest.mark.parametrize("runs", ["workers", "inline"])

# What functions are called with

SEEN = """
    import json

    def some(completion, answer, note="none"):
        return {"quality": 1, "feedback": json.dumps([completion, answer, note])}

    def all_of(**given):
        return {"quality": 1, "feedback": json.dumps(given, sort_keys=True)}

    class Judge:
        async def __call__(self, prompt, completion):
            return {"score": True, "feedback": f"{prompt} {completion}"}

    judge = Judge()

    def batch(prompts, completions, completion_ids, log_metric, **columns):
        log_metric("length", 1.0)
        assert len(set(map(type, prompts))) == 1  # chats and texts are not mixed
        seen = sorted(name for name in columns if name != "log_extra")
        return [
            {"score": 1.0, "feedback": json.dumps([p, c, ids, [columns[name][at] for name in seen], len(prompts)])}
            for at, (p, c, ids) in enumerate(zip(prompts, completions, completion_ids))
        ]

    def few(completions, answer):
        return [c == a for c, a in zip(completions, answer)]
"""


@WHERE
def test_a_function_is_called_with_what_it_names(make, runs):
    rewards = make(SEEN, "some", "all_of", "judge", columns=["answer", "prompt"], reward_runs=runs)
    row = Row("Two?", {"answer": [2, None], "prompt": "a column that the prompt hides"}, (("system", "Be brief."),))
    (one,) = score(rewards, ["é\ud800"], row)
    first, second, third = one.feedback.split("\n")
    assert json.loads(first) == ["é\ud800", [2, None], "none"]
    given = json.loads(second)
    assert {name: given[name] for name in ("prompt", "completion", "answer")} == {
        "prompt": "Two?",
        "completion": "é\ud800",
        "answer": [2, None],
    }
    assert third == "Two? é?", "a tokenizer takes no half of a surrogate pair"


@WHERE
def test_a_batched_function_is_called_as_trl_does(make, runs):
    rewards = make(SEEN, "batch", "few", columns=["answer"], reward_runs=runs, reward_workers=1)
    chat = Row("Two?", {"answer": "2"}, (("system", "Be brief."), ("user", "One?"), ("assistant", "1")), "", True)
    plain = Row("Two?", {"answer": "2"})
    rows = [chat, plain] * 4
    scores = rewards.score(rows, [str(n) for n in range(8)], [[n, n + 1] for n in range(8)])
    seen = [json.loads(one.feedback) for one in scores]
    messages = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?")]
    in_messages = [{"role": role, "content": content} for role, content in messages]
    for number, (prompt, completion, ids, columns, _) in enumerate(seen):
        is_chat = number % 2 == 0
        assert prompt == (in_messages if is_chat else "Two?")
        assert completion == ([{"role": "assistant", "content": str(number)}] if is_chat else str(number))
        assert (ids, columns) == ([number, number + 1], ["2"])
    assert max(together for *_, together in seen) > 1
    assert [one.notes["reward_few"] for one in scores] == [0.0] * 8  # a chat's completion is no text
    assert qualities(scores) == [0.5] * 2 + [1.0 * (n == 99) or 0.5 for n in range(2, 8)]


def test_trls_own_rewards_run_unchanged(make, require_parity):
    require_parity("trl", "math_verify")
    from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

    code = """
        from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

        punish = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)
    """
    names = ("accuracy_reward", "think_format_reward", "punish")
    bounds = (0.0, 1.0, 0.0, 1.0, -1.0, 0.0)
    rewards = make(code, *names, columns=["solution"], reward_range=bounds, reward_secs=30.0, reward_workers=1)
    completions = [r"<think>Hm.</think> \boxed{\frac{1}{3}}", r"It is \boxed{\frac{1}{2}}.", "<think>", "Hm."]
    golds = [r"\frac{1}{3}", r"\frac{1}{3}", r"\frac{1}{2}", "no formula at all"]
    ids = [[7] * 5, [7] * 8, [7] * 10, [7] * 11]
    rows = [Row("A third?", {"solution": gold}, (), "", True) for gold in golds]
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    expected = [
        accuracy_reward(completions=messages, solution=golds),
        think_format_reward(completions=messages),
        [1 + value for value in get_soft_overlong_punishment(10, 4)(completion_ids=ids)],
    ]
    assert expected[0] == [1.0, 0.0, 0.0, None]
    assert expected[2] == [1.0, 0.5, 0.0, 0.0]
    means = [[one for one in column if one is not None] for column in zip(*expected)]
    scores = rewards.score(rows, completions, ids)
    assert qualities(scores) == pytest.approx([sum(one) / len(one) for one in means])
    assert [one.notes["reward_punish"] for one in scores] == [0.0, -0.5, -1.0, -1.0]


# What functions return


@WHERE
def test_what_is_returned(make, runs):
    code = """
        import math
        import numpy as np

        class Unsaid:
            def __str__(self):
                raise RuntimeError("no words")

        GIVEN = {
            "int": 1, "bool": True, "none": None, "numpy": np.float32(0.5), "array": np.array([0.25]), "two": np.ones(2),
            "nan": math.nan, "inf": math.inf, "text": "1.0", "list": [1.0], "above": 1.0000001, "below": -0.5,
            "dict": {"quality": 0.5, "score": 7, "feedback": "half", "answer": 12, "size": np.int64(3), "why": "so"},
            "without": {"feedback": "."}, "no_text": {"score": 1, "feedback": 3}, "none_in": {"score": None},
            "huge": 10**400, "unsaid": {"score": 1, "answer": Unsaid()},
            "halves": {"score": 1, "feedback": "\\ud83d", "answer": "\\ude00", "size": 10**400},
        }

        def score(completion):
            return GIVEN[completion]

        async def later(completion):
            return GIVEN[completion]

        def batch(completions):
            return [GIVEN[one] for one in completions]
    """
    graded = {"int": 1.0, "bool": 1.0, "numpy": 0.5, "array": 0.25, "dict": 0.5, "halves": 1.0}
    without = ["none", "none_in"]
    faults = ["two", "nan", "inf", "text", "list", "above", "below", "without", "no_text", "huge", "unsaid"]
    for name in ("score", "later", "batch"):
        rewards = make(code, name, figures=("score", "size"), reward_runs=runs)
        scores = dict(zip([*graded, *without, *faults], score(rewards, [*graded, *without, *faults])))
        assert {name: scores[name].quality for name in graded} == graded
        assert [one for one in scores if not scores[one].graded] == without + faults
        assert [one for one in scores if scores[one].notes["reward_faults"]] == faults
        assert all(one.quality == 0.0 and one.notes["ungraded"] for one in scores.values() if not one.graded)
        assert (scores["dict"].feedback, scores["dict"].answer) == ("half", "12")
        assert (scores["halves"].feedback, scores["halves"].answer) == ("?", "?")
        assert scores["dict"].notes == {"reward_faults": 0.0, "ungraded": 0.0, "score": 7.0, "size": 3.0}
        assert set(scores["int"].notes) == set(rewards.notes)


@WHERE
def test_a_reward_that_ends_its_process_costs_one_item(make, runs, tmp_path):
    """What is no Exception, too, is counted and logged as what raises, and tried again, wherever the reward runs."""
    code = """
        import asyncio, sys

        class Own(BaseException):
            pass

        class Value:
            def item(self):
                raise asyncio.CancelledError

        RAISED = {"cancelled": asyncio.CancelledError, "interrupt": KeyboardInterrupt, "own": Own, "closed": GeneratorExit}

        def score(completion):
            if completion in RAISED:
                raise RAISED[completion]
            if completion == "value":
                return Value()
            return sys.exit(3) if completion == "end" else 1.0

        async def later(completion):
            return score(completion)

        async def cancelled(completion):
            if completion == "itself":
                asyncio.current_task().cancel()
                await asyncio.sleep(0)
            return score(completion)

        def batch(completions):
            return [score(one) for one in completions]
    """
    wrong = ["end", "cancelled", "own", "closed", "value"]
    for name in ("score", "later", "cancelled", "batch"):
        is_async = name in ("later", "cancelled")
        ends = wrong + ["interrupt"] * (
            is_async or runs == "workers"
        )  # inline and in the main thread it may be the user's
        ends += ["itself"] * (name == "cancelled")
        log = tmp_path / f"{name}.jsonl"
        rewards = make(code, name, reward_runs=runs, retries=1, log=log)
        scores = score(rewards, ["a", *ends, "b"])
        assert qualities(scores) == [1.0, *[None] * len(ends), 1.0], name
        assert [one.notes["reward_faults"] for one in scores] == [0.0, *[1.0] * len(ends), 0.0]
        kinds = [json.loads(line)["kind"] for line in log.read_text().splitlines()]
        assert kinds == ["value" if one == "value" else "raised" for one in ends]


def test_an_inline_reward_does_not_keep_a_ctrl_c(make, monkeypatch):
    """One of the user ends the run; with the training loop's handler, which only notes it, it is the reward's own."""
    code = """
        import signal

        def score(completion):
            signal.raise_signal(signal.SIGINT)
            if completion == "own":
                raise KeyboardInterrupt
            return 1.0
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            score(make(code, "score", reward_runs="inline"), ["a"])
        signal.signal(signal.SIGINT, lambda *_: None)
        assert qualities(score(make(code, "score", reward_runs="inline"), ["a", "own"])) == [1.0, None]
    finally:
        signal.signal(signal.SIGINT, before)


def test_weights_and_ranges(make):
    code = """
        def good(completion):
            return None if completion == "n" else float(completion)

        def bad(completion, prompt):
            return {"loss": 4.0, "none": None, "fault": 4.5, "zero": 0.0}[prompt]

        def free(completion):
            return 1.0
    """
    weights, bounds = (1.0, 3.0, 0.0), (-1.0, 1.0, 4.0, 0.0, 0.0, 1.0)
    rewards = make(code, "good", "bad", "free", reward_weights=weights, reward_range=bounds)
    # good maps -1, 0, 1 to 0, 1/2, 1; bad, a loss, maps 4, 0 to 0, 1
    cases = [("0", "loss", 1 / 8), ("1", "zero", 1.0), ("-1", "zero", 3 / 4), ("0", "none", 1 / 2), ("n", "zero", 1.0)]
    cases += [("n", "none", None), ("1", "fault", None)]  # a weight of 0 grades nothing
    scores = rewards.score([Row(prompt) for _, prompt, _ in cases], [completion for completion, *_ in cases])
    assert qualities(scores) == pytest.approx([quality for *_, quality in cases])
    assert [one.notes["reward_faults"] for one in scores] == [0.0] * 6 + [1.0]
    assert [one.notes["reward_good"] for one in scores] == [0.0, 1.0, -1.0, 0.0, 0.0, 0.0, 1.0]


def test_settings_that_contradict_each_other():
    def faults(**fields):
        return " ".join(settings.faults(TaskConfig(tasks=("tasks.jsonl",), **fields)))

    assert "scores nothing" in faults()
    two = ("a.py:f", "a.py:g")
    assert "has 1 weights for the 2 functions" in faults(reward=two, reward_weights=(1.0,))
    assert "are all 0" in faults(reward=two, reward_weights=(0.0, 0.0))
    assert "reward_weights = (1.0, -1.0) is below 0" in faults(reward=two, reward_weights=(1.0, -1.0))
    assert "has 3 numbers" in faults(reward=two, reward_range=(0.0, 1.0, 2.0))
    assert "equals the best" in faults(reward=two, reward_range=(0.0, 1.0, 2.0, 2.0))
    assert "names one twice" in faults(reward=("a.py:f", "a.py:f"))
    assert not faults(reward=two, reward_range=(0.0, 1.0, 2.0, 1.0), reward_weights=(0.0, 1.0))


# What is tried before

NEVER = """
    def nan(completion): return float("nan")
    def word(completion): return "good"
    def beyond(completion): return 7
    def raises(completion): return completion.missing
    def sometimes(completion): return int(completion)
    def nothing(completion): return None
    def by_tokens(completions, completion_ids, **columns): return [len(ids) / 4 for ids in completion_ids]
"""


@pytest.mark.parametrize("runs", ["workers", "inline"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nan", "nan"),
        ("word", "'good'"),
        ("beyond", "it returned 7, which is not in domain.reward_range"),
        ("raises", "has no attribute 'missing'"),
        ("sometimes", ""),
        ("nothing", ""),
        ("by_tokens", ""),
    ],
)
def test_a_reward_that_never_works_is_told_before_it_is_used(make, tmp_path, runs, name, said):
    rewards = make(NEVER, name, log=tmp_path / "log.jsonl", reward_runs=runs, retries=0)
    given = ([Row("a"), Row("b")], ["x", "7"] if name != "sometimes" else ["x", "1"], [[1], [2, 3]])
    if said:
        with pytest.raises(
            DomainError, match=rf":{name} fails on all of 2 completions .*'x' since .*{re.escape(said)}"
        ):
            rewards.try_out(*given)
    else:
        rewards.try_out(*given)
    assert not (tmp_path / "log.jsonl").exists(), "no completion of a policy has failed"


# What is checked before

WRONG = """
    def typo(completion, anwser): return 0.0
    def blind(prompt): return 0.0
    def stateful(completions, trainer_state, **kwargs): return 0.0
    def near(completions, prompt): return 0.0
    def by_place(completion, answer, /): return 0.0
    def runs(completion, run): return 0.0
    def fine(completion, answer, other=1): return 0.0
    class Kind:
        def __call__(self, completion): return 0.0
    number = 7
"""
SAID = {
    "typo": r"\(completion, anwser\): anwser is neither prompt nor completion nor a column; did you mean 'answer'\?",
    "blind": "no parameter is named completion",
    "stateful": "trainer_state is not to be had here",
    "near": r"prompt is neither completions nor prompts nor completion_ids nor a column; did you mean 'prompts'\?",
    "by_place": "answer can only be passed by its place",
    "runs": 'run is passed where domain.reward_runs = "sandbox"',
    "fien": r"there is no 'fien'; did you mean 'fine'\?",
    "Kind": "is a class",
    "number": "is 7, a int",
}


def test_signatures_are_checked_all_at_once(make):
    with pytest.raises(PluginError) as caught:
        make(WRONG, *SAID, "fine", columns=["answer"])
    lines = str(caught.value).split("\n")
    assert len(lines) == len(SAID)
    for line, (name, words) in zip(lines, SAID.items(), strict=True):
        assert name in line
        assert re.search(words, line), line


def test_imports_are_checked(make, tmp_path):
    with pytest.raises(PluginError, match=r"own_reward.py, line 3, raises ZeroDivisionError \(division by zero\)"):
        make("x = 1\n\ny = x / 0\n", "score")
    with pytest.raises(PluginError, match=r"there is no file .*nowhere\.py"):
        Rewards(TaskConfig(reward=(f"{tmp_path}/nowhere.py:score",)), None)
    with pytest.raises(PluginError, match="there is no module 'nowhere_at_all'"):
        Rewards(TaskConfig(reward=("nowhere_at_all:score",)), None)
    with pytest.raises(DomainError, match="the process that imports them: process killed by SIGSEGV"):
        make("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "score")


def test_files_are_inputs_of_the_run(make, own_folder):
    rewards = make("def score(completion): return 1", "score")
    name = f"{own_folder}/own_reward.py:score"
    assert rewards.files == {f"reward {name}": own_folder / "own_reward.py"}


# Accidents

ACCIDENTS = """
    import os, pathlib, signal, subprocess, time

    HERE = pathlib.Path(__file__).parent
    hoard = []

    def one(completion):
        with open(HERE / "calls", "a") as file:
            file.write(completion + "\\n")
        if "hang" in completion:
            sum(range(1 << 60))  # one call into C that never looks at signals
        if "sleep" in completion:
            child = subprocess.Popen(["sleep", "1000"])
            (HERE / "pid").write_text(str(child.pid))
            time.sleep(1000)
        if "die" in completion:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "exit" in completion:
            os._exit(0)
        if "bomb" in completion:
            bytearray(8 << 30)
        if "grow" in completion:
            hoard.append(b"." * (40 << 20))
        if "print" in completion:
            print("{}", flush=True)
            os.write(1, b"noise")
            assert input() == ""
        if "fork" in completion and not os.fork():
            return 0.0
        if "raise" in completion:
            raise KeyError(completion)
        return 1.0

    async def later(completion):
        return one(completion)

    def batch(completions):
        return list(map(one, completions))
"""
ODD = ["hang", "sleep", "die", "exit", "bomb"]


@pytest.mark.parametrize("name", ["one", "later", "batch"])
def test_an_accident_costs_its_item_and_is_remembered(make, own_folder, name):
    log = own_folder / "run" / "rewards.jsonl"
    completions = [text for number, odd in enumerate([*ODD, "raise"]) for text in (f"fine {number}", odd)] + ["fine"]
    fields = {"reward_memory_mb": 256, "reward_secs": 1.0, "retries": 0, "max_in_flight": 8}
    rewards = make(ACCIDENTS, name, log=log, **fields)
    scores = score(rewards, completions)
    assert qualities(scores) == [1.0 if "fine" in one else None for one in completions]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["start"] for row in rows] == [*ODD, "raise"]  # in the order of items
    assert rows[0]["reason"] in ("time limit", "wall-clock limit")  # the latter on a starved machine
    reasons = ["wall-clock limit", "process killed by SIGSEGV", "process ended with status 0"]
    assert [row["reason"] for row in rows[1:4]] == reasons
    assert "memory" in rows[4]["reason"]
    assert "KeyError: 'raise'" in rows[5]["reason"]
    assert "own_reward.py, line" in rows[5]["reason"]
    assert {row["kind"] for row in rows[:5]} == {"died"}
    wait_until(lambda: not is_running(int((own_folder / "pid").read_text())))  # what an item started ends with it

    (own_folder / "calls").write_text("")
    assert qualities(score(rewards, completions)) == qualities(scores)
    assert (own_folder / "calls").read_text() == "raise\n"  # a server may be back
    again = make(ACCIDENTS, name, log=log, **fields)
    assert qualities(score(again, completions)) == qualities(scores)
    called = (own_folder / "calls").read_text().split("\n")
    assert not set(ODD) & set(called)
    assert "fine 1" in called
    changed = make(ACCIDENTS + "    # edited", name, log=log, **fields)
    score(changed, ["die"])
    assert "die" in (own_folder / "calls").read_text().split("\n")[-2]


def test_a_leak_costs_nothing_but_a_new_process(make):
    rewards = make(ACCIDENTS, "one", reward_memory_mb=200, reward_workers=1)
    assert qualities(score(rewards, [f"grow {n}" for n in range(12)])) == [1.0] * 12


def test_what_functions_write_is_no_reply(make):
    rewards = make(ACCIDENTS.replace('assert input() == ""', "pass"), "one")
    assert qualities(score(rewards, ["print 1", "fork 2", "print 3"])) == [1.0] * 3


def test_a_process_that_dies_with_nothing_to_do_costs_nothing(make, own_folder):
    code = """
        import os, pathlib, signal, threading

        def score(completion):
            if completion == "later":
                (pathlib.Path(__file__).parent / "pid").write_text(str(os.getpid()))
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return 1.0
    """
    rewards = make(code, "score", reward_workers=1)
    assert qualities(score(rewards, ["later"])) == [1.0]
    wait_until(lambda: not is_running(int((own_folder / "pid").read_text())))
    assert qualities(score(rewards, ["a", "b"])) == [1.0, 1.0]


def test_a_module_that_reads_stdin_takes_no_job(make):
    rewards = make("import sys\ngiven = sys.stdin.read()\ndef score(completion): return not given", "score")
    assert qualities(score(rewards, ["a"])) == [1.0]


def test_modules_with_threads_are_not_forked(make):
    code = """
        import os, signal, threading

        lock, beats = threading.Condition(), []

        def beat():
            while True:
                with lock:
                    beats.append(1)
                    lock.notify_all()
                    lock.wait(0.01)

        threading.Thread(target=beat, daemon=True).start()

        def score(completion):
            if completion == "die":
                os.kill(os.getpid(), signal.SIGSEGV)
            with lock:
                count = len(beats)
                return lock.wait_for(lambda: len(beats) > count, 10.0)
    """
    rewards = make(code, "score", reward_workers=1, reward_secs=20.0)
    assert qualities(score(rewards, ["a", "die", "b"])) == [1.0, None, 1.0]


def test_a_batched_function_gets_small_batches_after_an_accident(make, own_folder):
    code = """
        import os, pathlib

        def batch(completions):
            with open(pathlib.Path(__file__).parent / "sizes", "a") as file:
                file.write(f"{len(completions)}\\n")
            if "die" in completions:
                os.abort()
            return [1.0] * len(completions)
    """
    rewards = make(code, "batch", reward_workers=1)

    def sizes(*completions):
        (own_folder / "sizes").write_text("")
        assert qualities(score(rewards, completions)) == [None if one == "die" else 1.0 for one in completions]
        return list(map(int, (own_folder / "sizes").read_text().split()))

    assert sizes(*(f"a{n}" for n in range(64))) == [16] * 4
    assert sizes("die", *(f"b{n}" for n in range(63)))[:2] == [16, 1]
    assert max(sizes(*(f"c{n}" for n in range(64)))) == 1
    assert max(sizes(*(f"d{n}" for n in range(64)))) == 2


def test_a_batch_that_raises_is_called_one_by_one(make, own_folder):
    code = """
        import pathlib

        def none(completions):
            with open(pathlib.Path(__file__).parent / "calls", "a") as file:
                file.write(f"{len(completions)} ")
            return []

        def batch(completions):
            return [1 / (one != "bad") for one in completions]

        def short(completions):
            return [1.0] if len(completions) == 1 else []
    """
    rewards = make(code, "batch", "short", reward_workers=1, retries=0)
    completions = [f"fine {n}" for n in range(7)] + ["bad"]
    assert qualities(score(rewards, completions)) == [1.0] * 7 + [None]
    rewards = make(code, "none", reward_workers=1, retries=5)
    assert qualities(score(rewards, completions[:7])) == [None] * 7
    assert (own_folder / "calls").read_text().split() == ["1"] * 7  # what is no reward is not tried again


def test_a_reward_that_fails_on_all_is_an_error(make):
    rewards = make("def score(completion): return 1 / len(completion[:0])", "score", retries=0)
    with pytest.raises(GradingError, match=r"failed on all of 8 completions: it raised ZeroDivisionError.*line 1\)"):
        score(rewards, list("abcdefgh"))
    assert qualities(score(rewards, list("abc"))) == [None] * 3


# Order, caches, tries


def test_order_does_not_depend_on_time(make):
    code = """
        import asyncio, time, zlib

        def slow(completion):
            time.sleep(zlib.crc32(completion.encode()) % 7 / 100)
            return int(completion) / 100

        async def later(completion):
            await asyncio.sleep(zlib.crc32(completion.encode()) % 7 / 100)
            return int(completion) / 100
    """
    completions = [str(n) for n in np.random.default_rng(0).permutation(60)]
    rewards = make(code, "slow", "later", reward_workers=3)
    assert qualities(score(rewards, completions)) == pytest.approx([int(one) / 100 for one in completions])


@WHERE
def test_equal_items_are_scored_once(make, own_folder, runs):
    rewards = make(ACCIDENTS, "one", "batch", reward_runs=runs)
    rows = [Row("A", {"x": 1}), Row("A", {"x": 1}), Row("A", {"x": 2}), Row("B", {"x": 1})]
    assert qualities(rewards.score(rows, ["same"] * 4)) == [1.0] * 4
    assert len((own_folder / "calls").read_text().split()) == 2 * 3
    rewards.score(rows, ["same"] * 4)
    assert len((own_folder / "calls").read_text().split()) == 2 * 3


@WHERE
def test_calls_in_flight_are_limited(make, runs):
    code = """
        import asyncio

        flying, loop = 0, None

        async def later(completion):
            global flying, loop
            loop = loop or asyncio.get_running_loop()
            assert loop is asyncio.get_running_loop()  # which clients of HTTP are bound to
            flying += 1
            most = flying
            for _ in range(20):
                await asyncio.sleep(0.005)
                most = max(most, flying)
            flying -= 1
            return {"score": 1.0, "most": most}
    """
    rewards = make(code, "later", figures=("most",), max_in_flight=6, reward_workers=2, reward_runs=runs)
    scores = score(rewards, [str(n) for n in range(40)]) + score(rewards, [str(n) for n in range(40, 80)])
    assert qualities(scores) == [1.0] * 80
    limit = 6 if runs == "inline" else 3  # of each process
    assert max(one.notes["most"] for one in scores) == limit
    assert make(code, "later", max_in_flight=1, reward_workers=4).num_workers == 1


@pytest.mark.parametrize(("is_async", "ends"), [(True, ("", 9.0)), (False, ("wall-clock limit", 3.0))])
def test_a_pause_is_not_cut_short_by_the_outcome_of_another_call(monkeypatch, is_async, ends):
    said = [(0.0, {"begin": 8.0}), (1.0, {"at": 0, "outcome": {}}), (9.0, {"done": ""})]
    now = 0.0

    def select(readable, _, __, patience):
        nonlocal now
        is_next = said[0][0] <= now + patience
        now = max(now, said[0][0]) if is_next else now + patience
        return (readable if is_next else []), [], []

    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    monkeypatch.setattr(worker.select, "select", select)
    monkeypatch.setattr(worker.os, "read", lambda *_: json.dumps(said.pop(0)[1]).encode() + b"\n")
    monkeypatch.setattr(worker.Keeper, "is_dead", lambda _: False)
    monkeypatch.setattr(worker.Keeper, "end", lambda _, why: why)
    keeper = object.__new__(worker.Keeper)
    keeper.parent, keeper.from_child = os.getppid(), -1
    assert (keeper.listen(lambda line: None, 2.0, is_async), now) == ends


def test_a_judge_over_http(make):
    """The server fails on each first request, and always on one; what it says then is no reward of 0."""
    seen: dict[bytes, int] = {}

    class Judge(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            text = self.rfile.read(int(self.headers["Content-Length"]))
            seen[text] = seen.get(text, 0) + 1
            is_up = seen[text] > 1 and text != b"bad"
            self.send_response(200 if is_up else 503)
            self.end_headers()
            self.wfile.write(b"0.5")

        def log_message(self, *_):
            pass

    code = """
        import asyncio, urllib.request

        def ask(text, url):
            with urllib.request.urlopen(url, text.encode()) as reply:
                return float(reply.read())

        async def judge(completion, url):
            if completion == "silent":
                await asyncio.sleep(1000)
            return await asyncio.to_thread(ask, completion, url)

        def blocking(completion, url):
            return ask(completion, url)
    """
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        row = Row("Judge.", {"url": f"http://127.0.0.1:{server.server_port}"})
        for name in ("judge", "blocking"):
            seen.clear()
            rewards = make(code, name, columns=["url"], reward_secs=2.0)
            assert qualities(score(rewards, ["a", "bad", "b"], row)) == [0.5, None, 0.5]
            assert seen == {b"a": 2, b"b": 2, b"bad": 3}
        rewards = make(code, "judge", columns=["url"], reward_secs=0.75, retries=1)
        assert qualities(score(rewards, ["silent", "c"], row)) == [None, 0.5]
        server.shutdown()


def test_workers_end_with_the_trainer(make, own_folder):
    code = """
        import os, pathlib, time

        def score(completion):
            (pathlib.Path(__file__).parent / f"pid {completion}").write_text(f"{os.getpid()} {os.getppid()}")
            time.sleep(1000 * (completion == "sleep"))
            return 1.0
    """
    make(code, "score")
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests" / "domains")!r})
from test_task_rewards import Rewards, Row, TaskConfig
rewards = Rewards(TaskConfig(reward=({str(own_folder / "own_reward.py:score")!r},), reward_workers=2, reward_secs=100.0), None)
rewards.score([Row("?")] * 2, ["idle", "sleep"])
"""
    trainer = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        files = [own_folder / "pid idle", own_folder / "pid sleep"]
        wait_until(lambda: all(file.exists() and " " in file.read_text() for file in files), 60.0)
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    wait_until(lambda: not any(map(is_running, pids)))


# The sandbox


def test_rewards_that_run_code(make):
    if shutil.which("bwrap") is None and os.environ.get("EXIT_JAX_REQUIRE_SANDBOX") != "1":
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    code = """
        def tests(completion, cases, run):
            results = [run(completion, stdin=given) for given, _ in cases]
            right = [one.stdout.strip() == said for one, (_, said) in zip(results, cases)]
            return {"score": sum(right) / len(right), "feedback": results[0].status}
    """
    row = Row("Double it.", {"cases": [["2\n", "4"], ["3\nrest", "6"]]})
    completions = [
        "print(2 * int(input()))",
        "from __future__ import annotations\nprint(2 * int(open(0).read().split()[0]))",
        "print(4)",
        "while True: pass",
        "import os\nprint(os.listdir('.'))\nraise SystemExit(3)",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(os.getpid(), signal.SIGKILL)",
    ]
    # a run may take longer than what a call has by the clock, 4 s
    fields = {"reward_runs": "sandbox", "run_secs": 6.0, "reward_secs": 1.0, "columns": ["cases"]}
    rewards = make(code, "tests", **fields)
    scores = score(rewards, completions, row)
    assert qualities(scores) == [1.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    assert [one.feedback for one in scores] == ["ok", "ok", "ok", "timeout", "crashed", "crashed"]


@pytest.mark.parametrize("stdin", ["", "3"])
def test_a_traceback_shows_the_lines_of_the_program(make, stdin):
    if shutil.which("bwrap") is None and os.environ.get("EXIT_JAX_REQUIRE_SANDBOX") != "1":
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    code = """
        def tests(completion, given, run):
            return {"score": 1, "feedback": run(completion, stdin=given).stderr}
    """
    rewards = make(code, "tests", reward_runs="sandbox", columns=["given"])
    (one,) = score(rewards, ["def f(x):\n    return x / 0\n\nf(3)\n"], Row("Mend it.", {"given": stdin}))
    words = [line.strip() for line in one.feedback.splitlines()]
    assert [line for line in words if line[:1] in "fr"] == ["f(3)", "return x / 0"]


def test_a_sandbox_that_cannot_be_had(make, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DomainError, match="bubblewrap"):
        make("def score(completion, run): return 1", "score", reward_runs="sandbox")
