"""Planned tiles, cut from bands, are held to OpenSlide's own regions and their exact means."""

from __future__ import annotations

import functools
import math
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.bands import BatchLimits, read_batches
from mhs_ray.slides.boxes import reduce_into
from mhs_ray.slides.demo import DemoSlide, make_demo_slide
from mhs_ray.slides.geometry import Level0Point
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.plan import Box, TilePlan, TileRequest, plan_tiles
from mhs_ray.slides.reader import LevelNotFoundError, SlideReader
from mhs_ray.slides.tiles import FastTiles, open_tiles
from tests.unit.slides.test_tiles import VARIANTS, Variant, write


def mean(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    sums = pixels.reshape(height, factor, width, factor, 3).astype(int).sum(axis=(1, 3))
    exact = np.asarray((sums + factor * factor // 2) // (factor * factor), np.uint8)
    if factor in (2, 4, 8):  # for other factors Pillow's own division is a hair off
        assert np.array_equal(exact, np.asarray(Image.fromarray(pixels).reduce(factor)))
    return exact


def expected(reader: SlideReader, plan: TilePlan, index: int) -> NDArray[np.uint8]:
    """What OpenSlide and Pillow make of a planned tile."""
    downsample = reader.facts().levels[plan.level].downsample
    x, y = round(int(plan.column[index]) * downsample), round(int(plan.row[index]) * downsample)
    pixels = reader.read_region(Level0Point(x, y), plan.source_size, level=plan.level)
    if plan.factor == 1:
        return pixels
    if plan.factor == round(plan.factor):
        return mean(pixels, round(plan.factor))
    box = (0, 0, plan.size.width * plan.factor, plan.size.height * plan.factor)
    return np.asarray(
        Image.fromarray(pixels).resize((plan.size.width, plan.size.height), Image.Resampling.BOX, box=box)
    )


def read_all(tiles: FastTiles, plan: TilePlan, limits: BatchLimits) -> NDArray[np.uint8]:
    out = np.full((len(plan), plan.size.height, plan.size.width, 3), 99, np.uint8)
    for batch in read_batches(tiles, plan, limits):
        out[batch.indices] = batch.pixels
        batch.release()
    return out


def assert_same(reader: SlideReader, tiles: FastTiles, request: TileRequest, limits: BatchLimits) -> TilePlan:
    plan = plan_tiles("a slide", reader.facts(), request)
    out = read_all(tiles, plan, limits)
    for index in range(len(plan)):
        assert np.array_equal(out[index], expected(reader, plan, index)), (request, index)
    return plan


@functools.cache
def made(variant: Variant) -> Path:
    """A variant, written once."""
    path = Path(tempfile.mkdtemp(prefix="mhs-variants-")) / "slide"
    write(path, variant)
    return path


@settings(max_examples=60, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    stride=st.tuples(st.integers(60, 300), st.integers(60, 300)),
    corner=st.tuples(st.integers(-150, 400), st.integers(-150, 200)),
    edge=st.sampled_from(["pad", "drop"]),
    batch=st.integers(1, 9),
    threads=st.integers(1, 3),
    ordered=st.booleans(),
)
def test_tiles_of_any_size_stride_and_place_are_openslides_own(
    variant: Variant,
    size: tuple[int, int],
    stride: tuple[int, int],
    corner: tuple[int, int],
    edge: Any,
    batch: int,
    threads: int,
    ordered: bool,
) -> None:
    path = made(variant)
    with open_slide(path) as reader, open_tiles(path, reader) as tiles:
        request = TileRequest(size, stride=stride, region=Box(*corner, 400, 330), edge=edge)
        assert_same(reader, tiles, request, BatchLimits(batch, threads, ordered=ordered))


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SlideReader, FastTiles]]:
    slide = make_demo_slide(tmp_path_factory.mktemp("fine") / "slide", 2048, 1536, mpp=0.25, seed=3)
    with open_slide(slide.path) as reader, open_tiles(slide.path, reader) as tiles:
        yield reader, tiles


@pytest.mark.parametrize("mpp", [0.25, 0.252, 0.37, 0.5, 0.75, 1.0, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("size", [256, 224, 101])
def test_scaled_tiles_are_the_mean_of_openslides_pixels(
    fine: tuple[SlideReader, FastTiles], mpp: float, size: int
) -> None:
    plan = assert_same(*fine, TileRequest(size, stride=size - 7, mpp=mpp), BatchLimits(5, 2))
    assert plan.level == (1 if mpp >= 1 else 0)
    assert plan.mpp == pytest.approx(mpp, rel=0.02)


def test_a_request_of_a_level_and_a_region_reads_just_there(fine: tuple[SlideReader, FastTiles]) -> None:
    plan = assert_same(*fine, TileRequest(64, level=1, region=Box(400, 800, 500, 300)), BatchLimits())
    assert (plan.x.tolist(), plan.y.tolist()) == ([400, 656, 400, 656], [800, 800, 1056, 1056])
    assert plan.mpp == pytest.approx(1.0)


def test_a_real_scanners_tiles_are_openslides_own(svs: Path) -> None:
    with open_slide(svs) as reader, open_tiles(svs, reader) as tiles:
        assert tiles.is_fast(0)
        assert_same(reader, tiles, TileRequest(224, stride=150), BatchLimits(16, 2))
        assert_same(reader, tiles, TileRequest(256, mpp=1.0), BatchLimits(16, 2))


def test_the_slow_path_answers_the_same_requests(dicom: Path) -> None:
    with open_slide(dicom) as reader, open_tiles(dicom, reader) as tiles:
        assert not tiles.is_fast(0)
        assert_same(reader, tiles, TileRequest(16, stride=11), BatchLimits(3, 2))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_decoding_at_a_smaller_scale_stays_within_its_bound(fine: tuple[SlideReader, FastTiles], factor: int) -> None:
    reader, tiles = fine
    facts = reader.facts()
    only_base = type(facts)(**{**{f: getattr(facts, f) for f in facts.__slots__}, "levels": facts.levels[:1]})
    request = TileRequest(64, mpp=0.25 * factor)
    exact = read_all(tiles, plan_tiles("s", only_base, request), BatchLimits())
    dct = plan_tiles("s", only_base, TileRequest(64, mpp=0.25 * factor, scaling="dct"))
    assert dct.factor == factor
    close = read_all(tiles, dct, BatchLimits())
    error = np.mean((exact.astype(float) - close) ** 2)
    assert error > 0
    assert 10 * math.log10(255**2 / error) > 38


@settings(max_examples=40, deadline=None)
@given(factor=st.integers(1, 40), width=st.integers(1, 6), height=st.integers(1, 6), seed=st.integers(0, 1000))
def test_a_mean_of_blocks_is_rounded_half_up(factor: int, width: int, height: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height * factor, width * factor, 3), dtype=np.uint8)
    if seed % 3 == 0:
        pixels[:] = 255
    out = np.empty((height, width, 3), np.uint8)
    reduce_into(pixels, factor, out)
    assert np.array_equal(out, mean(pixels, factor))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (TileRequest(0), "1 to 8192"),
        (TileRequest(10**6), "1 to 8192"),
        (TileRequest(256, stride=-1), "stride"),
        (TileRequest(256, mpp=0.0), "positive"),
        (TileRequest(256, mpp=float("nan")), "positive"),
        (TileRequest(256, mpp=0.1), "invented"),
        (TileRequest(256, mpp=0.5, level=0), "not by both"),
        (TileRequest(256, mpp=1e6), "more pixels"),
        (TileRequest(8192, mpp=3.0), "more pixels"),
        (TileRequest(256, region=Box(0, 0, 0, 5)), "holds no tile"),
        (TileRequest(1, stride=1, region=Box(0, 0, 10**6, 10**6)), "longer stride"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(
    fine: tuple[SlideReader, FastTiles], request_: TileRequest, words: str
) -> None:
    with pytest.raises(SlideError, match=words) as error:
        plan_tiles("a slide", fine[0].facts(), request_)
    assert error.value.reason == "bad-request"


def test_a_level_that_is_not_there_is_named(fine: tuple[SlideReader, FastTiles]) -> None:
    with pytest.raises(LevelNotFoundError, match="no level 9"):
        plan_tiles("a slide", fine[0].facts(), TileRequest(256, level=9))


def test_a_slide_that_does_not_know_its_pixels_size_asks_for_a_level(fine: tuple[SlideReader, FastTiles]) -> None:
    facts = fine[0].facts()
    blind = type(facts)(**{**{f: getattr(facts, f) for f in facts.__slots__}, "mpp": None})
    with pytest.raises(SlideError, match="ask for a level") as error:
        plan_tiles("a slide", blind, TileRequest(256, mpp=0.5))
    assert error.value.reason == "no-mpp"


def test_a_plan_is_a_table_of_coordinates_and_a_batch_carries_its_rows(fine: tuple[SlideReader, FastTiles]) -> None:
    reader, tiles = fine
    plan = plan_tiles("a slide", reader.facts(), TileRequest(256, mpp=0.5), lambda origin, size: origin.x > 600)
    table = plan.table()
    assert table.schema.names == ["slide", "level", "x", "y", "mpp"]
    assert set(table["x"].to_pylist()) == {1024, 1536}
    batch = next(iter(read_batches(tiles, plan, BatchLimits(4)))).record_batch()
    assert batch.schema.names == ["slide", "level", "x", "y", "mpp", "tile"]
    assert batch.column("tile").to_numpy_ndarray().shape == (4, 256, 256, 3)
    assert batch.column("y").to_pylist() == [0, 0, 512, 512]


@pytest.mark.parametrize("memory", [900_000, 1_500_000, 8 << 20])
def test_little_memory_makes_it_slower_and_not_wrong(fine: tuple[SlideReader, FastTiles], memory: int) -> None:
    assert_same(*fine, TileRequest(224, stride=100, region=Box(100, 100, 800, 600)), BatchLimits(8, 3, memory))


def test_too_little_memory_for_one_tile_is_said(fine: tuple[SlideReader, FastTiles]) -> None:
    with pytest.raises(SlideError, match="MiB are allowed"):
        assert_same(*fine, TileRequest(2048), BatchLimits(memory_bytes=1 << 20))


def test_memory_stays_bounded_while_a_slow_consumer_looks_on(tmp_path: Path) -> None:
    peaks = []
    for height in (1024, 4096):
        slide = make_demo_slide(tmp_path / f"{height}", 1024, height, seed=2)
        with open_slide(slide.path) as reader, open_tiles(slide.path, reader) as tiles:
            plan = plan_tiles("s", reader.facts(), TileRequest(224, stride=200))
            tracemalloc.start()
            for batch in read_batches(tiles, plan, BatchLimits(4, 2, 6 << 20)):
                batch.release()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert max(peaks) < 8 << 20
    assert peaks[1] < 1.2 * peaks[0] + (1 << 20)


def test_a_damaged_tile_is_an_error_of_its_batch_and_reading_ends(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    write(path, Variant(width=500, height=500))
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        start = page.dataoffsets[9]
    data = bytearray(path.read_bytes())
    data[start : start + 4] = b"junk"
    path.write_bytes(bytes(data))
    with open_slide(path) as reader, open_tiles(path, reader) as tiles:
        plan = plan_tiles("s", reader.facts(), TileRequest(100))
        batches = read_batches(tiles, plan, BatchLimits(2, 2))
        assert len(next(batches)) == 2
        with pytest.raises(SlideError, match="damaged"):
            list(batches)


def test_leaving_early_ends_the_work(demo: DemoSlide) -> None:
    import threading

    with open_slide(demo.path) as reader, open_tiles(demo.path, reader) as tiles:
        batches = read_batches(tiles, plan_tiles("s", reader.facts(), TileRequest(100)), BatchLimits(4, 2))
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert not [t for t in threading.enumerate() if t.name.startswith("tiles")]


def test_nothing_planned_is_nothing_read(fine: tuple[SlideReader, FastTiles]) -> None:
    plan = plan_tiles("s", fine[0].facts(), TileRequest(256), lambda origin, size: False)
    assert len(plan) == 0
    assert list(read_batches(fine[1], plan)) == []
