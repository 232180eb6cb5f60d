"""What OpenSlide would say of a slide, from its TIFF directories alone: for slides whose file is not here.

By the rules of OpenSlide 4's ``aperio`` and ``generic-tiff``; the tests hold it to OpenSlide. Of any other vendor, and
wherever the rules leave doubt, nothing is said, and the caller brings the whole file here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from mhs_ray.slides.geometry import Mpp, PixelSize
from mhs_ray.slides.openslide_reader import mpp_of
from mhs_ray.slides.reader import LevelFacts, SlideFacts
from mhs_ray.slides.tiff import TiffLayout, TiffPage

_REDUCED: Final = 1
_MICRONS: Final = {2: 25_400.0, 3: 10_000.0}  # per inch, per centimetre


def facts_of(layout: TiffLayout) -> SlideFacts | None:
    """Return the facts, without associated images; None when OpenSlide has to be asked."""
    if layout.ndpi or not layout.pages or not layout.pages[0].tiled:
        return None
    first = layout.pages[0]
    if first.description.startswith("Aperio"):
        return _aperio(layout, first)
    # Other vendors are known by what their descriptions hold; tifffile writes JSON there, or nothing.
    if all(not p.description or p.description.startswith("{") for p in layout.pages):
        return _generic(layout, first)
    return None


def _aperio(layout: TiffLayout, first: TiffPage) -> SlideFacts | None:
    pairs = [part.partition("=") for part in first.description.split("|")[1:]]
    properties = {name.strip(): value.strip() for name, equals, value in pairs if equals}
    notes: list[str] = []
    mpp = properties.get("MPP")
    power = properties.get("AppMag")
    pages = [p for p in layout.pages if p.tiled and p.in_chain]
    return _facts("aperio", pages, first, mpp_of(mpp, mpp, notes) if mpp else None, power, notes)


def _generic(layout: TiffLayout, first: TiffPage) -> SlideFacts | None:
    pages = [p for p in layout.pages if p.in_chain and p.tiled and (p is first or p.subfile & _REDUCED)]
    pages.sort(key=lambda p: -p.width * p.height)
    notes: list[str] = []
    mpp = None
    if first.resolution and first.resolution_unit in _MICRONS and pages[0] is first:
        scale = _MICRONS[first.resolution_unit]
        mpp = mpp_of(scale / first.resolution[0], scale / first.resolution[1], notes)
    return _facts("generic-tiff", pages, first, mpp, None, notes)


def _facts(
    vendor: str, pages: list[TiffPage], first: TiffPage, mpp: Mpp | None, power: str | None, notes: list[str]
) -> SlideFacts | None:
    if any((a.width, a.height) <= (b.width, b.height) for a, b in pairwise(pages)):
        return None
    try:
        objective = float(power) if power else None
    except ValueError:
        objective = None
    width, height = first.width, first.height
    return SlideFacts(
        format="tiff",
        vendor=vendor,
        width=width,
        height=height,
        levels=tuple(
            LevelFacts(p.width, p.height, (width / p.width + height / p.height) / 2 if p is not first else 1.0)
            for p in pages
        ),
        mpp=mpp,
        objective_power=objective,
        tile_size=PixelSize(first.tile_width, first.tile_height),
        has_icc=first.icc is not None,
        notes=tuple(notes),
    )
