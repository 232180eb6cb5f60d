"""Units in types: a point is in level-0 pixels, a size in pixels of some level, an mpp in microns per pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mhs_ray.domain.errors import SlideError


@dataclass(frozen=True, slots=True)
class Level0Point:
    """A point in level-0 pixels, x to the right and y down from the slide's top-left corner; may lie outside."""

    x: int
    y: int


@dataclass(frozen=True, slots=True)
class PixelSize:
    """Width and height in pixels of the level they are used with; both at least 1."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise SlideError("bad-request", f"a size must be at least 1 x 1 pixels, not {self.width} x {self.height}")

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Mpp:
    """Microns per pixel at level 0 along x and y; both finite and positive."""

    x: float
    y: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) and v > 0 for v in (self.x, self.y)):
            raise SlideError("bad-request", f"microns per pixel must be positive, not {self.x} x {self.y}")

    @property
    def mean(self) -> float:
        """Mean of both, for where one number is asked for."""
        return (self.x + self.y) / 2
