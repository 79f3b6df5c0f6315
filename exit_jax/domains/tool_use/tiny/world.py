"""A small deterministic world of tools, in process: boxes in a store, coins in a bank, doors and lights in a house.

It has episodes, turns and verdicts as BFCL has them (episode.py), the same parser, and the paper's rule of success (ExIt §5):
after a finished request the state equals what the ground truth leads to, and its true calls are among the calls made so far.
What is asked for is in goals.py, tasks are in tasks.py, an expert that errs in expert.py.

A state is JSON: API -> thing -> attribute -> value, such as {"Store": {"red": {"apples": 3, ...}, ...}}; what a call returns is
a short JSON object, {"error": "..."} if it was refused, and then the state is as it was.
"""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from exit_jax.domains.tool_use.worker import among

State = dict[str, dict[str, dict[str, Any]]]
Part = dict[str, dict[str, Any]]  # an API's part of a state

WORDS: Mapping[str, tuple[str, ...]] = {
    "box": ("red", "blue", "green"),
    "item": ("apples", "nuts", "eggs"),
    "name": ("Ann", "Ben", "Eva"),
    "room": ("hall", "attic", "cellar"),
    "light": ("on", "off"),
    "door": ("open", "shut"),
}
MAX_COUNT = 9  # count of an item in all boxes together, and of coins: counts have one digit
# answer to a response that is no call and no marker; the parser would say more, in many tokens
INVALID = '{"error": "invalid"}'
ABOUT = {
    "Store": "Boxes that hold things.",
    "Bank": "People and their coins.",
    "House": "Rooms with a door and a light, which can be reached only while the door is open.",
}


@dataclass(frozen=True)
class Goal:
    """What a request is after."""

    kind: str  # one of goals.KINDS
    slots: Mapping[str, Any]


@dataclass(frozen=True)
class TinyTask(Task):
    """A task of the tiny world, with what its requests mean."""

    goals: tuple[Goal, ...] = ()


def look(store: Part, box: str) -> dict[str, Any]:
    """Return what a box holds."""
    return {item: count for item, count in store[box].items() if count}


def find(store: Part, item: str) -> dict[str, Any]:
    """Return which boxes hold an item, and how many."""
    return {box: items[item] for box, items in store.items() if items[item]}


def move(store: Part, count: int, item: str, box: str, to: str) -> dict[str, Any]:
    """Move some of an item to another box."""
    return transfer(store, count, item, box, to)


def coins(bank: Part, name: str) -> dict[str, Any]:
    """Return how many coins somebody has."""
    return {name: bank[name]["coins"]}


def accounts(bank: Part) -> dict[str, Any]:
    """Return how many coins each has."""
    return {name: account["coins"] for name, account in bank.items()}


def pay(bank: Part, count: int, name: str, to: str) -> dict[str, Any]:
    """Give coins to somebody."""
    return transfer(bank, count, "coins", name, to)


def show(house: Part, room: str) -> dict[str, Any]:
    """Return the state of a room's door and light."""
    return dict(house[room])


def rooms(house: Part) -> dict[str, Any]:
    """Return the rooms that are open, and those that are lit."""
    chosen = lambda key, value: [room for room, attributes in house.items() if attributes[key] == value]
    return {"open": chosen("door", "open"), "lit": chosen("light", "on")}


def door(house: Part, room: str, to: str) -> dict[str, Any]:
    """Open or shut a door."""
    return change(house[room], "door", to)


def light(house: Part, room: str, to: str) -> dict[str, Any]:
    """Turn a light on or off, if the door is open."""
    return change(house[room], "light", to) if house[room]["door"] == "open" else {"error": "door shut"}


def transfer(part: Part, count: int, what: str, source: str, target: str) -> dict[str, Any]:
    """Move a number of things from one place to another, and return how many are left."""
    if source == target:
        return {"error": "same place"}
    if part[source][what] < count:
        return {"error": f"only {part[source][what]}"}
    part[source][what] -= count
    part[target][what] += count
    return {"left": part[source][what]}


