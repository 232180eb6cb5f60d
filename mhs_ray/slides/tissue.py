"""Where the tissue is: a plain method on a thumbnail, the same everywhere, with every constant in one place.

1. Saturation (max - min of R, G, B, over max), averaged over a small square: stain is coloured, glass is grey.
2. Otsu's threshold on it, kept between two bounds: on a slide that is all glass Otsu would part the noise, and where
   a strong stain (DAB) stands beside a weak one it would part these two and lose the pale tissue.
3. Dark and grey is not glass: pixels below `max_black` are left out (pen, folds, the edge of the cover slip).
4. Opening removes specks, closing fills gaps between cells.

A tile is tissue when at least `min_share` of it is; a hook of one's own is any function from RGB to a boolean array.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.reader import RGB, SlideReader
from mhs_ray.slides.thumbnail import thumbnail

Mask = NDArray[np.bool_]
"""Shape (height, width) of the thumbnail; True where there is tissue."""

MaskMethod = Callable[[RGB], Mask]


@dataclass(frozen=True, slots=True)
class TissueParams:
    """See the module. ``*_px``: radius of a square in thumbnail pixels, 0 to leave the step out."""

    min_saturation: float = 0.04
    max_saturation: float = 0.07
    max_black: int = 30
    blur_px: int = 2
    opening_px: int = 1
    closing_px: int = 3
    min_share: float = 0.02


def tissue_mask(rgb: RGB, params: TissueParams | None = None) -> Mask:
    """Return the tissue of a thumbnail, shape (height, width) of `rgb`."""
    params = params or TissueParams()
    if rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        raise SlideError("bad-request", f"a tissue mask is made of RGB pixels (height, width, 3), not of {rgb.shape}")
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    high = np.maximum(np.maximum(red, green), blue).astype(np.float32)
    low = np.minimum(np.minimum(red, green), blue).astype(np.float32)
    saturation = box_mean(np.asarray((high - low) / np.maximum(high, 1), np.float32), params.blur_px)
    bright = high >= params.max_black
    threshold = otsu(saturation[bright]) if bright.any() else 0.0
    threshold = min(max(threshold, params.min_saturation), params.max_saturation)
    mask = (saturation > threshold) & bright
    mask = dilate(erode(mask, params.opening_px), params.opening_px)
    return erode(dilate(mask, params.closing_px), params.closing_px)


def otsu(values: NDArray[np.float32]) -> float:
    """Return the threshold in 0 to 1 that parts `values` (each in 0 to 1) best, over 256 bins."""
    counts, edges = np.histogram(values, bins=256, range=(0.0, 1.0))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts, dtype=np.float64)
    above = below[-1] - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    between = np.nan_to_num(between, nan=-1.0, posinf=-1.0)
    return float(edges[int(np.argmax(between)) + 1])


def box_mean(values: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Return the mean over a square of `radius` around each value, of what lies inside at the edges."""
    if radius < 1:
        return values
    height, width = values.shape
    table = np.zeros((height + 1, width + 1))
    table[1:, 1:] = values.cumsum(0, dtype=np.float64).cumsum(1)
    y, x = np.arange(height), np.arange(width)
    top, bottom = np.maximum(y - radius, 0), np.minimum(y + radius + 1, height)
    left, right = np.maximum(x - radius, 0), np.minimum(x + radius + 1, width)
    sums = table[bottom][:, right] - table[top][:, right] - table[bottom][:, left] + table[top][:, left]
    area = (bottom - top)[:, None] * (right - left)[None, :]
    return np.asarray(sums / area, np.float32)


def dilate(mask: Mask, radius: int) -> Mask:
    """Grow `mask` by a square of `radius` pixels."""
    for axis in (0, 1):
        grown = mask.copy()
        for step in range(1, min(radius, mask.shape[axis] - 1) + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            grown[tuple(ahead)] |= mask[tuple(behind)]
            grown[tuple(behind)] |= mask[tuple(ahead)]
        mask = grown
    return mask


def erode(mask: Mask, radius: int) -> Mask:
    """Shrink `mask` by a square of `radius` pixels; the picture's edge does not eat into it."""
    return ~dilate(~mask, radius)


class TissueMap:
    """The tissue of a slide, asked in level-0 pixels."""

    def __init__(
        self,
        reader: SlideReader,
        *,
        params: TissueParams | None = None,
        method: MaskMethod | None = None,
        max_size: PixelSize | None = None,
    ) -> None:
        self._params = params or TissueParams()
        picture = thumbnail(reader, max_size or PixelSize(1024, 1024))
        self.mask: Mask = (method or (lambda rgb: tissue_mask(rgb, self._params)))(picture)
        if self.mask.shape != picture.shape[:2]:
            raise SlideError(
                "bad-request", f"the tissue method gave a mask of {self.mask.shape} for pixels of {picture.shape[:2]}"
            )
        facts = reader.facts()
        self._scale_x, self._scale_y = self.mask.shape[1] / facts.width, self.mask.shape[0] / facts.height
        integral = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1), np.int64)
        integral[1:, 1:] = self.mask.cumsum(0).cumsum(1)
        self._integral = integral

    @property
    def share(self) -> float:
        """The part of the slide that is tissue, 0 to 1."""
        return float(self.mask.mean())

    def share_of(self, origin: Level0Point, size: PixelSize) -> float:
        """Return the part of a box that is tissue. origin, size: both in level-0 pixels; outside there is none."""
        return float(self.shares_of(np.array([origin.x]), np.array([origin.y]), size)[0])

    def shares_of(self, x: NDArray[np.int64], y: NDArray[np.int64], size: PixelSize) -> NDArray[np.float64]:
        """Return `share_of` of many boxes of one size at once: a plan asks for tens of thousands."""
        height, width = self.mask.shape
        left, right = _covered(x, size.width, self._scale_x, width)
        top, bottom = _covered(y, size.height, self._scale_y, height)
        area = (right - left) * (bottom - top)
        table = self._integral
        inside = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
        return np.asarray(inside / np.maximum(area, 1), np.float64)

    def has_tissue(self, origin: Level0Point, size: PixelSize) -> bool:
        """Say whether a box in level-0 pixels counts as tissue."""
        return self.share_of(origin, size) >= self._params.min_share

    def have_tissue(self, x: NDArray[np.int64], y: NDArray[np.int64], size: PixelSize) -> NDArray[np.bool_]:
        """Return `has_tissue` of many boxes of one size at once."""
        return self.shares_of(x, y, size) >= self._params.min_share


def _covered(
    begin: NDArray[np.int64], length: int, scale: float, end: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the one behind the last pixel of the mask that each stretch of level-0 pixels touches."""
    first = np.floor(begin * scale)
    last = np.maximum(np.ceil((begin + length) * scale), first + 1)
    return np.clip(first, 0, end).astype(np.int64), np.clip(last, 0, end).astype(np.int64)
