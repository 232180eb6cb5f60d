"""Blocks of remote slides on the node's disk, shared by all jobs, bounded, and safe to kill at any moment.

::

    ROOT/KEY/data     the slide's bytes, sparse: only the blocks that were fetched take room
    ROOT/KEY/index    per block 8 bytes: CRC-32 and length; zeros where there is none
    ROOT/KEY/lease    shared flock while open: what is in use is never evicted
    ROOT/KEY/claims   one byte per block, locked (open file description locks) by whoever fetches it

KEY names the object and its version (ETag), so a changed object never meets old blocks. A block counts only if its
checksum holds, so it does not matter in which order a crash let data and index reach the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import SlideFetchError
from mhs_ray.slides.flock import try_lock

BLOCK: Final = 64 << 10
_ENTRY: Final = struct.Struct("<II")
_LOOK_EVERY: Final = 64 << 20  # bytes written between two looks at the room taken
# struct flock of 64-bit Linux; Python has no other way to open file description locks.
_FLOCK: Final = struct.Struct("hhqqi4x")


class BlockCache:
    """The node's blocks. Any number of processes may hold one on the same root, on a local file system."""

    def __init__(self, root: Path, *, max_bytes: int = 20 << 30, max_age_s: float = 7 * 86400.0) -> None:
        self._root, self._max_bytes, self._max_age_s = root, max_bytes, max_age_s
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)
        self.sweep()

    def open(self, key: str, size: int) -> BlockFile:
        """Return the blocks of one version of one object of `size` bytes. key: safe as a file name."""
        folder = self._root / key
        while True:
            folder.mkdir(exist_ok=True)
            stack = ExitStack()
            if stack.enter_context(try_lock(folder / "lease", shared=True)):
                return BlockFile(folder, size, stack, self)
            stack.close()  # being evicted just now

    def sweep(self) -> None:
        """Remove what was not used for too long, and the oldest until the rest fits."""
        entries = [(e, _used_at(e)) for e in self._root.iterdir() if e.is_dir()]
        old = [e for e, at in entries if time.time() - at > self._max_age_s]
        for entry in old:
            _evict(entry)
        total = self.used_bytes()
        for entry, _ in sorted(entries, key=lambda pair: pair[1]):
            if total <= self._max_bytes:
                return
            taken = _taken(entry)
            if _evict(entry):
                total -= taken

    def used_bytes(self) -> int:
        """Return the bytes that all blocks take on the disk."""
        return sum(_taken(e) for e in self._root.iterdir() if e.is_dir())

    def make_room(self) -> None:
        """Evict others until the bound holds. Raises SlideFetchError (``no-space``) when all is in use."""
        self.sweep()
        if self.used_bytes() > self._max_bytes + _LOOK_EVERY:
            raise SlideFetchError(
                "no-space", f"this node's {self._max_bytes >> 20} MiB for remote slides are all in use", True
            )


class BlockFile:
    """The blocks of one object. Safe to use from several threads."""

    def __init__(self, folder: Path, size: int, lease: ExitStack, cache: BlockCache) -> None:
        self._lease, self._cache = lease, cache
        self.size, self.count = size, -(-size // BLOCK)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._data = os.open(folder / "data", flags, 0o600)
        self._index = os.open(folder / "index", flags, 0o600)
        self._claims_path = folder / "claims"
        self._written = 0
        self._lock = threading.Lock()
        os.utime(folder / "index")

    def length(self, number: int) -> int:
        """Return how many bytes block `number` has."""
        return min(BLOCK, self.size - number * BLOCK)

    def has(self, number: int) -> bool:
        """Say whether the index knows the block; `read` decides whether it is whole."""
        entry = os.pread(self._index, _ENTRY.size, number * _ENTRY.size)
        return len(entry) == _ENTRY.size and _ENTRY.unpack(entry)[1] == self.length(number)

    def read(self, number: int) -> bytes | None:
        """Return the block, None when it is not there or not whole."""
        entry = os.pread(self._index, _ENTRY.size, number * _ENTRY.size)
        if len(entry) < _ENTRY.size:
            return None
        checksum, length = _ENTRY.unpack(entry)
        if length != self.length(number):
            return None
        data = os.pread(self._data, length, number * BLOCK)
        if len(data) == length and zlib.crc32(data) == checksum:
            return data
        os.pwrite(self._index, bytes(_ENTRY.size), number * _ENTRY.size)
        return None

    def write(self, number: int, data: bytes) -> None:
        """Keep a block. Raises SlideFetchError (``no-space``)."""
        with self._lock:
            self._written += len(data)
            look = self._written >= _LOOK_EVERY
            if look:
                self._written = 0
        if look:
            self._cache.make_room()
        try:
            os.pwrite(self._data, data, number * BLOCK)
            os.pwrite(self._index, _ENTRY.pack(zlib.crc32(data), len(data)), number * _ENTRY.size)
        except OSError as error:
            raise SlideFetchError(
                "no-space", f"the slide cannot be kept on this node: {error.strerror}", True
            ) from None

    @contextmanager
    def claim(self, first: int, count: int) -> Iterator[None]:
        """Hold blocks for fetching: no other thread or process fetches them meanwhile; ends with its process."""
        handle = os.open(self._claims_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
            fcntl.fcntl(handle, fcntl.F_OFD_SETLKW, request)
            yield
        finally:
            os.close(handle)

    def close(self) -> None:
        """Give back files and the lease."""
        if self._data >= 0:
            os.close(self._data)
            os.close(self._index)
            self._data = self._index = -1
            self._lease.close()


def _used_at(entry: Path) -> float:
    try:
        return (entry / "index").stat().st_mtime
    except OSError:
        return time.time()


def _taken(entry: Path) -> int:
    total = 0
    for name in ("data", "index"):
        with contextlib.suppress(OSError):
            total += (entry / name).stat().st_blocks * 512
    return total


def _evict(entry: Path) -> bool:
    """Remove an entry unless it is in use."""
    with try_lock(entry / "lease") as mine:
        if not mine:
            return False
        try:
            (entry / "index").unlink(missing_ok=True)  # first, so that a crash in between leaves no block that counts
            shutil.rmtree(entry)
        except OSError as error:
            return error.errno == errno.ENOENT
        return True
