"""Advisory file locks that end with their process, shared and exclusive."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import SlideFetchError

_POLL_S: Final = 0.05


@contextmanager
def try_lock(path: Path, *, shared: bool = False, create: bool = True) -> Iterator[bool]:
    """Hold a lock on `path` if it can be had at once; yields whether it is held. A missing folder: not held."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        else:
            held = _is_same(handle, path)
        yield held
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Hold the exclusive lock on `path`, however long it takes. Raises SlideFetchError once `cancelled` says so."""
    while True:
        with try_lock(path) as held:
            if held:
                yield
                return
        if cancelled():
            raise SlideFetchError("cancelled", "waiting for the slide was cancelled")
        time.sleep(_POLL_S)


def _is_same(handle: int, path: Path) -> bool:
    """A lock on a file that was renamed or removed meanwhile protects nothing."""
    try:
        there = path.stat()
    except OSError:
        return False
    mine = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
