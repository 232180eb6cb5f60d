"""To be asked now and then by what takes long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from mhs_ray.domain.errors import SlideFetchError

LOOK_S: Final = 0.5
"""How often is asked."""

Cancelled = Callable[[], bool]
"""Whether nobody wants the slide any more. Asked every `LOOK_S`, also while nothing comes, and before a connection."""


def never() -> bool:
    """Nobody cancels."""
    return False


def check(cancelled: Cancelled) -> None:
    """Raise SlideFetchError (``cancelled``) once `cancelled` says so."""
    if cancelled():
        raise SlideFetchError("cancelled", "fetching the slide was cancelled")


def pause(seconds: float, cancelled: Cancelled) -> None:
    """Sleep; raises as `check` does."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        check(cancelled)
        time.sleep(min(left, LOOK_S))
