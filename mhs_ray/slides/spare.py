"""Memory of stored tiles that are done with, for the next ones: new memory costs a fault for every page."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from mhs_ray.slides.reader import RGB

MAX_BYTES: Final = 32 << 20


class SpareTiles:
    """Holds at most `MAX_BYTES`, of tiles of one shape: who reads others at the same time gets new memory.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._free: deque[RGB] = deque()

    def take(self, shape: tuple[int, int, int]) -> RGB:
        """Return memory of `shape`, (height, width, 3), with anything in it: what was given last."""
        try:
            found = self._free.pop()
        except IndexError:
            return np.empty(shape, np.uint8)
        if found.shape == shape:
            return found
        self._free.clear()
        return np.empty(shape, np.uint8)

    def give(self, pixels: RGB) -> None:
        """Take memory back; it must not be touched any more."""
        if (len(self._free) + 1) * pixels.nbytes <= MAX_BYTES:
            self._free.append(pixels)


spare: Final = SpareTiles()
"""The process's own."""
