"""Test BFCL's tasks, the environment on its back-ends, and that both verdicts are what they claim to be."""

import ast
import collections
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys
import sysconfig
import time

import pytest

from exit_jax.domains import workers
from exit_jax.domains.tool_use import bfcl
from exit_jax.domains.tool_use.bfcl import BfclEnvironment
from exit_jax.domains.tool_use.episode import Call, Episode, ReplayMismatch, Turn, system_prompt
from exit_jax.domains.tool_use.parser import MARKERS, render_call
from exit_jax.domains.workers import Job, Pool

SPLIT_DIGEST = "177a8c8da03f1325"
DONE, GIVE_UP = "<finished>", "<error>"
# runs bfcl-eval as it is, each check in a process of its own, forked before anything was checked; prints by case how many
# requests from the first on are valid, or what the ground truth's calls return
DIRECT = """
import json, os, pathlib, sys
import bfcl_eval
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import execute_multi_turn_func_call

data = pathlib.Path(bfcl_eval.__path__[0]) / "data"
read = lambda name: {row["id"]: row for row in map(json.loads, (data / name).read_text().splitlines())}
tasks = read("BFCL_v4_multi_turn_base.json")
truths = read("possible_answer/BFCL_v4_multi_turn_base.json")

def is_valid(task_id, made):
    if not (child := os.fork()):
        try:
            truth = truths[task_id]["ground_truth"][: len(made)]
            valid = multi_turn_checker(made, truth, tasks[task_id], "multi_turn_base", "some-model")["valid"]
        except Exception:
            valid = False
        os._exit(0 if valid else 1)
    return os.waitpid(child, 0)[1] == 0

def results(task_id):
    if not os.fork():
        task, texts = tasks[task_id], sum(truths[task_id]["ground_truth"], [])
        config, apis = task["initial_config"], task["involved_classes"]
        print(json.dumps(execute_multi_turn_func_call(texts, config, apis, "some-model", task_id)[0]), flush=True)
        os._exit(0)
    os.wait()

for line in sys.stdin:
    task_id, made = json.loads(line)
    if made is None:
        results(task_id)
    elif is_valid(task_id, made):
        print(len(made))
    else:
        print(next(count for count in range(len(made)) if not is_valid(task_id, made[: count + 1])))
"""
# a worker whose jobs say what it does
FAULTY = """
import json, os, signal, sys, time

print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if job["do"] == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep({"hang": 60, "slow": 0.5}.get(job["do"], 0))
    fields = {"error": "out of memory"} if job["do"] == "bomb" else {"pid": os.getpid(), "key": job.get("key", "")}
    print(json.dumps(fields | {"rss": (1 << 30) * (job["do"] == "grow")}), flush=True)
"""


@pytest.fixture(scope="module")
def tasks():
    try:
        return bfcl.load_tasks()
    except ImportError as error:
        if os.environ.get("EXIT_JAX_REQUIRE_PARITY") == "1":
            raise
        pytest.skip(f"parity: {error}")


@pytest.fixture
def make_environment(tasks):
    """Return a function that makes an BfclEnvironment; they are closed at the end."""
    made = []

    def make(num_workers=1, **settings):
        made.append(BfclEnvironment(tasks, num_workers, **settings))
        return made[-1]

    yield make
    for environment in made:
        environment.close()


def script(requests) -> list[str]:
    """Return the responses that make these calls, by request."""
    return [text for calls in requests for text in (*(render_call(call.name, call.arguments) for call in calls), DONE)]


def play(environment, scripts, max_turns=100, num_requests=None) -> list[Episode]:
    """Play scripts of (task id, responses) in lockstep, each until it or its episode ends."""
    episodes = [environment.reset(task_id)[0] for task_id, _ in scripts]
    for turn in range(max(len(responses) for _, responses in scripts)):
        rows = [row for row, (_, responses) in enumerate(scripts) if turn < len(responses) and not episodes[row].ended]
        pairs = [(episodes[row], scripts[row][1][turn]) for row in rows]
        for row, result in zip(rows, environment.step_many(pairs, max_turns, num_requests)):
            assert result.episode_finished == result.episode.ended
            assert result.observation == result.episode.turns[-1].observation
            episodes[row] = result.episode
    return episodes


