from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Literal

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.check import check_slide
from mhs_ray.slides.demo import DemoSlide
from mhs_ray.slides.tiff import read_layout
from mhs_ray.slides.tiff_check import check_structure

Entry = tuple[int, int, int, int]


def tiff(*directories: list[Entry], links: list[int] | None = None, size: int = 4096) -> bytes:
    """A classic little-endian TIFF of bare directories, 512 bytes apart; links: where each one's successor is."""
    data = bytearray(size)
    data[:8] = struct.pack("<2sHI", b"II", 42, 512)
    for number, entries in enumerate(directories):
        at = 512 * (number + 1)
        following = links[number] if links else (at + 512 if number + 1 < len(directories) else 0)
        body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
        packed = struct.pack("<H", len(entries)) + body + struct.pack("<I", following)
        data[at : at + len(packed)] = packed
    return bytes(data)


def image(width: int = 256, height: int = 256, tile: int = 256, offset: int = 2048, count: int = 100) -> list[Entry]:
    return [(256, 4, 1, width), (257, 4, 1, height), (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, offset),
            (325, 4, 1, count), (259, 3, 1, 7), (277, 3, 1, 3)]  # fmt: skip


def reason_of(path: Path) -> str:
    with pytest.raises(SlideError) as error:
        check_structure(path)
    assert path.name in str(error.value)
    return error.value.reason


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "hostile"
    path.write_bytes(data)
    return path


def test_a_small_good_tiff_passes(tmp_path: Path) -> None:
    layout = check_structure(write(tmp_path, tiff(image())))
    assert (layout.pages[0].width, layout.pages[0].tiles_expected) == (256, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(image(), links=[512]), "unreadable"),
        (tiff(image(), image(), links=[1024, 512]), "unreadable"),
        (tiff(image(2**31, 2**31)), "bomb"),
        (tiff(image(1_500_000, 1_500_000)), "bomb"),
        (tiff(image(tile=2**20)), "bomb"),
        (tiff(image(width=0)), "unreadable"),
        (tiff(image(tile=0)), "unreadable"),
        (tiff(image(offset=5000)), "truncated"),
        (tiff(image(offset=4000, count=97)), "truncated"),
        (tiff(image(offset=2**32 - 1, count=2**32 - 1)), "truncated"),
        (tiff(image(width=1000)), "unreadable"),
        (tiff([(256, 4, 1, 10)]), "unreadable"),
        (tiff([*image(), (270, 2, 2**31, 600)]), "bomb"),
        (tiff([*image(), (270, 2, 5000, 600)]), "truncated"),
        (tiff(image(), links=[2**31]), "truncated"),
        (b"II*\0" + b"\0" * 4, "truncated"),
        (b"II*\0", "truncated"),
        (b"II*\0" + b"\xff" * 4, "truncated"),
        (b"II+\0\x04\0\0\0" + b"\0" * 8, "not-a-slide"),
    ],
)
def test_a_hostile_structure_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason_of(write(tmp_path, data)) == reason


def test_thousands_of_directories_are_a_bomb(tmp_path: Path) -> None:
    many = tiff(*[image()] * 2500, size=512 * 2502)
    assert reason_of(write(tmp_path, many)) == "bomb"


def test_a_cut_off_slide_says_how_many_tiles_are_missing(tmp_path: Path) -> None:
    whole = tmp_path / "whole.tif"
    picture = np.random.default_rng(1).integers(0, 255, (1024, 1024, 3), np.uint8)
    tifffile.imwrite(whole, picture, tile=(256, 256), photometric="rgb", metadata=None)  # directory before the tiles
    path = write(tmp_path, whole.read_bytes()[: -5 * 256 * 256 * 3 - 10])
    with pytest.raises(SlideError, match=r"6 of 16 tiles of image 0 .* lie beyond its end") as error:
        check_slide(path)
    assert error.value.reason == "truncated"


