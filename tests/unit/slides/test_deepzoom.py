"""Deep-zoom tiles against the slide's own pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides import deepzoom
from mhs_ray.slides.deepzoom import TILE, DeepZoom, best_level, encode, read_tile
from mhs_ray.slides.demo import make_demo_slide
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.reader import SlideReader
from mhs_ray.slides.tile_reader import TileReader, open_tile_reader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlideReader]:
    path = tmp_path_factory.mktemp("deepzoom") / "slide.svs"
    make_demo_slide(path, 1500, 1100)
    with open_slide(path) as found:
        yield found


def test_a_tile_of_the_last_level_is_the_slide_itself(reader: SlideReader) -> None:
    zoom = DeepZoom(1500, 1100)
    assert zoom.last == 11
    own = reader.read_region(Level0Point(256, 512), PixelSize(TILE, TILE), level=0)
    assert np.array_equal(read_tile(reader, 11, 1, 2), own)


def test_tiles_cover_each_level_exactly(reader: SlideReader) -> None:
    zoom = DeepZoom(1500, 1100)
    for level in (0, 5, 9, 10, 11):
        whole = zoom.size(level)
        columns, rows = -(-whole.width // TILE), -(-whole.height // TILE)
        shapes = [[read_tile(reader, level, c, r).shape for c in range(columns)] for r in range(rows)]
        assert sum(s[1] for s in shapes[0]) == whole.width
        assert sum(row[0][0] for row in shapes) == whole.height


@pytest.mark.parametrize(
    ("level", "column", "row"), [(12, 0, 0), (-1, 0, 0), (11, 6, 0), (11, 0, 5), (11, -1, 0), (0, 1, 0)]
)
def test_a_tile_outside_is_refused(reader: SlideReader, level: int, column: int, row: int) -> None:
    with pytest.raises(SlideError, match="there is no"):
        read_tile(reader, level, column, row)


def test_a_level_is_read_from_the_smallest_stored_one_that_need_not_be_enlarged(reader: SlideReader) -> None:
    facts = reader.facts()
    assert [v.downsample for v in facts.levels[:2]] == [1.0, 4.0]
    assert [best_level(facts, s) for s in (1, 2, 4, 8)] == [0, 0, 1, 1]


def test_a_reduced_tile_looks_like_the_slide_reduced(reader: SlideReader) -> None:
    whole = Image.fromarray(reader.read_region(Level0Point(0, 0), PixelSize(1500, 1100), level=0))
    small = np.asarray(whole.resize((750, 550), Image.Resampling.BOX)).astype(int)
    tile = read_tile(reader, 10, 1, 1).astype(int)
    assert np.abs(tile - small[256:512, 256:512]).mean() < 6


def test_a_tile_over_more_pixels_than_are_decoded_at_once_is_put_together_from_smaller_ones(
    reader: SlideReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = read_tile(reader, 9, 0, 0).astype(int)
    monkeypatch.setattr(deepzoom, "_MAX_SOURCE", TILE * TILE)
    # No stored level may help: then the overview of a slide without a pyramid is what is tried.
    monkeypatch.setattr(deepzoom, "best_level", lambda _facts, _scale: 0)
    pieces = read_tile(reader, 9, 0, 0).astype(int)
    assert pieces.shape == at_once.shape
    assert np.abs(pieces - at_once).mean() < 8
    edge = read_tile(reader, 9, 1, 1)
    assert edge.shape == (275 - TILE, 375 - TILE, 3)


def test_a_tile_travels_as_a_jpeg_of_its_own_size(reader: SlideReader) -> None:
    data = encode(read_tile(reader, 11, 5, 4))
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        assert image.size == (1500 - 5 * TILE, 1100 - 4 * TILE)


@pytest.fixture(scope="module", params=[256, 240, 128])
def fast(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TileReader]:
    """Slides of whole pyramids: their stored tiles are the viewer's, or others."""
    path = tmp_path_factory.mktemp("fast") / "slide.tif"
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(60, 230, (60, 80, 3), dtype=np.uint8))
    whole = np.asarray(coarse.resize((1600, 1200), Image.Resampling.BICUBIC))
    options = {"tile": (request.param, request.param), "compression": "jpeg", "photometric": "ycbcr"}
    with tifffile.TiffWriter(path) as out:
        out.write(whole, resolution=(40000, 40000), resolutionunit="CENTIMETER", **options)
        out.write(whole[::4, ::4], subfiletype=1, **options)
    with open_tile_reader(path) as found:
        assert found.tiles.is_fast(0)
        yield found


def test_stored_tiles_give_openslides_pixels_or_their_exact_mean(
    fast: TileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, zoom = fast.slide, DeepZoom(1600, 1200)
    stored = [
        slide.read_region(Level0Point(0, 0), size, level=n).astype(int)
        for n, size in enumerate((PixelSize(1600, 1200), PixelSize(400, 300)))
    ]
    halves = [w.reshape(w.shape[0] // 2, 2, w.shape[1] // 2, 2, 3).sum((1, 3)) for w in stored]
    expected = [stored[0], (halves[0] + 2) // 4, stored[1], (halves[1] + 2) // 4]
    monkeypatch.setattr(slide, "read_region", lambda *_a, **_k: pytest.fail("OpenSlide was asked"))
    for above, whole in enumerate(expected):
        level = zoom.last - above
        for y in range(-(-zoom.size(level).height // TILE)):
            for x in range(-(-zoom.size(level).width // TILE)):
                found = read_tile(slide, level, x, y, fast.tiles)
                wanted = whole[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE]
                assert np.array_equal(found, wanted), (level, x, y)


def test_levels_that_drift_from_the_viewers_are_left_to_openslide(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    whole = np.full((1210, 1603, 3), 200, np.uint8)
    whole[:600, :700] = 120
    options = {"tile": (256, 256), "compression": "jpeg", "photometric": "ycbcr"}
    with tifffile.TiffWriter(path) as out:
        out.write(whole, **options)
        out.write(whole[: 1210 // 4, : 1603 // 4], subfiletype=1, **options)
    with open_tile_reader(path) as odd:
        zoom = DeepZoom(1603, 1210)
        for level in range(zoom.last + 1):
            slow = read_tile(odd.slide, level, 0, 0).astype(int)
            assert np.abs(read_tile(odd.slide, level, 0, 0, odd.tiles) - slow).max() <= 1, level
