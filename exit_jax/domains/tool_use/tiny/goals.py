"""What can be asked for in the tiny world, in what words, and what calls it takes.

What calls a `Goal` takes follows from the goal and the state that it is asked for in (``resolve``). How to find out what they
depend on is left open: many goals have several ways (``ways``), and calls that do not depend on one another may be made in any
order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exit_jax.domains.tool_use.episode import Call
from exit_jax.domains.tool_use.tiny.world import FUNCTIONS, WORDS, Goal, State

Slots = Mapping[str, Any]
Calls = tuple[Call, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of goal."""

    apis: tuple[str, ...]
    slots: Mapping[str, str]  # name -> kind of word, or "count"
    phrasings: tuple[str, ...]  # phrasings with slots in braces
    # (state, slots, calls made for the request before) -> calls; none if there is nothing to do or it is ambiguous
    resolve: Callable[[State, Slots, Calls], Sequence[Call]]
    ways: Callable[[Slots], Sequence[Calls]] = lambda slots: ((),)  # calls that find out what resolve depends on
    weight: int = 4  # how often it is drawn; more where there are several ways, or where few states allow it


def call(name: str, *arguments: Any) -> Call:
    """Return a call with arguments in the order of the parameters."""
    return Call(name, dict(zip(FUNCTIONS[name].parameters, arguments)))


def move_all(state: State, item: str, boxes: Sequence[str], to: str) -> list[Call]:
    """Return the calls that move all of an item from boxes to another."""
    return [call("move", state["Store"][box][item], item, box, to) for box in boxes if state["Store"][box].get(item)]


def switch(state: State, room: str, to: str) -> list[Call]:
    """Return the calls that turn a room's light on or off; its door is opened for that."""
    attributes = state["House"][room]
    if attributes["light"] == to:
        return []
    return [call("door", room, "open")] * (attributes["door"] == "shut") + [call("light", room, to)]


def others(kind: str, word: str) -> list[str]:
    """Return the other words of a kind."""
    return [other for other in WORDS[kind] if other != word]


def extreme(values: Mapping[str, int], sign: int) -> str | None:
    """Return the name of the greatest value (sign 1) or the least (-1), None if there are several."""
    best = max(sign * value for value in values.values())
    names = [name for name, value in values.items() if sign * value == best]
    return names[0] if len(names) == 1 else None


def balances(state: State) -> dict[str, int]:
    """Return how many coins each has."""
    return {name: account["coins"] for name, account in state["Bank"].items()}


def move_heap(state: State, slots: Slots, _: Calls) -> list[Call]:
    """Move the biggest heap of an item."""
    box = extreme({box: items[slots["item"]] for box, items in state["Store"].items()}, 1)
    return move_all(state, slots["item"], [box], slots["to"]) if box not in (None, slots["to"]) else []


def richest_pays(state: State, slots: Slots, _: Calls) -> list[Call]:
    """Let the one with the most coins pay."""
    name = extreme(balances(state), 1)
    return [call("pay", slots["count"], name, slots["to"])] if name not in (None, slots["to"]) else []


def pay_poorest(state: State, slots: Slots, _: Calls) -> list[Call]:
    """Pay the one with the fewest coins."""
    name = extreme(balances(state), -1)
    return [call("pay", slots["count"], slots["name"], name)] if name not in (None, slots["name"]) else []


def pay_all(state: State, slots: Slots, _: Calls) -> list[Call]:
    """Pay everything one has."""
    amount = balances(state)[slots["name"]]
    return [call("pay", amount, slots["name"], slots["to"])] * (amount > 0)


def pay_each(state: State, slots: Slots, _: Calls) -> list[Call]:
    """Pay a coin for each of an item in a box."""
    amount = state["Store"][slots["box"]][slots["item"]]
    return [call("pay", amount, slots["name"], slots["to"])] * (amount > 0)


def empty(state: State, slots: Slots, _: Calls) -> list[Call]:
    """Move all that a box holds."""
    return [made for item in WORDS["item"] for made in move_all(state, item, [slots["box"]], slots["to"])]


