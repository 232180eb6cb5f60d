"""``mhs bench viewer``: the console's tiles beside large_image's, of the same slide, in turns, in one run.

Each reader is asked for the same warm 256-pixel tiles, as JPEG: those at full size, and those of the levels above,
which a viewer asks for as one zooms. Ours go by way of the console's own service: who asks, which scan, the open slide.
OpenSlide's DeepZoomGenerator is measured as well; large_image when it is installed
(``pip install large-image large-image-source-tiff``).
"""

from __future__ import annotations

import importlib
import io
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from mhs_ray.bench import Benchmark, Say
from mhs_ray.bench.tiles import large_slide
from mhs_ray.domain.errors import MhsError
from mhs_ray.domain.models import Principal, Role
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.services.core import build_core
from mhs_ray.services.slide_views import SlideViews
from mhs_ray.slides.cache import SlideCache
from mhs_ray.slides.deepzoom import QUALITY, TILE, DeepZoom

SIZE: Final = (20_480, 15_360)
ROUNDS: Final = 5
TILES: Final = 200
TARGET_MS: Final = 20.0

Read = Callable[[int, int, int], bytes]
"""A deep-zoom level, column and row → the tile as JPEG."""


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Return p50 and p95 in ms of each reader, and ours to large_image's."""
    return measure(large_slide(settings.home / "cache" / "bench", SIZE, say), say, ROUNDS, TILES)


def measure(slide: Path, say: Say, rounds: int, tiles: int) -> dict[str, Any]:
    """Measure on `slide`; every reader reads the same `tiles` tiles in each round, after one that warms it."""
    home = Path(tempfile.mkdtemp(prefix="mhs-viewer-"))
    nowhere = "http://127.0.0.1:9"
    core = build_core(Settings(home=home), Endpoints(nowhere, nowhere, "127.0.0.1:9", "127.0.0.1:9", nowhere))

    def no_cache() -> SlideCache:
        raise MhsError("the slide is on this machine")

    views = SlideViews(core.scans, core.blobs, no_cache)
    try:
        who = Principal(core.clients.ensure_company("bench"), "bench", Role.LAB_USER, "bench")
        scan = core.scans.add_path(who, str(slide), "bench", None)
        facts = views.facts(who, scan.id)
        zoom = DeepZoom(facts.width, facts.height)
        readers: dict[str, Read] = {"ours": lambda n, x, y: views.tile(who, scan.id, n, x, y)}
        for name, make in (("large_image", _large_image), ("openslide", _openslide)):
            try:
                readers[name] = make(slide, zoom)
            except ImportError as error:
                say(f"{name} is left out: {error}")
        asked = _tiles(zoom, tiles)
        taken: dict[str, list[float]] = {name: [] for name in readers}
        for number in range(rounds + 1):
            for name, read in readers.items():
                for tile in asked:
                    begun = time.perf_counter()
                    read(*tile)
                    if number:  # the first round warms
                        taken[name].append((time.perf_counter() - begun) * 1000)
            say(f"round {number} of {rounds}" if number else "warm")
    finally:
        views.close()
        core.db.close()
        shutil.rmtree(home, ignore_errors=True)
    figures = {
        name: {"p50_ms": round(median(t), 2), "p95_ms": round(quantiles(t, n=20)[-1], 2)} for name, t in taken.items()
    }
    ours, peer = figures["ours"]["p95_ms"], figures.get("large_image", {}).get("p95_ms")
    other = figures.get("openslide", {}).get("p95_ms")
    return {
        "benchmark": "viewer", "slide": slide.name, "tiles": len(asked), "rounds": rounds, **figures,
        "target_ms": TARGET_MS, "within_target": ours < TARGET_MS,
        "ratio_of_p95_to_large_image": round(ours / peer, 3) if peer else None,
        "ratio_of_p95_to_openslide": round(ours / other, 3) if other else None,
    }  # fmt: skip


def _tiles(zoom: DeepZoom, count: int) -> list[tuple[int, int, int]]:
    """Half of them at full size, the others spread over the levels above down to those of one tile."""
    rng = random.Random(5)
    first = max(0, zoom.last - 6)
    found = []
    for i in range(count):
        level = zoom.last if i % 2 else rng.randint(first, zoom.last)
        size = zoom.size(level)
        # Whole tiles only: at the edges readers differ in what they send.
        across, down = max(1, size.width // TILE), max(1, size.height // TILE)
        found.append((level, rng.randrange(across), rng.randrange(down)))
    return found


def _large_image(slide: Path, zoom: DeepZoom) -> Read:
    source: Any = importlib.import_module("large_image_source_tiff").open(str(slide), jpegQuality=QUALITY)
    offset = zoom.last - (source.levels - 1)

    def read(level: int, column: int, row: int) -> bytes:
        source.cache.clear()  # it keeps the JPEGs it made; ours are kept by the browser
        return bytes(source.getTile(column, row, max(0, level - offset)))

    return read


def _openslide(slide: Path, _zoom: DeepZoom) -> Read:
    import openslide
    from openslide.deepzoom import DeepZoomGenerator

    generator = DeepZoomGenerator(openslide.OpenSlide(str(slide)), tile_size=TILE, overlap=0)

    def read(level: int, column: int, row: int) -> bytes:
        out = io.BytesIO()
        generator.get_tile(level, (column, row)).save(out, "JPEG", quality=QUALITY)
        return out.getvalue()

    return read


BENCHMARK: Final = Benchmark(
    "viewer", "milliseconds for a tile of the console's viewer beside large_image and OpenSlide's own generator", run
)
