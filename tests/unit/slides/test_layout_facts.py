"""Facts from directories alone are OpenSlide's facts, or none at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from mhs_ray.slides.demo import DemoSlide
from mhs_ray.slides.layout_facts import facts_of
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.tiff import read_layout

SAME = ("format", "vendor", "width", "height", "levels", "mpp", "objective_power", "tile_size", "background", "has_icc")


def assert_same(path: Path) -> None:
    found = facts_of(read_layout(path))
    assert found is not None
    with open_slide(path) as reader:
        for name in SAME:
            assert getattr(found, name) == getattr(reader.facts(), name), name


def test_of_a_real_scanner(svs: Path) -> None:
    assert_same(svs)


def test_of_the_demo(demo: DemoSlide) -> None:
    assert_same(demo.path)


@pytest.mark.parametrize("unit", ["CENTIMETER", "INCH", "NONE"])
@pytest.mark.parametrize("resolution", [(20_000.0, 40_000.0), (72.0, 72.0)])
@pytest.mark.parametrize("big", [False, True])
def test_of_a_generic_pyramid(tmp_path: Path, unit: str, resolution: tuple[float, float], big: bool) -> None:
    path = tmp_path / "generic"
    with tifffile.TiffWriter(path, bigtiff=big) as tiff:
        for level, side in enumerate((1000, 333, 250)):
            tiff.write(
                np.full((side, side + 7, 3), 90, np.uint8), tile=(128, 128), photometric="rgb", compression="deflate",
                metadata=None, resolution=resolution, resolutionunit=unit, subfiletype=1 if level else 0,
            )  # fmt: skip
    assert_same(path)


def test_of_another_vendor_nothing_is_said(tmp_path: Path) -> None:
    path = tmp_path / "leica"
    tifffile.imwrite(
        path, np.zeros((256, 256, 3), np.uint8), tile=(128, 128), photometric="rgb", metadata=None,
        description='<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"></scn>',
    )  # fmt: skip
    assert facts_of(read_layout(path)) is None
