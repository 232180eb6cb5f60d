"""Results drawn over their slide."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from mhs_ray.compare.objects import Marked
from mhs_ray.results.features import report_features
from mhs_ray.results.overlay import draw_overlay
from mhs_ray.slides.fetch import fetch
from mhs_ray.slides.geometry import PixelSize
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.reader import RGB
from mhs_ray.slides.thumbnail import thumbnail
from mhs_ray.slides.url_guard import UrlPolicy
from mhs_ray.store.sql.results import StoredResult

SIZE: Final = PixelSize(1600, 1200)


def all_features(geojson: Mapping[str, Any] | None, report: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return what a result places on the slide: its annotations, and those of its report."""
    return [*((geojson or {}).get("features") or ()), *(report_features(report) if report else ())]


def picture_of(slide: Path, result: StoredResult, geojson: Mapping[str, Any] | None) -> Image.Image:
    """Return the slide, small, with a result over it. slide: a file, or a folder with a DICOM series."""
    small, downsample = _small(slide)
    return draw_overlay(small, downsample, all_features(geojson, (result.workflow or {}).get("report")))


def small_slide(slide: str) -> tuple[RGB, float]:
    """Return a slide, small, and level-0 pixels per pixel of it. slide: a path, or a URL that is fetched for it.

    Raises SlideError.
    """
    if urlsplit(slide).scheme not in ("http", "https"):
        return _small(Path(slide))
    with tempfile.TemporaryDirectory(prefix="mhs-slide-") as folder:
        copy = Path(folder, "slide")
        fetch(slide, copy, policy=UrlPolicy(allow_private=True))  # named by the user, or signed by the platform
        return _small(copy)


def blank(marks: Sequence[Marked]) -> tuple[RGB, float]:
    """Return an empty ground that is large enough for `marks`, for where there is no slide."""
    bounds = [mark.shape.bounds for mark in marks]
    right, below = max([1.0, *(b[2] for b in bounds)]), max([1.0, *(b[3] for b in bounds)])
    downsample = max(right / SIZE.width, below / SIZE.height)
    shape = (max(1, math.ceil(below / downsample)), max(1, math.ceil(right / downsample)), 3)
    return np.full(shape, 255, np.uint8), downsample


def _small(slide: Path) -> tuple[RGB, float]:
    with open_slide(slide) as reader:
        small = thumbnail(reader, SIZE)
        return small, reader.facts().width / small.shape[1]
