"""What an environment process runs: calls on BFCL's back-ends, and the verdicts. Started by path (see domains/workers.py).

It imports no JAX. Requests are JSON lines on stdin, each answered by one line, after a first line that says that the imports
are done. A request names a state by the *key* of the calls that lead to it; the states held here are only a cache, and one
that is missing is rebuilt by making those calls again and comparing what they return with what was recorded.

    {"task": {"id", "initial_config", "involved_classes"}, "history": [[name, arguments, observation], ...], "key": ...}

names a state; ``"call": [name, arguments]`` makes a call there, and ``"judge": {"made", "truth", "truth_texts",
"official"}`` compares with the ground truth. Nothing is evaluated: methods are looked up by name among an API's public
ones, and the official checker's ``eval`` is replaced by a function that takes literals only.

Limits are a call's, and enforced by the kernel even if the trainer is gone and the interpreter is stuck in C: address space,
and two timers, of processor time and of the clock, whose signals end the process.
"""

import ast
import collections
import copy
import hashlib
import importlib
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from exit_jax.domains import worker_process
from exit_jax.domains.state_cache import StateCache

MAX_STATES = 512
MAX_OBSERVATION_CHARS = 8000
CATEGORY = "multi_turn_base"
APIS = (
    "GorillaFileSystem",
    "MathAPI",
    "MessageAPI",
    "TicketAPI",
    "TradingBot",
    "TravelAPI",
    "TwitterAPI",
    "VehicleControlAPI",
)

Mismatch = collections.namedtuple("Mismatch", ["index", "replayed"])
COUNTER = itertools.count()
MAX_SHOWN_CHARS = 2000  # length of an attribute


class Backends:
    """The APIs' classes, and what is global about them."""

    def __init__(self, call_secs: float):
        from bfcl_eval.constants import executable_backend_config as names
        from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker, multi_turn_utils

        self.call_secs = call_secs
        self.paths, self.stateless = names.CLASS_FILE_PATH_MAPPING, set(names.STATELESS_CLASSES)
        self.classes, self.methods, self.defaults = {}, {}, {}
        self.check, self.utils = multi_turn_checker.multi_turn_checker, multi_turn_utils
        vars(self.utils)["eval"] = self.evaluate

    def load(self, names: Sequence[str]):
        """Import these APIs, and keep the defaults of their methods' parameters as they are before any call."""
        for name in names:
            api = getattr(importlib.import_module(self.paths[name]), name)
            self.classes[name] = api
            self.methods[api] = {}
            for method, function in inspect.getmembers(api, inspect.isfunction):
                if not method.startswith("_"):
                    parameters = inspect.signature(function).parameters.values()
                    self.methods[api][method] = {p.name: p.default for p in parameters if p.default is not p.empty}
                if any(isinstance(default, (list, dict, set)) for default in function.__defaults__ or ()):
                    self.defaults[function] = function.__defaults__
        self.forget()

    def forget(self):
        """Undo what calls did to the process: instances share, keep and change defaults such as [] (``post_tweet``)."""
        for function, defaults in self.defaults.items():
            function.__defaults__ = copy.deepcopy(defaults)

    def find(self, state: dict, name: str) -> tuple[Callable, dict[str, Any]]:
        """Return the method of this name of one of the instances, and its defaults.

        Raises:
            NameError: there is none.
        """
        for instance in state.values():
            if name in self.methods[type(instance)]:
                return getattr(instance, name), copy.deepcopy(self.methods[type(instance)][name])
        raise NameError(f"name {name!r} is not defined")

    def evaluate(self, text: str):
        """Make the call ``instance.method(literals)``: all that the official checker can evaluate here.

        Raises:
            SyntaxError, ValueError: it is something else.
            NameError: the function belongs to no instance.
        """
        call = ast.parse(text, "<string>", "eval").body
        if not isinstance(call, ast.Call):
            raise ValueError("not a call")
        arguments = [ast.literal_eval(argument) for argument in call.args]
        keywords = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
        if isinstance(call.func, ast.Name):
            raise NameError(f"name {call.func.id!r} is not defined")
        if not isinstance(call.func, ast.Attribute) or not isinstance(call.func.value, ast.Name):
            raise ValueError("not a call of an instance's method")
        instance, method = vars(self.utils)[call.func.value.id], call.func.attr
        if method not in self.methods.get(type(instance), ()):
            raise ValueError(f"no method {method!r}")
        return getattr(instance, method)(*arguments, **keywords)


