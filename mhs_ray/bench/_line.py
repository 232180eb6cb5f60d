"""A line of bounded bandwidth that everything on it shares."""

from __future__ import annotations

import threading
import time


class Line:
    """What all answers go over, one after the other."""

    def __init__(self, bytes_per_s: float) -> None:
        self._rate, self._free_at, self._lock = bytes_per_s, 0.0, threading.Lock()

    def send(self, length: int) -> None:
        """Wait until the line has carried `length` more bytes."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + length / self._rate
            wait = self._free_at - now
        if wait > 0.002:
            time.sleep(wait)
