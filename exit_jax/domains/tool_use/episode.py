"""Episodes of tool use as pure data, whatever world they are played in: tasks, turns, verdicts, and how an episode goes on.

An `Episode` is what was done in it, turn by turn, and nothing else: no instance, no process. Its state is a function of it.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from exit_jax.domains.tool_use.parser import MARKERS, Markers
from exit_jax.domains.tool_use.worker import render


@dataclasses.dataclass(frozen=True)
class Call:
    """A function call with literal arguments by name."""

    name: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """Requests to fulfil by calling functions, and the calls that fulfil them."""

    id: str
    apis: tuple[str, ...]  # APIs whose functions there are
    requests: tuple[str, ...]
    # name -> document, its parameters as JSON Schema; "api" tells what it is part of
    functions: Mapping[str, Mapping[str, Any]]
    initial_config: Mapping[str, Any]
    truth: tuple[tuple[Call, ...], ...]  # calls by request
    truth_texts: tuple[tuple[str, ...], ...] = ()  # the same as BFCL writes it, for its checker


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the rules say of a finished request."""

    states_equal: bool
    calls_contained: bool  # whether the calls made so far contain the right ones
    # verdict of BFCL's checker on all requests up to this one; None in a world that has no other rule
    official: bool | None = None
    official_error: str = ""  # the checker's kind of error; "" if it is valid

    @property
    def success(self) -> bool:
        """The paper's rule, and the reward."""
        return self.states_equal and self.calls_contained


@dataclasses.dataclass(frozen=True)
class Turn:
    """One response and what came of it."""

    kind: str  # call | finished | error | invalid
    observation: str  # what the model is shown next: a call's result, the next request, or what was wrong
    name: str = ""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    verdict: Verdict | None = None  # that of a finished turn


@dataclasses.dataclass(frozen=True)
class Episode:
    """What was done on a task, turn by turn. Its state is a function of it."""

    task_id: str
    turns: tuple[Turn, ...] = ()
    how: str = ""  # it ended: finished | error | turns (used up) | crashed | mismatch; "" while it runs
    left_out: int = 0  # requests of those that would be made that are not, the last ones

    @property
    def ended(self) -> bool:
        return bool(self.how)

    @property
    def request(self) -> int:
        """Index of the request in hand, which is the number of those finished."""
        return sum(turn.verdict is not None for turn in self.turns)

    @property
    def calls(self) -> tuple[tuple[Call, ...], ...]:
        """The calls made, by request, up to the one in hand."""
        made: list[list[Call]] = [[]]
        for turn in self.turns:
            if turn.kind == "call":
                made[-1].append(Call(turn.name, turn.arguments))
            elif turn.verdict:
                made.append([])
        return tuple(map(tuple, made))

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(turn.verdict for turn in self.turns if turn.verdict)

    @property
    def num_fulfilled(self) -> int:
        """The return: requests fulfilled by the paper's rule."""
        return sum(verdict.success for verdict in self.verdicts)

    @property
    def num_invalid(self) -> int:
        return sum(turn.kind == "invalid" for turn in self.turns)

    def before(self, turn: int) -> "Episode":
        """Return the episode as it was before this turn: what a partial history starts from."""
        if not 0 <= turn <= len(self.turns):
            raise ValueError(f"turn={turn} must be between 0 and {len(self.turns)}, the turns of the episode")
        return dataclasses.replace(self, turns=self.turns[:turn], how="")


@dataclasses.dataclass(frozen=True)
class ReplayMismatch:
    """A recorded call that returns something else when it is made again."""

    index: int  # number among the episode's calls
    recorded: str
    replayed: str


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a response came to."""

    episode: Episode
    observation: str  # the next request's text if one was finished, else the call's result or what was wrong
    request_finished: bool
    episode_finished: bool
    mismatch: ReplayMismatch | None = None  # why an episode ended as "mismatch"


@dataclasses.dataclass
class Stats:
    """Counts since the environment was made."""

    num_steps: int = 0
    num_calls: int = 0
    num_invalid: int = 0
    num_judged: int = 0
    num_replayed: int = 0  # recorded calls made again because no worker at hand had the state
    num_mismatches: int = 0
    num_crashed: int = 0


def system_prompt(task: Task, markers: Markers = MARKERS) -> str:
    """Return what a model is told of its part and of the task's functions."""
    return "\n".join(
        [
            "You carry out a user's requests by calling functions. Requests come one after the other; each may take several"
            " calls.",
            "Every response of yours ends in one of three ways:",
            f'- a function call, {markers.call_start}{{"name": "...", "arguments": {{...}}}}{markers.call_end}, as JSON: you'
            " are then shown what it returns;",
            f"- {markers.finished} when the request is fulfilled: you are then given the next one;",
            f"- {markers.error} if the request cannot be fulfilled with these functions.",
            "You may think first. Make one call a response, with nothing after it. Do not ask questions, nobody answers them:"
            " find out by calling functions, and call none that the request does not need.",
            *describe_functions(task),
        ]
    )


