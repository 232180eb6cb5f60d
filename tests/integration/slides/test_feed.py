"""The tile feed, over its real socket and its real process, to the reader that the template carries."""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import socket
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import mhs_ray.templates
from mhs_ray.attempt.tiles import TileFeedProcess
from mhs_ray.domain.errors import SlideError
from mhs_ray.domain.tile_feed import parse_tile_feed
from mhs_ray.slides.demo import make_demo_slide
from mhs_ray.slides.feed.server import FeedServer
from mhs_ray.slides.tile_reader import TileReader, open_tile_reader


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_slide(tmp_path_factory.mktemp("feed") / "slide.svs", 2048, 1536, mpp=0.25, seed=6).path


@pytest.fixture(scope="module")
def client() -> ModuleType:
    path = Path(mhs_ray.templates.__file__).parent / "tiles" / "mhs_tiles.py"
    spec = importlib.util.spec_from_file_location("mhs_tiles", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def server(slide: Path, spec: str, folder: Path, **more: Any) -> FeedServer:
    return FeedServer(lambda: open_tile_reader(slide), parse_tile_feed(spec), folder, **more)


def expected(slide: Path, spec: str) -> dict[tuple[int, int], np.ndarray[Any, Any]]:
    from mhs_ray.slides.plan import TileRequest

    feed = parse_tile_feed(spec)
    with open_tile_reader(slide) as reader:
        plan = reader.plan(TileRequest(feed.size, stride=feed.stride, mpp=feed.mpp), tissue=feed.tissue)
        return {
            (int(plan.x[i]), int(plan.y[i])): pixels
            for b in reader.batches(plan)
            for i, pixels in zip(b.indices, b.pixels, strict=True)
        }


@pytest.mark.parametrize("spec", ["size=256", "size=224 stride=100 batch=8", "size=128 mpp=0.5 tissue unordered"])
def test_the_template_reads_every_tile_once_and_right(
    slide: Path, client: ModuleType, tmp_path: Path, spec: str
) -> None:
    told: list[tuple[int, int, float | None]] = []
    with server(slide, spec, tmp_path, memory_bytes=32 << 20, on_progress=lambda *p: told.append(p)):
        found = {}
        with client.open_tiles(str(tmp_path / "feed.sock")) as feed:
            for batch in feed:
                for x, y, pixels in zip(batch.x, batch.y, batch.pixels, strict=True):
                    assert (int(x), int(y)) not in found
                    found[int(x), int(y)] = pixels.copy()
            planned = feed.plan["tiles"]
    right = expected(slide, spec)
    assert found.keys() == right.keys()
    assert all(np.array_equal(found[k], right[k]) for k in right)
    assert told[0][:2] == (0, planned)
    assert told[-1] == (planned, planned, 0.0)


def connect(folder: Path, transport: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(folder / "feed.sock"))
    made.sendall(json.dumps({"version": 1, "transport": transport}).encode() + b"\n")
    return made


def test_arrow_comes_over_the_socket_for_any_language(slide: Path, tmp_path: Path) -> None:
    spec = "size=256 tissue"
    with server(slide, spec, tmp_path), connect(tmp_path, "arrow") as wire:
        found = {}
        stream = pa.ipc.open_stream(wire.makefile("rb"))
        for rows in stream:
            tiles = rows.column("tile").to_numpy_ndarray()
            places = zip(rows["x"].to_pylist(), rows["y"].to_pylist(), strict=True)
            found |= {place: tile.copy() for place, tile in zip(places, tiles, strict=True)}
        assert json.loads(stream.schema.metadata[b"mhs.plan"])["tiles"] == len(found)
    right = expected(slide, spec)
    assert found.keys() == right.keys()
    assert all(np.array_equal(found[k], right[k]) for k in right)


def test_workers_share_the_tiles(slide: Path, client: ModuleType, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def work() -> None:
        with client.open_tiles(str(tmp_path / "feed.sock")) as feed:
            for batch in feed:
                seen.extend(zip(batch.x.tolist(), batch.y.tolist(), strict=True))

    with server(slide, "size=128 batch=4", tmp_path):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(seen) == sorted(expected(slide, "size=128"))


def test_the_memory_cannot_be_written_or_cut_by_a_container(slide: Path, tmp_path: Path) -> None:
    with server(slide, "size=256", tmp_path), connect(tmp_path, "memory") as wire:
        _, handles, _, _ = socket.recv_fds(wire, 65536, 4)
        size = os.fstat(handles[0]).st_size
        with pytest.raises(PermissionError):
            os.ftruncate(handles[0], 0)
        with pytest.raises(PermissionError):
            mmap.mmap(handles[0], size, mmap.MAP_SHARED, mmap.PROT_WRITE | mmap.PROT_READ)
        with pytest.raises(PermissionError):
            os.pwrite(handles[0], b"x", 0)
        os.close(handles[0])


@pytest.mark.parametrize("junk", [b"junk\n", b"[1]\n", b"x" * 20_000, b'{"version": 9}\n', b""])
def test_junk_harms_nobody_else(slide: Path, client: ModuleType, tmp_path: Path, junk: bytes) -> None:
    with server(slide, "size=256", tmp_path):
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(tmp_path / "feed.sock"))
            wire.sendall(junk)
        with client.open_tiles(str(tmp_path / "feed.sock")) as feed:
            assert sum(len(b) for b in feed) == 48


def test_a_client_that_frees_what_it_does_not_have_gains_nothing(slide: Path, tmp_path: Path) -> None:
    with server(slide, "size=128 batch=2", tmp_path) as feed, connect(tmp_path, "memory") as wire:
        wire.sendall(b'{"free": 0}\n{"free": 99}\n{"free": "x"}\n{"free": null}\n')
        time.sleep(0.5)
        assert feed.done <= 2 * 5  # no more than it may hold


def test_a_client_that_goes_gives_its_memory_back(slide: Path, client: ModuleType, tmp_path: Path) -> None:
    with server(slide, "size=128 batch=4", tmp_path):
        for _ in range(6):
            with client.open_tiles(str(tmp_path / "feed.sock")) as feed:
                next(iter(feed))
        with client.open_tiles(str(tmp_path / "feed.sock")) as feed:
            assert sum(len(b) for b in feed) > 0


def test_why_there_are_no_tiles_is_said_to_the_container(client: ModuleType, tmp_path: Path) -> None:
    def bad() -> TileReader:
        raise SlideError("truncated", "the slide is cut off")

    with (
        FeedServer(bad, parse_tile_feed(""), tmp_path),
        pytest.raises(client.TilesError, match="the slide is cut off"),
    ):
        client.open_tiles(str(tmp_path / "feed.sock"))
    with pytest.raises(client.TilesError, match="MHS_TILES"):
        client.open_tiles()


def test_closing_the_feed_ends_waiting_clients(slide: Path, client: ModuleType, tmp_path: Path) -> None:
    feed = server(slide, "size=64 batch=2", tmp_path)
    reader = client.open_tiles(str(tmp_path / "feed.sock"))
    batches = iter(reader)
    next(batches)
    feed.close()
    assert not (tmp_path / "feed.sock").exists()
    with pytest.raises((client.TilesError, OSError)):
        list(batches)
    reader.close()


def test_the_process_beside_a_container_tells_the_jobs_log(slide: Path, client: ModuleType, tmp_path: Path) -> None:
    said: list[str] = []
    told: list[dict[str, Any]] = []
    with TileFeedProcess(slide, "size=256", tmp_path / "t", 2, said.append, told.append) as process:
        with client.open_tiles(str(tmp_path / "t" / "feed.sock")) as feed:
            assert sum(len(b) for b in feed) == 48
        assert process.env == {"MHS_TILES_SOCKET": "/run/mhs-tiles/feed.sock"}
        assert process.mount.source == tmp_path / "t"
    assert (process.progress["done"], process.progress["planned"]) == (48, 48)
    assert told[0]["planned"] == 48
    assert told[-1] == process.progress
    assert (said[0], said[-1]) == ("tiles: 48 planned", "tiles: 48 of 48 were read")