def change(attributes: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    """Set an attribute that is not yet so."""
    if attributes[name] == value:
        return {"error": f"already {value}"}
    attributes[name] = value
    return {name: value}


@dataclass(frozen=True)
class Function:
    """One of the world's functions."""

    api: str
    run: Callable[..., dict[str, Any]]
    about: str
    parameters: Mapping[str, str]  # name -> kind of word, or "count"
    changes: bool = False  # the state


FUNCTIONS = {
    "look": Function("Store", look, "What a box holds.", {"box": "box"}),
    "find": Function("Store", find, "Which boxes hold an item.", {"item": "item"}),
    "move": Function(
        "Store",
        move,
        "Move some of an item to another box.",
        {"count": "count", "item": "item", "box": "box", "to": "box"},
        True,
    ),
    "coins": Function("Bank", coins, "How many coins somebody has.", {"name": "name"}),
    "accounts": Function("Bank", accounts, "How many coins each has.", {}),
    "pay": Function("Bank", pay, "Give coins to somebody.", {"count": "count", "name": "name", "to": "name"}, True),
    "show": Function("House", show, "The door and the light of a room.", {"room": "room"}),
    "rooms": Function("House", rooms, "Which rooms are open, and which are lit.", {}),
    "door": Function("House", door, "Open or shut a door.", {"room": "room", "to": "door"}, True),
    "light": Function("House", light, "Turn a light on or off.", {"room": "room", "to": "light"}, True),
}


@functools.cache
def documents(apis: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the documents of some APIs' functions by name, with parameters as JSON Schema."""
    found = {}
    for name, function in FUNCTIONS.items():
        if function.api in apis:
            found[name] = {
                "description": function.about,
                "parameters": {
                    "type": "object",
                    "properties": {key: schema(kind) for key, kind in function.parameters.items()},
                    "required": list(function.parameters),
                },
                "response": {"type": "object"},
                "api": function.api,
                "about_api": ABOUT[function.api],
            }
    return found


def schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of an argument."""
    if kind == "count":
        return {"type": "integer", "minimum": 1, "maximum": MAX_COUNT}
    return {"type": "string", "enum": list(WORDS[kind])}


def system_prompt(task: Task, markers: Markers = MARKERS) -> str:
    """Return what a policy is told of its part, in few tokens: the functions it has seen in demonstrations."""
    return f"Tools: {', '.join(task.apis)}. End: {markers.finished}"


def copy_state(state: Mapping[str, Any]) -> State:
    """Return a state that can be changed."""
    return {api: {thing: dict(attributes) for thing, attributes in part.items()} for api, part in state.items()}


def execute(state: State, call: Call) -> dict[str, Any]:
    """Make a call, which may change the state, and return its result. Arguments may be of any JSON type."""
    function = FUNCTIONS[call.name]
    for name, kind in function.parameters.items():
        value = call.arguments[name]
        if kind == "count":
            if type(value) is not int or not 1 <= value <= MAX_COUNT:
                return {"error": f"{name} is 1 to {MAX_COUNT}"}
        elif type(value) is not str or value not in WORDS[kind]:
            return {"error": f"no such {kind}"}
    return function.run(state[function.api], **call.arguments)


def run_all(state: Mapping[str, Any], calls: Sequence[Call]) -> State:
    """Return the state that calls lead to."""
    state = copy_state(state)
    for call in calls:
        execute(state, call)
    return state


class TinyWorld:
    """Plays episodes as ``BfclEnvironment`` does, in this process. Nothing is kept but the tasks and the counts."""

    def __init__(self, tasks: Mapping[str, TinyTask], markers: Markers = MARKERS):
        """Take the tasks, by id."""
        self.tasks, self.markers, self.stats = tasks, markers, Stats()
        self._true_states: dict[str, list[State]] = {}
        self._lock = threading.Lock()

    def close(self):
        """Do nothing: there are no workers to end."""

    def reset(self, task_id: str) -> tuple[Episode, str]:
        """Return a new episode and the text of its first request."""
        return Episode(task_id), self.tasks[task_id].requests[0]

    def step(self, episode: Episode, response: str, max_turns: int, num_requests: int | None = None) -> StepResult:
        """Play one turn; see ``step_many``."""
        return self.step_many([(episode, response)], max_turns, num_requests)[0]

    def step_many(
        self, pairs: Sequence[tuple[Episode, str]], max_turns: int, num_requests: int | None = None
    ) -> list[StepResult]:
        """Play one turn of each episode with the policy's response; the order is kept.

        Args:
            pairs: episodes that have not ended, and responses.
            max_turns: of an episode, all its requests together. An episode that uses them up without an end has failed.
            num_requests: how many requests are made, None for all.

        Raises:
            ValueError: an episode has ended, or a limit is not positive.
        """
        check_steps(pairs, max_turns, num_requests)
        results = [self._step(episode, response, max_turns, num_requests) for episode, response in pairs]
        with self._lock:
            self.stats.num_steps += len(results)
            for result in results:
                if result.mismatch:
                    self.stats.num_mismatches += 1
                    continue
                kind = result.episode.turns[-1].kind
                self.stats.num_calls += kind == "call"
                self.stats.num_invalid += kind == "invalid"
                self.stats.num_judged += kind == "finished"
        return results

    def replay(self, episode: Episode) -> State | ReplayMismatch:
        """Return the state that an episode's calls lead to, or the first that returns something else than is recorded."""
        state = copy_state(self.tasks[episode.task_id].initial_config)
        index = 0
        for turn in episode.turns:
            if turn.kind == "call":
                observation = observe(state, Call(turn.name, turn.arguments))
                if observation != turn.observation:
                    return ReplayMismatch(index, turn.observation, observation)
                index += 1
        return state

    def describe(self, episode: Episode) -> str:
        """Return an episode as text for people, with the state where it has changed."""
        task, lines = self.tasks[episode.task_id], []
        for count in range(len(episode.turns) + 1):
            state = self.replay(episode.before(count))
            lines.append("" if isinstance(state, ReplayMismatch) else in_words(state))
        return describe(episode, task, lines)

    def _step(self, episode: Episode, response: str, max_turns: int, num_requests: int | None) -> StepResult:
        task = self.tasks[episode.task_id]
        action = parse(response, task.functions, self.markers)
        observation, verdict = INVALID if action.kind == "invalid" else "", None
        if action.kind in ("call", "finished"):
            state = self.replay(episode)
            if isinstance(state, ReplayMismatch):
                return StepResult(replace(episode, how="mismatch"), "", False, True, state)
            if action.kind == "call":
                observation = observe(state, Call(action.name, action.arguments))
            else:
                verdict = self._judge(episode, task, state)
        turn = Turn(action.kind, observation, action.name, action.arguments, verdict)
        return advance(episode, turn, task, max_turns, num_requests)

    def _judge(self, episode: Episode, task: Task, state: State) -> Verdict:
        made, request = episode.calls, episode.request
        true = list(task.truth[request])
        return Verdict(
            states_equal=state == self.true_states(task)[request + 1],
            calls_contained=among([call for calls in made for call in calls], true),
        )

    def true_states(self, task: Task) -> list[State]:
        """Return the states that the ground truth leads to: before the first request, and after each."""
        if task.id not in self._true_states:
            states = [copy_state(task.initial_config)]
            for calls in task.truth:
                states.append(run_all(states[-1], calls))
            self._true_states[task.id] = states
        return self._true_states[task.id]


def observe(state: State, call: Call) -> str:
    """Make a call, which may change the state, and return its observation."""
    return str(execute(state, call)).replace("'", '"')  # JSON, since all are plain words and integers


def in_words(state: State) -> str:
    """Return a state as a line of text."""
    inside = lambda attributes: ", ".join(f"{name} {value}" for name, value in attributes.items() if value)
    return " ".join(f"{thing}({inside(attributes)})" for part in state.values() for thing, attributes in part.items())