def run_direct(rows) -> list:
    """Return what ``DIRECT`` prints on (task id, calls as text by request or None), in a fresh process."""
    environment = os.environ | {"PYTHONHASHSEED": "0", "TZ": "UTC"}
    command, text = [sys.executable, "-W", "ignore", "-c", DIRECT], "\n".join(map(json.dumps, rows))
    done = subprocess.run(command, input=text, env=environment, text=True, capture_output=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def num_valid_directly(cases) -> list[int]:
    """Return how many requests of (task id, calls by request) are valid, says bfcl-eval."""
    text = lambda call: f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"
    return run_direct(
        [(task_id, [[[text(call)] for call in calls] for calls in requests]) for task_id, requests in cases]
    )


def num_official(episode: Episode) -> int:
    return sum(verdict.official is True for verdict in episode.verdicts)


# ---- tasks and splits


def test_tasks(tasks):
    assert len(tasks) == 200
    assert sum(len(task.requests) for task in tasks.values()) == 734
    for task in tasks.values():
        assert len(task.requests) == len(task.truth) == len(task.truth_texts)
        assert all(task.requests)
        for call in (call for calls in task.truth for call in calls):
            parameters = task.functions[call.name]["parameters"]
            assert set(parameters.get("required", ())) <= set(call.arguments) <= set(parameters["properties"])
    names = {
        (name, *doc["parameters"]["properties"]) for task in tasks.values() for name, doc in task.functions.items()
    }
    assert all(word.isidentifier() for row in names for word in row)


def test_splits_are_stratified_and_do_not_move(tasks):
    splits = bfcl.split_tasks(tasks)
    sets = {name: set(ids) for name, ids in splits.items()}
    assert {name: len(ids) for name, ids in sets.items()} == {"train": 100, "validation": 25, "test": 100, "tuning": 75}
    assert sets["train"] | sets["test"] == tasks.keys()
    assert sets["validation"] | sets["tuning"] == sets["train"]
    for trait in (lambda task: tuple(sorted(task.apis)), lambda task: len(task.requests)):
        count = {name: collections.Counter(trait(tasks[task_id]) for task_id in ids) for name, ids in splits.items()}
        assert all(abs(count["train"][kind] - count["test"][kind]) <= 4 for kind in count["train"] | count["test"])
        assert all(abs(count["train"][kind] / 4 - count["validation"][kind]) <= 1.5 for kind in count["train"])
    assert hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:16] == SPLIT_DIGEST
    assert bfcl.split_tasks(tasks, seed=1) != splits


def test_system_prompt_names_every_function_and_marker(tasks):
    for task in list(tasks.values())[::20]:
        prompt = system_prompt(task)
        assert all(f'{{"name": "{name}", ' in prompt for name in task.functions)
        assert all(marker in prompt for marker in dataclasses.astuple(MARKERS))
        assert prompt.count("This tool belongs to") == len(task.apis)
        assert '"type": "dict"' not in prompt
        assert '"type": "float"' not in prompt


@pytest.mark.parametrize("version", ["1.0", None])
def test_another_version_is_an_error(monkeypatch, version):
    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    with pytest.raises(
        ImportError,
        match=r"bfcl-eval is (1.0|missing), .*: pip install \"exit_jax\[tools\]\" && pip install --no-deps bfcl-eval==",
    ):
        bfcl.find_package()


def test_the_worker_imports_no_jax():
    tree = ast.parse(bfcl.WORKER.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"bfcl_eval", "exit_jax"}


# ---- episodes


def test_an_episode_turn_by_turn(tasks, make_environment):
    environment, task = make_environment(), tasks["multi_turn_base_0"]
    episode, text = environment.reset(task.id)
    assert text == task.requests[0]
    responses = ["hm", render_call("rm", {}), *script(task.truth[:1]), GIVE_UP]
    kinds = []
    for response in responses:
        result = environment.step(episode, response, max_turns=60)
        episode = result.episode
        kinds.append((episode.turns[-1].kind, result.request_finished, result.episode_finished))
    assert kinds == [
        ("invalid", False, False),
        ("invalid", False, False),
        ("call", False, False),
        ("call", False, False),
        ("call", False, False),
        ("finished", True, False),
        ("error", False, True),
    ]
    observations = [turn.observation for turn in episode.turns]
    assert observations[0].startswith("End your response with")
    assert observations[2:4] == ['{"current_working_directory": "document"}', "None"]
    assert observations[5:] == [task.requests[1], ""]
    assert (episode.how, episode.request, episode.num_fulfilled, episode.num_invalid) == ("error", 1, 1, 2)
    stats = environment.stats
    assert (stats.num_steps, stats.num_calls, stats.num_invalid, stats.num_judged) == (7, 3, 2, 1)
    with pytest.raises(ValueError, match="1 episodes have ended already"):
        environment.step(episode, DONE, max_turns=60)
    with pytest.raises(ValueError, match="max_turns=0"):
        environment.step(episode.before(0), DONE, max_turns=0)


