"""Make a slide of any size from the real tissue that scikit-image ships: the demo's and the benchmarks' slide.

The picture is a function of its coordinates (`TissueField.render`), so any part of the written file can be compared
with what was meant. The file is an Aperio-like SVS: BigTIFF where needed, 256 x 256 JPEG tiles, a thumbnail, levels
four times apart. Rows of tiles are made, encoded, reduced and written one after another, so memory stays the same
for any height.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.reader import RGB

TILE: Final = 256
_STEP: Final = 4  # between two levels; a row of tiles is a whole number of steps
_SMALLEST: Final = 256  # no further level once both sides are below four times this, so there always is a second one
_CELL: Final = 64  # level-0 pixels per sample of the coarse fields
_YCBCR: Final = 6
_JPEG: Final = 7


@dataclass(frozen=True, slots=True)
class DemoSlide:
    """What was written. level_sizes: (width, height) of each level."""

    path: Path
    width: int
    height: int
    mpp: float
    level_sizes: tuple[tuple[int, int], ...]


def make_demo_slide(
    path: Path,
    width: int = 8192,
    height: int = 6144,
    *,
    mpp: float = 0.5,
    app_mag: int = 20,
    quality: int = 80,
    seed: int = 1,
) -> DemoSlide:
    """Write a pyramidal SVS of `width` x `height` pixels to `path`; the same arguments give the same pixels.

    Raises SlideError when scikit-image is missing or the size is below 1024 x 1024.
    """
    if width < 1024 or height < 1024:
        raise SlideError("bad-request", f"a demo slide has at least 1024 x 1024 pixels, not {width} x {height}")
    field = TissueField(width, height, seed)
    levels = [_Level(width, height, quality)]
    while max(levels[-1].width, levels[-1].height) >= _STEP * _SMALLEST:
        levels.append(_Level(levels[-1].width // _STEP, levels[-1].height // _STEP, quality))
    sizes = tuple((v.width, v.height) for v in levels)
    partial = path.with_name(path.name + ".part")
    try:
        _write(partial, field, levels, mpp, app_mag, quality)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return DemoSlide(path, width, height, mpp, sizes)


def _write(path: Path, field: TissueField, levels: list[_Level], mpp: float, app_mag: int, quality: int) -> None:
    base = levels[0]
    big = base.width * base.height > 8_000_000_000
    title = "Aperio Image Library v12.0.15"
    facts = f"AppMag = {app_mag}|MPP = {mpp:.4f}|Filename = demo|ScanScope ID = MHSDEMO"
    area = f"{base.width}x{base.height} [0,0 {base.width}x{base.height}] ({TILE}x{TILE})"
    shared: dict[str, Any] = {"metadata": None, "software": False, "datetime": None}
    # The tiles are complete JFIF streams in YCbCr 4:2:0, and the tags say so: what every decoder takes the same way.
    tiled: dict[str, Any] = {
        **shared,
        "tile": (TILE, TILE),
        "photometric": _YCBCR,
        "compression": _JPEG,
        "subsampling": (2, 2),
        "dtype": np.uint8,
    }
    with tifffile.TiffWriter(path, bigtiff=big) as tiff:
        tiff.write(
            _stream(field, levels),
            shape=(base.height, base.width, 3),
            description=f"{title}\r\n{area} JPEG/RGB Q={quality}|{facts}",
            resolution=(10_000 / mpp, 10_000 / mpp),
            resolutionunit="CENTIMETER",
            **tiled,
        )
        small = _fit(levels[-1].preview(), 768)
        tiff.write(
            small,
            photometric="rgb",
            rowsperstrip=16,
            compression="lzw",
            description=f"{title}\r\n{base.width}x{base.height} -> {small.shape[1]}x{small.shape[0]} - |{facts}",
            **shared,
        )
        for level in levels[1:]:
            tiff.write(
                iter(level.tiles),
                shape=(level.height, level.width, 3),
                subfiletype=0,
                description=f"{title}\r\n{area} -> {level.width}x{level.height} JPEG/RGB Q={quality}|{facts}",
                **tiled,
            )
        tiff.write(
            _label(),
            photometric="rgb",
            rowsperstrip=16,
            compression="lzw",
            subfiletype=1,
            description=f"{title}\r\nlabel 400x400",
            **shared,
        )


def _stream(field: TissueField, levels: list[_Level]) -> Iterator[bytes]:
    """Yield level 0's encoded tiles row by row; the levels below are filled on the way.

    The writer takes as many tiles as it needs and never asks again, so nothing is left to do after the last one.
    """
    base = levels[0]
    for top in range(0, base.height, TILE):
        rows = field.render(0, top, base.width, min(TILE, base.height - top))
        tiles = base.encode(rows)
        for level in levels[1:]:
            rows = level.add(rows)
        if top + TILE >= base.height:
            for level in levels[1:]:
                level.finish()
        yield from tiles


class _Level:
    """One level: encodes rows of tiles; a level below the first gathers reduced rows until they fill a row of tiles."""

    def __init__(self, width: int, height: int, quality: int) -> None:
        self.width, self.height, self._quality = width, height, quality
        self.tiles: list[bytes] = []
        self._waiting: RGB = np.empty((0, width, 3), np.uint8)
        self._above: RGB | None = None
        self._taken = 0
        self._preview: list[RGB] = []

    def add(self, rows: RGB) -> RGB:
        """Take rows of the level above; return the rows that are new here, for the level below."""
        if self._above is not None:
            rows = np.concatenate([self._above, rows])
        usable = len(rows) // _STEP * _STEP
        self._above = rows[usable:] if usable < len(rows) else None
        new = reduce_rows(rows[:usable, : self.width * _STEP])[: self.height - self._taken]
        self._taken += len(new)
        self._preview.append(new)
        if self.width > 4 * _SMALLEST or self.height > 4 * _SMALLEST:
            self._preview.clear()
        self._waiting = np.concatenate([self._waiting, new])
        while len(self._waiting) >= TILE:
            self.tiles += self.encode(self._waiting[:TILE])
            self._waiting = self._waiting[TILE:]
        return new

    def finish(self) -> None:
        """Encode the last, incomplete row of tiles."""
        if len(self._waiting):
            self.tiles += self.encode(self._waiting)
            self._waiting = self._waiting[:0]

    def preview(self) -> RGB:
        """The whole level, kept only for the smallest one."""
        return np.concatenate(self._preview)

    def encode(self, rows: RGB) -> list[bytes]:
        """Return the JPEG tiles of up to TILE rows, left to right; edges are repeated into the padding."""
        across = -(-self.width // TILE)
        padding = ((0, TILE - len(rows)), (0, across * TILE - self.width), (0, 0))
        full = np.pad(rows, padding, mode="edge") if any(b for _, b in padding) else rows
        return [
            simplejpeg.encode_jpeg(
                np.ascontiguousarray(full[:, x * TILE : (x + 1) * TILE]),
                quality=self._quality,
                colorspace="RGB",
                colorsubsampling="420",
                fastdct=False,
            )
            for x in range(across)
        ]


def reduce_rows(rows: RGB) -> RGB:
    """Return `rows` reduced four times by the mean of each block; both sides are multiples of four."""
    if not rows.size:
        return rows[::_STEP, ::_STEP]
    return np.asarray(Image.fromarray(rows).reduce(_STEP))


class TissueField:
    """A slide that is a function: real stained tissue inside irregular outlines, near-white glass around."""

    def __init__(self, width: int, height: int, seed: int = 1) -> None:
        self.width, self.height = width, height
        rng = np.random.default_rng(seed)
        self._tissue = _mirrored(_source())
        self._period = self._tissue.shape[0]
        self._phase = rng.integers(0, self._period, 2).astype(np.int32)
        self._waves = rng.uniform(0, 2 * np.pi, 4)
        self._glass = (243 + rng.integers(-1, 2, (256, 256, 1))).astype(np.uint8)
        self._outline = _outline(-(-width // _CELL) + 2, -(-height // _CELL) + 2, rng)

    def render(self, x: int, y: int, width: int, height: int) -> RGB:
        """Return level-0 pixels [y, y + height) x [x, x + width), which must lie on the slide."""
        columns, rows = np.arange(x, x + width, dtype=np.int32), np.arange(y, y + height, dtype=np.int32)
        # Slow waves bend the mirrored pattern, so that no two regions look alike, while every pixel stays a real one.
        period, (a, b, c, d) = self._period, self._waves
        shift_x = (180 * np.sin(rows / 701 + a) + 90 * np.sin(rows / 233 + b)).astype(np.int32)
        shift_y = (180 * np.sin(columns / 613 + c) + 90 * np.sin(columns / 271 + d)).astype(np.int32)
        source_x = (columns[None, :] + shift_x[:, None] + self._phase[0]) % period
        source_y = (rows[:, None] + shift_y[None, :] + self._phase[1]) % period
        inside = self._inside(columns, rows)
        glass = self._glass[np.ix_(rows % 256, columns % 256)]
        if not inside.any():
            return np.broadcast_to(glass, (height, width, 3)).copy()
        flat = self._tissue.reshape(-1, 3)
        pixels = flat[source_y * period + source_x]
        return np.where(inside[..., None], pixels, glass)

    def _inside(self, columns: NDArray[np.int32], rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Bilinear interpolation of the coarse outline: smooth edges at any size of slide."""
        row, row_part = np.divmod(rows, _CELL)
        column, column_part = np.divmod(columns, _CELL)
        down = (row_part / _CELL).astype(np.float32)[:, None]
        band = self._outline[row] * (1 - down) + self._outline[row + 1] * down
        right = (column_part / _CELL).astype(np.float32)[None, :]
        return np.asarray(band[:, column] * (1 - right) + band[:, column + 1] * right > 0)


