"""Whole stored tiles, many at a time, decoded straight into the caller's memory.

`open_tiles` takes the fast path only where it is pixel for pixel what OpenSlide gives (and the tests hold it to that);
everything else goes through the slide's reader, which is the slow reference.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.boxes import reduce_into
from mhs_ray.slides.bytesource import ByteSource, LocalFile
from mhs_ray.slides.codecs import TileCodec, codec_for
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.reader import RGB, LevelNotFoundError, SlideFacts, SlideReader
from mhs_ray.slides.sniff import Kind, sniff
from mhs_ray.slides.tiff import TiffLayout, TiffPage, parse_layout
from mhs_ray.slides.tiff_check import check_layout

log = logging.getLogger(__name__)

_VENDORS: Final = frozenset({"aperio", "generic-tiff"})
"""Vendors whose tiles lie in a plain grid for OpenSlide too; others overlap, pad or rotate them."""

_DEFAULT_TILE: Final = PixelSize(256, 256)

Batch = NDArray[np.uint8]
"""Tiles, shape (n, tile height, tile width, 3), C-contiguous."""


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The tiles of one level. size: of a full tile; tiles at the right and lower edge are full, too."""

    columns: int
    rows: int
    size: PixelSize

    def all(self) -> list[tuple[int, int]]:
        """Every (column, row), row by row: the order in which the bytes lie in most files."""
        return [(x, y) for y in range(self.rows) for x in range(self.columns)]


class TileSource(Protocol):
    """Tiles by column and row. Safe to use from several threads."""

    def grid(self, level: int) -> TileGrid:
        """Return the grid of `level`. Raises LevelNotFoundError."""
        ...

    def is_fast(self, level: int) -> bool:
        """Say whether `level` is read without OpenSlide."""
        ...

    def read_tiles(self, level: int, tiles: Sequence[tuple[int, int]], out: Batch) -> None:
        """Decode `tiles`, (column, row) each, into ``out[0]``, ``out[1]`` …; pixels beyond the slide are background.

        Raises SlideError: ``bad-request`` for a tile that is not on the grid or an `out` of another shape,
        ``unreadable`` for a damaged tile; `out` then holds undefined pixels.
        """
        ...


def open_tiles(path: Path, reader: SlideReader) -> FastTiles:
    """Return the tiles of the slide at `path`, which `reader` has open and keeps open as long as they are used."""
    facts = reader.facts()
    if facts.vendor not in _VENDORS or sniff(path) is not Kind.TIFF:
        return FastTiles(path.name, facts, reader, None, {})
    source = LocalFile(path)
    try:
        layout = parse_layout(source)
        check_layout(path.name, layout)
        return FastTiles(path.name, facts, reader, source, fast_pages(layout, facts))
    except BaseException:
        source.close()
        raise


def fast_pages(layout: TiffLayout, facts: SlideFacts) -> dict[int, TiffPage]:
    """Return the directories of the levels that can be read without OpenSlide, by level."""
    pages: dict[int, TiffPage] = {}
    for index, level in enumerate(facts.levels):
        same = [p for p in layout.pages if p.tiled and (p.width, p.height) == (level.width, level.height)]
        if len(same) == 1 and codec_for(same[0]) is not None:
            pages[index] = same[0]
    return pages