@pytest.mark.parametrize(
    ("max_turns", "num_requests", "how", "num_turns", "num_fulfilled"),
    [
        (60, None, "finished", 14, 4),
        (14, None, "finished", 14, 4),
        (13, None, "turns", 13, 3),
        (4, None, "turns", 4, 1),
        (60, 99, "finished", 14, 4),
        (60, 1, "finished", 4, 1),
        (4, 1, "finished", 4, 1),
        (3, 1, "turns", 3, 0),
    ],
)
def test_limits(tasks, make_environment, max_turns, num_requests, how, num_turns, num_fulfilled):
    task = tasks["multi_turn_base_0"]
    (episode,) = play(make_environment(), [(task.id, script(task.truth))], max_turns, num_requests)
    assert (episode.how, len(episode.turns), episode.num_fulfilled) == (how, num_turns, num_fulfilled)


def test_states_are_cached_rebuilt_and_never_shared(tasks, make_environment):
    scripts = [(task.id, script(task.truth)) for task in list(tasks.values())[::20] for _ in range(3)]  # groups alike
    first, second, other = make_environment(), make_environment(), make_environment(num_workers=2)
    episodes = play(first, scripts)
    assert first.stats.num_replayed == 0
    assert all(episode.num_fulfilled == len(tasks[episode.task_id].requests) for episode in episodes)
    assert play(other, scripts) == episodes
    rng, episodes = random.Random(0), episodes[::3]
    cuts = [rng.randrange(len(episode.turns)) for episode in episodes]
    befores = [episode.before(cut) for episode, cut in zip(episodes, cuts)]
    assert not any(before.ended for before in befores)
    num_replayed = sum(turn.kind == "call" for before in befores for turn in before.turns)
    while befores:
        pairs = [(before, dict(scripts)[before.task_id][len(before.turns)]) for before in befores]
        results = second.step_many(pairs, max_turns=100)
        assert all(result.episode in episodes for result in results if result.episode_finished)
        befores = [result.episode for result in results if not result.episode_finished]
    assert second.stats.num_mismatches == 0
    assert second.stats.num_replayed == num_replayed  # after the first turn it had what it had just rebuilt


def test_a_past_that_comes_out_otherwise_is_reported(tasks, make_environment):
    environment, task = make_environment(), tasks["multi_turn_base_0"]
    (episode,) = play(environment, [(task.id, script(task.truth)[:3])])
    forged = dataclasses.replace(episode.turns[1], observation="it went well")
    episode = Episode(task.id, (episode.turns[0], forged, episode.turns[2]))
    mismatch = ReplayMismatch(1, "it went well", "None")
    result = environment.step(episode, DONE, max_turns=60)
    assert (result.mismatch, result.episode.how, result.episode_finished) == (mismatch, "mismatch", True)
    assert environment.stats.num_mismatches == 1
    assert environment.num_replaced == 0


def test_a_call_that_hangs_costs_its_episode(tasks, make_environment, tmp_path):
    log = tmp_path / "logs" / "crashes.jsonl"
    task = next(task for task in tasks.values() if "MathAPI" in task.apis)
    hang = (task.id, [render_call("power", {"base": 9, "exponent": 9**9})])
    plain = [(task.id, script(task.truth)) for task in list(tasks.values())[:4]]
    environment = make_environment(num_workers=2, call_secs=1.0, crash_log=log)
    episodes = play(environment, [hang, *plain])
    assert [episode.how for episode in episodes] == ["crashed"] + ["finished"] * 4
    assert all(verdict.success for episode in episodes for verdict in episode.verdicts)
    assert (environment.stats.num_crashed, environment.num_replaced) == (1, 1)
    (row,) = map(json.loads, log.read_text().splitlines())
    assert (row["task"], row["call"][0]) == (task.id, "power")
    assert row["reason"] in ("time limit", "wall-clock limit")  # the latter on a starved machine
    again = make_environment(crash_log=log)
    assert play(again, [hang]) == episodes[:1]
    assert again._pool._workers == []


