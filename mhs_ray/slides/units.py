"""Parts of a plan that readers take from one queue: near-square blocks, so that few stored tiles are shared."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mhs_ray.slides.plan import TilePlan


def split(plan: TilePlan, tiles: int) -> list[NDArray[np.int64]]:
    """Return the indices of `plan` in parts of at most `tiles`; each tile is in one part.

    Tiles that overlap or lie unaligned share stored tiles with their neighbours, which only a block of them can save;
    tiles that lie apart are taken row by row, as their bytes lie.
    """
    count = len(plan)
    order = np.arange(count)
    if count > tiles and not _on_grid(plan):
        side = max(1, math.isqrt(tiles))
        columns, rows = np.unique(plan.column, return_inverse=True)[1], np.unique(plan.row, return_inverse=True)[1]
        order = np.lexsort((columns, rows, columns // side, rows // side))
    return [order[at : at + tiles] for at in range(0, count, tiles)]


def _on_grid(plan: TilePlan) -> bool:
    """Whether every tile begins where another ends on a grid of powers of two: what stored tiles look like."""
    size = plan.source_size
    return (
        size.width % 16 == 0 == size.height % 16
        and not (np.any(plan.column % size.width) or np.any(plan.row % size.height))
        and size.width & (size.width - 1) == 0
    )
