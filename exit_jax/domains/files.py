"""Rows in files, here or on the Hugging Face hub: JSONL, JSON lists, parquet and Arrow.

pyarrow and the hub's client are imported where they are used, since they take time that other domains need not wait for.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from exit_jax.errors import DomainError

SUFFIXES = (".jsonl", ".json", ".parquet")
_BATCH_ROWS = 1024  # rows of a parquet file in memory at once


class Undecodable(str):
    """A line that is not JSON, as text; ``reason`` says why."""

    reason: str


def read_rows(path: pathlib.Path, fields: set[str] | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (place, row) of a file, by its suffix: mappings, or whatever else stands where one should be.

    The place is a line of JSONL, else the row's number; both count from 1. Blank lines are no rows. JSONL, parquet and Arrow
    streams (.arrow) are streamed; a .json file, a list of objects or lines as of JSONL, is read whole.

    Args:
      fields: columns to read of a parquet file, None for all.

    Raises:
      DomainError: if the file is damaged, or a .json file holds one thing.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as file:
                columns = [name for name in file.schema_arrow.names if fields is None or name in fields]
                yield from _rows_of(file.iter_batches(_BATCH_ROWS, columns=columns))
        elif path.suffix == ".arrow":
            import pyarrow

            with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
                yield from _rows_of(batches)
        elif path.suffix == ".json" and (rows := _whole(path)) is not None:
            yield from enumerate(rows, 1)
        else:
            with path.open("rb") as file:
                for place, line in enumerate(file, 1):
                    if line.strip():
                        yield place, _parse(line)
    except DomainError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError) as error:  # pyarrow's errors are among these
        raise DomainError(
            f"{path} is damaged ({cause_of(error)}); get it again, as JSONL, a JSON list or parquet"
        ) from error


def _rows_of(batches: Any) -> Iterator[tuple[int, Any]]:
    place = 0
    for batch in batches:
        # without columns, a batch forgets its rows
        for row in batch.to_pylist() if batch.num_columns else [{}] * batch.num_rows:
            place += 1
            yield place, row


def _whole(path: pathlib.Path) -> list[Any] | None:
    """Return the list that a .json file holds, None if it holds lines.

    Raises:
      DomainError: it holds something else.
    """
    try:
        rows = json.loads(path.read_bytes()) if path.stat().st_size else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a value, and then more
            return None
        raise
    if not isinstance(rows, list):
        raise DomainError(f"{path} holds one {type(rows).__name__}; put its rows into a list, or one a line")
    return rows


def _parse(line: bytes) -> Any:
    """Return the value of a line of JSON, or the line as text."""
    try:
        # json's own decoding would take pieces of another encoding for text
        return json.loads(line.decode("utf-8-sig", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        text = Undecodable(line.decode(errors="replace"))
        text.reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
        return text


def sha256(path: pathlib.Path) -> str:
    """Return the sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(repo: str, file: str, revision: str) -> pathlib.Path:
    """Return a file of a data set on the hub in the hub's cache, downloaded if need be.

    Raises:
      LookupError: if it cannot be had; the message says why.
    """
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(repo, file, repo_type="dataset", revision=revision)
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise LookupError(f"{type(error).__name__}: {cause_of(error)}") from error
    return pathlib.Path(path)


def cause_of(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [repr(error)])[0]
