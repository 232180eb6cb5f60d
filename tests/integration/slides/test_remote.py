"""Tiles straight from a storage, as they are from a file; and what a storage can do wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mhs_ray.domain.errors import SlideError, SlideFetchError
from mhs_ray.slides.bands import BatchLimits
from mhs_ray.slides.blocks import BLOCK, BlockCache
from mhs_ray.slides.demo import make_demo_slide
from mhs_ray.slides.fetch import FetchLimits
from mhs_ray.slides.plan import Box, TileRequest
from mhs_ray.slides.remote import NoRangesError, RemoteFile, RemoteOptions
from mhs_ray.slides.tile_reader import open_tile_reader
from mhs_ray.slides.url_guard import UrlPolicy
from tests.integration.slides.conftest import Handler, Storage, serve

LOOPBACK = UrlPolicy(allow_private=True)
QUICK = FetchLimits(retries=2, backoff_s=0.01, stall_s=5)
OPTIONS = RemoteOptions(policy=LOOPBACK, limits=QUICK)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_slide(tmp_path_factory.mktemp("remote") / "slide", 4096, 3072, mpp=0.25, seed=4).path


@pytest.fixture
def url(storage: Storage, slide: Path) -> str:
    return storage.put("/bucket/slide.svs", slide.read_bytes())


@pytest.fixture
def blocks(tmp_path: Path) -> BlockCache:
    return BlockCache(tmp_path / "blocks")


@pytest.mark.parametrize("request_", [TileRequest(256), TileRequest(224, stride=200), TileRequest(256, mpp=0.5)])
def test_tiles_from_a_url_are_those_of_the_file(url: str, slide: Path, request_: TileRequest) -> None:
    with open_tile_reader(slide) as near, open_tile_reader(url, remote=OPTIONS) as far:
        assert far.name == "slide.svs"
        plan = far.plan(request_, tissue=True)
        assert plan.table().drop_columns(["slide"]) == near.plan(request_, tissue=True).table().drop_columns(["slide"])
        assert 0 < len(plan) < 200
        for ours, theirs in zip(
            far.batches(plan, BatchLimits(16, 2)), near.batches(plan, BatchLimits(16, 2)), strict=True
        ):
            assert np.array_equal(ours.pixels, theirs.pixels)


def test_what_a_remote_slide_says_of_itself_is_what_openslide_says(url: str, slide: Path) -> None:
    with open_tile_reader(slide) as near, open_tile_reader(url, remote=OPTIONS) as far:
        for name in ("vendor", "width", "height", "levels", "mpp", "objective_power", "tile_size", "has_icc"):
            assert getattr(far.facts, name) == getattr(near.facts, name), name
        assert np.array_equal(far.slide.associated("label"), near.slide.associated("label"))


def test_only_what_is_needed_is_fetched_and_neighbours_together(url: str, storage: Storage, slide: Path) -> None:
    with open_tile_reader(url, remote=OPTIONS) as far:
        plan = far.plan(TileRequest(256, region=Box(1024, 1024, 512, 256)))
        for _ in far.batches(plan):
            pass
    assert len(storage.requests) <= 6
    size = slide.stat().st_size
    asked = [tuple(int(v) for v in (r or "").removeprefix("bytes=").split("-")) for _, r in storage.requests]
    assert sum(last - first + 1 for first, last in asked) < size / 2


def test_jobs_on_one_node_fetch_each_block_once(url: str, storage: Storage, blocks: BlockCache, slide: Path) -> None:
    options = RemoteOptions(LOOPBACK, QUICK, blocks)
    outcomes: list[int] = []

    def job() -> None:
        with open_tile_reader(url, remote=options) as far:
            outcomes.append(sum(len(b) for b in far.batches(far.plan(TileRequest(256)), BatchLimits(16, 2))))

    threads = [threading.Thread(target=job) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == [192] * 3
    bodies = [tuple(int(v) for v in (r or "").removeprefix("bytes=").split("-")) for _, r in storage.requests]
    beyond_first = [b for b in bodies if b[0] >= BLOCK]
    assert len({b[0] for b in beyond_first}) == len(beyond_first)
    assert sum(b[1] - b[0] + 1 for b in beyond_first) <= slide.stat().st_size
    before = len(storage.requests)
    job()
    assert len(storage.requests) == before + 1  # whether the URL is still good, and the slide the same


def test_a_url_that_expired_is_no_longer_served_from_the_cache(url: str, storage: Storage, blocks: BlockCache) -> None:
    options = RemoteOptions(LOOPBACK, QUICK, blocks)
    with open_tile_reader(url, remote=options) as far:
        list(far.batches(far.plan(TileRequest(256))))
    storage.answers["/bucket/slide.svs"] = lambda h: h.error(403, "AccessDenied", "Request has expired")
    with pytest.raises(SlideFetchError, match="expired") as error:
        open_tile_reader(url, remote=options)
    assert error.value.reason == "expired"
    assert "SECRET" not in str(error.value)


def later(storage: Storage, answer: object, after: int = 1) -> None:
    """Answer otherwise from the (after + 1)th request on."""

    def choose(handler: Handler) -> None:
        if len(storage.requests) > after:
            answer(handler)  # type: ignore[operator]
        else:
            serve(handler)

    storage.answers["/bucket/slide.svs"] = choose


def test_a_url_that_expires_on_the_way_is_said(url: str, storage: Storage) -> None:
    later(storage, lambda h: h.error(403, "AccessDenied", "Request has expired"), after=4)
    with open_tile_reader(url, remote=OPTIONS) as far, pytest.raises(SlideFetchError) as error:
        list(far.batches(far.plan(TileRequest(256))))
    assert error.value.reason == "expired"


def test_a_slide_that_is_replaced_on_the_way_never_mixes(url: str, storage: Storage) -> None:
    with open_tile_reader(url, remote=OPTIONS) as far:
        storage.etags["/bucket/slide.svs"] = '"v2"'
        with pytest.raises(SlideFetchError, match="replaced") as error:
            list(far.batches(far.plan(TileRequest(256))))
    assert error.value.reason == "changed"


def short(handler: Handler) -> None:
    data = handler.storage.objects[handler.bare]
    first, last = (int(v) for v in handler.headers["Range"].removeprefix("bytes=").split("-"))
    last = min(last, len(data) - 1)
    handler.head(206, ETag='"v1"', Content_Length=last - first, Content_Range=f"bytes {first}-{last}/{len(data)}")
    handler.wfile.write(data[first:last])


def test_a_short_body_is_asked_for_again_and_then_said(url: str, storage: Storage) -> None:
    later(storage, short)
    with pytest.raises(SlideFetchError) as error:
        open_tile_reader(url, remote=OPTIONS)
    assert error.value.reason == "short-body"
    assert len(storage.requests) >= 1 + 3


def test_a_hiccup_of_the_storage_costs_nothing(url: str, storage: Storage, slide: Path) -> None:
    storage.answers["/bucket/slide.svs"] = lambda h: (
        h.error(503, "SlowDown", "slow down") if len(storage.requests) % 2 else serve(h)
    )
    with open_tile_reader(url, remote=OPTIONS) as far, open_tile_reader(slide) as near:
        request = TileRequest(256, region=Box(0, 0, 1024, 1024))
        (ours,) = far.batches(far.plan(request))
        (theirs,) = near.batches(near.plan(request))
        assert np.array_equal(ours.pixels, theirs.pixels)


def whole(handler: Handler) -> None:
    data = handler.storage.objects[handler.bare]
    handler.head(200, ETag='"v1"', Content_Length=len(data))
    handler.wfile.write(data)


def test_a_storage_without_ranges_gives_the_whole_file_once(url: str, storage: Storage, slide: Path) -> None:
    storage.answers["/bucket/slide.svs"] = whole
    with pytest.raises(NoRangesError):
        RemoteFile(url, OPTIONS)
    with open_tile_reader(url, remote=OPTIONS) as far:
        assert far.facts.associated == ("label", "thumbnail")


def test_a_dicom_slide_is_fetched_whole(storage: Storage, dicom: Path) -> None:
    url = storage.put("/bucket/slide.svs", dicom.read_bytes())
    with open_tile_reader(url, remote=OPTIONS) as far:
        (batch,) = far.batches(far.plan(TileRequest(25)))
        assert batch.pixels.shape == (4, 25, 25, 3)


def test_addresses_inside_are_not_reached(url: str) -> None:
    with pytest.raises(SlideFetchError) as error:
        open_tile_reader(url)
    assert error.value.reason == "refused"


def test_what_is_no_slide_or_cut_off_is_said(storage: Storage, slide: Path) -> None:
    with pytest.raises(SlideError) as error:
        open_tile_reader(storage.put("/a", b"<html>no</html>" * 100), remote=OPTIONS)
    assert error.value.reason == "not-a-slide"
    with pytest.raises(SlideError) as error:
        open_tile_reader(storage.put("/b", slide.read_bytes()[:-5000]), remote=OPTIONS)
    assert error.value.reason == "truncated"
    with pytest.raises(SlideFetchError) as missing:
        open_tile_reader(storage.url("/c"), remote=OPTIONS)
    assert missing.value.reason == "not-found"


def test_a_torn_block_is_fetched_again(url: str, storage: Storage, blocks: BlockCache, tmp_path: Path) -> None:
    options = RemoteOptions(LOOPBACK, QUICK, blocks)
    file = RemoteFile(url, options)
    good = file.read(3 * BLOCK, 100)
    file.close()
    (data,) = tmp_path.rglob("data")
    with data.open("r+b") as handle:  # as a crash leaves it: the index reached the disk, the data did not
        handle.seek(3 * BLOCK)
        handle.write(b"\0" * BLOCK)
    again = RemoteFile(url, options)
    assert again.read(3 * BLOCK, 100) == good
    again.close()


def test_the_cache_stays_bounded_and_keeps_what_is_in_use(storage: Storage, tmp_path: Path, slide: Path) -> None:
    blocks = BlockCache(tmp_path / "blocks", max_bytes=2 << 20)
    options = RemoteOptions(LOOPBACK, QUICK, blocks)
    held = RemoteFile(storage.put("/held", slide.read_bytes()), options)
    held.read(0, 1 << 20)
    for n in range(4):
        file = RemoteFile(storage.put(f"/{n}", slide.read_bytes()), options)
        file.read(0, 1 << 20)
        file.close()
        time.sleep(0.02)
    blocks.sweep()
    assert blocks.used_bytes() <= 2 << 20
    assert held.read(0, 100) == slide.read_bytes()[:100]
    held.close()


def test_blocks_unused_for_too_long_are_removed(url: str, tmp_path: Path) -> None:
    root = tmp_path / "blocks"
    file = RemoteFile(url, RemoteOptions(LOOPBACK, QUICK, BlockCache(root)))
    file.close()
    (index,) = root.rglob("index")
    os.utime(index, (0, 0))
    BlockCache(root)
    assert not list(root.iterdir())


def test_a_killed_reader_leaves_its_claims_to_others(url: str, storage: Storage, tmp_path: Path) -> None:
    root = tmp_path / "blocks"
    held = threading.Event()
    later(storage, lambda h: held.wait(20), after=1)
    code = (
        "import sys; from pathlib import Path\n"
        "from mhs_ray.slides.blocks import BlockCache; from mhs_ray.slides.remote import *\n"
        "from mhs_ray.slides.url_guard import UrlPolicy\n"
        "options = RemoteOptions(UrlPolicy(allow_private=True), blocks=BlockCache(Path(sys.argv[2])))\n"
        "f = RemoteFile(sys.argv[1], options)\n"
        "print('open', flush=True); f.read(1000000, 10)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, url, str(root)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"open\n"
    while len(storage.requests) < 2:
        time.sleep(0.01)
    other.send_signal(signal.SIGKILL)
    other.wait(10)
    other.stdout.close()
    held.set()
    del storage.answers["/bucket/slide.svs"]
    file = RemoteFile(url, RemoteOptions(LOOPBACK, QUICK, BlockCache(root)))
    assert file.read(1000000, 10) == storage.objects["/bucket/slide.svs"][1000000:1000010]
    file.close()
