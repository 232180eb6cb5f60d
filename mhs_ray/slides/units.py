"""In which order, and in which parts, the tiles of a plan are read when nobody asks for the plan's own order.

Tiles that overlap or lie unaligned share stored tiles with their neighbours. In blocks that begin and end with stored
tiles they share none with the next block, so that nothing is decoded twice, kept for later or waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import PixelSize
from mhs_ray.slides.plan import TilePlan

_USUAL: Final = PixelSize(256, 256)


def shares_stored(plan: TilePlan) -> bool:
    """Say whether tiles of `plan` may need a stored tile that their neighbours need too."""
    stored, source = plan.stored or _USUAL, plan.source_size
    return _share(plan.column, source.width, stored.width) or _share(plan.row, source.height, stored.height)


def in_blocks(plan: TilePlan, tiles: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return an order of the plan's tiles, block by block of at most `tiles`, and where in it each block ends.

    Tiles that share nothing stay in their order, row by row, as their bytes lie; that is one block.
    """
    count = len(plan)
    if count <= 1 or not shares_stored(plan):
        return np.arange(count), np.array([count])
    stored = plan.stored or _USUAL
    columns, period_x = _places(plan.column, stored.width)
    rows, period_y = _places(plan.row, stored.height)
    wide = _multiple(math.isqrt(tiles), period_x)
    high = _multiple(max(1, tiles // wide), period_y)
    order = np.lexsort((columns, rows, columns // wide, rows // high))
    block = (rows // high * (int(columns.max()) // wide + 1) + columns // wide)[order]
    return order, np.append(np.flatnonzero(np.diff(block)) + 1, count)


def split(plan: TilePlan, most: int) -> list[NDArray[np.int64]]:
    """Return the indices of `plan` in parts of at most `most`; each tile is in one part. Raises SlideError."""
    if most < 1:
        raise SlideError("bad-request", f"a part has at least 1 tile, not {most}")
    order, ends = in_blocks(plan, most)
    return _cut(order, ends, lambda at, number: most)


def share_out(
    plan: TilePlan, least: int, most: int, readers: int, *, ordered: bool, begins: bool, ends: bool
) -> list[NDArray[np.int64]]:
    """Return the indices of `plan` in parts for `readers`, of `least` to `most` tiles (the last may be smaller).

    ordered: in the plan's order. begins: the first parts are small, so that tiles come soon. ends: so are the last, so
    that all readers end at about the same time.
    """
    count = len(plan)
    order, stops = (np.arange(count), np.array([count])) if ordered else in_blocks(plan, most)

    def size(at: int, number: int) -> int:
        early = least << min(number // readers, 20) if begins else most
        late = (count - at) // (2 * readers) if ends else most
        return min(most, max(least, min(early, late)))

    return _cut(order, stops, size)


def _cut(order: NDArray[np.int64], ends: NDArray[np.int64], size: Callable[[int, int], int]) -> list[NDArray[np.int64]]:
    """Cut `order` into parts of `size` (of where one begins, and its number), where it can be at the end of a block."""
    parts: list[NDArray[np.int64]] = []
    at = 0
    while at < len(order):
        wanted = size(at, len(parts))
        end = min(len(order), at + wanted)
        block = int(np.searchsorted(ends, end, side="right")) - 1
        if block >= 0 and ends[block] > at:
            end = int(ends[block])
        parts.append(order[at:end])
        at = end
    return parts


def _share(corners: NDArray[np.int64], size: int, stored: int) -> bool:
    found = np.unique(corners)
    return bool(size % stored or np.any(found % stored) or np.any(np.diff(found) < size))


def _places(corners: NDArray[np.int64], stored: int) -> tuple[NDArray[np.int64], int]:
    """Return each corner's place on the grid of tiles, and after how many of them one begins with a stored tile again.

    Places count from one that does, where there is any.
    """
    found = np.unique(corners)
    step = int(np.gcd.reduce(np.diff(found))) if len(found) > 1 else 0
    if step < 1 or step < int(np.diff(found).min()):  # a broken factor: steps differ by a pixel
        return np.searchsorted(found, corners), 1
    period = stored // math.gcd(step, stored)
    first = int(found[0])
    shift = next((n for n in range(period) if (first - n * step) % stored == 0), 0)
    return (corners - first) // step + shift, period


def _multiple(size: int, period: int) -> int:
    return max(1, size // period * period or size)