def all_lights(state: State, slots: Slots, _: Calls) -> list[Call]:
    """Turn all lights on or off."""
    return [made for room in WORDS["room"] for made in switch(state, room, slots["light"])]


def shut_dark(state: State, slots: Slots, _: Calls) -> list[Call]:
    """Shut the open doors of dark rooms."""
    dark = {"light": "off", "door": "open"}
    return [call("door", room, "shut") for room, attributes in state["House"].items() if attributes == dark]


def if_lit(otherwise: Callable[[Slots], Call]) -> Callable[[State, Slots, Calls], list[Call]]:
    """Return what turns a light off if it is on, and else makes another call."""

    def resolve(state: State, slots: Slots, _: Calls) -> list[Call]:
        is_lit = state["House"][slots["room"]]["light"] == "on"
        return switch(state, slots["room"], "off") if is_lit else [otherwise(slots)]

    return resolve


def undo(state: State, slots: Slots, past: Calls) -> list[Call]:
    """Take back the calls made for the request before, the last one first."""
    opposite = {"on": "off", "off": "on", "open": "shut", "shut": "open"}
    calls = []
    for made in reversed([made for made in past if FUNCTIONS[made.name].changes]):
        if made.name in ("door", "light"):
            calls.append(call(made.name, made.arguments["room"], opposite[made.arguments["to"]]))
        else:
            count, *rest, source, target = made.arguments.values()
            calls.append(call(made.name, count, *rest, target, source))
    return calls


def direct(name: str) -> Callable[[State, Slots, Calls], list[Call]]:
    """Return what makes one call with the slots as its arguments."""
    return lambda state, slots, past: [Call(name, dict(slots))]


def by_look(slots: Slots) -> tuple[Calls, ...]:
    """Look by box, or by item."""
    return (call("look", slots["box"]),), (call("find", slots["item"]),)


def by_find(slots: Slots) -> tuple[Calls, ...]:
    """Look by item, or at the boxes one by one."""
    return (call("find", slots["item"]),), tuple(call("look", box) for box in others("box", slots["to"]))


def by_account(slots: Slots) -> tuple[Calls, ...]:
    """Look at one account, or at all."""
    return (call("coins", slots["name"]),), (call("accounts"),)


def by_room(slots: Slots) -> tuple[Calls, ...]:
    """Look at one room, or at all."""
    return (call("show", slots["room"]),), (call("rooms"),)


def by_try(slots: Slots) -> tuple[Calls, ...]:
    """Look at one room or at all, or try, and learn from the error whether the door is shut."""
    return (*by_room(slots), (call("light", slots["room"], slots["light"]),))


