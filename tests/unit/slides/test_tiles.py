"""The fast path is held to OpenSlide, byte for byte."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.demo import DemoSlide, TissueField
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.jpeg import TileDecoding
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.reader import LevelNotFoundError
from mhs_ray.slides.tiles import FastTiles, open_tiles

TABLES = {0xDB, 0xC4}
COLOUR = {0xE0, 0xEE}


def segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, segment) up to the scan, which comes last with all that follows."""
    at = 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        yield stream[at + 1], stream[at:end]
        at = end
    yield 0xDA, stream[at:]


def without(stream: bytes, markers: set[int]) -> bytes:
    return b"\xff\xd8" + b"".join(data for marker, data in segments(stream) if marker not in markers)


def only(stream: bytes, markers: set[int]) -> bytes:
    return b"\xff\xd8" + b"".join(data for marker, data in segments(stream) if marker in markers) + b"\xff\xd9"


@dataclass(frozen=True)
class Variant:
    """How a scanner may store its tiles. stored: what the components are, and what the Photometric tag says."""

    stored: str = "YCBCR"
    subsampling: str = "420"
    tables: bool = False
    markers: bool = True
    tile: int = 128
    width: int = 500
    height: int = 300
    bigtiff: bool = False


def write(path: Path, variant: Variant) -> NDArray[np.uint8]:
    picture = TissueField(1024, 1024, 5).render(300, 350, variant.width, variant.height)
    side = variant.tile
    tiles: list[bytes] = []
    for top in range(0, variant.height, side):
        for left in range(0, variant.width, side):
            block = picture[top : top + side, left : left + side]
            pad = ((0, side - block.shape[0]), (0, side - block.shape[1]), (0, 0))
            more: dict[str, Any] = {"optimize": False}
            if variant.stored != "RGB":
                more["subsampling"] = variant.subsampling
            padded = np.pad(block, pad, mode="edge")
            stream = bytes(
                imagecodecs.jpeg8_encode(padded, level=85, colorspace="RGB", outcolorspace=variant.stored, **more)
            )
            tiles.append(stream if variant.markers else without(stream, COLOUR))
    tables = only(tiles[0], TABLES) if variant.tables else None
    if tables:
        tiles = [without(t, TABLES) for t in tiles]
    options: dict[str, Any] = {"extratags": [(347, 7, len(tables), tables, True)]} if tables else {}
    # tifffile writes Photometric=YCbCr for RGB in JPEG whatever it is told, so the tag is mended afterwards
    tifffile.imwrite(
        path, iter(tiles), shape=picture.shape, dtype=np.uint8, tile=(side, side), photometric="ycbcr",
        compression="jpeg", subsampling=(2, 2), metadata=None, bigtiff=variant.bigtiff, **options,
    )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        page.tags["PhotometricInterpretation"].overwrite(2 if variant.stored == "RGB" else 6)
    return picture


VARIANTS = [
    Variant(),
    Variant(subsampling="444"),
    Variant(subsampling="422"),
    Variant(tables=True),
    Variant(tables=True, markers=False),
    Variant(markers=False),
    Variant(stored="RGB"),
    Variant(stored="RGB", markers=False),
    Variant(stored="RGB", markers=False, tables=True),
    Variant(tile=240, width=480, height=240),
    Variant(tile=64, width=65, height=63, bigtiff=True),
    Variant(tile=512),
]


def assert_identical(path: Path, *, fast: bool = True) -> NDArray[np.uint8]:
    """Every tile of every level equals what OpenSlide reads there; returns level 0's tiles."""
    levels: list[NDArray[np.uint8]] = []
    with open_slide(path) as reader, open_tiles(path, reader) as tiles:
        for level, facts in enumerate(reader.facts().levels):
            assert tiles.is_fast(level) is fast
            grid = tiles.grid(level)
            out = np.full((len(grid.all()), grid.size.height, grid.size.width, 3), 77, np.uint8)
            tiles.read_tiles(level, grid.all(), out)
            for (column, row), tile in zip(grid.all(), out, strict=True):
                x, y = column * grid.size.width * facts.downsample, row * grid.size.height * facts.downsample
                expected = reader.read_region(Level0Point(round(x), round(y)), grid.size, level=level)
                assert np.array_equal(tile, expected), (level, column, row)
            levels.append(out)
    return levels[0]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_tiles_of_every_kind_are_openslides_own(tmp_path: Path, variant: Variant) -> None:
    path = tmp_path / "made"
    picture = write(path, variant)
    tile = assert_identical(path)[0].astype(int)
    height, width = min(variant.tile, variant.height), min(variant.tile, variant.width)
    assert np.abs(tile[:height, :width] - picture[:height, :width]).mean() < 6  # and the colours are the slide's


def test_a_real_scanners_rgb_tiles_without_a_marker_are_openslides_own(svs: Path) -> None:
    assert_identical(svs)


def test_every_level_of_the_demo_slide_is_openslides_own(demo: DemoSlide) -> None:
    assert_identical(demo.path)


