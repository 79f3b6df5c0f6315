"""The list of the rows that are left out: JSON lines with place, reason and start of each."""

import json
import logging
import pathlib
from collections.abc import Iterable, Mapping

log = logging.getLogger(__name__)

FILE = "left_out.jsonl"
_START_CHARS = 200  # characters of a row in the list, enough to recognise it


def entry(place: str, reason: str, start: str, twin: str = "") -> dict[str, str]:
    """Return the entry of a row; ``twin`` is the place of the row that it repeats."""
    return {"place": place, "reason": reason, "start": start[:_START_CHARS]} | ({"twin": twin} if twin else {})


def write_left_out(folder: pathlib.Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write the list of entries in the place of an earlier one; a folder that cannot be written to stays as it is."""
    _write(folder, [json.dumps(row) for row in rows])


def append_left_out(folder: pathlib.Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Add entries to the list, each once: for reasons that show later, such as a prompt that is too long."""
    path = folder / FILE
    try:
        known = path.read_text().splitlines() if path.exists() else []
    except OSError as error:
        log.warning("%s cannot be read (%s)", path, error)
        return
    _write(folder, list(dict.fromkeys([*known, *(json.dumps(row) for row in rows)])))


def _write(folder: pathlib.Path, lines: list[str]) -> None:
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        draft.write_text("".join(f"{line}\n" for line in lines))
        draft.replace(path)
    except OSError as error:
        log.warning("%s cannot be written (%s)", path, error)
