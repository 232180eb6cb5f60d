"""The tile feed that a runnable container asks for, by one variable of its own: ``MHS_TILES=size=224 mpp=0.5 tissue``.

Pure. What it means is in `mhs_ray.slides.feed`; containers without the variable go on as before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

VARIABLE: Final = "MHS_TILES"
SOCKET_VARIABLE: Final = "MHS_TILES_SOCKET"
"""Set by the platform in a container that asked for the feed: where its socket is."""

_MAX_SIDE: Final = 8192
_NUMBERS: Final = ("size", "stride", "level", "batch", "mpp")
_SWITCHES: Final = ("tissue", "dct", "drop-edges", "unordered")
_EXAMPLE: Final = "for example: size=224 mpp=0.5 tissue"


@dataclass(frozen=True, slots=True)
class TileFeed:
    """size, stride: pixels of a tile. mpp or level: of the tiles, level 0 when neither. batch: tiles in one message.

    tissue: leave out the glass. dct: allow inexact, faster scaling. drop_edges: no tile reaches beyond the slide.
    unordered: tiles come in the order that is quickest, as they are ready.
    """

    size: int = 256
    stride: int | None = None
    mpp: float | None = None
    level: int | None = None
    batch: int = 64
    tissue: bool = False
    dct: bool = False
    drop_edges: bool = False
    unordered: bool = False


def parse_tile_feed(text: str) -> TileFeed:
    """Return what the variable asks for. Raises ValueError that says what is wrong with it and how it should look."""
    words = text.replace(",", " ").split()
    values: dict[str, float] = {}
    switches: set[str] = set()
    for word in words:
        name, equals, value = word.partition("=")
        if name in values or name in switches:
            raise ValueError(f"{name} is given twice")
        if name in _SWITCHES and (not equals or value in ("1", "yes", "true")):
            switches.add(name)
        elif name in _NUMBERS and equals:
            values[name] = _number(name, value)
        else:
            known = ", ".join([f"{n}=…" for n in _NUMBERS] + list(_SWITCHES))
            raise ValueError(f"{word[:60]!r} is not understood; there is {known}; {_EXAMPLE}")
    if "mpp" in values and "level" in values:
        raise ValueError(f"tiles have an mpp or a level, not both; {_EXAMPLE}")
    return TileFeed(
        size=int(values.get("size", 256)),
        stride=int(values["stride"]) if "stride" in values else None,
        mpp=values.get("mpp"),
        level=int(values["level"]) if "level" in values else None,
        batch=int(values.get("batch", 64)),
        tissue="tissue" in switches,
        dct="dct" in switches,
        drop_edges="drop-edges" in switches,
        unordered="unordered" in switches,
    )


def _number(name: str, text: str) -> float:
    try:
        value = float(text) if name == "mpp" else int(text)
    except ValueError:
        raise ValueError(f"{name}={text[:40]!r} is no number; {_EXAMPLE}") from None
    low, high = {"mpp": (0.0, 1000.0), "level": (0, 63), "batch": (1, 4096)}.get(name, (1, _MAX_SIDE))
    if not math.isfinite(value) or not low <= value <= high or (name == "mpp" and value == 0):
        raise ValueError(f"{name}={text[:40]} is not within {low:g} to {high:g}; {_EXAMPLE}")
    return value
