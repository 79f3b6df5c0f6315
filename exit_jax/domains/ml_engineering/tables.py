"""Small CSV tables from bytes that nobody vouches for: parsed within bounds, as text, with errors in words.

Why not pandas: a submission comes from code that a model wrote, and pandas makes an object a column (a header of a million
columns, 7 MB, took pandas 3.1 over a minute and 3 GiB), guesses types, and reads "NA" as a number. The csv module is linear in
the bytes, whose number the caller bounds.
"""

import codecs
import collections
import csv
import dataclasses
import io
from collections.abc import Iterator

SHOWN_CHARS = 40  # length of a value in a message
MAX_ROW_BYTES = 1 << 18  # no more than as many cells, whatever the number of bytes


class TableError(ValueError):
    """Bytes that are no table of the kind asked for; the message is short and made for whoever wrote them."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A header and rows of text of the same length."""

    columns: tuple[str, ...]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


def shown(value: str) -> str:
    """Return a value as it may stand in a message: quoted, escaped, and cut to SHOWN_CHARS."""
    return repr(value if len(value) <= SHOWN_CHARS else value[:SHOWN_CHARS] + "...")


def parse(data: bytes, max_rows: int, max_columns: int, strip: bool = True) -> Table:
    """Parse CSV with a header; cells are stripped unless told otherwise, blank lines skipped.

    Raises:
      TableError: if it is no UTF-8, is malformed or ragged, repeats a column, or exceeds the bounds.
    """
    row_bytes, clean = 0, str.strip if strip else str

    def lines() -> Iterator[str]:
        nonlocal row_bytes
        for line in io.BytesIO(data.removeprefix(codecs.BOM_UTF8)):
            row_bytes += len(line)
            if row_bytes > MAX_ROW_BYTES:  # quoted line breaks may spread a row over many lines
                raise TableError(f"it has a row of more than {MAX_ROW_BYTES} bytes, at line {reader.line_num + 1}")
            yield line.decode()

    reader = csv.reader(lines(), strict=True)
    rows: list[list[str]] = []
    columns: tuple[str, ...] = ()
    try:
        for row in reader:
            row_bytes = 0
            if not row:
                continue
            if not columns:
                columns = _header([clean(name) for name in row], max_columns)
            elif len(row) != len(columns):
                raise TableError(f"line {reader.line_num} has {len(row)} cells where the header has {len(columns)}")
            elif len(rows) == max_rows:
                raise TableError(f"it has more than the {max_rows} rows expected")
            else:
                rows.append([clean(cell) for cell in row])
    except UnicodeDecodeError:
        raise TableError(f"it is not UTF-8 text at line {reader.line_num + 1}; write it as CSV") from None
    except csv.Error as error:
        raise TableError(f"it is malformed CSV at line {reader.line_num}: {error}") from None
    if not columns:
        raise TableError("it is empty; write a header and the rows")
    return Table(columns, rows)


def _header(row: list[str], max_columns: int) -> tuple[str, ...]:
    """Return the names of columns, checked."""
    if len(row) > max_columns:
        raise TableError(f"it has {len(row)} columns, more than {max_columns}")
    columns = tuple(row)
    ((commonest, times),) = collections.Counter(columns).most_common(1)
    if times > 1:
        raise TableError(f"the column {shown(commonest)} occurs {times} times")
    return columns


def write(columns: tuple[str, ...], rows: list[list[str]]) -> bytes:
    """Return a table as CSV, the same bytes on every platform."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return file.getvalue().encode()
