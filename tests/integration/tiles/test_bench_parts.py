"""The benchmark's parts measure the same tiles; figures themselves are no matter for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhs_ray.bench import benchmarks
from mhs_ray.bench._tile_link import slow_storage
from mhs_ray.bench._tile_readers import limit, ours, peer
from mhs_ray.bench.tiles import _options, _timed_first
from mhs_ray.slides.plan import TileRequest


def test_the_benchmark_is_found() -> None:
    assert "cuCIM" in benchmarks()["tiles"].measures


@pytest.mark.parametrize("threads", [1, 2])
def test_ours_the_decoder_and_openslide_read_the_same_tiles(slides: list[Path], threads: int) -> None:
    case = {"slide": str(slides[0]), "size": 256, "threads": threads, "width": 2048, "height": 1536, "rows": 1024}
    answers = [ours(case), limit(case), peer({**case, "reader": "openslide"})]
    assert [a["tiles"] for a in answers] == [32, 32, 32]
    assert all(a["wall_s"] > 0 < a["cpu_s"] for a in answers)


def test_a_tile_comes_over_the_slow_line_before_all_of_it_could(slides: list[Path], tmp_path: Path) -> None:
    with slow_storage(slides[0], latency_s=0.001, bytes_per_s=5e6) as url:
        assert _timed_first(url, tmp_path, TileRequest(256)) > 0
        assert _options(tmp_path).policy.allow_private
