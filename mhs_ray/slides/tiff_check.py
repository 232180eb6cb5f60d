"""Say what is wrong with a TIFF's structure before any decoder touches it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.tiff import TiffLayout, TiffPage, read_layout

_UNCOMPRESSED: Final = 1


@dataclass(frozen=True, slots=True)
class StructureLimits:
    """The largest slide taken. Scanners of 2026 stay below 400,000 pixels a side and 4096 a tile."""

    max_side: int = 2_000_000
    max_pixels: int = 400_000_000_000
    max_tile_pixels: int = 1 << 26


def check_structure(path: Path, limits: StructureLimits | None = None) -> TiffLayout:
    """Return the layout of a TIFF whose every tile lies within the file.

    Raises SlideError: ``bomb`` (absurd dimensions), ``truncated`` (names how many tiles are missing), ``unreadable``.
    """
    layout = read_layout(path)
    check_layout(path.name, layout, limits)
    return layout


def check_layout(name: str, layout: TiffLayout, limits: StructureLimits | None = None) -> None:
    """Do what `check_structure` does on a layout that was read already."""
    for page in layout.pages:
        _check_size(name, page, limits or StructureLimits())
    for page in layout.pages:
        if not layout.ndpi:  # its offsets are guessed from 32 bits, by rules that only OpenSlide knows whole
            _check_tiles(name, page, layout)


def _check_size(name: str, page: TiffPage, limits: StructureLimits) -> None:
    side, area = max(page.width, page.height), page.width * page.height
    if side > limits.max_side or area > limits.max_pixels:
        raise SlideError(
            "bomb", f"{name} claims an image of {page.width} x {page.height} pixels, more than any scanner makes"
        )
    if page.tiled and page.tile_width * page.tile_height > limits.max_tile_pixels:
        raise SlideError("bomb", f"{name} claims tiles of {page.tile_width} x {page.tile_height} pixels")
    if not 1 <= page.samples <= 1000 or page.planar not in (1, 2):
        raise SlideError("unreadable", f"{name} is damaged: image {page.index} claims {page.samples} samples a pixel")


def _check_tiles(name: str, page: TiffPage, layout: TiffLayout) -> None:
    part = "tiles" if page.tiled else "strips"
    expected, given = page.tiles_expected, min(len(page.offsets), len(page.byte_counts))
    if given < expected and page.tiled:  # strips only hold labels and thumbnails, in some files oddly
        raise SlideError(
            "unreadable", f"{name} is damaged: image {page.index} needs {expected} {part}, but lists only {given}"
        )
    checked = min(expected, given)
    offsets, counts = page.offsets[:checked], page.byte_counts[:checked]
    size = np.uint64(layout.size)
    # offset + count may overflow 64 bits in a hostile file, so the two are compared apart
    beyond = (counts > 0) & ((offsets >= size) | (counts > size - np.minimum(offsets, size)))
    missing = int(np.count_nonzero(beyond))
    if missing:
        raise SlideError(
            "truncated",
            f"{name} is cut off: {missing:,} of {expected:,} {part} of image {page.index} "
            f"({page.width} x {page.height}) lie beyond its end at byte {layout.size:,}; upload it again",
        )
    if page.compression == _UNCOMPRESSED and page.tiled and page.planar == 1:
        full = page.tile_width * page.tile_height * sum(page.bits[: page.samples]) // 8
        short = int(np.count_nonzero((counts > 0) & (counts < np.uint64(full))))
        if short:
            raise SlideError(
                "unreadable", f"{name} is damaged: {short:,} of {expected:,} tiles of image {page.index} are too short"
            )