def test_every_cut_of_a_real_slide_is_refused(svs: Path, tmp_path: Path) -> None:
    data = svs.read_bytes()
    for length in (9, 200, len(data) // 3, len(data) // 2, len(data) - 50_000, len(data) - 300):
        with pytest.raises(SlideError) as error:
            check_slide(write(tmp_path, data[:length]))
        assert error.value.reason == "truncated", length


def test_the_layout_agrees_with_tifffile(svs: Path, demo: DemoSlide) -> None:
    for path in (svs, demo.path):
        with tifffile.TiffFile(path) as reference:
            layout = read_layout(path)
            assert len(layout.pages) == len(reference.pages)
            for ours, theirs in zip(layout.pages, reference.pages, strict=True):
                assert isinstance(theirs, tifffile.TiffPage)
                assert (ours.width, ours.height) == (theirs.imagewidth, theirs.imagelength)
                assert ours.tiled == theirs.is_tiled
                assert (ours.compression, ours.photometric) == (theirs.compression, theirs.photometric)
                assert ours.offsets.tolist() == list(theirs.dataoffsets)
                assert ours.byte_counts.tolist() == list(theirs.databytecounts)
                assert ours.jpeg_tables == theirs.jpegtables
                assert ours.description.strip() == theirs.description.strip()


@pytest.mark.parametrize(("bigtiff", "order"), [(True, "<"), (True, ">"), (False, ">")])
def test_bigtiff_and_big_endian_are_read(tmp_path: Path, bigtiff: bool, order: Literal["<", ">"]) -> None:
    path = tmp_path / "other"
    picture = np.arange(600 * 500 * 3, dtype=np.uint32).astype(np.uint8).reshape(600, 500, 3)
    tifffile.imwrite(path, picture, tile=(128, 128), bigtiff=bigtiff, byteorder=order, photometric="rgb", metadata=None,
                     compression="deflate")  # fmt: skip
    layout = check_structure(path)
    assert (layout.bigtiff, layout.big_endian) == (bigtiff, order == ">")
    assert layout.pages[0].tiles_expected == 20
    if bigtiff:  # OpenSlide 4.0 does not know a classic big-endian file
        assert check_slide(path).width == 500


def test_zero_microns_per_pixel_are_noted_and_the_slide_is_taken(demo: DemoSlide, tmp_path: Path) -> None:
    data = demo.path.read_bytes().replace(b"MPP = 0.5000", b"MPP = 0.0000")
    facts = check_slide(write(tmp_path, data))
    assert facts.mpp is None
    assert facts.notes


def test_a_damaged_tile_is_found_when_it_is_one_of_those_tried(tmp_path: Path, demo: DemoSlide) -> None:
    page = read_layout(demo.path).pages[0]
    data = bytearray(demo.path.read_bytes())
    start = int(page.offsets[0])
    data[start : start + 64] = b"\xab" * 64
    with pytest.raises(SlideError) as error:
        check_slide(write(tmp_path, bytes(data)))
    assert error.value.reason == "unreadable"


@pytest.fixture(scope="module")
def seed_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "fuzzed"
    picture = np.zeros((300, 300, 3), np.uint8)
    with tifffile.TiffWriter(path) as writer:
        for side in (300, 75):
            writer.write(picture[:side, :side], tile=(64, 64), photometric="rgb", compression="deflate", metadata=None)
    assert openslide.OpenSlide(str(path)).dimensions == (300, 300)
    return path, path.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_done_to_the_directories_ends_soon_in_a_layout_or_a_clear_error(
    seed_file: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, good = seed_file
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(changed) - 9))
        changed[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    path.write_bytes(bytes(changed[: data.draw(st.integers(8, len(changed)))]))
    started = time.monotonic()
    try:
        check_structure(path)
        reason = "none"
    except SlideError as error:
        reason = error.reason
    assert reason in {"none", "truncated", "unreadable", "bomb", "not-a-slide"}
    assert time.monotonic() - started < 5
