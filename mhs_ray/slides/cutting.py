"""Which stored tiles a planned tile needs, and how it is put together from them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from mhs_ray.slides.boxes import reduce_into
from mhs_ray.slides.codecs import DCT_FACTORS
from mhs_ray.slides.geometry import Level0Point
from mhs_ray.slides.plan import TilePlan
from mhs_ray.slides.reader import RGB
from mhs_ray.slides.spare import spare
from mhs_ray.slides.tiles import FastTiles

_MAX_SUM_FACTOR: Final = 256  # a stored tile is reduced by itself up to here


@dataclass(eq=False, slots=True)
class Stored:
    """One stored tile, already reduced where that can be done by itself. ready: set once `pixels` are there, or never
    will be (then they are None)."""

    column: int
    row: int
    nbytes: int
    ready: threading.Event
    pixels: RGB | None = None
    shared: bool = False


class Cutter:
    """Everything about one plan on one level that does not change. Safe to use from several threads.

    direct: each planned tile is one stored tile. fast: the level is read without OpenSlide.
    """

    def __init__(self, tiles: FastTiles, plan: TilePlan) -> None:
        self._tiles, self._plan = tiles, plan
        self.fast = tiles.is_fast(plan.level)
        self._grid = grid = tiles.grid(plan.level)
        source, size = plan.source_size, grid.size
        on_grid = not (np.any(plan.column % size.width) or np.any(plan.row % size.height))
        inside = (
            bool(
                np.all((plan.column >= 0) & (plan.column < grid.columns * size.width))
                and np.all((plan.row >= 0) & (plan.row < grid.rows * size.height))
            )
            if len(plan)
            else True
        )
        factor = plan.whole_factor
        # A stored tile can be reduced by itself when no block of pixels crosses its border.
        self._each = (
            factor
            if factor is not None
            and 1 < factor <= _MAX_SUM_FACTOR
            and size.width % factor == 0 == size.height % factor
            and not (np.any(plan.column % factor) or np.any(plan.row % factor))
            else 1
        )
        self._dct = (
            self._each if plan.scaling == "dct" and self._each in DCT_FACTORS and tiles.has_dct(plan.level) else None
        )
        self._rest = plan.factor / self._each  # what is left to do after cutting
        self.direct = self.fast and on_grid and inside and plan.factor == 1 and source == size
        self._shape = (size.height // self._each, size.width // self._each, 3)
        self._stored_bytes = int(np.prod(self._shape))
        self._background = np.array(tiles.facts.background, np.uint8)
        self._scratch = threading.local()

    def uses(self, batch: int) -> dict[int, int]:
        """Return by how many batches each stored tile is needed, only those needed by several."""
        if self.direct or not self.fast or not len(self._plan):
            return {}
        grid, size, source = self._grid, self._grid.size, self._plan.source_size
        left, top = self._plan.column // size.width, self._plan.row // size.height
        right = (self._plan.column + source.width - 1) // size.width
        bottom = (self._plan.row + source.height - 1) // size.height
        batches = np.arange(len(self._plan)) // batch
        across, down = int((right - left).max()) + 1, int((bottom - top).max()) + 1
        tiles = np.int64(grid.columns * grid.rows)
        pairs = []
        for dy in range(down):
            for dx in range(across):
                column, row = left + dx, top + dy
                good = (column <= right) & (row <= bottom) & (column >= 0) & (row >= 0)
                good &= (column < grid.columns) & (row < grid.rows)
                pairs.append((batches * tiles + row * grid.columns + column)[good])
        keys, counts = np.unique(np.unique(np.concatenate(pairs)) % tiles, return_counts=True)
        several = counts > 1
        return dict(zip(keys[several].tolist(), counts[several].tolist(), strict=True))

    def private_bytes(self, batch: int) -> int:
        """Return about how many bytes of stored tiles one batch holds that nobody else needs."""
        if self.direct or not self.fast:
            return self._plan.source_size.pixels * 4 if not self.fast else 0
        size, source = self._grid.size, self._plan.source_size
        each = (source.width / size.width + 1) * (source.height / size.height + 1)
        return int(min(each, 1 + source.pixels / size.pixels * 1.5) * batch * self._stored_bytes)

    def needs(self, first: int, count: int) -> list[int]:
        """Return the numbers of the stored tiles that these planned tiles need, in the order of the file."""
        if not self.fast or (self.direct and not self._tiles.is_far):
            return []
        found: set[int] = set()
        for index in range(first, first + count):
            left, top, right, bottom = self._span(index)
            for row in range(top, bottom):
                base = row * self._grid.columns
                found.update(range(base + left, base + right))
        return sorted(found)

    def prefetch(self, keys: list[int]) -> int:
        """Have the bytes of stored tiles brought near; returns how many there are."""
        if not self._tiles.is_far:
            return 0
        columns = self._grid.columns
        places = [(key % columns, key // columns) for key in keys]
        self._tiles.prefetch(self._plan.level, places)
        return sum(length for _, length in self._tiles.ranges(self._plan.level, places))

    def stored(self, key: int, ready: threading.Event) -> Stored:
        """Return a stored tile that is yet to be decoded."""
        return Stored(key % self._grid.columns, key // self._grid.columns, self._stored_bytes, ready)

    def decode(self, stored: Stored) -> None:
        """Fill in the pixels."""
        out = spare.take(self._shape)
        where = (self._plan.level, self._grid, stored.column, stored.row)
        if self._dct:
            self._tiles.decode_dct(*where, out, self._dct)
        else:
            self._tiles.decode_reduced(*where, out, self._each)
        stored.pixels = out

    def recycle(self, stored: Stored) -> None:
        """Take the memory back."""
        if stored.pixels is not None:
            spare.give(stored.pixels)
        stored.pixels = None

    def cut(self, index: int, entries: dict[int, Stored], out: RGB) -> None:
        """Put planned tile `index` together."""
        if self._rest == 1:
            self._paste(index, entries, out)
            return
        source = self._plan.source_size
        scratch = self._buffer(-(-source.height // self._each), -(-source.width // self._each))
        self._paste(index, entries, scratch)
        self._finish(scratch, out)

    def read_one(self, index: int, out: RGB) -> None:
        """Read planned tile `index` by itself: straight into `out`, or the slow way."""
        plan = self._plan
        column, row = int(plan.column[index]), int(plan.row[index])
        if self.direct:
            size = self._grid.size
            self._tiles.decode(plan.level, self._grid, column // size.width, row // size.height, out)
            return
        origin = Level0Point(round(column * plan.downsample), round(row * plan.downsample))
        pixels = self._tiles.read_region(origin, plan.source_size, plan.level)
        if plan.factor == 1:
            out[:] = pixels
        elif plan.whole_factor is not None:
            reduce_into(pixels, plan.whole_factor, out)
        else:
            _area_mean(pixels, plan.factor, out)

    def _span(self, index: int) -> tuple[int, int, int, int]:
        """Stored columns and rows that a planned tile touches: left, top, right, bottom, the latter two excluded."""
        size, source = self._grid.size, self._plan.source_size
        x, y = int(self._plan.column[index]), int(self._plan.row[index])
        return (
            max(0, x // size.width),
            max(0, y // size.height),
            max(0, min(self._grid.columns, (x + source.width - 1) // size.width + 1)),
            max(0, min(self._grid.rows, (y + source.height - 1) // size.height + 1)),
        )

    def _paste(self, index: int, entries: dict[int, Stored], out: RGB) -> None:
        each, (high, wide, _) = self._each, self._shape
        x, y = int(self._plan.column[index]) // each, int(self._plan.row[index]) // each
        height, width = out.shape[:2]
        left, top, right, bottom = self._span(index)
        if x < 0 or y < 0 or x + width > right * wide or y + height > bottom * high:
            out[:] = self._background
        for row in range(top, bottom):
            from_y, to_y = max(y, row * high), min(y + height, (row + 1) * high)
            base = row * self._grid.columns
            for column in range(left, right):
                from_x, to_x = max(x, column * wide), min(x + width, (column + 1) * wide)
                pixels = entries[base + column].pixels
                if pixels is None:
                    # Whoever was to decode it failed, and says why at its own batch; here it is tried again.
                    pixels = self._again(column, row)
                out[from_y - y : to_y - y, from_x - x : to_x - x] = pixels[
                    from_y - row * high : to_y - row * high, from_x - column * wide : to_x - column * wide
                ]

    def _again(self, column: int, row: int) -> RGB:
        stored = Stored(column, row, self._stored_bytes, threading.Event())
        self.decode(stored)
        assert stored.pixels is not None
        return stored.pixels

    def _finish(self, pixels: RGB, out: RGB) -> None:
        whole = round(self._rest)
        if whole == self._rest:
            reduce_into(pixels, whole, out)
        else:
            _area_mean(pixels, self._rest, out)

    def _buffer(self, height: int, width: int) -> RGB:
        found: RGB | None = getattr(self._scratch, "buffer", None)
        if found is None or found.shape != (height, width, 3):
            found = self._scratch.buffer = np.empty((height, width, 3), np.uint8)
        return found


def _area_mean(pixels: RGB, factor: float, out: RGB) -> None:
    height, width = out.shape[:2]
    box = (0, 0, width * factor, height * factor)
    out[:] = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX, box=box))
