"""An expert of the tiny world that errs, notices or not, and mends: what a policy is warm-started on.

Demonstrations are meant to leave something to learn by trial: the expert slips with a given probability a turn, and where it
does not notice, all that comes later builds on the slip. What *improve* and *diverge* steps can vary is here, too: right
responses differ in the way to find something out, in the order of calls, and in the words before a call.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exit_jax.domains.tool_use.episode import Call, Episode, Task
from exit_jax.domains.tool_use.parser import MARKERS, Markers, parse, render_call
from exit_jax.domains.tool_use.tiny.goals import Calls, resolve, ways
from exit_jax.domains.tool_use.tiny.tasks import MAX_TURNS, pick
from exit_jax.domains.tool_use.tiny.world import (
    FUNCTIONS,
    MAX_COUNT,
    WORDS,
    Goal,
    State,
    TinyTask,
    TinyWorld,
    copy_state,
    execute,
    run_all,
    system_prompt,
)

STYLES = ("plain", "purpose", "words")  # kinds of what stands before a call or marker
NOTICE_PROB = 0.5  # a turn, that the expert notices what went wrong before
# how often a slip is of which kind; a response that cannot slip so (a marker has no argument) slips in another way
SLIPS = {"argument": 0.55, "function": 0.15, "early": 0.2, "give up": 0.05, "garbled": 0.05}

BETWEEN_WORDS = re.compile(rf"\b(?:{'|'.join(word for words in WORDS.values() for word in words)}|\d)\b")

Action = Call | None  # a call to make, or None: the request is fulfilled


@dataclass(frozen=True)
class Standing:
    """Where an episode stands."""

    state: State
    start: State  # state when the request in hand was made
    made: Calls  # calls for the request in hand
    done: Calls  # those of them that did not fail
    past: Calls  # calls that were done for the request before


def stand(episode: Episode, task: Task) -> Standing:
    """Return where an episode stands; what its turns observed is not looked at."""
    state = copy_state(task.initial_config)
    start, made, done, past = state, [], [], []
    for request, calls in enumerate(episode.calls):
        start, made, done = copy_state(state), [], []
        for call in calls:
            made.append(call)
            if "error" not in execute(state, call):
                done.append(call)
        if request < episode.request:
            past = done
    return Standing(state, start, tuple(made), tuple(done), tuple(past))


def right_actions(episode: Episode, task: TinyTask) -> list[Action]:
    """Return what may rightly be done next, given all that the ground truth says: first mend what is wrong, if anything is.

    Raises:
        ValueError: nothing is left to do, the episode has ended.
    """
    if episode.ended or episode.request == len(task.requests):
        raise ValueError(f"the episode on {task.id} has ended: {episode.how or 'all requests are finished'}")
    now, request = stand(episode, task), episode.request
    before = run_all(task.initial_config, [call for calls in task.truth[:request] for call in calls])
    plan, rest = task.truth[request], without(task.truth[request], now.done)
    wanted = run_all(before, without(plan, rest))
    if now.state != wanted:
        return [mend(now.state, wanted)]
    return proceed(task.goals[request], rest, now)


def careless_actions(episode: Episode, task: TinyTask) -> tuple[list[Action], bool]:
    """Return what is done next by somebody who takes the past for right, and whether that is a guess.

    Calls that would fail once more are not made again. It is a guess if something was done, but not what tells what the goal
    depends on.
    """
    now, goal = stand(episode, task), task.goals[episode.request]
    rest = without(resolve(goal, now.start, now.past), now.done)
    rest = tuple(call for call in rest if call not in now.made or can_make(call, now.state))
    if not is_known(goal, now) and any(all(call not in way for way in ways(goal)) for call in now.made):
        return list(rest[:1]) or [None], True
    return proceed(goal, rest, now), False


def proceed(goal: Goal, rest: Calls, now: Standing) -> list[Action]:
    """Return what comes next: find out what the goal depends on, make the calls that are left, finish."""
    if not rest:
        return [None]
    if not is_known(goal, now):
        return list(distinct(without(way, now.made)[0] for way in ways(goal)))
    return [call for call in rest if leads_there(call, rest, now.state)] or [rest[0]]


def is_known(goal: Goal, now: Standing) -> bool:
    """Return whether one of the ways to find out was gone to its end."""
    return any(not without(way, now.made) for way in ways(goal))


def leads_there(first: Call, calls: Calls, state: State) -> bool:
    """Return whether this one of some calls can be made before the others, to the same effect."""
    after = copy_state(state)
    order = [first, *without(calls, (first,))]
    return not any("error" in execute(after, call) for call in order) and after == run_all(state, calls)


def can_make(call: Call, state: State) -> bool:
    """Return whether a call would succeed."""
    return "error" not in execute(copy_state(state), call)


def without(calls: Calls, others: Calls) -> Calls:
    """Return calls less others, each as often as it is there."""
    rest = list(calls)
    for call in others:
        if call in rest:
            rest.remove(call)
    return tuple(rest)


def distinct(calls: Iterable[Call]) -> list[Call]:
    """Return the different ones of some calls, which cannot be hashed."""
    found: list[Call] = []
    for call in calls:
        if call not in found:
            found.append(call)
    return found


def mend(state: State, wanted: State) -> Call:
    """Return the first call on the way from a state to another, which differs."""
    for thing, attributes in state.get("House", {}).items():
        target = wanted["House"][thing]
        if attributes["light"] != target["light"]:
            if attributes["door"] == "shut":
                return Call("door", {"room": thing, "to": "open"})
            return Call("light", {"room": thing, "to": target["light"]})
        if attributes["door"] != target["door"]:
            return Call("door", {"room": thing, "to": target["door"]})
    return mend_transfer(state, wanted)


def mend_transfer(state: State, wanted: State) -> Call:
    """Return a call that moves what is too many somewhere to where it is missing; calls neither make nor lose things."""
    for api, names in (("Store", WORDS["item"]), ("Bank", ("coins",))):
        for name in names:
            excess = {place: state[api][place][name] - wanted[api][place][name] for place in state.get(api, {})}
            source = max(excess, key=lambda place: excess[place], default="")
            target = min(excess, key=lambda place: excess[place], default="")
            if source and excess[source]:
                count = min(excess[source], -excess[target])
                if api == "Bank":
                    return Call("pay", {"count": count, "name": source, "to": target})
                return Call("move", {"count": count, "item": name, "box": source, "to": target})
    raise ValueError("the states are equal: there is nothing to mend")


def write(action: Action, style: str, markers: Markers = MARKERS) -> str:
    """Return a response in one of the styles."""
    ending = render_call(action.name, action.arguments, markers) if action else markers.finished
    return introduce(action, style) + ending


def introduce(action: Action, style: str) -> str:
    """Return what is said before a call or marker.

    Raises:
        ValueError: there is no such style.
    """
    if style not in STYLES:
        raise ValueError(f"style={style!r} must be one of {', '.join(STYLES)}")
    if style == "plain":
        return ""
    if action is None:
        return "Done. " if style == "purpose" else "That is all. "
    is_look = not FUNCTIONS[action.name].changes
    if style == "purpose":
        return "Look first. " if is_look else "Now act. "
    subject = next(iter(action.arguments.values()), "all")
    return f"Check {subject}. " if is_look else f"So {subject}. "


def style_of(response: str) -> str:
    """Return the style of a response that was written here."""
    starts = {"purpose": ("Done. ", "Look first. ", "Now act. "), "words": ("That is all. ", "Check ", "So ")}
    return next((style for style, texts in starts.items() if response.startswith(texts)), "plain")


def correct(episode: Episode, task: TinyTask, markers: Markers = MARKERS) -> list[str]:
    """Return the right next responses in the state that an episode's calls lead to, in all styles, the plainest first."""
    actions = right_actions(episode, task)
    return [write(action, style, markers) for action in actions for style in STYLES]


