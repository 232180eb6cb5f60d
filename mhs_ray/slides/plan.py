"""Which tiles, before any pixel: a request in the words of a model becomes a table of coordinates.

A plan names the level that is read, the whole or broken factor by which it is reduced, and each tile's corner. Tiles
lie on a grid that begins at the region's corner, row by row. What counts as exact: tiles of a level itself (factor 1)
and tiles reduced by a whole factor, which are the mean of each block, rounded half up, of OpenSlide's own pixels.
Broken factors are area means (Pillow's BOX over the exact box). ``scaling="dct"`` trades exactness for speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.reader import MAX_REGION_PIXELS, LevelNotFoundError, SlideFacts

MAX_TILE_SIDE: Final = 8192
MAX_TILES: Final = 20_000_000
_SAME_MPP: Final = 0.02
"""A tile within 2% of the microns per pixel asked for is not resampled: scanners' own figures differ by as much."""

HasTissue = Callable[[Level0Point, PixelSize], bool]
"""Whether a box, both in level-0 pixels, is wanted: `TissueMap.has_tissue`, or one's own."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in level-0 pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class TileRequest:
    """What a model asks for.

    size: of a tile in its own pixels, as (width, height) or one number. stride: between tiles, in the same pixels;
    `size` when None, less for an overlap. mpp: microns per pixel of the tiles; or `level`: a stored level; level 0 when
    both are None. region: only here, the whole slide when None. edge: tiles that reach beyond the region are filled
    with background (``pad``) or left out (``drop``). scaling: ``dct`` allows decoding at 1/2, 1/4, 1/8.
    """

    size: int | tuple[int, int] = 256
    stride: int | tuple[int, int] | None = None
    mpp: float | None = None
    level: int | None = None
    region: Box | None = None
    edge: Literal["pad", "drop"] = "pad"
    scaling: Literal["exact", "dct"] = "exact"


@dataclass(frozen=True, eq=False)
class TilePlan:
    """Tiles to be read, in order. column, row: left and top in pixels of `level`; may lie beyond the slide.

    factor: pixels of `level` per pixel of a tile. mpp: of the tiles, None where the slide does not say. stored: of the
    file's own tiles, where it has any: which order is quick depends on it.
    """

    slide: str
    level: int
    downsample: float
    factor: float
    size: PixelSize
    mpp: float | None
    scaling: Literal["exact", "dct"]
    column: NDArray[np.int64]
    row: NDArray[np.int64]
    stored: PixelSize | None = None

    def __len__(self) -> int:
        return len(self.column)

    @property
    def whole_factor(self) -> int | None:
        """`factor` where it is a whole number."""
        return round(self.factor) if self.factor == round(self.factor) else None

    @property
    def source_size(self) -> PixelSize:
        """The pixels of `level` that one tile covers, rounded up."""
        return PixelSize(math.ceil(self.size.width * self.factor), math.ceil(self.size.height * self.factor))

    @property
    def x(self) -> NDArray[np.int64]:
        """Left sides in level-0 pixels."""
        return np.asarray(np.rint(self.column * self.downsample), np.int64)

    @property
    def y(self) -> NDArray[np.int64]:
        """Upper sides in level-0 pixels."""
        return np.asarray(np.rint(self.row * self.downsample), np.int64)

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of a tile in level-0 pixels."""
        scale = self.factor * self.downsample
        return self.size.width * scale, self.size.height * scale

    @property
    def box(self) -> PixelSize:
        """The box of a tile in whole level-0 pixels."""
        return PixelSize(max(1, round(self.extent[0])), max(1, round(self.extent[1])))

    def take(self, indices: NDArray[np.int64]) -> TilePlan:
        """Return the plan of these tiles only, in this order."""
        return replace(self, column=self.column[indices], row=self.row[indices])

    def where(self, wanted: HasTissue) -> TilePlan:
        """Return the plan of those tiles whose box is wanted."""
        kept = [wanted(Level0Point(int(x), int(y)), self.box) for x, y in zip(self.x, self.y, strict=True)]
        return self.take(np.flatnonzero(np.array(kept, bool)))

    def table(self) -> pa.Table:
        """Return one row per tile: slide, level, x, y (level-0 pixels), mpp."""
        return coordinates(self, np.arange(len(self)))

    def facts(self) -> dict[str, Any]:
        """Return what is the same for all tiles, as plain JSON values."""
        return {
            "slide": self.slide,
            "level": self.level,
            "downsample": self.downsample,
            "factor": self.factor,
            "width": self.size.width,
            "height": self.size.height,
            "mpp": self.mpp,
            "scaling": self.scaling,
            "tiles": len(self),
        }


def coordinates(plan: TilePlan, indices: NDArray[np.int64]) -> pa.Table:
    """Return the coordinates of the tiles at `indices` of `plan`; see `TilePlan.table`."""
    count = len(indices)
    slide = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), [plan.slide])
    return pa.table(
        {
            "slide": slide,
            "level": pa.array(np.full(count, plan.level, np.int16)),
            "x": pa.array(np.rint(plan.column[indices] * plan.downsample).astype(np.int64)),
            "y": pa.array(np.rint(plan.row[indices] * plan.downsample).astype(np.int64)),
            "mpp": pa.array(np.full(count, np.nan if plan.mpp is None else plan.mpp)),
        }
    )


