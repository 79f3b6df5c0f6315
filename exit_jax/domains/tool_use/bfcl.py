"""BFCL v3 multi-turn-base: the 200 tasks, their splits, and the two verdicts.

All of BFCL is read from the installed bfcl-eval package; none of it is in this repository. Episodes are pure data
(episode.py): `BfclEnvironment` plays a turn by handing the calls to worker processes (worker.py), whose live instances are a
cache of what the recorded calls lead to.

Two verdicts on each request that a response finishes (what BFCL calls a turn is a request here, ExIt §5):

- The paper's: the public attributes of all the task's instances equal those that the ground truth leads to, and this request's
  true calls are among the calls made so far, each as often as it is there, arguments compared with defaults filled in. Calls
  made for earlier requests count, as they do for the official checker. This is the reward.
- The official one: bfcl-eval's ``multi_turn_checker`` on the requests up to this one.

A request that no finished marker ends (error marker, turns used up, crash) has no verdict and earns nothing.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from exit_jax.domains.tool_use.episode import (
    Call,
    Episode,
    ReplayMismatch,
    Stats,
    StepResult,
    Task,
    Turn,
    Verdict,
    advance,
    check_steps,
    describe,
)
from exit_jax.domains.tool_use.parser import MARKERS, Markers, parse
from exit_jax.domains.tool_use.worker import digest
from exit_jax.domains.ungraded import UngradedLog
from exit_jax.domains.worker_process import WALL_FACTOR
from exit_jax.domains.workers import Job, Pool

VERSION = "2026.3.23"
INSTALL = f'pip install "exit_jax[tools]" && pip install --no-deps bfcl-eval=={VERSION}'
CATEGORY = "BFCL_v4_multi_turn_base.json"
SPLIT_SEED = 20250904
NUM_VALIDATION = 25
WORKER = pathlib.Path(__file__).with_name("worker.py")
MEMORY_BYTES = 1 << 30  # a worker's address space
DOCUMENTS = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}
JSON_TYPES = {"dict": "object", "float": "number"}  # BFCL's names that JSON Schema does not have


def find_package() -> pathlib.Path:
    """Return the folder of bfcl-eval, without importing it.

    Raises:
        ImportError: it is missing, or of another version.
    """
    try:
        version = importlib.metadata.version("bfcl-eval")
    except importlib.metadata.PackageNotFoundError:
        version = None
    spec = importlib.util.find_spec("bfcl_eval")
    if version != VERSION or spec is None or not spec.submodule_search_locations:
        raise ImportError(f"bfcl-eval is {version or 'missing'}, this needs {VERSION}: {INSTALL}")
    if importlib.util.find_spec("mpmath") is None:
        raise ImportError(f"bfcl-eval's mathematics needs mpmath: {INSTALL}")
    return pathlib.Path(spec.submodule_search_locations[0])


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@functools.cache
def load_tasks() -> Mapping[str, Task]:
    """Return BFCL's multi-turn-base tasks by id, in BFCL's order.

    Raises:
        ImportError: bfcl-eval is missing, or of another version.
    """
    data = find_package() / "data"
    documents = {
        api: read_functions(data / "multi_turn_func_doc" / f"{name}.json", api) for api, name in DOCUMENTS.items()
    }
    truths = {row["id"]: row["ground_truth"] for row in read_lines(data / "possible_answer" / CATEGORY)}
    tasks = {}
    for row in read_lines(data / CATEGORY):
        functions = {name: doc for api in row["involved_classes"] for name, doc in documents[api].items()}
        tasks[row["id"]] = Task(
            id=row["id"],
            apis=tuple(row["involved_classes"]),
            requests=tuple("\n".join(message["content"] for message in request) for request in row["question"]),
            functions=functions,
            initial_config=row["initial_config"],
            truth=tuple(tuple(read_call(text, functions) for text in texts) for texts in truths[row["id"]]),
            truth_texts=tuple(map(tuple, truths[row["id"]])),
        )
    return tasks


def read_functions(path: pathlib.Path, api: str) -> dict[str, dict[str, Any]]:
    """Return an API's documents by function name, with JSON Schema's names of types, and the API's own text split off."""
    functions = {}
    for row in read_lines(path):
        about, _, description = row["description"].rpartition(" Tool description: ")
        functions[row["name"]] = {
            "description": description,
            "parameters": to_json_schema(row["parameters"]),
            "response": to_json_schema(row["response"]),
            "api": api,
            "about_api": about,
        }
    return functions