def read(response: str, task: Task, markers: Markers = MARKERS) -> Action | str:
    """Return what a response does: a call, None for the finished marker, else "error" or "invalid"."""
    action = parse(response, task.functions, markers)
    if action.kind == "call":
        return Call(action.name, action.arguments)
    return None if action.kind == "finished" else action.kind


def demonstrate(
    task: TinyTask,
    noise: float,
    rng: np.random.Generator,
    max_turns: int = MAX_TURNS,
    markers: Markers = MARKERS,
    start: Episode | None = None,
    first: str = "",
) -> list[str]:
    """Return the responses of an episode, of which each slips with probability ``noise``.

    The expert keeps to one style, and each turn notices with probability ``NOTICE_PROB`` what went wrong before; then it mends
    that. Else it goes on as if nothing had happened, which may come to guessing.

    Args:
        start: the episode that is played on; None for a new one.
        first: the first response, in whose style it goes on; "" leaves both open.
    """
    world, style = TinyWorld({task.id: task}, markers), style_of(first) if first else pick(STYLES, rng)
    responses, episode = [], start or Episode(task.id)
    if first:
        responses, episode = [first], world.step(episode, first, max_turns).episode
    while not episode.ended:
        if rng.random() < NOTICE_PROB:
            actions, is_guess = right_actions(episode, task), False
        else:
            actions, is_guess = careless_actions(episode, task)
        response = write(pick(actions, rng), style, markers)
        if is_guess or rng.random() < noise:
            response = spoil(response, task, rng, markers)
        responses.append(response)
        episode = world.step(episode, response, max_turns).episode
    return responses


