"""What a response does: one JSON call between tool tags, the finished marker, or the error marker.

A response is data to the very end: JSON is decoded, never evaluated, and a name counts only if the task has such a function. A
response that is none of the three is *invalid*, with a message that goes back to the model as its observation.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from exit_jax.domains.text.thoughts import final_answer

MAX_CALL_CHARS = 20_000  # characters from a call's start tag to the end of the response
MAX_STARTS = 8  # start tags in a response, mentions included; with the line above it bounds the time of a parse
MAX_DEPTH = 16  # depth of nested arguments
MAX_NAME_CHARS = 40  # length of what a message quotes

FENCE_START = re.compile(r"\s*(?:```(?:json)?\s*)?", re.IGNORECASE)
FENCE_END = re.compile(r"\s*(?:```\s*)?")
# a string, which may lack its end, or a comma with nothing but a closing bracket after it
STRING_OR_COMMA = re.compile(r'("(?:[^"\\]|\\.)*+(?:"|\\?$))|,(?=\s*+[}\]])', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Markers:
    """The texts that end a response."""

    call_start: str = "<tool_call>"  # these two are tokens of their own for Qwen2.5
    call_end: str = "</tool_call>"
    finished: str = "<finished>"
    error: str = "<error>"


MARKERS = Markers()


@dataclasses.dataclass(frozen=True)
class Action:
    """What a response asks for."""

    kind: str  # call | finished | error | invalid
    name: str = ""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    message: str = ""  # fault of an invalid response, for the model


def parse(response: str, functions: Mapping[str, Mapping[str, Any]], markers: Markers = MARKERS) -> Action:
    """Return what the final answer of a response asks for; never raises.

    What thoughts hold counts for nothing (``thoughts.final_answer``), be it a call or a marker. Accepted around the one ending:
    reasoning before it, white space, a code fence around the call, its JSON or a marker, trailing commas, line breaks within
    strings, no "arguments" where none is needed. Rejected: a second call, a call and a marker, text after the call, names
    that are not the task's, numbers that are not finite, repeated keys, lone surrogates.

    Args:
        response: the model's text, without end-of-turn tokens.
        functions: name -> document; ``parameters`` in it is a JSON Schema with ``properties`` and perhaps ``required``.
        markers: the texts that end a response.
    """
    text = trimmed(response)
    calls, rest, fault = find_calls(text, markers)
    if fault and (calls or markers.call_end in text or not text.endswith((markers.finished, markers.error))):
        return invalid(f"Not a call: {fault}. {how_to_end(markers)}")
    if len(calls) > 1:
        return invalid("One call a response, please: none of these was made.")
    if calls and rest.strip().strip("`").strip():
        return invalid("Nothing may follow a call: it was not made.")
    if calls:
        return check_call(calls[0], functions)
    if text.endswith(markers.finished):
        return Action("finished")
    if text.endswith(markers.error):
        return Action("error")
    return invalid(how_to_end(markers))


def trimmed(response: str) -> str:
    """Return the final answer of a response without white space and the end of a code fence after its ending."""
    return final_answer(response).rstrip().rstrip("`").rstrip()


def has_ending(response: str, markers: Markers = MARKERS) -> bool:
    """Return whether a response has one of the valid endings, whatever is before it: a call's end tag, or a marker."""
    return trimmed(response).endswith((markers.call_end, markers.finished, markers.error))


def how_to_end(markers: Markers) -> str:
    """Return the rule of how a response ends."""
    call = f'{markers.call_start}{{"name": ..., "arguments": {{...}}}}{markers.call_end}'
    return f"End your response with one call, {call}, or with {markers.finished} or {markers.error}."


def invalid(message: str) -> Action:
    """Return the action of a response that cannot be understood."""
    return Action("invalid", message=message)


def find_calls(text: str, markers: Markers) -> tuple[list[Any], str, str]:
    """Return the decoded bodies of all complete calls, the text after the last, and what is wrong with the last other start.

    A start tag that no JSON value and end tag follow may be a mention, or a call gone wrong.
    """
    calls, rest, fault = [], text, ""
    if text.count(markers.call_start) > MAX_STARTS:
        return [], text, f"{markers.call_start} appears more than {MAX_STARTS} times"
    while (start := rest.find(markers.call_start)) >= 0:
        rest = rest[start + len(markers.call_start) :]
        if len(rest) > MAX_CALL_CHARS:
            fault = f"it is longer than {MAX_CALL_CHARS} characters"
            continue
        for is_mended in (False, True):
            reading = STRING_OR_COMMA.sub(r"\1", rest) if is_mended else rest
            try:
                value, end = DECODER.raw_decode(reading, match_end(FENCE_START, reading, 0))
                nesting = depth(value)
            except (ValueError, RecursionError) as error:
                fault = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
                continue
            end = match_end(FENCE_END, reading, end)
            if nesting > MAX_DEPTH:
                fault = f"it is nested more than {MAX_DEPTH} deep"
            elif not reading.startswith(markers.call_end, end):
                fault = f"the JSON object is not followed by {markers.call_end}"
            else:
                calls.append(value)
                rest = reading[end + len(markers.call_end) :]
                fault = ""
            break
    return calls, rest, fault


def match_end(pattern: re.Pattern, text: str, start: int) -> int:
    """Return where a pattern that matches everywhere ends."""
    found = pattern.match(text, start)
    return found.end() if found else start


def depth(value: Any) -> int:
    """Return how deep lists and objects are nested: 0 for a plain value."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def finite(text: str) -> float:
    """Return a JSON number, which must not overflow: 1e999 would be inf."""
    if not math.isfinite(value := float(text)):
        raise ValueError("numbers must be finite")
    return value


def no_constant(text: str):
    """Refuse NaN and Infinity, which Python's json accepts."""
    raise ValueError(f"{text} is no JSON value")


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys must differ."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key appears twice")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=unique, parse_float=finite, parse_constant=no_constant, strict=False)


def check_call(value: Any, functions: Mapping[str, Mapping[str, Any]]) -> Action:
    """Return the call that a decoded value asks for, or what is wrong with it."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value.keys() - {"name", "arguments"}:
        return invalid('A call is a JSON object with the keys "name" and "arguments", and no others.')
    name, arguments = value["name"], value.get("arguments", {})
    if name not in functions:
        return invalid(f"There is no function {shorten(name)}.")
    if not isinstance(arguments, dict):
        return invalid('"arguments" must be a JSON object: {"parameter": value}.')
    parameters = functions[name]["parameters"]
    known, required = parameters.get("properties", {}), parameters.get("required", [])
    if extra := [key for key in arguments if key not in known]:
        return invalid(f"{name} has no parameter {shorten(extra[0])}; its parameters: {', '.join(known) or 'none'}.")
    if missing := [key for key in required if key not in arguments]:
        return invalid(f"{name} needs the arguments {', '.join(missing)}.")
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return invalid("The arguments hold half of a surrogate pair, which is no text.")
    return Action("call", name, arguments)


def shorten(name: str) -> str:
    """Return a model's own word as JSON, cut, for a message."""
    return json.dumps(name[:MAX_NAME_CHARS] + "..." * (len(name) > MAX_NAME_CHARS))


def render_call(name: str, arguments: Mapping[str, Any], markers: Markers = MARKERS) -> str:
    """Return the ending of a response that makes this call."""
    call = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"{markers.call_start}{call}{markers.call_end}"