def to_json_schema(schema: Any) -> Any:
    """Return a schema with BFCL's names of types replaced."""
    if isinstance(schema, list):
        return [to_json_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    renamed = {key: to_json_schema(value) for key, value in schema.items()}
    if isinstance(schema.get("type"), str):
        renamed["type"] = JSON_TYPES.get(schema["type"], schema["type"])
    return renamed


def read_call(text: str, functions: Mapping[str, Mapping[str, Any]]) -> Call:
    """Return a call of the ground truth, arguments without a name given that of the parameter in their place."""
    call: Any = ast.parse(text, mode="eval").body
    parameters = functions[call.func.id]["parameters"]["properties"]
    arguments = dict(zip(parameters, map(ast.literal_eval, call.args)))
    return Call(call.func.id, arguments | {word.arg: ast.literal_eval(word.value) for word in call.keywords})


def draw(task_id: str, seed: int) -> str:
    """Return a task's random number, the same in every version of Python."""
    return hashlib.sha256(f"{seed} {task_id}".encode()).hexdigest()


def take_every(tasks: Sequence[Task], size: int, seed: int) -> list[Task]:
    """Return one task of each ``size``, stratified by API set and, within that, by number of requests.

    Tasks are lined up by stratum, the number of requests rising and falling in turns from one API set to the next, so that
    neighbours are alike across borders, too; then one is drawn of each ``size`` in a row.
    """
    groups: dict[tuple[str, ...], list[Task]] = {}
    for task in sorted(tasks, key=lambda task: (sorted(task.apis), len(task.requests), draw(task.id, seed))):
        groups.setdefault(tuple(sorted(task.apis)), []).append(task)
    line = [task for index, group in enumerate(groups.values()) for task in (group[::-1] if index % 2 else group)]
    rows = (line[start : start + size] for start in range(0, len(line), size))
    return [min(row, key=lambda task: draw(task.id, seed + 1)) for row in rows]


def split_tasks(tasks: Mapping[str, Task], seed: int = SPLIT_SEED) -> dict[str, tuple[str, ...]]:
    """Return task ids by split: train and test halves, and the part of train on which hyperparameters are chosen.

    "validation" is part of "train"; "tuning" is the rest of it, to train on while they are chosen.
    """
    train = take_every(list(tasks.values()), 2, seed)
    validation = take_every(train, len(train) // NUM_VALIDATION, seed)
    ids = {"train": {task.id for task in train}, "validation": {task.id for task in validation}}
    ids |= {"test": tasks.keys() - ids["train"], "tuning": ids["train"] - ids["validation"]}
    return {name: tuple(task_id for task_id in tasks if task_id in chosen) for name, chosen in ids.items()}


class BfclEnvironment:
    """Plays episodes on worker processes, which start at the first call that needs them."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        num_workers: int,
        call_secs: float = 2.0,
        crash_log: pathlib.Path | None = None,
        markers: Markers = MARKERS,
    ):
        """Read what crashed in an earlier run.

        Args:
            tasks: by id, as from ``load_tasks``.
            num_workers: processes at work at the same time.
            call_secs: processor time of one call, and a quarter of its limit by the clock.
            crash_log: JSON lines, appended to; a call that it names crashes again, without being made, so that a resumed run
                repeats what came of it. Delete it to try again.
            markers: the texts that end a response.
        """
        if not call_secs > 0:
            raise ValueError(f"call_secs={call_secs} must be positive")
        self.tasks, self.markers, self.stats = tasks, markers, Stats()
        self._call_secs, self._crashed, self._lock = call_secs, UngradedLog(crash_log), threading.Lock()
        self._pool = Pool(WORKER, [str(call_secs), str(MEMORY_BYTES)], num_workers, needs="bfcl-eval")

    @property
    def num_replaced(self) -> int:
        """Workers killed at a limit, found dead, or retired for their memory."""
        return self._pool.num_replaced

    def close(self):
        """End the workers."""
        self._pool.close()

    def reset(self, task_id: str) -> tuple[Episode, str]:
        """Return a new episode and the text of its first request."""
        return Episode(task_id), self.tasks[task_id].requests[0]

    def step(self, episode: Episode, response: str, max_turns: int, num_requests: int | None = None) -> StepResult:
        """Play one turn; see ``step_many``."""
        return self.step_many([(episode, response)], max_turns, num_requests)[0]

    def step_many(
        self, pairs: Sequence[tuple[Episode, str]], max_turns: int, num_requests: int | None = None
    ) -> list[StepResult]:
        """Play one turn of each episode with the model's response; the order is kept.

        Calls and verdicts are dealt to the workers one by one, so that a slow episode delays only its worker; episodes with
        equal histories do not share a state. A call that hangs, kills its worker or takes all memory ends its episode as
        "crashed". Several threads may call this; their calls are played one after the other.

        Args:
            pairs: episodes that have not ended, and responses.
            max_turns: of an episode, all its requests together. An episode that uses them up without an end has failed.
            num_requests: how many requests are made, None for all.

        Raises:
            ValueError: an episode has ended, or a limit is not positive.
            RuntimeError: workers cannot be started, or the environment was closed.
        """
        check_steps(pairs, max_turns, num_requests)
        actions = [parse(text, self.tasks[episode.task_id].functions, self.markers) for episode, text in pairs]
        jobs = {}
        for index, ((episode, _), action) in enumerate(zip(pairs, actions)):
            if action.kind == "call":
                jobs[index] = self._job(episode, call=[action.name, action.arguments])
            elif action.kind == "finished":
                jobs[index] = self._job(episode, judge=self._judge(episode))
        replies = self._run(jobs)
        results = []
        for index, ((episode, _), action) in enumerate(zip(pairs, actions)):
            reply = replies.get(index, {})
            if "error" in reply or "mismatch" in reply:
                results.append(self._broken(episode, Turn(action.kind, "", action.name, action.arguments), reply))
                continue
            turn = Turn(action.kind, action.message, action.name, action.arguments)
            if action.kind == "call":
                turn = dataclasses.replace(turn, observation=reply["observation"])
            elif action.kind == "finished":
                turn = dataclasses.replace(turn, verdict=Verdict(**reply["verdict"]))
            results.append(advance(episode, turn, self.tasks[episode.task_id], max_turns, num_requests))
        kinds = [action.kind for action in actions]
        with self._lock:
            self.stats.num_steps += len(pairs)
            self.stats.num_calls += kinds.count("call")
            self.stats.num_invalid += kinds.count("invalid")
            self.stats.num_judged += kinds.count("finished")
        return results

    def describe(self, episode: Episode) -> str:
        """Return an episode as text for people, with what its calls changed in the state."""
        job = self._job(episode)
        job.message["show"] = True
        ((_, reply),) = self._pool.run([job])  # not by _run: a display that fails is no crash of the episode's
        changes = iter(reply.get("changes", ()))
        states = [""]
        for turn in episode.turns:
            changed = next(changes, "") if turn.kind == "call" else ""
            states.append(changed or states[-1])
        return describe(episode, self.tasks[episode.task_id], states)

    def _job(self, episode: Episode, call: list | None = None, judge: dict | None = None) -> Job:
        """Return the job of bringing about an episode's state and then, perhaps, making a call or judging."""
        task = self.tasks[episode.task_id]
        history = [[turn.name, turn.arguments, turn.observation] for turn in episode.turns if turn.kind == "call"]
        key = task.id
        for made in history:
            key = digest([key, *made])  # as the worker does after a call
        message = {
            "task": {"id": task.id, "initial_config": task.initial_config, "involved_classes": task.apis},
            "history": history,
            "key": key,
        }
        num_calls = len(history) + 1
        if call:
            message["call"] = call
        if judge:
            message["judge"] = judge
            num_calls += 2 * sum(map(len, judge["truth"])) + len(history) + 2
        return Job(message, 1.0 + WALL_FACTOR * self._call_secs * num_calls, key)

    def _judge(self, episode: Episode) -> dict[str, Any]:
        """Return what a worker needs for the verdicts on the request in hand."""
        task, request = self.tasks[episode.task_id], episode.request
        return {
            "made": plain(episode.calls),
            "truth": plain(task.truth[: request + 1]),
            "truth_texts": task.truth_texts[: request + 1],
            "official": all(verdict.official for verdict in episode.verdicts),
        }

    def _run(self, jobs: Mapping[int, Job]) -> dict[int, dict[str, Any]]:
        """Return the workers' replies; those to jobs that crashed before are made up."""
        names = {index: bytes.fromhex(digest([job.state, asked(job)])) for index, job in jobs.items()}
        replies: dict[int, dict[str, Any]] = {
            index: {"error": "it crashed before"} for index in jobs if names[index] in self._crashed
        }
        todo = [index for index in jobs if index not in replies]
        for position, reply in self._pool.run([jobs[index] for index in todo]):
            index = todo[position]
            replies[index] = reply
            if "error" in reply:
                job = jobs[index]
                self._crashed.add(names[index], reason=reply["error"], task=job.message["task"]["id"], **asked(job))
        with self._lock:
            for reply in replies.values():
                self.stats.num_replayed += reply.get("replayed", 0)
                self.stats.num_crashed += "error" in reply
                self.stats.num_mismatches += "mismatch" in reply
        return replies

    def _broken(self, episode: Episode, turn: Turn, reply: dict[str, Any]) -> StepResult:
        """Return the end of an episode whose worker crashed in this turn, or whose past cannot be brought about again."""
        if "mismatch" in reply:
            index, replayed = reply["mismatch"]["index"], reply["mismatch"]["replayed"]
            recorded = [turn.observation for turn in episode.turns if turn.kind == "call"]
            ended = dataclasses.replace(episode, how="mismatch")
            return StepResult(ended, "", False, True, ReplayMismatch(index, recorded[index], replayed))
        return StepResult(dataclasses.replace(episode, turns=(*episode.turns, turn), how="crashed"), "", False, True)


def asked(job: Job) -> dict[str, Any]:
    """Return what a job does in its state: a call, or the verdict on a request, counted from 1; a crash is known by it."""
    message = job.message
    return {"call": message["call"]} if "call" in message else {"judge": len(message["judge"]["truth"])}


def plain(requests: Sequence[Sequence[Call]]) -> list[list[list[Any]]]:
    """Return calls by request as JSON values."""
    return [[[call.name, call.arguments] for call in calls] for calls in requests]