def test_all_memory_is_a_crash_too(tasks, make_environment, tmp_path):
    log = tmp_path / "crashes.jsonl"
    task = next(task for task in tasks.values() if "MathAPI" in task.apis)
    bomb = render_call("square_root", {"number": 2, "precision": 10**17})
    (episode,) = play(make_environment(call_secs=20.0, crash_log=log), [(task.id, [bomb])])
    assert episode.how == "crashed"
    assert json.loads(log.read_text())["reason"] == "out of memory"


def test_a_display_that_fails_and_another_request_are_no_crash(tasks, make_environment, tmp_path, monkeypatch):
    log, task = tmp_path / "crashes.jsonl", tasks["multi_turn_base_0"]
    environment = make_environment(crash_log=log)
    (episode,) = play(environment, [(task.id, script(task.truth)[:3])])

    def killed(jobs):
        return ((index, {"error": "worker killed by SIGKILL"}) for index in range(len(jobs)))

    with monkeypatch.context() as patch:
        patch.setattr(environment._pool, "run", killed)
        assert "request 1" in environment.describe(episode)
    assert (log.exists(), environment.stats.num_crashed) == (False, 0)
    judged = environment.step(episode, DONE, max_turns=60).episode
    assert judged.verdicts[0].success
    with monkeypatch.context() as patch:  # the verdict on the second request, in the same state
        patch.setattr(environment._pool, "run", killed)
        assert environment.step(judged, DONE, max_turns=60).episode.how == "crashed"
    assert json.loads(log.read_text())["judge"] == 2
    for again in (environment, make_environment(crash_log=log)):
        assert again.step(episode, DONE, max_turns=60).episode == judged
        assert again.step(judged, DONE, max_turns=60).episode.how == "crashed"


def test_directories_that_contain_themselves(tasks, make_environment):
    environment, task = make_environment(call_secs=1.0), tasks["multi_turn_base_0"]
    twice = [render_call("cp", {"source": "document", "destination": "document"}), render_call("find", {})]
    (episode,) = play(environment, [(task.id, [*twice, DONE])], num_requests=1)
    assert episode.turns[1].observation.startswith("Error during execution: maximum recursion depth")
    assert not episode.verdicts[0].success
    assert not episode.verdicts[0].official


# ---- isolation


def test_defaults_that_the_back_end_changes_do_not_leak(tasks, make_environment):
    task = next(task for task in tasks.values() if "TwitterAPI" in task.apis)
    config = task.initial_config["TwitterAPI"]
    login = render_call("authenticate_twitter", {name: config[name] for name in ("username", "password")})
    post, counter = render_call("post_tweet", {"content": "a"}), config["tweet_counter"]
    mention = render_call("mention", {"tweet_id": counter, "mentioned_usernames": ["@eve"]})
    environment = make_environment()
    for responses in (
        [login, post, mention, post, DONE],
        [login, post],
    ):  # the first is judged, too, by the official checker
        (episode,) = play(environment, [(task.id, responses)])
        posted = [json.loads(turn.observation) for turn in episode.turns if turn.name == "post_tweet"]
        assert [tweet["mentions"] for tweet in posted] == [[]] * len(posted)


