"""The promise of a runnable container that it takes many scans in one life: ``MHS_WARM=1``, or ``scans=50 idle=600``.

Pure. Containers without the variable are started for one scan each, as the contract has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VARIABLE: Final = "MHS_WARM"
SOCKET_VARIABLE: Final = "MHS_WARM_SOCKET"
"""Set by the platform in a container that made the promise: where it is given its next scan."""

_EXAMPLE: Final = "for example: 1, or scans=50 idle=600"
_RANGES: Final = {"scans": (1, 10_000), "idle": (1, 3600)}


@dataclass(frozen=True, slots=True)
class Warm:
    """How long a container lives. scans: at most so many; idle_s: without a scan."""

    scans: int = 100
    idle_s: int = 300


def parse_warm(text: str) -> Warm | None:
    """Return what the variable asks for, None for ``0``. Raises ValueError that says how it should look."""
    words = text.replace(",", " ").split()
    if words in (["0"], ["no"], ["false"]):
        return None
    if words in (["1"], ["yes"], ["true"]):
        return Warm()
    values: dict[str, int] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in _RANGES or name in values or not (value.isascii() and value.isdigit() and len(value) < 10):
            raise ValueError(f"{word[:60]!r} is not understood; {_EXAMPLE}")
        low, high = _RANGES[name]
        if not low <= int(value) <= high:
            raise ValueError(f"{name}={value} is not within {low} to {high}; {_EXAMPLE}")
        values[name] = int(value)
    if not values:
        raise ValueError(f"is empty; {_EXAMPLE}")
    return Warm(values.get("scans", 100), values.get("idle", 300))
