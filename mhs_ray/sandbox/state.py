"""Files that belong to one attempt on its node."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to `path`, readable by this user only; a reader sees nothing or all of it."""
    _write(path, data, 0o600)


def write_shared(path: Path, data: bytes) -> None:
    """Write `data` to `path` unless it holds just that, readable by any user of a container.

    A file that is right already keeps its inode: a running container has that one mounted.
    """
    if not path.is_file() or path.read_bytes() != data:
        _write(path, data, 0o444)


def _write(path: Path, data: bytes, mode: int) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def private_key(path: Path, size: int = 32) -> bytes:
    """Return the random key kept at `path`, made there the first time."""
    if not path.exists():
        write_private(path, secrets.token_bytes(size))
    return path.read_bytes()


def private_folder(path: Path) -> Path:
    """Make `path` a folder that only this user can enter, and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path