def improve(
    episode: Episode, held: str, task: TinyTask, noise: float, rng: np.random.Generator, markers: Markers = MARKERS
) -> str:
    """Return a response instead of the one that is held at this point: right but for a share ``noise``.

    A response that is right is kept to the letter; one that is wrong is replaced in its own style. Where the expert slips, it
    keeps what is wrong and spoils what is right.
    """
    actions = right_actions(episode, task)
    is_right = read(held, task, markers) in actions
    if rng.random() < noise:
        return spoil(held, task, rng, markers) if is_right else held
    return held if is_right else write(pick(actions, rng), style_of(held), markers)


def diverge(
    episode: Episode, held: str, task: TinyTask, noise: float, rng: np.random.Generator, markers: Markers = MARKERS
) -> str:
    """Return a response unlike the one that is held at this point, right but for a share ``noise``.

    It does something else if there is something else that is right, and is in another style in any case.
    """
    actions, action = right_actions(episode, task), read(held, task, markers)
    different = [other for other in actions if other != action] or actions
    style = pick([style for style in STYLES if style != style_of(held)], rng)
    response = write(pick(different, rng), style, markers)
    return spoil(response, task, rng, markers) if rng.random() < noise else response


def spoil(response: str, task: Task, rng: np.random.Generator, markers: Markers = MARKERS) -> str:
    """Return a response that slips, of the same style: another argument, another function, the end too early or too late.

    A look at something else is among the slips, though it does no harm. A response that is no call and no finished marker
    comes back as it is.
    """
    action, style = read(response, task, markers), style_of(response)
    if isinstance(action, str):
        return response
    slip = str(rng.choice(list(SLIPS), p=list(SLIPS.values())))
    if slip == "give up":
        return markers.error
    if slip == "garbled":
        return response[:-1]  # the marker or end tag is broken
    if action is None:
        return write(draw_call(task, {}, rng, changes=True), style, markers)
    if slip == "early":
        return write(None, style, markers)
    if slip == "argument" and action.arguments:
        return write(spoil_argument(action, rng), style, markers)
    return write(draw_call(task, action.arguments, rng, other_than=action.name), style, markers)


def spoil_argument(call: Call, rng: np.random.Generator) -> Call:
    """Return a call with another argument of the same kind; a count is off by one or two."""
    name = pick(list(call.arguments), rng)
    kind, value = FUNCTIONS[call.name].parameters[name], call.arguments[name]
    if kind == "count":
        options = [value + by for by in (-2, -1, 1, 2) if 1 <= value + by <= MAX_COUNT]
    else:
        options = [word for word in WORDS[kind] if word != value]
    return Call(call.name, {**call.arguments, name: pick(options, rng)})


def draw_call(
    task: Task, words: Mapping[str, Any], rng: np.random.Generator, other_than: str = "", changes: bool = False
) -> Call:
    """Return a call of any function, with arguments taken from ``words`` by name where they fit."""
    names = [name for name in task.functions if name != other_than and (FUNCTIONS[name].changes or not changes)]
    name = pick(names, rng)
    arguments: dict[str, Any] = {}
    for parameter, kind in FUNCTIONS[name].parameters.items():
        options: Sequence[Any] = range(1, 5) if kind == "count" else WORDS[kind]
        fits = words.get(parameter) in options
        arguments[parameter] = words[parameter] if fits else pick(options, rng)
    return Call(name, arguments)


def texts(tasks: Sequence[TinyTask], noise: float, seed: int, markers: Markers = MARKERS) -> list[str]:
    """Return what is said in a demonstration of each task, in pieces to train a tokenizer of byte pairs on.

    Texts are split around the world's words and digits, and there is more of each word than of anything else: so it becomes a
    token, the same wherever it stands, and what stands between words becomes few tokens. 686 tokens are as many as can be used.
    """
    rng, found = np.random.default_rng(seed), [system_prompt(task, markers) for task in tasks]
    world = TinyWorld({task.id: task for task in tasks}, markers)
    for task in tasks:
        episode, request = world.reset(task.id)
        found.append(request)
        for response in demonstrate(task, noise, rng, markers=markers):
            result = world.step(episode, response, MAX_TURNS)
            found += [response, *([result.observation] if result.observation else [])]
            episode = result.episode
    pieces = collections.Counter(piece for text in found for piece in BETWEEN_WORDS.split(text) if piece)
    # square roots, or else what is said seldom comes out as letters
    counts = {piece: math.isqrt(count) for piece, count in pieces.items()}
    counts |= {word: 10 * max(counts.values()) for words in WORDS.values() for word in words}
    return [piece for piece, count in counts.items() for _ in range(count)]
