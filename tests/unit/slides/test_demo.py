from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.check import check_slide
from mhs_ray.slides.demo import DemoSlide, TissueField, make_demo_slide, reduce_rows
from mhs_ray.slides.geometry import Mpp


def test_openslide_takes_it_for_an_aperio_slide(demo: DemoSlide) -> None:
    slide = openslide.OpenSlide(str(demo.path))
    assert slide.properties["openslide.vendor"] == "aperio"
    assert slide.level_dimensions == ((2500, 1900), (625, 475)) == demo.level_sizes
    assert float(slide.properties["openslide.mpp-x"]) == 0.5
    assert slide.properties["openslide.objective-power"] == "20"
    assert set(slide.associated_images) == {"label", "thumbnail"}
    assert check_slide(demo.path).mpp == Mpp(0.5, 0.5)


def test_every_pixel_has_its_colour_within_what_jpeg_loses(demo: DemoSlide) -> None:
    field = TissueField(demo.width, demo.height, 7)
    meant = field.render(0, 0, demo.width, demo.height).astype(int)
    slide = openslide.OpenSlide(str(demo.path))
    read = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3].astype(int)
    difference = read - meant
    assert np.abs(difference).mean() < 3
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.5  # no tint: red is red and blue is blue
    for channel in range(3):
        assert np.corrcoef(read[..., channel].ravel(), meant[..., channel].ravel())[0, 1] > 0.98


def test_a_lower_level_is_the_mean_of_the_upper(demo: DemoSlide) -> None:
    field = TissueField(demo.width, demo.height, 7)
    meant = reduce_rows(field.render(0, 0, 2500, 1900)).astype(int)
    slide = openslide.OpenSlide(str(demo.path))
    read = np.asarray(slide.read_region((0, 0), 1, (625, 475)))[..., :3].astype(int)
    assert np.abs(read - meant).mean() < 4


def test_the_same_arguments_give_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    one, two, three = (
        make_demo_slide(tmp_path / name, 1100, 1024, seed=seed).path.read_bytes()
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert one == two != three


def test_there_is_glass_around_and_tissue_within(demo: DemoSlide) -> None:
    field = TissueField(demo.width, demo.height, 7)
    assert field.render(0, 0, 60, 1900).min() >= 240
    stained = np.ptp(field.render(0, 0, 2500, 1900).astype(int), axis=2) > 15
    assert 0.15 < stained.mean() < 0.7


@pytest.mark.parametrize(("width", "height"), [(1024, 1024), (1025, 1027), (1279, 2051)])
def test_odd_sizes_are_written_whole(tmp_path: Path, width: int, height: int) -> None:
    made = make_demo_slide(tmp_path / "odd", width, height)
    facts = check_slide(made.path)
    assert (facts.width, facts.height) == (width, height)
    assert tuple((v.width, v.height) for v in facts.levels) == made.level_sizes


def test_a_size_too_small_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="at least 1024"):
        make_demo_slide(tmp_path / "small", 100, 5000)
    assert not list(tmp_path.iterdir())
