"""Means of blocks: exact, rounded half up, whatever the factor, the shape and the memory they go to."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mhs_ray.slides.boxes import reduce_into


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 8, 16, 32])
@pytest.mark.parametrize("shape", [(8, 16), (3, 5), (1, 7), (7, 1), (1, 1)])
def test_every_block_has_its_exact_mean_and_nothing_beside_is_touched(factor: int, shape: tuple[int, int]) -> None:
    height, width = shape
    rng = np.random.default_rng(factor)
    for top in (1, 256):  # low values too, where rounding shows
        pixels = rng.integers(0, top, (height * factor, width * factor, 3)).astype(np.uint8)
        pixels[:factor] = 255
        sums = pixels.astype(np.int64).reshape(height, factor, width, factor, 3).sum((1, 3))
        expected = (sums + factor * factor // 2) // (factor * factor)
        around = np.full((height + 2, width + 3, 3), 7, np.uint8)
        reduce_into(pixels, factor, around[1 : 1 + height, 2 : 2 + width])
        assert (around[1 : 1 + height, 2 : 2 + width] == expected).all()
        around[1 : 1 + height, 2 : 2 + width] = 7
        assert (around == 7).all()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_for_powers_of_two_it_is_what_pillow_gives(factor: int) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    out = np.empty((256 // factor, 256 // factor, 3), np.uint8)
    reduce_into(pixels[:, :], factor, out)
    assert (out == np.asarray(Image.fromarray(pixels).reduce(factor))).all()
