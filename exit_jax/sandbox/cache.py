"""Results on disk: a folder of small files, each written as soon as its run has ended, whole or not at all.

A program with a time in it, or without a seed, gives another result each time it runs; found here, it gives the one it had, so
that a resumed training run repeats its rewards bitwise. That is why timeouts are kept, too, though a quieter machine
might have been in time. They lie apart: delete the folder ``timeouts`` to give those programs another try, or all to
start afresh. Nothing else reads or deletes these files, and any number of processes may share them.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import threading
import zlib
from collections.abc import Sequence

from exit_jax.sandbox.job import Job, Limits, Result

log = logging.getLogger(__name__)
FORMAT = 2  # another number for other rules of what programs may do, too
FOLDERS = ("results", "timeouts")


class Cache:
    """Results by key."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._has_warned = False

    def get(self, key: str) -> Result | None:
        """Return the result of a key, None if there is none or its file is damaged."""
        for folder in FOLDERS:
            try:
                return decode((self._folder / folder / key[:2] / key).read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
                log.warning("sandbox: the cached result %s cannot be read (%s) and is made again", key, error)
        return None

    def put(self, key: str, result: Result):
        """Keep a result. A full disk costs the entry, and is told once."""
        folder = self._folder / FOLDERS[result.status == "timeout"] / key[:2]
        scratch = folder / f"{key}.{os.getpid()}.{threading.get_ident()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                scratch.write_bytes(encode(result))
                scratch.replace(folder / key)
            finally:
                scratch.unlink(missing_ok=True)
        except OSError as error:
            if not self._has_warned:
                log.warning("sandbox: results cannot be cached: %s", error)
            self._has_warned = True


def encode(result: Result) -> bytes:
    """Return a result's file: a digest of what follows, and compressed a line of JSON and the files' contents."""
    fields = dataclasses.asdict(result) | {"files": {name: len(content) for name, content in result.files.items()}}
    body = zlib.compress(json.dumps(fields).encode() + b"\n" + b"".join(result.files.values()), 1)
    return hashlib.sha256(body).digest() + body


def decode(data: bytes) -> Result:
    """Return the result in a file, as a cached one.

    Raises:
        ValueError, KeyError, TypeError, zlib.error: it is damaged.
    """
    digest, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its digest is not that of its content")
    header, _, rest = zlib.decompress(body).partition(b"\n")
    fields, start = json.loads(header), 0
    for name, size in fields["files"].items():
        fields["files"][name] = rest[start : start + size]
        start += size
    return Result(**fields | {"cached": True})


def key_of(job: Job, data: str, limits: Limits, level: str, versions: Sequence[str]) -> str:
    """Return the name of a job's result, from everything that it may depend on but chance."""
    told = [FORMAT, level, list(versions), data, sorted(job.collect), dataclasses.asdict(limits), job.code]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def versions_of(packages: Sequence[str]) -> list[str]:
    """Return the interpreter, the processor's kind, and the packages with their versions ("-" where one is missing)."""
    found = [platform.python_implementation(), platform.python_version(), platform.machine()]
    for package in packages:
        try:
            found.append(f"{package}=={importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package}-")
    return found


class Folders:
    """The digests of data folders' contents; a folder is read again only if a file's size or times have changed."""

    def __init__(self, needs_all: bool):
        self._needs_all = needs_all  # all users must be able to read it
        self._known: dict[pathlib.Path, tuple[list, str]] = {}
        self._lock = threading.Lock()

    def digest(self, folder: pathlib.Path) -> str:
        """Return the digest of names and contents.

        Raises:
            ValueError: the folder is missing, holds a link or something that is no file, or cannot be read by programs.
        """
        seen = self._survey(folder)
        with self._lock:
            if (known := self._known.get(folder)) and known[0] == seen:
                return known[1]
        whole = hashlib.sha256()
        for name, size, *_ in seen:
            whole.update(json.dumps([name, size]).encode())
            if size is not None:
                with open(folder / name, "rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
        with self._lock:
            self._known[folder] = (seen, whole.hexdigest())
        return whole.hexdigest()

    def _survey(self, folder: pathlib.Path) -> list[tuple[str, int | None, int, int, int]]:
        """Return name, size (None: a folder) and what changes with the content, of all below a folder, by name."""
        if not folder.is_dir():
            raise ValueError(f"public={str(folder)!r} must be a folder")
        found, pending = [], [folder]
        while pending:
            here = pending.pop()
            self._check_mode(here, 0o005)
            with os.scandir(here) as entries:
                inside = list(entries)
            for entry in inside:
                path, info = here / entry.name, entry.stat(follow_symlinks=False)
                is_file = entry.is_file(follow_symlinks=False)
                if not is_file and not entry.is_dir(follow_symlinks=False):
                    raise ValueError(
                        f"public data {str(path)!r} must be a file or a folder, no link or device: copy it"
                    )
                if is_file:
                    self._check_mode(path, 0o004)
                else:
                    pending.append(path)
                changes = (info.st_mtime_ns, info.st_ctime_ns, info.st_ino) if is_file else (0, 0, 0)
                found.append((str(path.relative_to(folder)), info.st_size if is_file else None, *changes))
        return sorted(found, key=lambda row: row[0])

    def _check_mode(self, path: pathlib.Path, bits: int):
        """Raise if programs cannot read a path as the other user that they are."""
        if self._needs_all and path.stat().st_mode & bits != bits:
            raise ValueError(f"public data {str(path)!r} must be readable to all users: chmod -R o+rX it")
