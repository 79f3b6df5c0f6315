"""What a prompt shows of a competition's public files: names, sizes, first rows. Bounded, and the same on every machine.

The files are trusted (the user prepared them), their lengths are not: of each only the first bytes are read.
"""

import os
import pathlib
from collections.abc import Iterator

from exit_jax.domains.ml_engineering.competitions import Competition

TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".txt")
MAX_LISTED = 5  # files of a subfolder, of which there may be thousands
MAX_LINES = 4  # lines of a file: a header and three rows
MAX_LINE = 160  # characters
HEAD_BYTES = 16_384
GAP = "..."


def preview(competition: Competition, max_chars: int) -> str:
    """Return the list of public files and the first lines of those that are text, in at most ``max_chars`` characters.

    The list comes first. What room it leaves is shared equally by the text files at the top, in the order of their names.
    """
    public = competition.public
    listing = _cut("\n".join(_listing(public)), max_chars)
    files = [path for path in sorted(public.iterdir()) if path.is_file() and path.suffix in TEXT_SUFFIXES]
    room = (max_chars - len(listing)) // max(len(files), 1)
    heads = [f"\n\n{path.name}:\n{_head(path)}" for path in files]
    return listing + "".join(_cut(head, room) for head in heads if room > 40)  # less would show no row


def _listing(folder: pathlib.Path) -> Iterator[str]:
    """Yield a line for each file at the top, and for each folder its first files and their number."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield f"{path.name} ({_size(path.stat().st_size)})"
        elif path.is_dir():
            found = sorted(os.path.join(root, name) for root, _, names in os.walk(path) for name in names)
            first = ", ".join(os.path.relpath(name, folder) for name in found[:MAX_LISTED])
            yield f"{path.name}/ ({len(found)} files: {first}{', ' + GAP if len(found) > MAX_LISTED else ''})"


def _size(num_bytes: int) -> str:
    """Return a size for people.

    >>> _size(999), _size(12_345), _size(3_500_000)
    ('999 B', '12.3 kB', '3.5 MB')
    """
    if num_bytes < 1000:
        return f"{num_bytes} B"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes < 1e6 else f"{num_bytes / 1e6:.1f} MB"


def _head(path: pathlib.Path) -> str:
    """Return the first lines of a text file, long ones cut."""
    with path.open("rb") as file:
        start = file.read(HEAD_BYTES)
    lines = start.decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n")
    shown = [_cut(line, MAX_LINE) for line in lines[:MAX_LINES]]
    return "\n".join(shown).rstrip()


def _cut(text: str, max_chars: int) -> str:
    """Return a text of at most ``max_chars`` characters, marked where it was cut."""
    return text if len(text) <= max_chars else (text[: max(max_chars - len(GAP), 0)] + GAP)[:max_chars]
