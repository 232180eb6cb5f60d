"""The viewer's benchmark on a small slide: it measures ours beside a peer and says what it left out."""

from __future__ import annotations

from pathlib import Path

from mhs_ray.bench.viewer import measure
from mhs_ray.slides.demo import make_demo_slide


def test_ours_and_a_peer_are_measured_on_the_same_tiles(tmp_path: Path) -> None:
    slide = tmp_path / "slide.svs"
    make_demo_slide(slide, 2560, 1920)
    said: list[str] = []
    found = measure(slide, said.append, rounds=1, tiles=20)
    assert found["tiles"] == 20
    for name in ("ours", "openslide"):
        assert 0 < found[name]["p50_ms"] <= found[name]["p95_ms"]
    assert found["ratio_of_p95_to_openslide"] > 0
    assert ("large_image" in found) or any("large_image is left out" in line for line in said)
