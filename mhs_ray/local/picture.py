"""Results drawn over their slide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from PIL import Image

from mhs_ray.results.features import report_features
from mhs_ray.results.overlay import draw_overlay
from mhs_ray.slides.geometry import PixelSize
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.thumbnail import thumbnail
from mhs_ray.store.sql.results import StoredResult

SIZE: Final = PixelSize(1600, 1200)


def all_features(geojson: Mapping[str, Any] | None, report: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return what a result places on the slide: its annotations, and those of its report."""
    return [*((geojson or {}).get("features") or ()), *(report_features(report) if report else ())]


def picture_of(slide: Path, result: StoredResult, geojson: Mapping[str, Any] | None) -> Image.Image:
    """Return the slide, small, with a result over it. slide: a file, or a folder with a DICOM series."""
    with open_slide(slide) as reader:
        small = thumbnail(reader, SIZE)
        downsample = reader.facts().width / small.shape[1]
    return draw_overlay(small, downsample, all_features(geojson, (result.workflow or {}).get("report")))