class FastTiles:
    """See TileSource. Levels without a page of their own, and tiles that OpenSlide makes up, are asked of the reader.

    source: closed with this object; the reader is not.
    """

    def __init__(
        self,
        name: str,
        facts: SlideFacts,
        reader: SlideReader,
        source: ByteSource | None,
        pages: dict[int, TiffPage],
    ) -> None:
        self.name, self.facts = name, facts
        self._reader, self._source = reader, source
        self._pages = pages if source is not None else {}
        self._codecs: dict[int, TileCodec] = {}
        for index, page in list(self._pages.items()):
            codec = codec_for(page)
            if codec is not None:
                self._codecs[index] = codec
        self._scratch = threading.local()

    def grid(self, level: int) -> TileGrid:
        """See TileSource."""
        return grid_of(self.name, self.facts, level, self._pages.get(level))

    def is_fast(self, level: int) -> bool:
        """See TileSource."""
        return level in self._codecs

    def has_dct(self, level: int) -> bool:
        """Say whether tiles of `level` can be decoded at 1/2, 1/4 and 1/8 (`decode_dct`)."""
        codec = self._codecs.get(level)
        return codec is not None and codec.has_dct

    def read_tiles(self, level: int, tiles: Sequence[tuple[int, int]], out: Batch) -> None:
        """See TileSource."""
        grid = self.grid(level)
        check_batch(self.name, grid, tiles, out)
        for index, (column, row) in enumerate(tiles):
            self.decode(level, grid, column, row, out[index])

    def read_region(self, origin: Level0Point, size: PixelSize, level: int) -> RGB:
        """Return what the slide's reader gives: the slow way, and the reference."""
        return self._reader.read_region(origin, size, level=level)

    def decode(self, level: int, grid: TileGrid, column: int, row: int, out: RGB) -> None:
        """Decode one tile of the grid into `out`, C-contiguous, without checking its shape."""
        if not self._decode(level, grid, column, row, out, 1):
            self._read_slowly(level, grid, column, row, out)

    def decode_reduced(self, level: int, grid: TileGrid, column: int, row: int, out: RGB, factor: int) -> None:
        """Decode one tile and write the exact mean of its factor x factor blocks to `out`."""
        if factor == 1:
            self.decode(level, grid, column, row, out)
            return
        shape = (grid.size.height, grid.size.width, 3)
        full: RGB | None = getattr(self._scratch, "full", None)
        if full is None or full.shape != shape:
            full = self._scratch.full = np.empty(shape, np.uint8)
        self.decode(level, grid, column, row, full)
        reduce_into(full, factor, out)

    def decode_dct(self, level: int, grid: TileGrid, column: int, row: int, out: RGB, factor: int) -> None:
        """Decode one tile at 1/factor; within 38 dB (PSNR) of `decode_reduced` on stained tissue, seldom the same."""
        if not self._decode(level, grid, column, row, out, factor):
            self.decode_reduced(level, grid, column, row, out, factor)

    def ranges(self, level: int, tiles: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return where the bytes of `tiles` lie, (offset, length) each; [] for a level that is not fast."""
        page = self._pages.get(level)
        if page is None:
            return []
        across = page.tiles_across
        numbers = [row * across + column for column, row in tiles]
        return [(int(page.offsets[n]), int(page.byte_counts[n])) for n in numbers if page.byte_counts[n]]

    @property
    def is_far(self) -> bool:
        """Whether the bytes come over a network, and `prefetch` does anything."""
        return self._source is not None and self._source.is_far

    def prefetch(self, level: int, tiles: Sequence[tuple[int, int]]) -> None:
        """Have the bytes of `tiles` brought near."""
        if self._source is not None:
            self._source.prefetch(self.ranges(level, tiles))

    def close(self) -> None:
        """Close the source; the reader stays open."""
        if self._source is not None:
            self._source.close()

    def __enter__(self) -> FastTiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode(self, level: int, grid: TileGrid, column: int, row: int, out: RGB, factor: int) -> bool:
        """Return False where only OpenSlide knows what to show."""
        codec = self._codecs.get(level)
        if codec is None or self._source is None:
            return False
        page = self._pages[level]
        number = row * grid.columns + column
        count = int(page.byte_counts[number])
        if not count:  # a sparse tile; on Aperio's lower levels OpenSlide draws it from the level above
            return False
        data = self._source.read(int(page.offsets[number]), count)
        try:
            if factor == 1:
                codec.decode(data, out)
            else:
                codec.decode_dct(data, out, factor)
        except (SlideError, ValueError) as error:
            # OpenSlide forgives some faults of a stream and not others: whether this is one is for it to say.
            log.info("tile %d, %d of level %d of %s is left to OpenSlide: %s", column, row, level, self.name, error)
            return False
        right, bottom = page.width - column * grid.size.width, page.height - row * grid.size.height
        if right < grid.size.width:
            out[:, -(-right // factor) :] = self.facts.background
        if bottom < grid.size.height:
            out[-(-bottom // factor) :] = self.facts.background
        return True

    def _read_slowly(self, level: int, grid: TileGrid, column: int, row: int, out: RGB) -> None:
        downsample = self.facts.levels[level].downsample
        origin = Level0Point(round(column * grid.size.width * downsample), round(row * grid.size.height * downsample))
        out[:] = self._reader.read_region(origin, grid.size, level=level)


def grid_of(name: str, facts: SlideFacts, level: int, page: TiffPage | None = None) -> TileGrid:
    """Return the grid of stored tiles: the page's own, else the tile size that the slide's facts give."""
    if not 0 <= level < len(facts.levels):
        raise LevelNotFoundError(name, level, len(facts.levels))
    size = PixelSize(page.tile_width, page.tile_height) if page else facts.tile_size or _DEFAULT_TILE
    chosen = facts.levels[level]
    return TileGrid(-(-chosen.width // size.width), -(-chosen.height // size.height), size)


def check_batch(name: str, grid: TileGrid, tiles: Sequence[tuple[int, int]], out: Batch) -> None:
    """Refuse tiles that are not on the grid and memory of another shape."""
    shape = (grid.size.height, grid.size.width, 3)
    if out.dtype != np.uint8 or out.ndim != 4 or out.shape[1:] != shape or len(out) < len(tiles):
        raise SlideError(
            "bad-request", f"{len(tiles)} tiles of {name} need uint8 memory ({len(tiles)}, *{shape}), not {out.shape}"
        )
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise SlideError("bad-request", "tiles are decoded into C-contiguous, writable memory only")
    for column, row in tiles:
        if not (0 <= column < grid.columns and 0 <= row < grid.rows):
            raise SlideError(
                "bad-request", f"{name} has {grid.columns} x {grid.rows} tiles here, but none at {column}, {row}"
            )
