from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import openslide
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.uid import RLELossless

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.demo import DemoSlide
from mhs_ray.slides.geometry import Level0Point, Mpp, PixelSize
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.openslide_reader import OpenSlideReader, mpp_of
from mhs_ray.slides.reader import MAX_REGION_PIXELS, LevelNotFoundError
from mhs_ray.slides.thumbnail import thumbnail
from mhs_ray.slides.wsidicom_reader import WsiDicomReader


def test_a_real_svs_is_opened_whatever_it_is_called(svs: Path, tmp_path: Path) -> None:
    path = tmp_path / "9f3c"
    shutil.copyfile(svs, path)
    with open_slide(path) as reader:
        facts = reader.facts()
        assert (facts.vendor, facts.width, facts.height) == ("aperio", 2220, 2967)
        assert facts.mpp == Mpp(0.499, 0.499)
        assert (facts.objective_power, facts.tile_size) == (20.0, PixelSize(240, 240))
        assert facts.associated == ("label", "macro", "thumbnail")
        assert reader.associated("label").shape == (463, 387, 3)
        with pytest.raises(SlideError, match="no 'portrait' image"):
            reader.associated("portrait")


def test_pixels_are_openslides_own(svs: Path) -> None:
    slide = openslide.OpenSlide(str(svs))
    with open_slide(svs) as reader:
        for x, y in ((0, 0), (700, 1111), (2000, 2700)):
            expected = np.asarray(slide.read_region((x, y), 0, (200, 180)))
            assert np.array_equal(
                reader.read_region(Level0Point(x, y), PixelSize(200, 180), level=0), expected[..., :3]
            )


def test_pixels_beyond_the_edge_are_background_not_black(svs: Path) -> None:
    with open_slide(svs) as reader:
        pixels = reader.read_region(Level0Point(-50, -40), PixelSize(100, 100), level=0)
        assert (pixels[:40] == 255).all()
        assert (pixels[:, :50] == 255).all()
        assert (reader.read_region(Level0Point(2220, 0), PixelSize(10, 10), level=0) == 255).all()


