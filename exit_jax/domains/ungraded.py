"""A log of what hung or crashed, so that a resumed run repeats what came of it instead of the accident."""

import json
import logging
import pathlib
from typing import Any

log = logging.getLogger(__name__)


class UngradedLog:
    """Keys of items that hung or crashed, and a file of JSON lines that they are appended to; delete it to try them again."""

    def __init__(self, path: pathlib.Path | None):
        """Read an earlier run's keys; without a path they are held in memory only."""
        self.path = path
        self._keys = set() if path is None else _read(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, key: bytes, /, **fields: Any) -> None:
        """Remember an item, and append what is said of it."""
        self._keys.add(key)
        self.write(hash=key.hex(), **fields)

    def write(self, **fields: Any) -> None:
        """Append a line, of an item that is not remembered if it has no ``hash``."""
        if self.path is None:
            return
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(fields) + "\n")
        except OSError as error:  # a full disk costs the log a line, and no more
            log.warning("cannot write to %s: %s", self.path, error)


def _read(path: pathlib.Path) -> set[bytes]:
    """Return the keys in a log. A last line that was cut off is ended; unreadable lines are skipped."""
    keys = set()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return keys
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        with open(path, "ab") as file:
            file.write(b"\n")
    for line in lines:
        try:
            keys.add(bytes.fromhex(json.loads(line)["hash"]))
        except (ValueError, KeyError, TypeError):
            continue
    return keys
