"""What every slide reader can do and say, whichever library is behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Level0Point, Mpp, PixelSize

RGB = NDArray[np.uint8]
"""Pixels, shape (height, width, 3)."""

MAX_REGION_PIXELS: Final = 1 << 26
"""The most one read may ask for (201 MB of RGB): larger areas are read in pieces."""

WHITE: Final = (255, 255, 255)


class LevelNotFoundError(SlideError):
    """The slide has no such level; asked instead of answering with a blank tile."""

    def __init__(self, slide: str, level: int, count: int) -> None:
        Exception.__init__(self, slide, level, count)
        self.slide, self.level, self.count = slide, level, count
        self.reason = "no-such-level"
        self.message = f"{slide} has levels 0 to {count - 1}, but no level {level}"


@dataclass(frozen=True, slots=True)
class LevelFacts:
    """One level of the pyramid. downsample: level-0 pixels per pixel of this level, 1.0 at level 0."""

    width: int
    height: int
    downsample: float


@dataclass(frozen=True, slots=True)
class SlideFacts:
    """What is known of an opened slide.

    format: ``tiff`` or ``dicom``. vendor: OpenSlide's word, e.g. ``aperio``, ``generic-tiff``, ``dicom``.
    mpp, objective_power: None where the file does not say, or says something impossible (then `notes` tells).
    tile_size: of level 0, None where the file has no tiles. associated: names such as ``label``, ``macro``.
    """

    format: str
    vendor: str
    width: int
    height: int
    levels: tuple[LevelFacts, ...]
    mpp: Mpp | None = None
    objective_power: float | None = None
    tile_size: PixelSize | None = None
    background: tuple[int, int, int] = WHITE
    has_icc: bool = False
    associated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return {
            "format": self.format,
            "vendor": self.vendor,
            "width": self.width,
            "height": self.height,
            "levels": [{"width": v.width, "height": v.height, "downsample": v.downsample} for v in self.levels],
            "mpp_x": self.mpp.x if self.mpp else None,
            "mpp_y": self.mpp.y if self.mpp else None,
            "objective_power": self.objective_power,
            "tile_width": self.tile_size.width if self.tile_size else None,
            "tile_height": self.tile_size.height if self.tile_size else None,
            "background": list(self.background),
            "has_icc": self.has_icc,
            "associated": list(self.associated),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SlideFacts:
        """Read what `to_json` gave. Raises KeyError, TypeError or ValueError on anything else."""
        red, green, blue = (int(v) for v in data["background"])
        return cls(
            format=str(data["format"]),
            vendor=str(data["vendor"]),
            width=int(data["width"]),
            height=int(data["height"]),
            levels=tuple(LevelFacts(int(v["width"]), int(v["height"]), float(v["downsample"])) for v in data["levels"]),
            mpp=None if data["mpp_x"] is None else Mpp(float(data["mpp_x"]), float(data["mpp_y"])),
            objective_power=None if data["objective_power"] is None else float(data["objective_power"]),
            tile_size=None
            if data["tile_width"] is None
            else PixelSize(int(data["tile_width"]), int(data["tile_height"])),
            background=(red, green, blue),
            has_icc=bool(data["has_icc"]),
            associated=tuple(str(v) for v in data["associated"]),
            notes=tuple(str(v) for v in data["notes"]),
        )


class SlideReader(Protocol):
    """An open slide. Safe to use from several threads; not to be carried to another process (open it there)."""

    def facts(self) -> SlideFacts:
        """Return what is known of the slide; costs nothing after opening."""
        ...

    def read_region(self, origin: Level0Point, size: PixelSize, *, level: int) -> RGB:
        """Return RGB pixels, shape (size.height, size.width, 3).

        origin: top-left corner in level-0 pixels, whatever `level` is. size: in pixels of `level`, at most
        MAX_REGION_PIXELS. Pixels outside the slide and sparse tiles have the slide's background colour.
        Raises LevelNotFoundError rather than answer with a blank tile, SlideError when a tile cannot be decoded.
        """
        ...

    def associated(self, name: str) -> RGB:
        """Return the associated image `name` (see SlideFacts.associated)."""
        ...

    def icc_profile(self) -> bytes | None:
        """Return the slide's ICC profile as stored. No reader applies it."""
        ...

    def close(self) -> None:
        """Give back files and memory; a second call does nothing."""
        ...

    def __enter__(self) -> SlideReader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_request(slide: str, facts: SlideFacts, size: PixelSize, level: int) -> None:
    """Refuse a level that is not there and a region that no memory should be spent on."""
    if not 0 <= level < len(facts.levels):
        raise LevelNotFoundError(slide, level, len(facts.levels))
    if size.pixels > MAX_REGION_PIXELS:
        raise SlideError(
            "bad-request",
            f"{size.width} x {size.height} pixels of {slide} at once is more than {MAX_REGION_PIXELS} pixels; "
            "read the region in pieces",
        )