def describe_functions(task: Task) -> list[str]:
    """Return the lines on a task's functions, by API."""
    lines, about = ["", "# Functions"], None
    for name, document in task.functions.items():
        if about != document["about_api"]:
            about = document["about_api"]
            lines += ["", f"## {document['api']}", about]
        shown = {key: document[key] for key in ("description", "parameters", "response")}
        lines.append(json.dumps({"name": name, **shown}, ensure_ascii=False))
    return lines


def check_steps(pairs: Sequence[tuple[Episode, str]], max_turns: int, num_requests: int | None):
    """Check what an environment is asked to play.

    Raises:
        ValueError: an episode has ended, or a limit is not positive.
    """
    if max_turns < 1 or (num_requests is not None and num_requests < 1):
        raise ValueError(f"max_turns={max_turns} and num_requests={num_requests} must be positive")
    if ended := [episode for episode, _ in pairs if episode.ended]:
        raise ValueError(f"{len(ended)} episodes have ended already ({ended[0].task_id}: {ended[0].how}): drop them")


def advance(episode: Episode, turn: Turn, task: Task, max_turns: int, num_requests: int | None) -> StepResult:
    """Return an episode with one turn more, ended where the rules say so."""
    num_turns, request = len(episode.turns) + 1, episode.request + (turn.kind == "finished")
    last = num_made(episode, task, num_requests)
    how = "error" if turn.kind == "error" else ""
    if turn.kind == "finished" and request >= last:
        how = "finished"
    elif not how and num_turns >= max_turns:
        how = "turns"
    observation = task.requests[request] if turn.kind == "finished" and not how else turn.observation
    if observation != turn.observation:
        turn = dataclasses.replace(turn, observation=observation)
    episode = dataclasses.replace(episode, turns=(*episode.turns, turn), how=how)
    return StepResult(episode, observation, turn.kind == "finished", episode.ended)


def num_made(episode: Episode, task: Task, num_requests: int | None) -> int:
    """Return how many requests of a task are made in an episode, of ``num_requests``, or all of None."""
    last = len(task.requests) if num_requests is None else min(num_requests, len(task.requests))
    return max(last - episode.left_out, 1)


def describe(episode: Episode, task: Task, states: Sequence[str] = ()) -> str:
    """Return an episode as text for people: a line for each request, call, observation, change of state and verdict.

    Args:
        episode: what was done.
        task: what was asked.
        states: before the first turn and after each, in words; empty where they are not at hand.
    """
    lines, request = [f"request 1: {task.requests[0]}"], 1
    if states and states[0]:
        lines.insert(0, f"state: {states[0]}")
    for index, turn in enumerate(episode.turns):
        done = render(turn.name, dict(turn.arguments)) if turn.kind == "call" else turn.kind
        if turn.verdict:
            done += f": {explain(turn.verdict)}"
        lines.append(f"  {done}")
        if turn.kind in ("call", "invalid"):
            lines.append(f"    {turn.observation}")
        if states and states[index + 1] != states[index]:
            lines.append(f"    state: {states[index + 1]}")
        if turn.kind == "finished" and turn.observation:
            request += 1
            lines.append(f"request {request}: {turn.observation}")
    if episode.ended:
        lines.append(f"ended: {episode.how}, {episode.num_fulfilled} of {len(task.requests)} requests fulfilled")
    return "\n".join(lines)


def explain(verdict: Verdict) -> str:
    """Return a verdict in words."""
    faults = {"the state is another": not verdict.states_equal, "a call is missing": not verdict.calls_contained}
    found = " and ".join(text for text, holds in faults.items() if holds)
    return f"not fulfilled, {found}" if found else "fulfilled"
