"""Whole stored tiles, many at a time, decoded straight into the caller's memory.

`open_tiles` takes the fast path only where it is pixel for pixel what OpenSlide gives (and the tests hold it to that);
everything else goes through the slide's reader, which is the slow reference.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.jpeg import TileDecoding
from mhs_ray.slides.reader import RGB, LevelNotFoundError, SlideFacts, SlideReader
from mhs_ray.slides.sniff import Kind, sniff
from mhs_ray.slides.tiff import TiffPage
from mhs_ray.slides.tiff_check import check_structure

log = logging.getLogger(__name__)

_JPEG: Final = 7
_RGB, _YCBCR = 2, 6
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
    pages: dict[int, TiffPage] = {}
    if sniff(path) is Kind.TIFF and reader.facts().vendor in _VENDORS:
        layout = check_structure(path)
        for index, level in enumerate(reader.facts().levels):
            same = [p for p in layout.pages if p.tiled and (p.width, p.height) == (level.width, level.height)]
            if len(same) == 1 and _is_plain_jpeg(same[0]):
                pages[index] = same[0]
    return FastTiles(path, reader, pages)


def _is_plain_jpeg(page: TiffPage) -> bool:
    return (
        page.compression == _JPEG
        and page.photometric in (_RGB, _YCBCR)
        and page.samples == 3
        and page.bits == (8, 8, 8)
        and page.planar == 1
    )


class FastTiles:
    """See TileSource. Levels without a plain JPEG page, and tiles that OpenSlide makes up, are asked of the reader."""

    def __init__(self, path: Path, reader: SlideReader, pages: dict[int, TiffPage]) -> None:
        self._name, self._reader, self._facts = path.name, reader, reader.facts()
        self._pages = pages
        self._decoding = {i: TileDecoding(p.jpeg_tables, rgb=p.photometric == _RGB) for i, p in pages.items()}
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if pages else -1

    def grid(self, level: int) -> TileGrid:
        """See TileSource."""
        return grid_of(self._name, self._facts, level, self._pages.get(level))

    def is_fast(self, level: int) -> bool:
        """See TileSource."""
        return level in self._pages

    def read_tiles(self, level: int, tiles: Sequence[tuple[int, int]], out: Batch) -> None:
        """See TileSource."""
        grid = self.grid(level)
        check_batch(self._name, grid, tiles, out)
        page = self._pages.get(level)
        for index, (column, row) in enumerate(tiles):
            if page is None:
                self._read_slowly(level, grid, column, row, out[index])
            else:
                self._read_fast(level, page, grid, column, row, out[index])

    def close(self) -> None:
        """Close the file; the reader stays open."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> FastTiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_fast(self, level: int, page: TiffPage, grid: TileGrid, column: int, row: int, out: RGB) -> None:
        number = row * grid.columns + column
        count = int(page.byte_counts[number])
        if not count:  # a sparse tile; on Aperio's lower levels OpenSlide draws it from the level above
            self._read_slowly(level, grid, column, row, out)
            return
        try:
            data = os.pread(self._file, count, int(page.offsets[number]))
            stream, head = self._decoding[level].complete(data)
            if (head.width, head.height, head.bits) != (grid.size.width, grid.size.height, 8) or len(
                head.sampling
            ) != 3:
                raise SlideError("unreadable", f"it holds {head.width} x {head.height} pixels of {head.bits} bits")
            simplejpeg.decode_jpeg(stream, colorspace="RGB", fastdct=False, fastupsample=False, buffer=out)
        except (SlideError, ValueError) as error:
            # OpenSlide forgives some faults of a stream and not others: whether this is one is for it to say.
            log.info("tile %d, %d of level %d of %s is left to OpenSlide: %s", column, row, level, self._name, error)
            self._read_slowly(level, grid, column, row, out)
            return
        right, bottom = page.width - column * grid.size.width, page.height - row * grid.size.height
        if right < grid.size.width:
            out[:, right:] = self._facts.background
        if bottom < grid.size.height:
            out[bottom:] = self._facts.background

    def _read_slowly(self, level: int, grid: TileGrid, column: int, row: int, out: RGB) -> None:
        downsample = self._facts.levels[level].downsample
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