def _source() -> RGB:
    try:
        from skimage.data import immunohistochemistry
    except ImportError:
        raise SlideError(
            "unsupported", "the demo slide is made from scikit-image's tissue; install it: pip install scikit-image"
        ) from None
    image: Any = immunohistochemistry()  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(image[..., :3], np.uint8)


def _mirrored(image: RGB) -> RGB:
    """Mirror to both sides: the result repeats without a seam."""
    wide = np.concatenate([image, image[:, ::-1]], axis=1)
    return np.ascontiguousarray(np.concatenate([wide, wide[::-1]], axis=0))


def _outline(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Positive inside tissue: two pieces with ragged edges and holes, and a margin of glass around."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / (width - 2), y / (height - 2)
    noise = sum(
        weight * _noise(width, height, cells, rng) for cells, weight in ((4, 0.30), (9, 0.16), (21, 0.10), (45, 0.05))
    )
    pieces = np.maximum(
        1 - ((x - 0.34) / 0.27) ** 2 - ((y - 0.47) / 0.36) ** 2,
        1 - ((x - 0.76) / 0.16) ** 2 - ((y - 0.57) / 0.29) ** 2,
    )
    field = np.minimum(pieces + noise, 2 * (0.6 - _noise(width, height, 16, rng)))
    margin = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) < 0.03
    return np.where(margin, -0.3, field).astype(np.float32)


def _noise(width: int, height: int, cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise in -1 to 1 with about `cells` bumps along each side."""
    coarse = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _fit(image: RGB, side: int) -> RGB:
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(picture)


def _label() -> RGB:
    from PIL import ImageDraw, ImageFont

    picture = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((30, 120), "MHS DEMO", fill="black", font=ImageFont.load_default(56))
    draw.text((30, 210), "scikit-image IHC, CC0", fill="black", font=ImageFont.load_default(28))
    return np.asarray(picture)