def start_state(backends: Backends, task: dict) -> dict:
    """Return a task's instances, by API, as they are before the first call."""
    state = {}
    for name in task["involved_classes"]:
        state[name] = backends.classes[name]()
        if name not in backends.stateless:
            state[name]._load_scenario(copy.deepcopy(task["initial_config"].get(name, {})), long_context=False)
    return state


def execute(backends: Backends, state: dict, name: str, arguments: dict[str, Any]) -> str:
    """Make one call and return its observation, worded as bfcl-eval words it, cut at 8,000 characters.

    Raises:
        MemoryError: it did not fit the process's limit.
    """
    worker_process.start_timers(backends.call_secs)
    try:
        method, defaults = backends.find(state, name)
        result = method(**(defaults | copy.deepcopy(arguments)))
        text = as_text(result)
    except MemoryError:
        raise
    except Exception as error:
        text = f"Error during execution: {error}"
    worker_process.stop_timers()
    if len(text) > MAX_OBSERVATION_CHARS:
        text = f"{text[:MAX_OBSERVATION_CHARS]}... ({len(text)} characters in all)"
    return text


def as_text(result) -> str:
    """Return a method's result as bfcl-eval words it: objects as JSON where they can be, all else by ``str``."""
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError, RecursionError):
            pass
    return str(result)


def rebuild(backends: Backends, job: dict) -> dict | Mismatch:
    """Return the state after a history of calls, made again, or where they return something else."""
    state = start_state(backends, job["task"])
    for index, (name, arguments, observation) in enumerate(job["history"]):
        replayed = execute(backends, state, name, arguments)
        if replayed != observation:
            return Mismatch(index, replayed)
    return state


def public_attributes(instance) -> dict:
    """Return the part of an instance's state that counts."""
    return {name: value for name, value in vars(instance).items() if not name.startswith("_")}


def states_equal(state: dict, other: dict) -> bool:
    """Return whether all instances' public attributes are equal. States that contain themselves are not."""
    try:
        return all(public_attributes(state[name]) == public_attributes(other[name]) for name in state)
    except RecursionError:
        return False


def contains(backends: Backends, state: dict, made: list, true: list) -> bool:
    """Return whether each true call is among the calls made, as ``among`` has it, with defaults filled in."""
    complete = lambda call: (call[0], backends.find(state, call[0])[1] | call[1])
    return among([complete(call) for call in made], [complete(call) for call in true])


def among(made: list, true: list) -> bool:
    """Return whether each true call is among the calls made, a repeated one as often (the paper's rule, ExIt §5).

    Calls are equal if names and all arguments are, in Python's sense (20 == 20.0, True == 1).
    """
    rest = list(made)
    for call in true:
        if call not in rest:
            return False
        rest.remove(call)
    return True


