"""Tasks in the tiny world: two to four requests, most of which depend on what is found there or on those before.

The ground truth of a request are the calls that change the state as it asks, or the look that it asks for (goals.py).
"""

import functools
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from exit_jax.domains.tool_use.episode import Task
from exit_jax.domains.tool_use.tiny.goals import KINDS, SAME, Calls, others, resolve, ways
from exit_jax.domains.tool_use.tiny.world import (
    MAX_COUNT,
    WORDS,
    Goal,
    State,
    TinyTask,
    copy_state,
    documents,
    execute,
    run_all,
)

API_SETS = (("Store", "Bank"), ("Store", "House"), ("Bank", "House"))
MAX_TURNS = 12  # responses that an episode may take
MAX_NEEDED = 10  # responses needed, if nothing goes wrong
MAX_CALLS = 3  # calls for a request, besides those to find out
FOCUS_PROB = 0.7  # probability that a goal is about something that an earlier one was about
# probability a try that a request refers to the one before by "that" or "the same"; this is possible more often
FOLLOW_UP_PROB = 0.06
INDEPENDENT_PROB = 0.3  # probability that a later goal is kept which would take the same calls without those before
NUM_TRIES = 20  # tries at the next goal, before a task is given up


@functools.lru_cache
def tasks(split: str, count: int, seed: int) -> tuple[TinyTask, ...]:
    """Return the tasks of a split (train | validation | test), none twice.

    A hash of initial state and requests decides which split a task belongs to, so that splits share no task whatever the
    seeds. The first tasks are the same for every count.

    Raises:
        ValueError: there is no such split, or it has fewer tasks.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split={split!r} must be train, validation or test")
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    found: dict[str, TinyTask] = {}
    for _ in range(100 * count):
        task = draw(rng)
        if task and split_of(task) == split:
            found.setdefault(task.id, task)
        if len(found) == count:
            return tuple(found.values())
    raise ValueError(f"there are fewer than {count} different tasks for the split {split!r}; ask for fewer")


def split_of(task: Task) -> str:
    """Return the split of a task: one in ten is for validation, one in ten for the test."""
    return {0: "validation", 1: "test"}.get(zlib.crc32(task.id.encode()) % 10, "train")


def draw(rng: np.random.Generator) -> TinyTask | None:
    """Draw a task; None where it came out unfit."""
    apis = pick(API_SETS, rng)
    initial = {api: DRAW_PART[api](rng) for api in apis}
    goals, texts, truth = [], [], []
    state, past, num_turns = copy_state(initial), (), 0
    for _ in range(rng.integers(2, 5)):
        for _ in range(NUM_TRIES):
            goal, text = draw_request(goals, apis, rng)
            calls = resolve(goal, state, past)
            fits = calls and goal not in goals and num_turns + num_needed(goal, calls) <= MAX_NEEDED
            if fits and is_possible(calls, state) and (not goals or is_kept(goal, calls, initial, rng)):
                break
        else:
            return None
        num_turns += num_needed(goal, calls)
        goals.append(goal)
        texts.append(text)
        truth.append(calls)
        state, past = run_all(state, calls), calls
    content = hashlib.sha256(json.dumps([initial, texts]).encode()).hexdigest()
    return TinyTask(
        id=f"tiny_{content[:16]}",
        apis=apis,
        requests=tuple(texts),
        functions=documents(apis),
        initial_config=initial,
        truth=tuple(truth),
        goals=tuple(goals),
    )


def num_needed(goal: Goal, calls: Calls) -> int:
    """Return how many responses a goal takes at most: what is to be found out, the calls, the finished marker."""
    return max(sum(made not in calls for made in way) for way in ways(goal)) + len(calls) + 1


def is_possible(calls: Calls, state: State) -> bool:
    """Return whether there are not too many calls, and none of them fails."""
    state = copy_state(state)
    return len(calls) <= MAX_CALLS and not any("error" in execute(state, made) for made in calls)


def is_kept(goal: Goal, calls: Calls, initial: State, rng: np.random.Generator) -> bool:
    """Draw whether a later goal is kept: those that depend on nothing before come up too often."""
    return calls != resolve(goal, initial, ()) or rng.random() < INDEPENDENT_PROB


def draw_request(goals: Sequence[Goal], apis: tuple[str, ...], rng: np.random.Generator) -> tuple[Goal, str]:
    """Draw the next goal and put it into words."""
    if goals and rng.random() < FOLLOW_UP_PROB:
        slots = changeable(goals[-1])
        if slots and rng.random() < 0.5:
            return same_with(goals[-1], pick(slots, rng), rng)
        if goals[-1].kind != "undo":
            return Goal("undo", {}), pick(KINDS["undo"].phrasings, rng)
    name = pick(choices(apis), rng)
    slots = draw_slots(KINDS[name].slots, goals, rng)
    text = pick(KINDS[name].phrasings, rng).format(**slots)
    return Goal(name, slots), text[0].upper() + text[1:]


@functools.cache
def choices(apis: tuple[str, ...]) -> list[str]:
    """Return the names of the kinds that need no other APIs, each as often as it weighs."""
    return [name for name, kind in KINDS.items() if set(kind.apis) <= set(apis) for _ in range(kind.weight)]


def draw_slots(kinds: Mapping[str, str], goals: Sequence[Goal], rng: np.random.Generator) -> dict[str, Any]:
    """Draw what a goal is about, never the same word twice; often it is what earlier goals were about."""
    slots: dict[str, Any] = {}
    used = {word for goal in goals for word in goal.slots.values()}
    for name, kind in kinds.items():
        if kind == "count":
            slots[name] = pick((1, 2, 3, 4), rng)
            continue
        free = [word for word in WORDS[kind] if word not in slots.values()]
        known = [word for word in free if word in used]
        slots[name] = pick(known if known and rng.random() < FOCUS_PROB else free, rng)
    return slots


def changeable(goal: Goal) -> list[str]:
    """Return the slots that one word names without doubt, since the goal has no other of its kind."""
    kinds = KINDS[goal.kind].slots
    return [name for name, kind in kinds.items() if kind != "count" and list(kinds.values()).count(kind) == 1]


def same_with(goal: Goal, slot: str, rng: np.random.Generator) -> tuple[Goal, str]:
    """Draw a goal that is like another but for one slot."""
    word = pick(others(KINDS[goal.kind].slots[slot], goal.slots[slot]), rng)
    return replace(goal, slots={**goal.slots, slot: word}), pick(SAME, rng).format(word)


def draw_store(rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Draw what the boxes hold, at most 9 of an item."""
    store: dict[str, dict[str, Any]] = {box: {} for box in WORDS["box"]}
    for item in WORDS["item"]:
        left = MAX_COUNT
        for box in shuffled(WORDS["box"], rng):
            store[box][item] = int(rng.integers(1, min(left, 5) + 1)) if left and rng.random() < 0.6 else 0
            left -= store[box][item]
    return {box: {item: items[item] for item in WORDS["item"]} for box, items in store.items()}


def draw_bank(rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Draw who has how many coins, at most 9 in all."""
    bank, left = {}, MAX_COUNT
    for name in shuffled(WORDS["name"], rng):
        bank[name] = {"coins": int(rng.integers(0, min(left, 6) + 1))}
        left -= bank[name]["coins"]
    return {name: bank[name] for name in WORDS["name"]}


def draw_house(rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Draw which doors are open and which lights are on."""
    return {room: {kind: pick(WORDS[kind], rng) for kind in ("door", "light")} for room in WORDS["room"]}


DRAW_PART = {"Store": draw_store, "Bank": draw_bank, "House": draw_house}


def pick(options: Sequence[Any], rng: np.random.Generator) -> Any:
    """Draw one of some options."""
    return options[int(rng.random() * len(options))]


def shuffled(words: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """Return words in any order."""
    return [words[index] for index in rng.permutation(len(words))]
