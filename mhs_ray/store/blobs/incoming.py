"""A blob on its way into a folder: written beside the tree, moved into it whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from mhs_ray.domain.errors import BlobError
from mhs_ray.ports import BlobInfo
from mhs_ray.store.blobs.files import translated

_LOOK_AT_DISK_EVERY: Final = 64 << 20


class BlobExistsError(BlobError):
    """There is a blob under this key already, and it was asked not to be replaced."""


class UploadOffsetError(BlobError):
    """A piece that does not begin where the upload in pieces stands; `offset`: where that is."""

    def __init__(self, key: str, offset: int, why: str) -> None:
        super().__init__(key, offset, why)
        self.key, self.offset, self.why = key, offset, why

    def __str__(self) -> str:
        return f"{self.why}; the upload of {self.key} stands at byte {self.offset}: go on from there"


def part_path(folder: Path, key: str) -> Path:
    """Return where an upload of `key` in pieces grows."""
    return folder / f"part-{hashlib.sha256(key.encode()).hexdigest()}"


class Incoming:
    """Write pieces, then `commit`; `close` without it leaves nothing, or of an upload in pieces what there is.

    look_at_disk: raises BlobsFullError when room runs out; publish: moves a file to a key, its last argument
    saying that nothing may be there. resume: (start, total) of a piece of a larger upload.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        look_at_disk: Callable[[], None],
        publish: Callable[[Path, str, bool], BlobInfo],
        resume: tuple[int, int] | None = None,
    ) -> None:
        self._key, self._look_at_disk, self._publish, self._resume = key, look_at_disk, publish, resume
        self._path = part_path(folder, key) if resume else folder / uuid.uuid4().hex
        self._fd: int | None = None
        self.size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if resume else os.O_EXCL)
        with translated("store", key):
            self._fd = os.open(self._path, flags, 0o600)
        if resume:
            try:
                self._go_on(self._fd, resume[0])
            except BaseException:
                os.close(self._fd)
                raise

    def _go_on(self, fd: int, start: int) -> None:
        there = os.fstat(fd).st_size
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between our open and our lock another writer may have made the file a blob: hands off it then.
            ours = self._path.lstat().st_ino == os.fstat(fd).st_ino
        except BlockingIOError:
            raise UploadOffsetError(self._key, there, "another upload of it is under way") from None
        except FileNotFoundError:
            ours = False
        if not ours:
            raise UploadOffsetError(self._key, 0, "another upload of it has just ended")
        there = os.fstat(fd).st_size
        if start == 0:
            os.ftruncate(fd, 0)  # begun anew
        elif start != there:
            raise UploadOffsetError(self._key, there, f"this piece begins at byte {start}")
        os.lseek(fd, start, os.SEEK_SET)
        self.size = start

    def write(self, piece: bytes | bytearray) -> None:
        """Append `piece`. Raises BlobsFullError when the disk runs low on the way."""
        assert self._fd is not None, "written to after its end"
        before = self.size
        view = memoryview(piece)
        with translated("store", self._key):
            while view:
                written = os.write(self._fd, view)
                self.size += written
                view = view[written:]
        if before // _LOOK_AT_DISK_EVERY != self.size // _LOOK_AT_DISK_EVERY:
            self._look_at_disk()

    def commit(self, if_absent: bool = False) -> BlobInfo:
        """Make the blob visible, whole and durable. Raises BlobExistsError when `if_absent` and it is there."""
        assert self._fd is not None, "committed after its end"
        if self._resume and self.size != self._resume[1]:
            raise UploadOffsetError(self._key, self.size, f"{self._resume[1]} bytes were announced in all")
        with translated("store", self._key):
            os.fsync(self._fd)
        return self._publish(self._path, self._key, if_absent)

    def close(self) -> None:
        """End the writing."""
        if self._fd is None:
            return
        if not self._resume:
            with suppress(FileNotFoundError):  # the commit moved it
                self._path.unlink()
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
