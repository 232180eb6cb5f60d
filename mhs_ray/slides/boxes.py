"""The mean of blocks of pixels, exact and rounded half up: for powers of two what Pillow's ``reduce`` gives."""

from __future__ import annotations

import numpy as np

from mhs_ray.slides.reader import RGB


def reduce_into(pixels: RGB, factor: int, out: RGB) -> None:
    """Write the mean of every factor x factor block of `pixels` to `out`; both sides are multiples of `factor`.

    Sums are kept in as few bits as hold them (16 up to a factor of 16), and each channel by itself: numpy is fast
    over long rows of equal steps and slow over rows of three.
    """
    if factor == 1:
        out[:] = pixels
        return
    height, width = out.shape[:2]
    wide = np.uint16 if factor <= 16 else np.uint32
    rows = pixels.reshape(height, factor, width * factor * 3)
    sums = np.add(rows[:, 0], rows[:, 1], dtype=wide) if factor == 2 else rows.sum(axis=1, dtype=wide)
    blocks = sums.reshape(height, width, factor * 3)
    area, shift = factor * factor, (factor * factor).bit_length() - 1
    total = np.empty((height, width), wide)
    for channel in range(3):
        np.add(blocks[..., channel], blocks[..., channel + 3], out=total)
        for step in range(2, factor):
            total += blocks[..., channel + 3 * step]
        total += area // 2
        if area == 1 << shift:
            total >>= shift
        else:
            total //= area
        out[..., channel] = total
