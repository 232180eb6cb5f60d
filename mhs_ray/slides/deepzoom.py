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

TILE: Final = 256
QUALITY: Final = 82
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


def read_tile(reader: SlideReader, level: int, column: int, row: int) -> RGB:
    """Return the pixels of one tile, at most TILE x TILE. Raises SlideError for one that is not there."""
    facts = reader.facts()
    zoom = DeepZoom(facts.width, facts.height)
    wanted = zoom.tile_size(level, column, row)
    scale = 1 << (zoom.last - level)
    index = best_level(facts, scale)
    stored = facts.levels[index]
    ratio = scale / stored.downsample
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
