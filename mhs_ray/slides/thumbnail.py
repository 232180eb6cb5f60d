"""A thumbnail in bounded memory, also of a slide that has no pyramid."""

from __future__ import annotations

from typing import Final

import numpy as np
from PIL import Image

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.reader import RGB, SlideReader

_BAND_PIXELS: Final = 1 << 23


def thumbnail_cost(reader: SlideReader, max_size: PixelSize) -> int:
    """Return how many pixels have to be decoded for a thumbnail of at most `max_size`."""
    chosen = reader.facts().levels[_best_level(reader, max_size)]
    return chosen.width * chosen.height


def thumbnail(reader: SlideReader, max_size: PixelSize, *, max_source_pixels: int | None = None) -> RGB:
    """Return the whole slide at its own aspect, fitted into `max_size` and never enlarged.

    Reads the smallest level that is large enough, band by band, so memory stays under ~100 MB whatever the slide is.
    max_source_pixels: raises SlideError(``too-large``) rather than decode more than this.
    """
    facts = reader.facts()
    level = _best_level(reader, max_size)
    source = facts.levels[level]
    if max_source_pixels is not None and source.width * source.height > max_source_pixels:
        raise SlideError(
            "too-large",
            f"a thumbnail needs {source.width} x {source.height} pixels decoded, since the slide has no small level; "
            "save it with a pyramid",
        )
    scale = min(max_size.width / source.width, max_size.height / source.height, 1.0)
    target = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    # Whole factors are cheap but must leave at least 2 to the last step, which does the uneven rest without moiré.
    factor = max(1, min(source.width // target[0], source.height // target[1]) // 2)
    # A region is at most _BAND_PIXELS: bands of full width while that fits, else blocks.
    block_width = max(factor, min(source.width, _BAND_PIXELS // factor // factor * factor))
    block_height = max(factor, min(source.height, _BAND_PIXELS // block_width) // factor * factor)
    rows = []
    for top in range(0, source.height, block_height):
        height = min(block_height, source.height - top)
        row = []
        for left in range(0, source.width, block_width):
            width = min(block_width, source.width - left)
            origin = Level0Point(round(left * source.downsample), round(top * source.downsample))
            pixels = reader.read_region(origin, PixelSize(width, height), level=level)
            row.append(pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor)))
        rows.append(row[0] if len(row) == 1 else np.concatenate(row, axis=1))
    reduced = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=0)
    return np.asarray(Image.fromarray(reduced).resize(target, Image.Resampling.BOX))


def _best_level(reader: SlideReader, max_size: PixelSize) -> int:
    levels = reader.facts().levels
    enough = [i for i, v in enumerate(levels) if i == 0 or v.width >= max_size.width or v.height >= max_size.height]
    return min(enough, key=lambda i: levels[i].width * levels[i].height)