def test_sparse_tiles_are_background(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    write(path, Variant())
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        counts = list(page.databytecounts)
        counts[1] = 0
        page.tags["TileByteCounts"].overwrite(counts)
    out = assert_identical(path)
    assert (out[1] == 255).all()


@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("compression", ["lzw", "deflate", None])
def test_plain_tiles_are_openslides_own(tmp_path: Path, compression: str | None, predictor: int) -> None:
    path = tmp_path / "plain"
    picture = TissueField(1024, 1024, 5).render(300, 350, 300, 200)
    tifffile.imwrite(
        path, picture, tile=(128, 64), photometric="rgb", compression=compression, metadata=None,
        predictor=predictor if compression else None,
    )  # fmt: skip
    assert_identical(path)


@pytest.mark.parametrize(("code", "fast"), [(33005, True), (33003, False)])
def test_aperios_jpeg_2000_is_openslides_own(tmp_path: Path, code: int, fast: bool) -> None:
    path = tmp_path / "j2k"
    picture = TissueField(1024, 1024, 5).render(300, 350, 256, 256)
    streams = [
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(picture[y : y + 128, x : x + 128]), level=40, codecformat="j2k", mct=False
        )
        for y in (0, 128)
        for x in (0, 128)
    ]
    tifffile.imwrite(
        path, iter([bytes(s) for s in streams]), shape=picture.shape, dtype=np.uint8, tile=(128, 128),
        photometric="rgb", compression="aperio_jp2000_rgb", metadata=None, software=False,
        description="Aperio Image Library v10.0.51\r\n256x256 [0,0 256x256] (128x128) J2K/KDU Q=70",
    )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        page.tags["Compression"].overwrite(code)
    assert_identical(path, fast=fast)


def test_what_the_fast_path_cannot_read_is_left_to_openslide(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    picture = TissueField(1024, 1024, 5).render(300, 350, 256, 256)
    tifffile.imwrite(path, picture, tile=(128, 128), photometric="rgb", metadata=None, extratags=[(274, 3, 1, 3, True)])
    with open_slide(path) as reader, open_tiles(path, reader) as tiles:
        assert not tiles.is_fast(0)


def test_a_damaged_tile_is_an_error_that_names_it_or_its_slide_and_never_old_pixels(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    write(path, Variant())
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        start = page.dataoffsets[2]
    data = bytearray(path.read_bytes())
    data[start : start + 4] = b"junk"
    path.write_bytes(bytes(data))
    with open_slide(path) as reader, open_tiles(path, reader) as tiles:
        out = np.empty((1, 128, 128, 3), np.uint8)
        tiles.read_tiles(0, [(1, 0)], out)
        with pytest.raises(SlideError, match="damaged"):
            tiles.read_tiles(0, [(2, 0)], out)


@pytest.fixture
def tiles(demo: DemoSlide) -> Iterator[FastTiles]:
    with open_slide(demo.path) as reader, open_tiles(demo.path, reader) as opened:
        yield opened


@pytest.mark.parametrize("tile", [(-1, 0), (0, -1), (10, 0), (0, 8), (10**6, 10**6)])
def test_a_tile_that_is_not_on_the_grid_is_refused(tiles: FastTiles, tile: tuple[int, int]) -> None:
    assert (tiles.grid(0).columns, tiles.grid(0).rows, tiles.grid(0).size) == (10, 8, PixelSize(256, 256))
    with pytest.raises(SlideError, match="but none at"):
        tiles.read_tiles(0, [tile], np.empty((1, 256, 256, 3), np.uint8))


def test_memory_of_another_shape_is_refused(tiles: FastTiles) -> None:
    wrong: list[NDArray[Any]] = [
        np.empty((1, 256, 256, 3), np.uint8),
        np.empty((2, 256, 256, 4), np.uint8),
        np.empty((2, 256, 256, 3), np.float32),
        np.empty((2, 256, 512, 3), np.uint8)[:, :, ::2],
    ]
    for out in wrong:
        with pytest.raises(SlideError, match="memory"):
            tiles.read_tiles(0, [(0, 0), (1, 0)], out)
    with pytest.raises(LevelNotFoundError):
        tiles.grid(2)


def test_threads_share_one_source(tiles: FastTiles) -> None:
    grid = tiles.grid(0)
    alone = np.empty((80, 256, 256, 3), np.uint8)
    tiles.read_tiles(0, grid.all(), alone)
    together = np.zeros_like(alone)
    parts = [range(n, 80, 4) for n in range(4)]

    def work(part: range) -> None:
        for index in part:
            tiles.read_tiles(0, [grid.all()[index]], together[index : index + 1])

    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert np.array_equal(alone, together)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_bytes_a_tile_has_become_a_stream_or_a_clear_error(data: st.DataObject) -> None:
    good = imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8), level=50)
    changed = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if changed:
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        stream, head = TileDecoding(None, rgb=True).complete(bytes(changed))
        outcome = (stream[:4] == b"\xff\xd8\xff\xee", head.bits in range(256))
    except SlideError as error:
        outcome = (error.reason == "unreadable", "JPEG" in error.message)
    assert outcome == (True, True)


def test_tables_that_are_no_jpeg_are_refused() -> None:
    with pytest.raises(SlideError, match="JPEGTables"):
        TileDecoding(b"junk", rgb=False)
