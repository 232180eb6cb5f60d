from __future__ import annotations

import numpy as np
import pytest

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.demo import DemoSlide, TissueField
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.tissue import TissueMap, TissueParams, dilate, erode, otsu, tissue_mask


def test_noisy_glass_alone_has_no_tissue() -> None:
    rng = np.random.default_rng(0)
    glass = (242 + rng.integers(-2, 3, (120, 160, 3))).astype(np.uint8)
    assert not tissue_mask(glass).any()


def test_a_stained_square_is_found_and_a_pen_mark_is_not() -> None:
    picture = np.full((100, 100, 3), 243, np.uint8)
    picture[30:70, 30:70] = (200, 120, 180)
    picture[5:15, 5:15] = (8, 8, 12)
    mask = tissue_mask(picture)
    assert mask[35:65, 35:65].all()
    assert not mask[:20].any()
    assert abs(mask.sum() - 1600) < 400


def test_pale_tissue_beside_a_strong_stain_is_kept() -> None:
    picture = np.full((100, 100, 3), 243, np.uint8)
    picture[20:80, 10:50] = (120, 70, 40)
    picture[20:80, 50:90] = (205, 212, 230)
    assert tissue_mask(picture)[25:75, 55:85].all()


def test_otsu_parts_two_groups_between_them() -> None:
    values = np.concatenate([np.full(500, 0.1), np.full(100, 0.6)]).astype(np.float32)
    assert 0.1 < otsu(values) <= 0.6


def test_closing_fills_a_gap_and_opening_removes_a_speck() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    mask[9, 9] = False
    mask[0, 0] = True
    closed = erode(dilate(mask, 1), 1)
    assert closed[9, 9]
    assert not dilate(erode(mask, 1), 1)[0, 0]
    assert np.array_equal(erode(mask, 0), mask)


def test_the_map_agrees_with_the_outline_the_demo_slide_was_made_of(demo: DemoSlide) -> None:
    field = TissueField(demo.width, demo.height, 7)
    with open_slide(demo.path) as reader:
        tissue = TissueMap(reader)
    wrong = 0
    for y in range(0, demo.height - 256, 256):
        for x in range(0, demo.width - 256, 256):
            pixels = field.render(x, y, 256, 256)
            stained = float((np.ptp(pixels.astype(int), axis=2) > 25).mean())
            if stained == 0 or stained > 0.3:
                wrong += tissue.has_tissue(Level0Point(x, y), PixelSize(256, 256)) != (stained > 0.3)
    assert wrong == 0
    assert 0.1 < tissue.share < 0.7


def test_a_box_outside_the_slide_has_no_tissue_and_a_method_of_ones_own_is_used(demo: DemoSlide) -> None:
    with open_slide(demo.path) as reader:
        everything = TissueMap(reader, method=lambda rgb: np.ones(rgb.shape[:2], bool))
        assert everything.share_of(Level0Point(10, 10), PixelSize(1, 1)) == 1.0
        assert everything.share_of(Level0Point(-600, 0), PixelSize(256, 256)) == 0.0
        with pytest.raises(SlideError, match="gave a mask of"):
            TissueMap(reader, method=lambda rgb: np.ones((3, 3), bool))


def test_many_boxes_at_once_have_the_tissue_that_each_covers_of_the_mask(demo: DemoSlide) -> None:
    with open_slide(demo.path) as reader:
        tissue = TissueMap(reader)
    height, width = tissue.mask.shape
    across, down = demo.width / width, demo.height / height
    rng = np.random.default_rng(3)
    x, y = rng.integers(-400, demo.width + 100, 300), rng.integers(-400, demo.height + 100, 300)
    for size in (PixelSize(1, 1), PixelSize(256, 200), PixelSize(5000, 3)):
        shares = tissue.shares_of(x, y, size)
        for left, top, share in zip(x.tolist(), y.tolist(), shares.tolist(), strict=True):
            columns = [c for c in range(width) if (c + 1) * across > left and c * across < left + size.width]
            rows = [r for r in range(height) if (r + 1) * down > top and r * down < top + size.height]
            expected = tissue.mask[np.ix_(rows, columns)].mean() if rows and columns else 0.0
            assert share == pytest.approx(expected), (left, top, size)
            assert tissue.share_of(Level0Point(left, top), size) == share
        assert (tissue.have_tissue(x, y, size) == (shares >= TissueParams().min_share)).all()


def test_a_mask_of_grey_pixels_is_refused() -> None:
    with pytest.raises(SlideError, match="RGB"):
        tissue_mask(np.zeros((4, 4), np.uint8), TissueParams())
