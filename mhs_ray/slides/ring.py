"""Memory that processes of one node share for decoded tiles: written in place by one, read in place by another.

It has no name in any file system, so nothing is left behind however its processes end: others open it through
``/proc``, which only the same user can.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError


class Ring:
    """`slots` pieces of `slot_bytes` each. The maker keeps track of which are free; see `mhs_ray.actors.tiles`."""

    def __init__(self, handle: int, slots: int, slot_bytes: int) -> None:
        self._handle, self.slots, self.slot_bytes = handle, slots, slot_bytes
        self._map = mmap.mmap(handle, slots * slot_bytes)
        self._memory: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    @classmethod
    def make(cls, slots: int, slot_bytes: int) -> Ring:
        """Return new memory. It takes room as it is first written."""
        handle = os.memfd_create("mhs-tiles", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(handle, slots * slot_bytes)
            return cls(handle, slots, slot_bytes)
        except BaseException:
            os.close(handle)
            raise

    @classmethod
    def open(cls, where: str, slots: int, slot_bytes: int) -> Ring:
        """Return memory that another process made; where: its `address`. Raises SlideError when it is not there."""
        try:
            handle = os.open(where, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SlideError("no-ring", f"shared memory cannot be opened here: {error.strerror}") from None
        if os.fstat(handle).st_size != slots * slot_bytes:
            os.close(handle)
            raise SlideError("no-ring", "shared memory has another size than was told")
        return cls(handle, slots, slot_bytes)

    @property
    def address(self) -> str:
        """What another process of the same user opens."""
        return f"/proc/{os.getpid()}/fd/{self._handle}"

    @property
    def handle(self) -> int:
        """The file descriptor, to pass on."""
        return self._handle

    def slot_of(self, tiles: NDArray[np.uint8]) -> int:
        """Return the slot that `tiles` shows."""
        first = int(tiles.__array_interface__["data"][0]) - int(self._memory.__array_interface__["data"][0])
        return first // self.slot_bytes

    def tiles(self, slot: int, count: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return the memory of `slot` as `count` tiles, shape (count, height, width, 3)."""
        start, size = slot * self.slot_bytes, count * height * width * 3
        return self._memory[start : start + size].reshape(count, height, width, 3)

    def touch(self, slot: int) -> None:
        """Have the system find memory for `slot`, which holds nothing yet: to do so page by page takes as long as to
        fill it with tiles."""
        self._memory[slot * self.slot_bytes : (slot + 1) * self.slot_bytes : mmap.PAGESIZE] = 0

    def close(self) -> None:
        """Let go of the memory; arrays that still show it keep it until they are gone."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            # Unmapped with the last array that shows it; closing the map itself would fail while there is one.
            del self._memory, self._map