def plan_tiles(name: str, facts: SlideFacts, request: TileRequest, wanted: HasTissue | None = None) -> TilePlan:
    """Return the tiles that `request` means on a slide. wanted: asked of each tile's box in level-0 pixels.

    Raises SlideError: ``bad-request`` (and says what to ask instead), ``no-such-level``, ``no-mpp``.
    """
    size, stride = sides(request)
    level, factor, mpp = _scale(name, facts, request)
    chosen = facts.levels[level]
    if math.ceil(size.width * factor) * math.ceil(size.height * factor) > MAX_REGION_PIXELS:
        raise SlideError(
            "bad-request", f"a tile of {size.width} x {size.height} needs more pixels of {name} than are read at once"
        )
    region = request.region or Box(0, 0, facts.width, facts.height)
    if region.width < 1 or region.height < 1 or max(abs(region.x), abs(region.y)) > 1 << 40:
        raise SlideError("bad-request", f"a region of {region.width} x {region.height} pixels holds no tile")
    left, top = round(region.x / chosen.downsample), round(region.y / chosen.downsample)
    # a region that ends with the slide ends with its level, however the level was rounded
    whole_width = request.region is None or region.x + region.width == facts.width
    whole_height = request.region is None or region.y + region.height == facts.height
    width = chosen.width - left if whole_width else max(1, round(region.width / chosen.downsample))
    height = chosen.height - top if whole_height else max(1, round(region.height / chosen.downsample))
    columns = _steps(width, stride.width * factor, size.width * factor, request.edge)
    rows = _steps(height, stride.height * factor, size.height * factor, request.edge)
    if columns * rows > MAX_TILES:
        raise SlideError(
            "bad-request", f"{columns * rows:,} tiles of {name} are more than {MAX_TILES:,}; use a longer stride"
        )
    xs = left + np.rint(np.arange(columns) * (stride.width * factor)).astype(np.int64)
    ys = top + np.rint(np.arange(rows) * (stride.height * factor)).astype(np.int64)
    plan = TilePlan(
        slide=name,
        level=level,
        downsample=chosen.downsample,
        factor=factor,
        size=size,
        mpp=mpp,
        scaling=request.scaling,
        column=np.tile(xs, rows),
        row=np.repeat(ys, columns),
        stored=facts.tile_size,
    )
    if wanted is None:
        return plan
    return plan.where(wanted)


def sides(request: TileRequest) -> tuple[PixelSize, PixelSize]:
    """Return the size and the stride of `request`. Raises SlideError (``bad-request``), whatever the slide."""
    stride = request.size if request.stride is None else request.stride
    return _pair("tile size", request.size), _pair("stride", stride)


def _steps(length: int, stride: float, size: float, edge: str) -> int:
    if edge == "pad":
        return max(0, math.ceil(length / stride))
    return max(0, math.floor((length - size) / stride) + 1)


def _pair(what: str, value: int | tuple[int, int]) -> PixelSize:
    width, height = value if isinstance(value, tuple) else (value, value)
    if not (1 <= width <= MAX_TILE_SIDE and 1 <= height <= MAX_TILE_SIDE):
        raise SlideError("bad-request", f"a {what} is 1 to {MAX_TILE_SIDE} pixels a side, not {width} x {height}")
    return PixelSize(width, height)


def _scale(name: str, facts: SlideFacts, request: TileRequest) -> tuple[int, float, float | None]:
    """Return (level, factor, microns per pixel of the tiles)."""
    base = facts.mpp.mean if facts.mpp else None
    if request.mpp is None:
        level = request.level or 0
        if not 0 <= level < len(facts.levels):
            raise LevelNotFoundError(name, level, len(facts.levels))
        return level, 1.0, None if base is None else base * facts.levels[level].downsample
    if request.level is not None:
        raise SlideError("bad-request", "tiles are asked for by level or by microns per pixel, not by both")
    if not (math.isfinite(request.mpp) and request.mpp > 0):
        raise SlideError("bad-request", f"microns per pixel must be a positive number, not {request.mpp}")
    if base is None:
        raise SlideError("no-mpp", f"{name} does not say how large its pixels are; ask for a level instead of an mpp")
    asked = request.mpp / base
    if asked < 1 - _SAME_MPP:
        raise SlideError(
            "bad-request", f"{name} has {base:g} microns per pixel; {request.mpp:g} would have to be invented"
        )
    level = max(
        (i for i, v in enumerate(facts.levels) if v.downsample <= asked * (1 + _SAME_MPP)),
        key=lambda i: facts.levels[i].downsample,
    )
    factor = asked / facts.levels[level].downsample
    if abs(factor - max(1, round(factor))) <= _SAME_MPP * factor:
        factor = float(max(1, round(factor)))
    return level, factor, base * facts.levels[level].downsample * factor
