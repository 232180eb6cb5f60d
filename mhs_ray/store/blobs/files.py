"""Small parts of a folder of blobs: facts of a file, a slice of one, the count of bytes, errors in our words."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from mhs_ray.domain.errors import BlobError, BlobsFullError
from mhs_ray.ports import BlobInfo


class Usage:
    """The bytes stored, as the locked file says."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        text = os.pread(fd, 32, 0)
        self.value = int(text) if text.strip().isdigit() else 0

    def add(self, change: int) -> None:
        """Count `change` bytes more."""
        self.value = max(0, self.value + change)
        self.save()

    def save(self) -> None:
        """Write the number down."""
        os.pwrite(self._fd, b"%031d\n" % self.value, 0)


class Slice(io.RawIOBase):
    """Bytes [position, stop) of an open file, which it closes."""

    def __init__(self, fd: int, position: int, stop: int) -> None:
        self._fd, self._position, self._stop = fd, position, stop

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` as far as the slice goes."""
        wanted = min(len(buffer), max(0, self._stop - self._position))
        count = os.preadv(self._fd, [memoryview(buffer)[:wanted]], self._position) if wanted else 0
        self._position += count
        return count

    def close(self) -> None:
        """Close the file too."""
        if not self.closed:
            os.close(self._fd)
        super().close()


def blob_info(key: str, facts: os.stat_result) -> BlobInfo:
    """Return the facts of a blob's file."""
    # A blob is replaced by rename only, so these change whenever the content does.
    tag = f"{facts.st_ino}-{facts.st_mtime_ns}-{facts.st_size}"
    etag = hashlib.blake2b(tag.encode(), digest_size=16).hexdigest()
    return BlobInfo(key, facts.st_size, etag, datetime.fromtimestamp(facts.st_mtime, UTC))


def file_size(folder: int, name: str) -> int | None:
    """Return the size of the regular file `name` in an open folder, None when there is none."""
    try:
        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


@contextmanager
def translated(doing: str, what: str) -> Iterator[None]:
    """Raise BlobError, or BlobsFullError, for what the operating system says."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise BlobsFullError("the blob store's disk is full; free some space") from error
        if isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError)) or error.errno == errno.ELOOP:
            raise BlobError(
                f"cannot {doing} blob {what}: part of its path is already a blob, a folder of blobs or a link"
            ) from error
        raise BlobError(f"cannot {doing} {what}: {error.strerror}") from error