def test_a_sparse_tile_has_the_background_colour(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    tiles = iter([np.full((256, 256, 3), 90, np.uint8), None, None, np.full((256, 256, 3), 40, np.uint8)])
    tifffile.imwrite(path, tiles, shape=(512, 512, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb",
                     compression="deflate", metadata=None)  # fmt: skip
    with open_slide(path) as reader:
        pixels = reader.read_region(Level0Point(0, 0), PixelSize(512, 512), level=0)
    assert (pixels[:256, :256] == 90).all()
    assert (pixels[256:, 256:] == 40).all()
    assert (pixels[:256, 256:] == 255).all()


@pytest.mark.parametrize("level", [-1, 3, 99])
def test_a_level_that_is_not_there_is_an_error_and_no_blank_tile(demo: DemoSlide, level: int) -> None:
    with open_slide(demo.path) as reader, pytest.raises(LevelNotFoundError, match=f"no level {level}"):
        reader.read_region(Level0Point(0, 0), PixelSize(10, 10), level=level)


def test_a_region_that_would_fill_the_memory_is_refused(demo: DemoSlide) -> None:
    with open_slide(demo.path) as reader, pytest.raises(SlideError, match="in pieces"):
        reader.read_region(Level0Point(0, 0), PixelSize(10**6, MAX_REGION_PIXELS // 10**6 + 1), level=0)


def test_a_dicom_file_is_opened_without_an_extension(dicom: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan"
    shutil.copyfile(dicom, path)
    with open_slide(path) as reader:
        facts = reader.facts()
        assert (facts.format, facts.vendor, facts.width, facts.height) == ("dicom", "dicom", 50, 50)
        assert facts.mpp == Mpp(0.499, 0.499)
        assert facts.tile_size == PixelSize(10, 10)
        assert facts.has_icc
        assert len(reader.icc_profile() or b"") == 3144


def test_openslide_and_wsidicom_read_the_same_pixels_and_facts(dicom: Path) -> None:
    with OpenSlideReader(dicom) as one, WsiDicomReader(dicom) as other:
        assert one.facts() == other.facts()
        assert one.icc_profile() == other.icc_profile()
        for x, y in ((0, 0), (33, 7), (-5, -5), (45, 48), (60, 0)):
            size = PixelSize(12, 9)
            assert np.array_equal(
                one.read_region(Level0Point(x, y), size, level=0), other.read_region(Level0Point(x, y), size, level=0)
            )


def test_dicom_that_openslide_refuses_is_read_by_wsidicom(dicom: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(dicom)
    dataset.compress(RLELossless)
    path = tmp_path / "rle"
    dataset.save_as(path)
    with pytest.raises(SlideError):
        OpenSlideReader(path).read_region(Level0Point(0, 0), PixelSize(50, 50), level=0)
    with open_slide(path) as reader, open_slide(dicom) as plain:
        whole = PixelSize(50, 50)
        assert isinstance(reader, WsiDicomReader)
        assert np.array_equal(
            reader.read_region(Level0Point(0, 0), whole, level=0), plain.read_region(Level0Point(0, 0), whole, level=0)
        )


def test_dicom_that_is_no_slide_says_so(dicom: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(dicom)
    del dataset.ImageType
    path = tmp_path / "other"
    dataset.save_as(path)
    with pytest.raises(SlideError, match="no whole slide image") as error:
        open_slide(path)
    assert error.value.reason == "unsupported"


def test_a_series_is_opened_from_a_folder_and_from_its_zip(dicom: Path, tmp_path: Path) -> None:
    series = tmp_path / "series"
    (series / "deep").mkdir(parents=True)
    shutil.copyfile(dicom, series / "deep" / "level0")
    (series / "readme.txt").write_text("not DICOM")
    packed = tmp_path / "download"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(dicom, "../../evil/a.dcm")
        archive.writestr("readme.txt", "not DICOM")
    with open_slide(series) as folder, open_slide(packed) as unpacked:
        assert folder.facts() == unpacked.facts()
        assert unpacked.read_region(Level0Point(0, 0), PixelSize(50, 50), level=0).std() > 0
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (b"", "not-a-slide", "is empty"),
        (b"hello, I am a text", "not-a-slide", "is no slide"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "not-a-slide", "error page"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 200, "not-a-slide", "plain JPEG"),
        (b"PK\x03\x04broken", "truncated", "zip"),
        (b"\0" * 128 + b"DICM" + b"\0" * 50, "unsupported", "DICOM"),
    ],
)
def test_what_is_no_slide_says_what_it_is(tmp_path: Path, content: bytes, reason: str, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SlideError, match=words) as error:
        open_slide(path)
    assert error.value.reason == reason


def test_a_missing_file_and_an_empty_folder_are_no_slides(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(SlideError) as error:
            open_slide(path)
        assert error.value.reason == "not-a-slide"


def test_a_flat_tiff_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "flat.tif"
    Image.new("RGB", (300, 200), "pink").save(path)
    with pytest.raises(SlideError, match="vips tiffsave") as error:
        open_slide(path)
    assert error.value.reason == "unsupported"


@pytest.mark.parametrize("value", ["0", "-0.5", "nan", "inf", "about half", "0,5"])
def test_impossible_microns_per_pixel_are_noted_and_ignored(value: str) -> None:
    notes: list[str] = []
    assert mpp_of(value, "0.5", notes) is None
    assert len(notes) == 1


def test_a_screens_resolution_is_not_taken_for_microns_per_pixel() -> None:
    notes: list[str] = []
    assert mpp_of("352.8", "352.8", notes) is None
    assert "screen" in notes[0]


def test_a_thumbnail_keeps_the_aspect_and_shows_the_slide(demo: DemoSlide) -> None:
    with open_slide(demo.path) as reader:
        small = thumbnail(reader, PixelSize(200, 200))
        assert small.shape == (152, 200, 3)
        lowest = len(reader.facts().levels) - 1
        facts = reader.facts().levels[lowest]
        whole = reader.read_region(Level0Point(0, 0), PixelSize(facts.width, facts.height), level=lowest)
        expected = np.asarray(Image.fromarray(whole).resize((200, 152), Image.Resampling.BOX)).astype(int)
        assert np.abs(small.astype(int) - expected).mean() < 0.5
        assert thumbnail(reader, PixelSize(9000, 9000)).shape == (1900, 2500, 3)
        with pytest.raises(SlideError, match="decoded"):
            thumbnail(reader, PixelSize(2500, 1900), max_source_pixels=10**6)


def test_a_thumbnail_in_bands_and_blocks_equals_one_in_one_piece(svs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(svs) as reader:
        whole = thumbnail(reader, PixelSize(300, 300))
        monkeypatch.setattr("mhs_ray.slides.thumbnail._BAND_PIXELS", 9000)
        assert np.array_equal(whole, thumbnail(reader, PixelSize(300, 300)))
