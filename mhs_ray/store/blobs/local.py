"""Blobs in a folder.

::

    ROOT/blobs/<key>       the blobs, one file each
    ROOT/incoming/<name>   being written; renamed into place when whole
    ROOT/usage             bytes stored; its flock serialises every change to the tree

Any number of processes may share a folder. Paths are walked segment by segment with O_NOFOLLOW, so that a
link that somebody planted leads nowhere.
"""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import stat as stat_module
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Final, Literal, cast

from mhs_ray.domain.errors import BlobNotFoundError, BlobsFullError
from mhs_ray.ports import BlobInfo
from mhs_ray.store.blobs.files import Slice, Usage, blob_info, file_size, translated
from mhs_ray.store.blobs.incoming import BlobExistsError, Incoming, part_path
from mhs_ray.store.blobs.keys import check_expiry, check_range, split_key
from mhs_ray.store.blobs.signing import SigningKeys, signed_path

log = logging.getLogger(__name__)

_PIECE: Final = 1 << 20
_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class LocalLimits:
    """When a folder counts as full. quota_bytes: of all blobs, None for none; min_free_bytes: left on its disk."""

    quota_bytes: int | None = None
    min_free_bytes: int = 1 << 30
    retry_after_s: int = 300


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
        with translated("use the folder", str(root)):
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
        return cast(BinaryIO, io.BufferedReader(Slice(fd, start, stop), _PIECE))

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
        with translated("delete", key), self._changing() as usage:
            try:
                folder = self._folder(segments[:-1])
            except (FileNotFoundError, NotADirectoryError):
                return
            try:
                size = file_size(folder, segments[-1])
                if size is None:
                    return
                os.unlink(segments[-1], dir_fd=folder)
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
        with translated("read", key):
            try:
                folder = self._folder(segments[:-1])
                try:
                    # O_NONBLOCK: a planted FIFO must not hang us.
                    fd = os.open(
                        segments[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
                    )
                finally:
                    os.close(folder)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
                    raise BlobNotFoundError(key) from None
                raise
            facts = os.fstat(fd)
            if not stat_module.S_ISREG(facts.st_mode):
                os.close(fd)
                raise BlobNotFoundError(key)
            return fd, blob_info(key, facts)

    def incoming(self, key: str, size: int | None = None, resume: tuple[int, int] | None = None) -> Incoming:
        """Begin to write `key`; size: of what comes, if known. Raises BlobsFullError when it cannot fit.

        resume: (start, total) appends to an upload in pieces; raises UploadOffsetError unless it has `start` bytes.
        """
        split_key(key)
        self.check_room(size or 0)
        incoming = self.root / "incoming"
        return Incoming(incoming, key, lambda: self.check_room(0), self._publish, resume)

    def upload_offset(self, key: str) -> int:
        """Return how many bytes of an upload in pieces are there."""
        split_key(key)
        try:
            return part_path(self.root / "incoming", key).lstat().st_size
        except FileNotFoundError:
            return 0

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
        with translated("store", key), self._changing() as usage:
            facts = incoming.stat()
            folder = self._folder(segments[:-1], create=True)
            try:
                old = file_size(folder, segments[-1])
                if old is not None and if_absent:
                    raise BlobExistsError(f"there is a blob {key} already")
                quota = self.limits.quota_bytes
                if quota is not None and usage.value - (old or 0) + facts.st_size > quota:
                    raise BlobsFullError(
                        f"the blob store's quota of {quota} bytes is used up; delete something or raise it",
                        self.limits.retry_after_s,
                    )
                os.rename(incoming, segments[-1], dst_dir_fd=folder)
                usage.add(facts.st_size - (old or 0))
                os.fsync(folder)
            finally:
                os.close(folder)
            return blob_info(key, facts)

    def _folder(self, segments: Sequence[str], create: bool = False) -> int:
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

    def _prune(self, segments: Sequence[str]) -> None:
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
                    yield blob_info(key, entry.stat(follow_symlinks=False))

    @contextmanager
    def _changing(self) -> Iterator[Usage]:
        # A description of its own for each change: flock then also keeps threads of one process apart.
        fd = os.open(self.root / "usage", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield Usage(fd)
        finally:
            os.close(fd)