def render(name: str, arguments: dict) -> str:
    """Return a call as Python text. Arguments are JSON values, so that repr gives literals."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def run_official(backends: Backends, task: dict, made: list, truth_texts: list) -> tuple[bool, str]:
    """Return the official checker's verdict on the requests so far, each call a step of its own, and its kind of error.

    Raises:
        MemoryError: it did not fit the process's limit.
    """
    name = f"judge{next(COUNTER)}"
    steps = [[[render(*call)] for call in calls] for calls in made]
    worker_process.start_timers(backends.call_secs * (1 + sum(map(len, made)) + sum(map(len, truth_texts))))
    backends.forget()
    try:
        result = backends.check(steps, truth_texts, copy.deepcopy(task), CATEGORY, name)
        verdict = bool(result["valid"]), result.get("error_type", "")
    except MemoryError:
        raise
    except Exception as error:  # such as a directory that contains itself
        verdict = False, f"the checker raised {type(error).__name__}"
    finally:
        for variable in [variable for variable in vars(backends.utils) if variable.startswith(f"{name}_")]:
            del vars(backends.utils)[variable]
    worker_process.stop_timers()
    return verdict


def judge(backends: Backends, state: dict, job: dict) -> dict:
    """Compare a state and the calls that led to it with the ground truth, after the newest of the requests in the job.

    ``made`` and ``truth`` hold [name, arguments] by request; ``truth_texts`` the ground truth as bfcl-eval words it.
    """
    made, truth, texts = job["judge"]["made"], job["judge"]["truth"], job["judge"]["truth_texts"]
    true_state = start_state(backends, job["task"])
    for name, arguments in itertools.chain(*truth):
        execute(backends, true_state, name, arguments)
    official, official_error = False, "an earlier request failed"
    if job["judge"]["official"]:
        official, official_error = run_official(backends, job["task"], made, texts)
    worker_process.start_timers(backends.call_secs)
    verdict = {
        "states_equal": states_equal(state, true_state),
        "calls_contained": contains(backends, state, list(itertools.chain(*made)), truth[-1]),
        "official": official,
        "official_error": official_error,
    }
    worker_process.stop_timers()
    return verdict


def show(backends: Backends, job: dict) -> list[str]:
    """Return what each recorded call changes in the state, in words; "" where it changes nothing."""
    state = start_state(backends, job["task"])
    changes, before = [], in_words(state)
    for name, arguments, _ in job["history"]:
        execute(backends, state, name, arguments)
        after = in_words(state)
        changes.append("; ".join(f"{key} {text}" for key, text in after.items() if before.get(key) != text))
        before = after
    return changes


def in_words(state: dict) -> dict[str, str]:
    """Return the public attributes of a state's instances as text, by API and name."""
    return {
        f"{api}.{name}": json.dumps(plain(value), ensure_ascii=False)[:MAX_SHOWN_CHARS]
        for api, instance in state.items()
        for name, value in public_attributes(instance).items()
    }


def plain(value, depth: int = 8):
    """Return a value as JSON: an object as its attributes, without the way back to its parent, and to a depth."""
    if value is None or isinstance(value, str | int | float):
        return value
    if not depth:
        return "..."
    if isinstance(value, dict):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item, depth - 1) for item in value]
    attributes = vars(value) if hasattr(value, "__dict__") else {"": str(value)}
    return {name: plain(item, depth - 1) for name, item in attributes.items() if name not in ("parent", "_parent")}


def answer(backends: Backends, cache: StateCache, job: dict) -> dict[str, Any]:
    """Do one job."""
    if "show" in job:
        return {"changes": show(backends, job), "key": job["key"]}
    state, num_replayed = cache.take(job["key"]), 0
    if state is None:
        state, num_replayed = rebuild(backends, job), len(job["history"])
    if isinstance(state, Mismatch):
        return {"mismatch": state._asdict()}
    reply: dict[str, Any] = {"replayed": num_replayed}
    key = job["key"]
    if "call" in job:
        reply["observation"] = execute(backends, state, *job["call"])
        key = digest([key, *job["call"], reply["observation"]])
    if "judge" in job:
        reply["verdict"] = judge(backends, state, job)
    cache.put(key, state)
    return reply | {"key": key}


def digest(value) -> str:
    """Return a short name of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def main(call_secs: float, memory_bytes: int):
    """Answer requests until stdin ends. A call has ``call_secs`` of processor time, and four times that by the clock."""
    replies = worker_process.begin()
    worker_process.limit_address_space(memory_bytes)
    try:
        backends, cache = Backends(call_secs), StateCache(MAX_STATES)
        backends.load(APIS)
    except Exception as error:
        return worker_process.write_line(replies, {"error": repr(error)})
    worker_process.write_line(replies, {"ready": True})
    for line in sys.stdin.buffer:
        try:
            fields = answer(backends, cache, json.loads(line)) | {"rss": worker_process.resident_bytes()}
        except MemoryError:
            fields = {"error": "out of memory"}
        except Exception as error:
            fields = {"error": repr(error)[:200]}
        worker_process.stop_timers()
        worker_process.write_line(replies, fields)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
