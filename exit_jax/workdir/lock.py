"""Locks of files, which the kernel drops when a process dies, so that none is left behind."""

import fcntl
from typing import TextIO


def try_lock(file: TextIO) -> bool:
    """Return whether the file is ours, or on a file system that knows no locks: there runs must not share a folder."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
