"""Actions of OpenEnv from text, and text from its observations, by the JSON schemas that a server gives of both."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

MAX_NUMBERS = 1024  # in what is shown of an observation; a picture has more
ALWAYS = ("metadata", "done", "reward")  # fields of all actions and observations
WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}
SCALARS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


class NoAction(ValueError):
    """What is wrong with a text that should be an action."""


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of an action or an observation, but for those that all have."""

    schemas: Mapping[str, Mapping[str, Any]]
    required: tuple[str, ...] = ()
    takes_others: bool = False

    def only(self) -> str | None:
        """Return the one field that a text alone can be: the only required one, or the only one; None if there is none."""
        names = self.required or tuple(self.schemas)
        return names[0] if len(names) == 1 and self.schemas[names[0]].get("type") in SCALARS else None

    def said(self) -> str:
        """Return in words what a JSON object of these fields is."""
        fields = (
            f'"{name}": {said(field)}{"" if name in self.required else " (may be left out)"}'
            for name, field in self.schemas.items()
        )
        return f"one JSON object: {{{', '.join(fields)}}}" if self.schemas else "one JSON object"


TOOL_CALL = Fields(
    {"type": {"enum": ["call_tool"]}, "tool_name": {"type": "string"}, "arguments": {"type": "object"}}, ("tool_name",)
)


def read_fields(schema: Mapping[str, Any]) -> Fields:
    """Return the fields of a JSON schema."""
    definitions = schema.get("$defs", {})
    schemas = {name: resolved(field, definitions) for name, field in schema.get("properties", {}).items()}
    schemas = {name: field for name, field in schemas.items() if name not in ALWAYS}
    required = tuple(name for name in schema.get("required", ()) if name in schemas)
    return Fields(schemas, required, schema.get("additionalProperties") is not False)


def resolved(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a field's schema refers to, and of "it or null" the former."""
    if "$ref" in field:
        return resolved(definitions.get(field["$ref"].rpartition("/")[2], {}), definitions)
    options = [option for option in field.get("anyOf", ()) if option.get("type") != "null"]
    return resolved(options[0], definitions) if len(options) == 1 else field


def read_action(text: str, fields: Fields, plain: str | None) -> dict[str, Any]:
    """Return the action that a text is: a JSON object of the fields, or else the value of the field ``plain``.

    Raises:
      NoAction: It is neither.
    """
    fenced = FENCED.fullmatch(text)
    action = read_json(fenced[1] if fenced else text)
    wrong = ["it is no JSON object"]
    if isinstance(action, dict):
        unknown = [] if fields.takes_others else sorted(action.keys() - fields.schemas)
        missing = [name for name in fields.required if name not in action]
        wrong = [f"there is no field {', '.join(unknown)}"] * bool(unknown)
        wrong += [f"it lacks {', '.join(missing)}"] * bool(missing)
        if not wrong:
            return action
    if plain is None:
        raise NoAction("; ".join(wrong))
    return {plain: read_value(text, fields.schemas[plain])}


def read_value(text: str, field: Mapping[str, Any]) -> Any:
    """Return the value that a text is for a field.

    Raises:
      NoAction: It is none.

    >>> read_value(" 3 ", {"type": "integer"}), read_value("left\\n", {"type": "string", "enum": ["left", "right"]})
    (3, 'left')
    """
    kind = field.get("type")
    is_text = kind == "string"
    value = (text.strip() if "enum" in field else text) if is_text else read_json(text)
    is_right = isinstance(value, SCALARS.get(str(kind), object)) and (kind == "boolean" or not isinstance(value, bool))
    if not is_right or value not in field.get("enum", [value]):
        raise NoAction(f"it is not {said(field)}")
    return value


def read_json(text: str) -> Any:
    """Return the value of a text of JSON, None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def said(field: Mapping[str, Any]) -> str:
    """Return in words what a field takes."""
    if "enum" in field:
        return f"one of {', '.join(json.dumps(choice, ensure_ascii=False) for choice in field['enum'])}"
    return WORDS.get(str(field.get("type")), "any value")


def as_text(value: Any) -> str:
    """Return what is shown of a value: a text as it is, anything else as JSON, "" where there is nothing."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if value not in (None, {}) else ""


def not_text(value: Any) -> str:
    """Return what in a value cannot be shown as text, "" if all of it can."""
    numbers, todo = 0, [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict | list):
            todo.extend(one.values() if isinstance(one, dict) else one)
        elif isinstance(one, str) and one.startswith("data:") and ";base64," in one[:100]:
            return "a picture or other binary data"
        numbers += isinstance(one, int | float)
    return f"{numbers:,} numbers, as of a picture," if numbers > MAX_NUMBERS else ""