def load_worker():
    spec = importlib.util.spec_from_file_location("bfcl_worker", bfcl.WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    return worker


def hostile(path: pathlib.Path) -> list[str]:
    """Return strings that would make a file if any of them was run."""
    code = f"__import__('pathlib').Path({str(path)!r}).touch()"
    return [
        code,
        f"' + str({code}) + '",
        f"'); {code}; ('",
        f'"); {code}; ("',
        f"'''\n{code}\n'''",
        f"\\'); {code} #",
        f"\\\\'); {code} #",
        f"x')\n{code}\n('",
        f"{{{code}}}",
        f"\\N{{LATIN SMALL LETTER A}}') or {code} or ('",
        f"$({code}) `{code}`",
        f"cd({code})",
        f"\tail({code}) \x0bcat (1) echo  (2)",  # the checker's search for calls reaches into strings
        f"\r\u2028\x00\x85'; {code}",
        f"😀é\u202e') or {code}",
        f"%s {{0}} {{0.__class__}} {code}" * 50,
        "x" * 15_000 + f"'); {code}",
    ]


def test_hostile_arguments_never_run(tasks, make_environment, tmp_path):
    canary = tmp_path / "canary"
    task = tasks["multi_turn_base_0"]
    environment = make_environment()
    scripts, cases = [], []
    for text in hostile(canary):
        calls = [Call("touch", {"file_name": "f"}), Call("echo", {"content": text, "file_name": "f"})]
        calls += [
            Call("cat", {"file_name": "f"}),
            Call("cd", {"folder": text}),
            Call("find", {"name": text, "path": "."}),
        ]
        calls += [Call("tail", {"file_name": "f", "lines": [text, {text: text}]})]
        scripts += [(task.id, script([calls]))]
        scripts += [(task.id, script([(*task.truth[0], Call("grep", {"file_name": text, "pattern": text}))]))]
        cases += [(task.id, [calls]), (task.id, [[*task.truth[0], Call("grep", {"file_name": text, "pattern": text})]])]
    episodes = play(environment, scripts, num_requests=1)
    assert not canary.exists()
    assert {episode.how for episode in episodes} == {"finished"}
    for text, episode in zip(hostile(canary), episodes[::2]):
        shown = episode.turns[2].observation
        assert json.loads(shown)["file_content"] == text if len(shown) < 8000 else shown.endswith(" characters in all)")
    assert [episode.num_fulfilled for episode in episodes] == [0, 1] * len(hostile(canary))
    # bfcl-eval does evaluate; what it is given are literals
    assert [num_official(episode) for episode in episodes] == num_valid_directly(cases)
    assert not canary.exists()


def test_names_and_arguments_that_are_no_literals_are_refused_by_the_worker_itself(tasks, tmp_path):
    worker, canary = load_worker(), tmp_path / "canary"
    backends = worker.Backends(1.0)
    backends.load(worker.APIS)
    try:
        row = tasks["multi_turn_base_0"]
        task = {"involved_classes": row.apis, "initial_config": row.initial_config}
        state = worker.start_state(backends, task)
        vars(backends.utils)["instance"] = state["GorillaFileSystem"]
        assert backends.evaluate("instance.pwd()") == state["GorillaFileSystem"].pwd()
        assert backends.evaluate("instance.ls(a=True)") == state["GorillaFileSystem"].ls(a=True)
        code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
        for text in (
            code,
            f"instance.cd({code})",
            f"instance.cd(folder={code})",
            f"instance.cd(*{code})",
            f"instance.cd(**{code})",
            f"instance.cd('a') or {code}",
            f"instance.cd('a'); {code}",
            f"(lambda: {code})()",
            f"[{code}][0]()",
            "instance._load_scenario({})",
            "instance.__init__()",
            "instance.pwd.__func__(1)",
            "cd('a')",
            "json.loads('1')",
            "copy",
        ):
            with pytest.raises((ValueError, NameError, SyntaxError)):
                backends.evaluate(text)
        names = ("__init__", "_load_scenario", "__class__", "root", "no_such", "")
        assert all("is not defined" in worker.execute(backends, state, name, {}) for name in names)
    finally:
        del vars(backends.utils)["eval"], vars(backends.utils)["instance"]
    assert not canary.exists()


# ---- fidelity


def change(value, rng: random.Random):
    """Return a value of the same kind that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + rng.choice((1, -1, 0.5))
    if isinstance(value, str):
        return rng.choice((value + "x", value[:-1] or "y", value.swapcase(), value + "/"))
    if isinstance(value, list):
        return rng.choice((value[::-1], value[:-1], [*value, "z"]))
    return "other"


def mutate(requests, pool: list[Call], rng: random.Random) -> tuple[str, list[list[Call]]]:
    """Return the kind of mutation and calls by request: dropped, reordered, moved, altered, added, repeated."""
    requests = [list(calls) for calls in requests]
    spots = [(row, column) for row, calls in enumerate(requests) for column in range(len(calls))]
    row, column = rng.choice(spots)
    call = requests[row][column]
    kind = rng.choice(("drop", "swap", "move", "alter", "add", "repeat"))
    if kind == "drop":
        del requests[row][column]
    elif kind == "swap":
        other_row, other_column = rng.choice(spots)
        requests[row][column], requests[other_row][other_column] = requests[other_row][other_column], call
    elif kind == "move":
        del requests[row][column]
        requests[rng.randrange(len(requests))].append(call)
    elif kind == "alter" and call.arguments:
        name = rng.choice(sorted(call.arguments))
        requests[row][column] = Call(call.name, {**call.arguments, name: change(call.arguments[name], rng)})
    else:
        added = call if kind == "repeat" else rng.choice(pool)
        requests[row].insert(rng.randint(0, len(requests[row])), added)
    return kind, requests


def mutated(tasks, num_each: int, seed: int) -> list[tuple[str, str, list[list[Call]]]]:
    """Return (task id, kind, calls by request), each with one to three mutations."""
    rng, pools, rows = random.Random(seed), collections.defaultdict(list), []
    for task in tasks.values():
        for call in (call for calls in task.truth for call in calls):
            pools[task.functions[call.name]["api"]].append(call)
    for task in tasks.values():
        pool = [call for api in task.apis for call in pools[api]]
        for _ in range(num_each):
            requests, kinds = task.truth, []
            for _ in range(rng.choice((1, 1, 2, 3))):
                if any(requests):
                    kind, requests = mutate(requests, pool, rng)
                    kinds.append(kind)
            rows.append((task.id, "+".join(kinds), [list(calls) for calls in requests]))
    return rows


def causes(episode: Episode, task) -> list[str]:
    """Return why the two rules differ, for each request on which they do."""
    found = []
    for verdict, true in zip(episode.verdicts, task.truth):
        if verdict.success and not verdict.official:
            found.append(f"official rejects: {verdict.official_error}")
        elif verdict.official and not verdict.success:
            what = "the state" if not verdict.states_equal else "a true call"
            found.append(f"paper rejects: {what}" + " where there is no true call" * (not true))
    return found


KNOWN_CAUSES = {
    "official rejects: an earlier request failed",
    "official rejects: multi_turn:empty_turn_model_response",
    "official rejects: multi_turn:execution_response_mismatch",
    "paper rejects: a true call",
    "paper rejects: the state where there is no true call",
}


def compare(tasks, make_environment, num_each: int, seed: int) -> collections.Counter:
    """Judge mutated trajectories by both rules, and by bfcl-eval itself; return the causes of disagreement."""
    rows = mutated(tasks, num_each, seed)
    environment = make_environment(num_workers=2)
    episodes = play(environment, [(task_id, script(requests)) for task_id, _, requests in rows])
    assert {episode.how for episode in episodes} == {"finished"}
    direct = num_valid_directly([(task_id, requests) for task_id, _, requests in rows])
    assert [num_official(episode) for episode in episodes] == direct
    counter = collections.Counter(cause for episode in episodes for cause in causes(episode, tasks[episode.task_id]))
    counter["requests"] = sum(len(episode.verdicts) for episode in episodes)
    counter["trajectories"] = len(episodes)
    counter["official successes"] = sum(direct)
    counter["paper successes"] = sum(episode.num_fulfilled for episode in episodes)
    assert set(counter) - {"requests", "trajectories", "official successes", "paper successes"} <= KNOWN_CAUSES
    return counter


def check_truth(tasks, make_environment):
    episodes = play(make_environment(num_workers=2), [(task.id, script(task.truth)) for task in tasks.values()])
    for episode, task in zip(episodes, tasks.values()):
        assert episode.num_fulfilled == num_official(episode) == len(task.requests)
    observations = [[turn.observation for turn in episode.turns if turn.kind == "call"] for episode in episodes]
    assert observations == run_direct([(task_id, None) for task_id in tasks])


def test_the_ground_truth_is_right_by_both_rules(tasks, make_environment):
    check_truth({task_id: tasks[task_id] for task_id in list(tasks)[::10]}, make_environment)


def test_verdicts_on_mutated_trajectories(tasks, make_environment):
    few = {task_id: tasks[task_id] for task_id in list(tasks)[::16]}
    counter = compare(few, make_environment, num_each=2, seed=0)
    assert 0 < counter["official successes"] < counter["requests"]


@pytest.mark.slow
def test_the_ground_truth_of_all_tasks_is_right_by_both_rules(tasks, make_environment):
    check_truth(tasks, make_environment)


@pytest.mark.slow
@pytest.mark.long
def test_verdicts_on_thousands_of_mutated_trajectories(tasks, make_environment):
    counter = compare(tasks, make_environment, num_each=11, seed=1)
    print("\n".join(f"{count:6d} {cause}" for cause, count in counter.most_common()))
    assert counter["trajectories"] >= 2000


# ---- the pool


@pytest.fixture
def make_pool(tmp_path):
    path, made = tmp_path / "faulty.py", []
    path.write_text(FAULTY)

    def make(num_workers=1, text=FAULTY):
        path.write_text(text)
        made.append(Pool(path, [], num_workers, needs="everything"))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def run(pool, *todo, limit_secs=20.0):
    """Return the replies to jobs, each (what to do, state) or what to do."""
    pairs = [(row, "") if isinstance(row, str) else row for row in todo]
    jobs = [Job({"do": do, "key": state}, limit_secs, state) for do, state in pairs]
    replies = dict(pool.run(jobs))
    return [replies[index] for index in range(len(jobs))]


@pytest.mark.parametrize(
    ("do", "reason"), [("hang", "wall-clock limit"), ("die", "worker killed by SIGSEGV"), ("bomb", "out of memory")]
)
def test_a_fault_costs_one_job(make_pool, do, reason):
    pool = make_pool()
    first, fault, last = run(pool, "", do, "", limit_secs=1.0)
    assert fault["error"] == reason
    assert first["pid"] != last["pid"]
    assert pool.num_replaced == 1


def test_a_worker_that_has_grown_is_retired(make_pool):
    pids = [reply["pid"] for reply in run(make_pool(), "", "grow", "")]
    assert pids[0] == pids[1] != pids[2]


def test_jobs_go_where_their_state_is_but_do_not_wait_for_it(make_pool):
    pool = make_pool(num_workers=2)
    while len({reply["pid"] for reply in run(pool, ("slow", "a"), ("slow", "b"))}) < 2:
        pass
    here, there = (reply["pid"] for reply in run(pool, ("slow", "a"), ("slow", "b")))
    replies = run(pool, ("slow", "b"), ("slow", "a"))
    assert [reply["pid"] for reply in replies] == [there, here]
    replies = run(pool, ("slow", "a"), *[("", "a")] * 20, ("", "b"))
    assert [reply["pid"] for reply in replies].count(here) == 1


def test_an_idle_worker_that_died_costs_no_job(make_pool):
    pool = make_pool()
    run(pool, "")
    pool._workers[0].process.kill()
    pool._workers[0].process.wait()
    assert "error" not in run(pool, "")[0]


def test_jobs_given_up_leave_nothing_behind(make_pool):
    pool = make_pool()
    for _ in pool.run([Job({"do": ""}, 20.0), Job({"do": "slow"}, 20.0)]):
        break
    assert "pid" in run(pool, "")[0]


def test_workers_that_cannot_start_and_closed_pools_are_errors(make_pool):
    with pytest.raises(RuntimeError, match="no worker starts: worker ended with status 3; is everything installed"):
        run(make_pool(text="raise SystemExit(3)"), "")
    with pytest.raises(ValueError, match="num_workers=0"):
        make_pool(num_workers=0)
    pool = make_pool()
    run(pool, "")
    (worker,) = pool._workers
    pool.close()
    assert worker.process.poll() is not None
    with pytest.raises(RuntimeError, match="closed"):
        run(pool, "")


def test_a_worker_finds_this_package(make_pool, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "own")
    (reply,) = run(make_pool(text=FAULTY.replace("os.getpid()", "__import__('exit_jax').__file__")), "")
    assert pathlib.Path(reply["pid"]).parents[1] == pathlib.Path(workers.ROOT)
    assert workers.python_path() == f"{workers.ROOT}{os.pathsep}own"
    monkeypatch.delenv("PYTHONPATH")
    assert workers.python_path() == workers.ROOT
    monkeypatch.setattr(workers, "ROOT", sysconfig.get_path("purelib"))
    assert workers.python_path() == "", "it is there already, behind the standard library"


def test_turns_of_a_partial_history():
    turns = tuple(Turn("call", str(index), "ls") for index in range(3))
    episode = Episode("task", turns, "turns")
    assert episode.before(2) == Episode("task", turns[:2])
    assert not episode.before(3).ended
    with pytest.raises(ValueError, match="turn=4 must be between 0 and 3"):
        episode.before(4)


def test_steps_take_no_time_worth_mentioning(tasks, make_environment):
    environment, task = make_environment(), tasks["multi_turn_base_0"]
    play(environment, [(task.id, script(task.truth))])
    started = time.process_time()
    play(environment, [(task.id, script(task.truth))] * 5)
    assert time.process_time() - started < 1.0  # of this process, for 70 steps
