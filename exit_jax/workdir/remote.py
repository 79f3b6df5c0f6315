"""Workdirs at a URL, as gs://bucket/runs/mine: orbax writes their checkpoints there, and all their other files are copied.

Object stores know neither appending nor locks, which logs and exact resume rest on. So a command works in a folder of this
machine that stands for the URL: what is at the URL replaces it when the command begins, and what changes in it is copied back
every EVERY seconds, before each checkpoint, and when the command ends. What a killed process had not copied is younger than its
newest checkpoint, and is made again. Only processes of one machine wait for each other.
"""

import contextlib
import logging
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts
from exit_jax.workdir.lock import try_lock

log = logging.getLogger(__name__)
SCHEMES = ("gs", "s3", "file")  # those that orbax writes to; the last for mounts that know no appending or no locks
INSTALL = {"gs": 'pip install "exit_jax[gs]"', "s3": "pip install s3fs"}
CHECKPOINTS = "checkpoints"  # folders that orbax alone reads and writes
LOCK = "workdir.lock"
LEFT_OUT = (".tmp", ".lock")  # ends of names of what means nothing to another command
EVERY = 30.0
STAMPS = ("size", "mtime", "updated", "LastModified", "ETag", "created")  # what file systems say of a file's version

_copying = threading.Lock()
_working: set[pathlib.Path] = set()  # folders that this process has opened
_stored: dict[pathlib.Path, tuple[int, int]] = {}  # file -> its size and time in ns when it was the same as at the URL
_fetched: dict[pathlib.Path, list[str]] = {}  # file -> STAMPS of what is at the URL then


def local_folder(name: str | os.PathLike) -> pathlib.Path:
    """Return the folder of this machine that is a workdir, or stands for it, absolute; no file is looked at.

    Raises:
      ConfigError: for a URL that no run can be written to, as a whole bucket.
    """
    text = os.fspath(name)
    scheme, colon, rest = text.partition("://")
    if not colon and not re.match(r"\w+:/", text):
        return pathlib.Path(name).expanduser().absolute()
    if scheme == "file":
        fine = rest.startswith("/")
    else:  # of a bucket alone all would be fetched, and # and ? end the names of its objects
        fine = scheme in SCHEMES and "/" in rest.strip("/") and not set("#?") & set(rest)
    if not fine or not rest.strip("/") or ".." in rest.split("/"):
        raise ConfigError(
            f"{text!r} is no place for a run; give a folder, or as a text gs://bucket/folder, s3://bucket/folder (without # "
            "and ?) or file:///folder"
        )
    return _root() / scheme / rest.strip("/")


def place(folder: pathlib.Path) -> epath.Path:
    """Return where the checkpoints of a folder are: at the URL that it stands for, or in it."""
    url = _url(folder)
    return epath.Path(folder if url is None else url.removeprefix("file://"))


def children(folder: pathlib.Path) -> list[str]:
    """Return the names in ``place(folder)``; none where there is no such folder."""
    if (url := _url(folder)) is None:
        return [path.name for path in folder.glob("*")]
    with _explain(url, "read"):
        files, top = _open(url)
        try:
            return [name.rstrip("/").rpartition("/")[2] for name in files.ls(top, detail=False)]
        except FileNotFoundError:
            return []


