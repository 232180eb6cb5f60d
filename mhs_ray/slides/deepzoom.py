"""Tiles of a slide as a deep-zoom viewer asks for them: levels that halve, the last one at full size.

Level n of N has the slide at 1 / 2**(N - n); a tile is cut without overlap, so that at a level that the file has
itself its borders are those of the file's own tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import simplejpeg
from PIL import Image

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.reader import RGB, SlideFacts, SlideReader
from mhs_ray.slides.tiles import FastTiles

TILE: Final = 256
QUALITY: Final = 82
_FACTORS: Final = frozenset({1, 2, 4})
_MAX_STORED: Final = 512 * 512  # pixels of a stored tile that is decoded anew for each tile of the viewer
_MAX_SOURCE: Final = 1 << 23  # pixels decoded for one tile at once; beyond that it is put together from smaller ones


@dataclass(frozen=True, slots=True)
class DeepZoom:
    """The geometry of one slide's levels. width, height: of the slide at full size."""

    width: int
    height: int

    @property
    def last(self) -> int:
        """The level at full size."""
        return math.ceil(math.log2(max(self.width, self.height, 1)))

    def size(self, level: int) -> PixelSize:
        """Return the slide's size at `level`."""
        scale = 1 << (self.last - level)
        return PixelSize(math.ceil(self.width / scale), math.ceil(self.height / scale))

    def tile_size(self, level: int, column: int, row: int) -> PixelSize:
        """Return the size of a tile; those at the right and lower edge are smaller. Raises SlideError outside."""
        if not 0 <= level <= self.last:
            raise SlideError("no-such-tile", f"there is no deep-zoom level {level}, only 0 to {self.last}")
        whole = self.size(level)
        if not (0 <= column * TILE < whole.width and 0 <= row * TILE < whole.height):
            raise SlideError("no-such-tile", f"there is no tile {column}, {row} at deep-zoom level {level}")
        return PixelSize(min(TILE, whole.width - column * TILE), min(TILE, whole.height - row * TILE))


def read_tile(reader: SlideReader, level: int, column: int, row: int, tiles: FastTiles | None = None) -> RGB:
    """Return the pixels of one tile, at most TILE x TILE. Raises SlideError for one that is not there.

    tiles: of the same slide; where its stored tiles fit the viewer's, they are decoded without OpenSlide.
    """
    facts = reader.facts()
    zoom = DeepZoom(facts.width, facts.height)
    wanted = zoom.tile_size(level, column, row)
    scale = 1 << (zoom.last - level)
    index = best_level(facts, scale)
    stored = facts.levels[index]
    ratio = scale / stored.downsample
    if tiles is not None:
        found = _from_stored(tiles, index, ratio, column, row, wanted)
        if found is not None:
            return found
    source = PixelSize(max(1, round(wanted.width * ratio)), max(1, round(wanted.height * ratio)))
    if source.pixels > _MAX_SOURCE:
        return _from_children(reader, zoom, level, column, row, wanted)
    origin = Level0Point(column * TILE * scale, row * TILE * scale)
    pixels = reader.read_region(origin, source, level=index)
    return pixels if source == wanted else _resized(pixels, wanted)


def best_level(facts: SlideFacts, scale: float) -> int:
    """Return the stored level to read for a reduction by `scale`: the smallest that need not be enlarged."""
    fitting = [i for i, level in enumerate(facts.levels) if level.downsample <= scale * 1.01]
    return max(fitting, key=lambda i: facts.levels[i].downsample, default=0)


def _from_stored(tiles: FastTiles, level: int, ratio: float, column: int, row: int, wanted: PixelSize) -> RGB | None:
    """Put a tile together from whole stored tiles, reduced by an exact mean; None where they do not fit."""
    factor = round(ratio)
    if factor not in _FACTORS or not tiles.is_fast(level):
        return None
    grid, stored = tiles.grid(level), tiles.facts.levels[level]
    if abs(ratio - factor) * max(stored.width, stored.height) >= factor / 2:
        return None  # over the level's width, the two would drift apart by half a pixel
    if grid.size.width % factor or grid.size.height % factor or grid.size.pixels > _MAX_STORED:
        return None
    width, height = grid.size.width // factor, grid.size.height // factor
    canvas = np.full((wanted.height, wanted.width, 3), tiles.facts.background, np.uint8)
    part = np.empty((height, width, 3), np.uint8)
    left, top = column * TILE, row * TILE
    for y in range(top // height, min(grid.rows, -(-(top + wanted.height) // height))):
        for x in range(left // width, min(grid.columns, -(-(left + wanted.width) // width))):
            tiles.decode_reduced(level, grid, x, y, part, factor)
            x0, y0 = x * width - left, y * height - top
            to = canvas[max(0, y0) : y0 + height, max(0, x0) : x0 + width]
            to[:] = part[max(0, -y0) :, max(0, -x0) :][: to.shape[0], : to.shape[1]]
    return canvas


def _from_children(reader: SlideReader, zoom: DeepZoom, level: int, column: int, row: int, wanted: PixelSize) -> RGB:
    canvas = np.full((2 * wanted.height, 2 * wanted.width, 3), 255, np.uint8)
    below = zoom.size(level + 1)
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = 2 * column + dx, 2 * row + dy
            if x * TILE < below.width and y * TILE < below.height:
                part = read_tile(reader, level + 1, x, y)[: canvas.shape[0] - dy * TILE, : canvas.shape[1] - dx * TILE]
                canvas[dy * TILE : dy * TILE + part.shape[0], dx * TILE : dx * TILE + part.shape[1]] = part
    return _resized(canvas, wanted)


def _resized(pixels: RGB, size: PixelSize) -> RGB:
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size.width, size.height), Image.Resampling.BILINEAR, reducing_gap=2.0))


def encode(pixels: RGB, quality: int = QUALITY) -> bytes:
    """Return `pixels` as a JPEG."""
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")
    return data
