"""Parts of a plan: every tile once, in blocks that share no stored tile where that can be."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Mpp, PixelSize
from mhs_ray.slides.plan import Box, TilePlan, TileRequest, plan_tiles
from mhs_ray.slides.reader import LevelFacts, SlideFacts
from mhs_ray.slides.units import in_blocks, share_out, shares_stored, split

FACTS = SlideFacts(
    "tiff", "aperio", 20_000, 16_000, (LevelFacts(20_000, 16_000, 1.0),), Mpp(0.25, 0.25), tile_size=PixelSize(256, 256)
)


def plan_of(size: int, stride: int | None = None, corner: tuple[int, int] = (0, 0), **more: Any) -> TilePlan:
    return plan_tiles("s", FACTS, TileRequest(size, stride=stride, region=Box(*corner, 15_000, 12_000), **more))


def stored_of(plan: TilePlan, indices: NDArray[np.int64]) -> set[tuple[int, int]]:
    """The stored tiles that some planned tiles touch."""
    source, found = plan.source_size, set()
    for x, y in zip(plan.column[indices].tolist(), plan.row[indices].tolist(), strict=True):
        across = range(x // 256, (x + source.width - 1) // 256 + 1)
        found |= set(itertools.product(across, range(y // 256, (y + source.height - 1) // 256 + 1)))
    return found


def decoded(plan: TilePlan, parts: list[NDArray[np.int64]]) -> float:
    """How often a stored tile is decoded when each part is read by itself."""
    return sum(len(stored_of(plan, p)) for p in parts) / len(stored_of(plan, np.arange(len(plan))))


@given(
    size=st.integers(100, 600),
    stride=st.integers(100, 600),
    corner=st.tuples(st.integers(-300, 3000), st.integers(-300, 3000)),
    mpp=st.sampled_from([None, 0.5, 0.37]),
    kept=st.floats(0, 1),
    most=st.integers(1, 600),
    readers=st.integers(1, 5),
    ordered=st.booleans(),
)
def test_each_tile_is_in_one_part(
    size: int, stride: int, corner: tuple[int, int], mpp: float | None, kept: float, most: int, readers: int,
    ordered: bool,
) -> None:  # fmt: skip
    plan = plan_of(size, stride, corner, mpp=mpp)
    plan = plan.take(np.flatnonzero(np.random.default_rng(0).random(len(plan)) < kept))
    least = max(1, most // 4)
    for parts in (
        split(plan, most),
        share_out(plan, least, most, readers, ordered=ordered, begins=True, ends=True),
    ):
        assert all(1 <= len(p) <= most for p in parts)
        found = [i for p in parts for i in p.tolist()]
        assert sorted(found) == list(range(len(plan)))
    if ordered:
        assert found == list(range(len(plan)))


@pytest.mark.parametrize("corner", [(0, 0), (64, 0), (512, 11_264 % 4096), (100, 37)])
@pytest.mark.parametrize(("size", "stride", "most"), [(224, 224, 64), (224, 224, 512), (256, 128, 64), (384, 384, 64)])
def test_parts_that_can_begin_with_a_stored_tile_decode_none_twice(
    size: int, stride: int, most: int, corner: tuple[int, int]
) -> None:
    plan = plan_of(size, stride, corner)
    assert shares_stored(plan)
    if size <= stride and np.any(plan.column % 256 == 0) and np.any(plan.row % 256 == 0):
        assert decoded(plan, split(plan, most)) == 1.0
    rows = [np.arange(at, min(len(plan), at + most)) for at in range(0, len(plan), most)]
    assert decoded(plan, split(plan, most)) < decoded(plan, rows)


@pytest.mark.parametrize(
    ("size", "stride", "shares"),
    [(256, 256, False), (512, 512, False), (256, 512, False), (512, 256, True), (224, 224, True), (255, 256, True)],
)
def test_whether_tiles_share_stored_ones(size: int, stride: int, shares: bool) -> None:
    plan = plan_of(size, stride)
    assert shares_stored(plan) is shares
    order, ends = in_blocks(plan, 64)
    assert (order.tolist() == list(range(len(plan)))) is not shares
    assert (len(ends) == 1) is not shares


def test_the_first_and_last_parts_are_small_and_those_between_large() -> None:
    plan = plan_of(256)
    sizes = [len(p) for p in share_out(plan, 64, 256, 2, ordered=False, begins=True, ends=True)]
    assert sizes[:6] == [64, 64, 128, 128, 256, 256]
    assert sizes[-1] <= 64
    assert all(one >= other for one, other in itertools.pairwise(sizes[6:]))
    middle = [len(p) for p in share_out(plan, 64, 256, 2, ordered=False, begins=False, ends=False)]
    assert middle[:-1] == [256] * (len(plan) // 256)


def test_a_plan_with_no_tiles_has_no_parts() -> None:
    plan = plan_of(256).take(np.array([], np.int64))
    assert split(plan, 64) == []
    with pytest.raises(SlideError, match="at least 1 tile"):
        split(plan, 0)
    assert share_out(plan, 8, 64, 2, ordered=False, begins=True, ends=True) == []
