"""Hostile bytes on the fast path: tiles, or a clear error, soon and in bounded memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.bands import BatchLimits, read_batches
from mhs_ray.slides.bytesource import LocalFile
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.layout_facts import facts_of
from mhs_ray.slides.plan import TileRequest, plan_tiles
from mhs_ray.slides.reader import RGB, SlideFacts
from mhs_ray.slides.tiff import read_layout
from mhs_ray.slides.tiff_check import check_layout
from mhs_ray.slides.tiles import FastTiles, fast_pages
from tests.unit.slides.test_tiles import Variant, write


class NoReader:
    def __init__(self, facts: SlideFacts) -> None:
        self._facts = facts

    def facts(self) -> SlideFacts:
        return self._facts

    def read_region(self, origin: Level0Point, size: PixelSize, *, level: int) -> RGB:
        raise SlideError("asked-openslide", "the fast path gave up")

    def associated(self, name: str) -> RGB:
        raise SlideError("asked-openslide", "the fast path gave up")

    def icc_profile(self) -> bytes | None:
        return None

    def close(self) -> None:
        pass

    def __enter__(self) -> NoReader:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module", params=["jpeg", "tables"])
def fuzzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "slide"
    write(path, Variant(tables=request.param == "tables", width=300, height=200, tile=64))
    return path, path.read_bytes()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_done_to_a_slide_ends_soon_in_tiles_or_a_clear_error(
    fuzzed: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, good = fuzzed
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(changed) - 9))
        changed[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    path.write_bytes(bytes(changed))
    started = time.monotonic()
    outcome = "tiles"
    try:
        layout = read_layout(path)
        check_layout(path.name, layout)
        facts = facts_of(layout)
        # What only OpenSlide could say is an error here: it is the fast path that is tried, alone.
        if facts is not None and facts.width * facts.height < 1 << 22:
            source = LocalFile(path)
            pages = fast_pages(layout, facts)
            with FastTiles(path.name, facts, NoReader(facts), source, pages) as tiles:
                plan = plan_tiles("s", facts, TileRequest(100, stride=90))
                for batch in read_batches(tiles, plan.take(np.arange(min(20, len(plan)))), BatchLimits(8, 2, 8 << 20)):
                    assert batch.pixels.shape[1:] == (100, 100, 3)
    except SlideError as error:
        outcome = error.reason
    assert outcome in {"tiles", "truncated", "unreadable", "bomb", "not-a-slide", "bad-request", "asked-openslide"}
    assert time.monotonic() - started < 10
