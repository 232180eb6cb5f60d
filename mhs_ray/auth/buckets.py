"""Token buckets: how often one caller may do something."""

from __future__ import annotations

import math
import threading
import time
from typing import Final

_MAX_KNOWN: Final = 20_000


class Buckets:
    """One bucket per key: `burst` at once, then `rate` a second. rate 0: no limit. Safe to share between threads."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, float(burst)
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def wait_s(self, key: str) -> int:
        """Return how many seconds `key` must wait, 0 when it need not; nothing is taken."""
        with self._lock:
            return self._wait_s(self._now(key))

    def take(self, key: str) -> int:
        """Take one and return 0, or return how many whole seconds to wait for it; then nothing is taken."""
        if not self._rate:
            return 0
        with self._lock:
            left = self._now(key)
            if left >= 1:
                if len(self._left) > _MAX_KNOWN:
                    self._forget()
                self._left[key] = (left - 1, time.monotonic())
            return self._wait_s(left)

    def _now(self, key: str) -> float:
        known = self._left.get(key)
        if known is None:
            return self._burst
        return min(self._burst, known[0] + (time.monotonic() - known[1]) * self._rate)

    def _wait_s(self, left: float) -> int:
        return 0 if left >= 1 or not self._rate else max(1, math.ceil((1 - left) / self._rate))

    def _forget(self) -> None:
        """Forget the buckets that are full again; were all of them in use, the emptiest are kept."""
        kept = sorted(((k, v) for k, v in self._left.items() if self._now(k) < self._burst), key=lambda i: i[1][0])
        self._left = dict(kept[: _MAX_KNOWN // 2])
