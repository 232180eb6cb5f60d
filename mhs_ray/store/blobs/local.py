"""Blobs in a folder.

::

    ROOT/blobs/<key>       the blobs, one file each
    ROOT/incoming/<uuid>   being written; renamed into place when whole
    ROOT/usage             bytes stored; its flock serialises every change to the tree

Any number of processes may share a folder. Paths are walked segment by segment with O_NOFOLLOW, so that a
link that somebody planted leads nowhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import logging
import os
import stat as stat_module
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Literal, Self, cast

from mhs_ray.domain.errors import BlobError, BlobNotFoundError, BlobsFullError
from mhs_ray.ports import BlobInfo
from mhs_ray.store.blobs.keys import check_expiry, check_range, split_key
from mhs_ray.store.blobs.signing import SigningKeys, signed_path

log = logging.getLogger(__name__)

_PIECE: Final = 1 << 20
_LOOK_AT_DISK_EVERY: Final = 64 << 20
_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class LocalLimits:
    """When a folder counts as full. quota_bytes: of all blobs, None for none; min_free_bytes: left on its disk."""

    quota_bytes: int | None = None
    min_free_bytes: int = 1 << 30
    retry_after_s: int = 300


class BlobExistsError(BlobError):
    """There is a blob under this key already, and it was asked not to be replaced."""


class LocalBlobs:
    """BlobStore in a folder; URLs lead to its `server`. Holds no open file, so it can be pickled.

    base_url: where the server is reached by whoever gets a URL, e.g. ``http://127.0.0.1:8090``.
    key: secret of at least 16 bytes that the server shares, or several versions of it.
    Raises BlobError when `root` cannot be used.
    """

    def __init__(
        self, root: Path, base_url: str, key: bytes | SigningKeys, limits: LocalLimits = LocalLimits()
    ) -> None:
        self.root = root.resolve()
        self.base_url = base_url.rstrip("/")
        self.keys = key if isinstance(key, SigningKeys) else SigningKeys("1", {"1": key})
        self.limits = limits
        with _translated("use the folder", str(root)):
            for name in ("blobs", "incoming"):
                (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    # ---- BlobStore

    def put(self, key: str, data: BinaryIO | bytes) -> BlobInfo:
        """Store all of `data` under `key`, atomically and durably."""
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        with self.incoming(key) as incoming:
            while piece := source.read(_PIECE):
                incoming.write(piece)
            return incoming.commit()

    def open(self, key: str, start: int = 0, end: int | None = None) -> BinaryIO:
        """Return a stream of bytes [start, end), cut at the blob's own end."""
        check_range(key, start, end)
        fd, info = self.open_fd(key)
        stop = info.size if end is None else min(end, info.size)
        return cast(BinaryIO, io.BufferedReader(_Slice(fd, start, stop), _PIECE))

    def stat(self, key: str) -> BlobInfo | None:
        """Return the blob's facts, None when there is none."""
        try:
            fd, info = self.open_fd(key)
        except BlobNotFoundError:
            return None
        os.close(fd)
        return info

    def delete(self, key: str) -> None:
        """Remove the blob and the folders it leaves empty."""
        segments = split_key(key)
        with _translated("delete", key), self._changing() as usage:
            try:
                folder = self._folder(segments[:-1])
            except (FileNotFoundError, NotADirectoryError):
                return
            try:
                size = _file_size(folder, segments[-1])
                if size is None:
                    return
                os.unlink(segments[-1], dir_fd=folder)  # noqa: PTH108: relative to an open folder
                usage.add(-size)
            finally:
                os.close(folder)
            self._prune(segments[:-1])

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the blobs whose key starts with `prefix`, in the order of their keys' bytes."""
        if prefix:
            split_key(prefix.rstrip("/") or "/")
        yield from self._walk(self.root / "blobs", "", prefix)

    def sign(self, key: str, method: Literal["GET", "PUT"], expires_in: timedelta, filename: str | None = None) -> str:
        """Return a URL of this folder's server; a GET URL also answers HEAD."""
        split_key(key)
        expires = int(time.time()) + check_expiry(expires_in)
        return self.base_url + signed_path(self.keys, method, key, expires, filename)

    # ---- for the server

    def open_fd(self, key: str) -> tuple[int, BlobInfo]:
        """Return an open file, the caller's to close, and its facts. Raises BlobNotFoundError."""
        segments = split_key(key)
        with _translated("read", key):
            try:
                folder = self._folder(segments[:-1])
                try:
                    # O_NONBLOCK: a planted FIFO must not hang us.
                    fd = os.open(
                        segments[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
                    )
                finally:
                    os.close(folder)
            except (FileNotFoundError, NotADirectoryError):
                raise BlobNotFoundError(key) from None
            facts = os.fstat(fd)
            if not stat_module.S_ISREG(facts.st_mode):
                os.close(fd)
                raise BlobNotFoundError(key)
            return fd, _info(key, facts)

    def incoming(self, key: str, size: int | None = None) -> Incoming:
        """Begin to write `key`; size: if known. Raises BlobsFullError when it cannot fit."""
        split_key(key)
        self.check_room(size or 0)
        return Incoming(self, key)

    def check_room(self, size: int) -> None:
        """Raises BlobsFullError when `size` more bytes would break a limit."""
        limits = self.limits
        if limits.quota_bytes is not None and self.used_bytes() + size > limits.quota_bytes:
            raise BlobsFullError(
                f"the blob store's quota of {limits.quota_bytes} bytes is used up; delete something or raise it",
                limits.retry_after_s,
            )
        disk = os.statvfs(self.root)
        if disk.f_bavail * disk.f_frsize - size < limits.min_free_bytes:
            raise BlobsFullError(
                f"the blob store's disk has less than {limits.min_free_bytes} bytes left; free some space",
                limits.retry_after_s,
            )

    def used_bytes(self) -> int:
        """Return how many bytes all blobs take."""
        with self._changing() as usage:
            return usage.value

    def recount(self) -> int:
        """Count what is really there, for when a process died between a change and its count. Returns the bytes."""
        with self._changing() as usage:
            usage.value = sum(blob.size for blob in self.list(""))
            usage.save()
            return usage.value

    def sweep_incoming(self, older_than: timedelta = timedelta(days=1)) -> int:
        """Remove what writers that died left in ``incoming``; returns how many files."""
        before, removed = time.time() - older_than.total_seconds(), 0
        for path in (self.root / "incoming").iterdir():
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime < before:
                    path.unlink()
                    removed += 1
        return removed

    # ---- inside

    def _publish(self, incoming: Path, key: str, if_absent: bool) -> BlobInfo:
        segments = split_key(key)
        with _translated("store", key), self._changing() as usage:
            facts = incoming.stat()
            folder = self._folder(segments[:-1], create=True)
            try:
                old = _file_size(folder, segments[-1])
                if old is not None and if_absent:
                    raise BlobExistsError(f"there is a blob {key} already")
                quota = self.limits.quota_bytes
                if quota is not None and usage.value - (old or 0) + facts.st_size > quota:
                    raise BlobsFullError(
                        f"the blob store's quota of {quota} bytes is used up; delete something or raise it",
                        self.limits.retry_after_s,
                    )
                os.rename(incoming, segments[-1], dst_dir_fd=folder)  # noqa: PTH104: into an open folder
                usage.add(facts.st_size - (old or 0))
                os.fsync(folder)
            finally:
                os.close(folder)
            return _info(key, facts)

    def _folder(self, segments: list[str], create: bool = False) -> int:
        fd = os.open(self.root / "blobs", _DIR)
        for segment in segments:
            try:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(segment, 0o700, dir_fd=fd)
                deeper = os.open(segment, _DIR, dir_fd=fd)
            finally:
                os.close(fd)
            fd = deeper
        return fd

    def _prune(self, segments: list[str]) -> None:
        while segments:
            try:
                parent = self._folder(segments[:-1])
            except OSError:
                return
            try:
                os.rmdir(segments[-1], dir_fd=parent)
            except OSError:
                return  # not empty
            finally:
                os.close(parent)
            segments = segments[:-1]

    def _walk(self, folder: Path, at: str, prefix: str) -> Iterator[BlobInfo]:
        try:
            with os.scandir(folder) as found:
                entries = [(e.name + "/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in found]
        except FileNotFoundError:  # deleted under our hands
            return
        for name, entry in sorted(entries, key=lambda pair: pair[0]):
            key = at + name
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(folder / entry.name, key, prefix)
            elif key.startswith(prefix) and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    yield _info(key, entry.stat(follow_symlinks=False))

    @contextmanager
    def _changing(self) -> Iterator[_Usage]:
        # A description of its own for each change: flock then also keeps threads of one process apart.
        fd = os.open(self.root / "usage", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield _Usage(fd)
        finally:
            os.close(fd)


class Incoming:
    """A blob on its way in: write pieces, then commit; leaving the ``with`` without a commit leaves nothing."""

    def __init__(self, store: LocalBlobs, key: str) -> None:
        self._store, self._key = store, key
        self._path = store.root / "incoming" / uuid.uuid4().hex
        self._fd: int | None = None
        self.size = 0
        with _translated("store", key):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append `piece`. Raises BlobsFullError when the disk runs low on the way."""
        assert self._fd is not None, "written to after its end"
        before = self.size
        view = memoryview(piece)
        with _translated("store", self._key):
            while view:
                written = os.write(self._fd, view)
                self.size += written
                view = view[written:]
        if before // _LOOK_AT_DISK_EVERY != self.size // _LOOK_AT_DISK_EVERY:
            self._store.check_room(0)

    def commit(self, if_absent: bool = False) -> BlobInfo:
        """Make the blob visible, whole and durable. Raises BlobExistsError when `if_absent` and it is there."""
        assert self._fd is not None, "committed after its end"
        with _translated("store", self._key):
            os.fsync(self._fd)
        os.close(self._fd)
        self._fd = None
        return self._store._publish(self._path, self._key, if_absent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        with suppress(FileNotFoundError):  # renamed by the commit
            self._path.unlink()


class _Usage:
    """The bytes stored, as the locked file says."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        text = os.pread(fd, 32, 0)
        self.value = int(text) if text.strip().isdigit() else 0

    def add(self, change: int) -> None:
        self.value = max(0, self.value + change)
        self.save()

    def save(self) -> None:
        os.pwrite(self._fd, b"%031d\n" % self.value, 0)


class _Slice(io.RawIOBase):
    """Bytes [position, stop) of an open file, which it closes."""

    def __init__(self, fd: int, position: int, stop: int) -> None:
        self._fd, self._position, self._stop = fd, position, stop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), max(0, self._stop - self._position))
        count = os.preadv(self._fd, [buffer[:wanted]], self._position) if wanted else 0
        self._position += count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def _info(key: str, facts: os.stat_result) -> BlobInfo:
    # A blob is replaced by rename only, so these change whenever the content does.
    tag = f"{facts.st_ino}-{facts.st_mtime_ns}-{facts.st_size}"
    etag = hashlib.blake2b(tag.encode(), digest_size=16).hexdigest()
    return BlobInfo(key, facts.st_size, etag, datetime.fromtimestamp(facts.st_mtime, UTC))


def _file_size(folder: int, name: str) -> int | None:
    try:
        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return facts.st_size if stat_module.S_ISREG(facts.st_mode) else None


@contextmanager
def _translated(doing: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {28, 122}:  # ENOSPC, EDQUOT
            raise BlobsFullError("the blob store's disk is full; free some space") from error
        if isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError)) or error.errno == 40:
            raise BlobError(
                f"cannot {doing} blob {what}: part of its path is already a blob, a folder of blobs or a link"
            ) from error
        raise BlobError(f"cannot {doing} {what}: {error.strerror}") from error
