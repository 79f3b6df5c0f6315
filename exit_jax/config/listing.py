"""All settings for people: those of one config, for --mode settings, and the reference in docs/settings.md."""

import dataclasses
import inspect
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from exit_jax import domains, settings
from exit_jax.config.parse import field_types
from exit_jax.config.schema import OPERATIONAL, Config

INTRODUCTION = """# Settings

Every field of a config, from `exit_jax/config/schema.py` and the dataclasses that it and the domains name; a test keeps this
page true (`python -m exit_jax.config.listing > docs/settings.md` writes it). `--mode settings` prints the values of one config
beside the defaults. On the command line a field is `--config.<name>=<value>`, of a tuple `--config.eval.steps="(0, 4)"`.

Fields marked *run* may differ when a run resumes; all others are fixed for a workdir. A run that was made before a field
existed has the default of that field.
"""


class Row(NamedTuple):
    """One field."""

    name: str  # dotted
    value: Any
    default: Any
    setting: settings.Setting


def rows(content: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the fields of a config's content in the order of the schema; a field that it lacks has its default."""
    yield from _rows(Config, settings.defaults(Config), content, "")


def _rows(cls: Any, defaults: Mapping[str, Any], values: Mapping[str, Any], path: str) -> Iterator[Row]:
    types = field_types(cls, values)
    for field in dataclasses.fields(cls):
        kind, name = types.get(field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(kind):
            default = defaults.get(field.name)
            below = settings.defaults(kind) | (vars(default) if default is not None else {})
            yield from _rows(kind, below, values.get(field.name, {}), f"{name}.")
        else:
            default = defaults.get(field.name)
            yield Row(name, values.get(field.name, default), default, settings.setting_of(field))


def text(content: Mapping[str, Any]) -> str:
    """Return a config's fields with value and meaning, and the default where the value is another one."""
    lines = []
    for name, value, default, setting in rows(content):
        changed = "" if value == default else f"  (default {shown(default)})"
        lines.append(f"{name} = {shown(value)}{changed}\n    {meaning(setting)}")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a value as it is written in a config; of a long text the beginning."""
    return textwrap.shorten(repr(value), 60, placeholder=" ...")


def meaning(setting: settings.Setting) -> str:
    """Return what a field is for, its unit and the values that it takes."""
    parts = [
        setting.meaning,
        setting.unit and f"in {setting.unit}",
        setting.choices and f"one of {_choices(setting.choices)}",
    ]
    return "; ".join(part for part in (*parts, setting.within and f"in {setting.within}") if part)


def _choices(choices: Collection[Any]) -> str:
    """Return the values that a field takes; of a table of functions with the first line of what is said of each."""
    if not isinstance(choices, Mapping):
        return str(list(choices))
    first_line = {name: (inspect.getdoc(function) or "").partition("\n")[0] for name, function in choices.items()}
    return ", ".join(
        f"{name!r} ({line.removesuffix('.')})" if line else repr(name) for name, line in first_line.items()
    )


def markdown() -> str:
    """Return the reference of all fields, those of each domain apart."""
    parts, groups = [INTRODUCTION], {}
    for row in rows({}):
        if row.name != "domain":
            groups.setdefault(row.name.partition(".")[0] if "." in row.name else "experiment", []).append(row)
    for name in domains.NAMES:
        cls = domains.settings_of(name)
        groups[f"domain, where domain_name = {name!r}"] = list(_rows(cls, settings.defaults(cls), {}, "domain."))
    for title, members in groups.items():
        parts.append(f"## {title}\n\n| field | default | meaning |\n|---|---|---|")
        parts[-1] += "".join(
            f"\n| `{row.name}` | `{_cell(shown(row.default))}` | {_prose(meaning(row.setting))}{_mark(row.name)} |"
            for row in members
        )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _mark(name: str) -> str:
    return " *run*" if f"{name}.".startswith(tuple(f"{free}." for free in OPERATIONAL)) else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _prose(text: str) -> str:
    """Return a cell that is no code, where <name> would be taken for HTML and shown as nothing."""
    return _cell(text).replace("<", "&lt;")


if __name__ == "__main__":
    print(markdown(), end="")