@contextlib.contextmanager
def opened(name: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Work in a workdir, once no other command of this machine does; all processes of a run are in it together.

    It yields ``local_folder``, which holds what is at the URL.

    Raises:
      ConfigError: as ``local_folder``; if the URL cannot be read, or not be written; if it holds a workdir that is open.
    """
    folder = local_folder(name)
    if "://" not in os.fspath(name) or any(folder.is_relative_to(outer) for outer in _working):
        yield folder  # below a workdir that is open, as a warm start may be, files are copied with that one's
        return
    if inner := [str(_url(path)) for path in _working if path.is_relative_to(folder)]:
        raise ConfigError(f"{name} holds {inner[0]}, in which this command works; name a folder beside it, or in it")
    with contextlib.ExitStack() as held:
        told = False
        while not _agree(_lock(folder, held)):
            if not told:
                log.warning("waiting for another process, which works in %s", name)
            told = True
            time.sleep(1.0)
        _fetch(folder)
        _agree(True)  # before the lead changes any, processes of its machine may still be fetching
        held.enter_context(_storing(folder))
        _working.add(folder)
        held.callback(_working.remove, folder)
        yield folder


@contextlib.contextmanager
def visited(name: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Do as ``opened``, of one process, which does not wait: a command that works there already copies what this one leaves.

    Raises:
      ConfigError: as ``opened``.
    """
    folder = local_folder(name)
    with contextlib.ExitStack() as held:
        if "://" in os.fspath(name) and _lock(folder, held):
            _fetch(folder)
            held.enter_context(_storing(folder))
        yield folder


def fetch(name: str | os.PathLike) -> pathlib.Path:
    """Return ``local_folder`` to read, with what is at the URL now; as it is, while a command of this machine works in it.

    Raises:
      ConfigError: as ``local_folder``; if the URL cannot be read.
    """
    folder = local_folder(name)
    with contextlib.ExitStack() as held:
        if _url(folder) is not None and _lock(folder, held):
            _fetch(folder)
    return folder


def store(folder: pathlib.Path) -> None:
    """Copy what has changed in a folder that stands for a URL, or is below one, to there; of several processes the lead does.

    Raises:
      ConfigError: if it cannot be written, or the folder was removed, of which nothing is to be learnt.
    """
    url = _url(folder)
    if url is None or not _is_lead():
        return
    with _copying, _explain(url, "written"):
        files, top = _open(url)
        found = {file: _state(file) for file in _files(folder)}
        if not any((parent / LOCK).exists() for parent in (folder, *folder.parents)):  # after files were looked for
            raise ConfigError(
                f"{folder}, which stands for {url}, was removed while a command worked in it, as by clearing a cache; {url} "
                "was left as it is, and the same command goes on from there"
            )
        for file, state in found.items():
            if state is not None and _stored.get(file) != state:
                _put(files, file, f"{top}/{file.relative_to(folder)}", url)
                _stored[file] = state  # of before: what is written meanwhile is copied the next time
                _fetched[file] = _stamps(files.info(f"{top}/{file.relative_to(folder)}"))
        for file in [file for file in _stored if file.is_relative_to(folder) and file not in found]:
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(f"{top}/{file.relative_to(folder)}")
            del _stored[file]


def followed(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Fetch a folder every EVERY seconds until the block ends, if it stands for a URL."""
    return contextlib.nullcontext() if _url(folder) is None else _repeating(fetch, folder)


@contextlib.contextmanager
def _storing(folder: pathlib.Path) -> Iterator[None]:
    """Store a folder every EVERY seconds, and when the block ends, by whatever way."""
    try:
        with _repeating(store, folder):
            yield
    finally:
        store(folder)


@contextlib.contextmanager
def _repeating(copy: Callable[[pathlib.Path], object], folder: pathlib.Path) -> Iterator[None]:
    """Copy every EVERY seconds until the block ends; a fault is told once."""
    ended = threading.Event()

    def repeat() -> None:
        told = False
        while not ended.wait(EVERY):
            try:
                copy(folder)
            except ConfigError as error:
                if not told:
                    log.warning("%s", error)
                told = True

    thread = threading.Thread(target=repeat, name="workdir", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _fetch(folder: pathlib.Path) -> None:
    """Have a folder that stands for a URL hold the files that are there, but for checkpoints, and no others."""
    url = str(_url(folder))
    with _copying, _explain(url, "read"):
        files, top = _open(url)
        held = {name[len(top) + 1 :]: about for name, about in files.find(top, detail=True).items()}
        held = {
            name: about
            for name, about in held.items()
            # some folders of a bucket are empty objects, as those that its web page makes
            if name.rstrip("/") == name != ""
            and CHECKPOINTS not in name.split("/")[:-1]
            and not name.endswith(LEFT_OUT)
        }
        for file in [file for file in _files(folder) if str(file.relative_to(folder)) not in held]:
            file.unlink(missing_ok=True)  # another process of this machine may have done it
            _stored.pop(file, None)
        for name, about in held.items():
            file, stamps = folder / name, _stamps(about)
            if file.exists() and _fetched.get(file) == stamps and _stored.get(file) == _state(file):
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{os.getpid()}.tmp")
            try:
                files.get_file(f"{top}/{name}", str(partial))
                os.replace(partial, file)
            except FileNotFoundError:  # a run of another machine has renamed or removed it since it was listed
                continue
            finally:
                partial.unlink(missing_ok=True)  # where the disk is full
            _fetched[file] = stamps
            if (state := _state(file)) is not None:
                _stored[file] = state


def _put(files: Any, file: pathlib.Path, path: str, url: str) -> None:
    """Copy a file to a path of a URL's file system, all of it or nothing: object stores do so, mounts by another name first."""
    if not url.startswith("file:"):
        files.put_file(str(file), path)
        return
    partial = pathlib.Path(f"{path}.tmp")  # one name, so that what a killed process left is replaced
    try:
        files.put_file(str(file), str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # where the disk is full


def _root() -> pathlib.Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser().absolute() / "exit_jax" / "workdirs"


def _url(folder: pathlib.Path) -> str | None:
    """Return the URL that a folder stands for, whose path alone says it; None for one that is itself."""
    root = _root()
    if not folder.is_relative_to(root):
        return None
    scheme, *rest = folder.relative_to(root).parts
    return f"{scheme}://{'/' if scheme == 'file' else ''}{'/'.join(rest)}"


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, which has forgotten what it listed before, and the path in it."""
    import fsspec

    # a line for each file, where it may not read of which type a bucket is
    logging.getLogger("gcsfs").setLevel(logging.ERROR)
    try:
        files, top = fsspec.url_to_fs(url, **({"auto_mkdir": True} if url.startswith("file:") else {}))
    except ImportError as error:
        raise ConfigError(f"{url}: {error}; {INSTALL[url.partition(':')[0]]}") from error
    files.invalidate_cache()
    return files, top.rstrip("/")


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the files below a folder that are copied."""
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != CHECKPOINTS]
        yield from (pathlib.Path(at, name) for name in names if not name.endswith(LEFT_OUT))


def _stamps(about: Mapping[str, Any]) -> list[str]:
    return [str(about.get(name)) for name in STAMPS]


def _state(file: pathlib.Path) -> tuple[int, int] | None:
    try:
        about = file.stat()
    except FileNotFoundError:  # renamed since it was listed
        return None
    return about.st_size, about.st_mtime_ns


def _lock(folder: pathlib.Path, held: contextlib.ExitStack) -> bool:
    """Try to lock a folder until ``held`` is closed; not if another process has it, or one above or below it."""
    if not _is_lead():
        return True
    above = [parent / LOCK for parent in folder.parents if parent.is_relative_to(_root())]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as others:
            for path in (*above, *folder.rglob(LOCK)):
                if path.exists() and not try_lock(others.enter_context(path.open("w"))):
                    return False
        return try_lock(held.enter_context((folder / LOCK).open("w")))
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder}, which stands for {_url(folder)}: {error.strerror}; set the environment variable "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from error


def _is_lead() -> bool:
    """Do as ``hosts.is_lead``, but ask JAX for no devices where there is one process, which may only want to read."""
    return not jax.distributed.is_initialized() or hosts.is_lead()


def _agree(holds: bool) -> bool:
    """Return whether it holds for all processes."""
    return not hosts.agree(not holds) if jax.distributed.is_initialized() else holds


@contextlib.contextmanager
def _explain(url: str, what: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # each file system has its own; some say of what is not there its name alone
        said = f"there is no {error}" if type(error) is FileNotFoundError and not error.errno else str(error)
        said = said or type(error).__name__
        raise ConfigError(
            f"{url} cannot be {what}: {said:.300}\n"
            "check its name, log in to it, or mend it; the same command then goes on"
        ) from error