STORE, BANK, HOUSE = ("Store",), ("Bank",), ("House",)
BOXES = {"item": "item", "box": "box", "to": "box"}
NAMES = {"name": "name", "to": "name"}
KINDS = {
    "look": Kind(STORE, {"box": "box"}, ("Look into {box}.",), direct("look"), weight=1),
    "find": Kind(STORE, {"item": "item"}, ("Look for {item}.",), direct("find"), weight=1),
    "move": Kind(
        STORE,
        {"count": "count"} | BOXES,
        ("Move {count} {item} from {box} to {to}.", "Take {count} {item} from {box} to {to}."),
        direct("move"),
        weight=3,
    ),
    "move_all": Kind(
        STORE,
        BOXES,
        ("Move all {item} from {box} to {to}.", "Take all {item} from {box} to {to}."),
        lambda state, slots, past: move_all(state, slots["item"], [slots["box"]], slots["to"]),
        by_look,
        weight=6,
    ),
    "gather": Kind(
        STORE,
        {"item": "item", "to": "box"},
        ("Move all {item} to {to}.", "Take all {item} to {to}."),
        lambda state, slots, past: move_all(state, slots["item"], others("box", slots["to"]), slots["to"]),
        by_find,
        weight=6,
    ),
    "heap": Kind(
        STORE,
        {"item": "item", "to": "box"},
        ("Move the biggest heap of {item} to {to}.", "Take the biggest heap of {item} to {to}."),
        move_heap,
        lambda slots: by_find(slots)[:1],
    ),
    "empty": Kind(
        STORE,
        {"box": "box", "to": "box"},
        ("Move all from {box} to {to}.", "Take all from {box} to {to}."),
        empty,
        lambda slots: ((call("look", slots["box"]),),),
    ),
    "coins": Kind(BANK, {"name": "name"}, ("Look up {name}.",), direct("coins"), weight=1),
    "pay": Kind(
        BANK,
        {"count": "count"} | NAMES,
        ("Pay {count} from {name} to {to}.", "Take {count} from {name} to {to}."),
        direct("pay"),
        weight=3,
    ),
    "pay_all": Kind(
        BANK,
        NAMES,
        ("Pay all from {name} to {to}.", "Take all from {name} to {to}."),
        pay_all,
        by_account,
        weight=6,
    ),
    "richest": Kind(
        BANK,
        {"count": "count", "to": "name"},
        ("Pay {count} from the richest to {to}.", "Take {count} from the richest to {to}."),
        richest_pays,
        lambda slots: ((call("accounts"),),),
    ),
    "poorest": Kind(
        BANK,
        {"count": "count", "name": "name"},
        ("Pay {count} from {name} to the poorest.", "Take {count} from {name} to the poorest."),
        pay_poorest,
        lambda slots: ((call("accounts"),),),
    ),
    "show": Kind(HOUSE, {"room": "room"}, ("Look into the {room}.",), direct("show"), weight=1),
    "door": Kind(
        HOUSE,
        {"room": "room", "door": "door"},
        ("Make the {room} {door}.", "Make {door} the {room}."),
        lambda state, slots, past: [call("door", slots["room"], slots["door"])],
        weight=3,
    ),
    "light": Kind(
        HOUSE,
        {"room": "room", "light": "light"},
        ("Turn {light} the {room}.", "Turn the {room} {light}."),
        lambda state, slots, past: switch(state, slots["room"], slots["light"]),
        by_try,
        weight=6,
    ),
    "all_lights": Kind(
        HOUSE,
        {"light": "light"},
        ("Turn {light} all rooms.", "Turn all rooms {light}."),
        all_lights,
        lambda slots: ((call("rooms"),),),
    ),
    "shut_dark": Kind(
        HOUSE,
        {},
        ("Make all dark rooms shut.", "Make shut all dark rooms."),
        shut_dark,
        lambda slots: ((call("rooms"),),),
    ),
    "each": Kind(
        ("Store", "Bank"),
        {"item": "item", "box": "box"} | NAMES,
        ("For the {item} in {box}, pay 1 each from {name} to {to}.",),
        pay_each,
        by_look,
        weight=10,
    ),
    "lit_pay": Kind(
        ("Bank", "House"),
        {"room": "room", "count": "count"} | NAMES,
        ("If lit, turn off the {room}, else pay {count} from {name} to {to}.",),
        if_lit(lambda slots: call("pay", slots["count"], slots["name"], slots["to"])),
        by_room,
        weight=6,
    ),
    "lit_move": Kind(
        ("Store", "House"),
        {"room": "room", "count": "count"} | BOXES,
        ("If lit, turn off the {room}, else move {count} {item} from {box} to {to}.",),
        if_lit(lambda slots: call("move", slots["count"], slots["item"], slots["box"], slots["to"])),
        by_room,
        weight=6,
    ),
    "undo": Kind((), {}, ("Undo that.", "Take that back."), undo, weight=0),
}
SAME = ("The same with {}.", "Also {}.")  # a goal like the one before, but for one word


def resolve(goal: Goal, state: State, past: Calls) -> Calls:
    """Return the calls that fulfil a goal in a state, none if there is nothing to do or no telling what.

    Args:
        goal: what is asked for.
        state: as it is when it is asked for.
        past: the calls made for the request before.
    """
    return tuple(KINDS[goal.kind].resolve(state, goal.slots, past))


def ways(goal: Goal) -> tuple[Calls, ...]:
    """Return the ways to find out what a goal depends on, each a sequence of calls; one that is empty if nothing."""
    return tuple(KINDS[goal.kind].ways(goal.slots))
