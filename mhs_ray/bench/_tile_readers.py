"""One way to read tiles, measured in a fresh process: ``python -m mhs_ray.bench._tile_readers JSON`` prints JSON.

Every reader delivers RGB tiles as uint8 arrays of (n, height, width, 3), 64 at a time, which is what a model takes.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from mhs_ray.slides.bands import BatchLimits
from mhs_ray.slides.jpeg import TileDecoding
from mhs_ray.slides.plan import Box, TilePlan, TileRequest
from mhs_ray.slides.tiff import read_layout
from mhs_ray.slides.tile_reader import open_tile_reader

_BATCH: Final = 64
ReadOne = Callable[[int, int, int, NDArray[np.uint8]], None]
"""Reads the region at level-0 x, y with a side (in level-0 pixels) into a tile, shrunk to it by whole means."""


def request_of(case: dict[str, Any]) -> TileRequest:
    """Return what a case asks for: size, mpp, and how many rows of level-0 pixels from the middle of the slide."""
    region = None
    if case.get("rows"):
        top = max(0, (case["height"] - case["rows"]) // 2) // 256 * 256
        region = Box(0, top, case["width"], min(case["rows"], case["height"]))
    return TileRequest(
        size=case["size"], mpp=case.get("mpp"), region=region, edge="drop", scaling=case.get("scaling", "exact")
    )


def ours(case: dict[str, Any]) -> dict[str, Any]:
    """Read through our own bands, in the order that suits them. touch: look at every page, as who takes tiles does."""
    limits = BatchLimits(_BATCH, case["threads"], case.get("memory", 512 << 20), ordered=False)
    with open_tile_reader(case["slide"]) as reader:
        plan = reader.plan(request_of(case), tissue=case.get("tissue", False))

        def work() -> int:
            count = 0
            for batch in reader.batches(plan, limits):
                if case.get("touch"):
                    batch.pixels[:, ::5, 0, 0].max()  # a page has five rows and a third
                count += len(batch)
                batch.release()
            return count

        return timed(work)


def limit(case: dict[str, Any]) -> dict[str, Any]:
    """Decode the same stored tiles with nothing around: complete streams in memory, one hot buffer a thread."""
    page = read_layout(Path(case["slide"])).pages[0]
    decoding = TileDecoding(page.jpeg_tables, rgb=page.photometric == 2)
    with open_tile_reader(case["slide"]) as reader:
        plan = reader.plan(request_of(case))
    handle = os.open(case["slide"], os.O_RDONLY)
    numbers = plan.row // 256 * page.tiles_across + plan.column // 256
    streams = [decoding.complete(os.pread(handle, int(page.byte_counts[n]), int(page.offsets[n])))[0] for n in numbers]

    def part(mine: list[bytes]) -> int:
        out = np.empty((256, 256, 3), np.uint8)
        for stream in mine:
            simplejpeg.decode_jpeg(stream, "RGB", False, False, buffer=out)
        return len(mine)

    threads = case["threads"]
    return timed(lambda: _on_threads(threads, [streams[n::threads] for n in range(threads)], part))


def peer(case: dict[str, Any]) -> dict[str, Any]:
    """Read through another library: the same tiles into the same kind of batches. plan_s: how long the plan took."""
    begun = time.perf_counter()
    with open_tile_reader(case["slide"]) as reader:
        plan = reader.plan(request_of(case), tissue=case.get("tissue", False))
    plan_s = time.perf_counter() - begun
    if case.get("sample"):
        plan = plan.take(np.arange(0, len(plan), max(1, len(plan) // case["sample"])))
    make = PEERS[case["reader"]]
    make(case["slide"])  # imports and first openings are not measured
    threads = case["threads"]
    rows = np.arange(len(plan))
    side = round(plan.size.width * plan.factor)

    def part(mine: NDArray[np.int64]) -> int:
        read = make(case["slide"])
        for at in range(0, len(mine), _BATCH):
            some = mine[at : at + _BATCH]
            out = np.empty((len(some), plan.size.height, plan.size.width, 3), np.uint8)
            for index, tile in enumerate(some):
                read(int(plan.column[tile]), int(plan.row[tile]), side, out[index])
        return len(mine)

    pieces = [p for p in np.array_split(rows, threads) if len(p)]
    return {**timed(lambda: _on_threads(threads, pieces, part)), "plan_s": plan_s}


def _openslide(path: str) -> ReadOne:
    openslide: Any = importlib.import_module("openslide")
    slide = openslide.OpenSlide(path)

    def read(x: int, y: int, side: int, out: NDArray[np.uint8]) -> None:
        _shrunk(np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB")), out)

    return read


def _cucim(path: str) -> ReadOne:
    slide: Any = importlib.import_module("cucim").CuImage(path)

    def read(x: int, y: int, side: int, out: NDArray[np.uint8]) -> None:
        _shrunk(np.asarray(slide.read_region((x, y), (side, side), 0)), out)

    return read


def _pyvips(path: str) -> ReadOne:
    vips: Any = importlib.import_module("pyvips")
    vips.cache_set_max(0)
    region = vips.Region.new(vips.Image.tiffload(path, page=0))

    def read(x: int, y: int, side: int, out: NDArray[np.uint8]) -> None:
        _shrunk(np.frombuffer(region.fetch(x, y, side, side), np.uint8).reshape(side, side, 3), out)

    return read


def _tiffslide(path: str) -> ReadOne:
    slide: Any = importlib.import_module("tiffslide").TiffSlide(path)

    def read(x: int, y: int, side: int, out: NDArray[np.uint8]) -> None:
        _shrunk(slide.read_region((x, y), 0, (side, side), as_array=True), out)

    return read


def _fastslide(path: str) -> ReadOne:
    slide: Any = importlib.import_module("fastslide").FastSlide.from_file_path(path)

    def read(x: int, y: int, side: int, out: NDArray[np.uint8]) -> None:
        _shrunk(np.asarray(slide.read_region((x, y), 0, (side, side)))[..., :3], out)

    return read


def _large_image(path: str) -> ReadOne:
    slide: Any = importlib.import_module("large_image_source_tiff").open(path)

    def read(x: int, y: int, side: int, out: NDArray[np.uint8]) -> None:
        if side == 256 and not (x % 256 or y % 256):
            out[:] = slide.getTile(x // 256, y // 256, slide.levels - 1, numpyAllowed="always")[..., :3]
            return
        box = {"left": x, "top": y, "width": side, "height": side, "units": "base_pixels"}
        _shrunk(slide.getRegion(region=box, format="numpy")[0][..., :3], out)

    return read


def _opentile(path: str) -> ReadOne:
    tiler: Any = importlib.import_module("opentile").OpenTile.open(path)
    level = tiler.get_level(0)

    def read(x: int, y: int, side: int, out: NDArray[np.uint8]) -> None:
        if side != 256 or x % 256 or y % 256:
            raise NotImplementedError("opentile reads stored tiles only")
        out[:] = level.get_decoded_tile((x // 256, y // 256))

    return read


PEERS: Final[dict[str, Callable[[str], ReadOne]]] = {
    "openslide": _openslide,
    "cucim": _cucim,
    "pyvips": _pyvips,
    "tiffslide": _tiffslide,
    "fastslide": _fastslide,
    "large_image": _large_image,
    "opentile": _opentile,
}
EXACT: Final = frozenset({"openslide", "cucim", "pyvips", "tiffslide", "large_image", "opentile"})
"""Peers whose pixels are OpenSlide's; fastslide's differ by up to 33."""


def _shrunk(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    if pixels.shape == out.shape:
        out[:] = pixels
        return
    from PIL import Image

    out[:] = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).reduce(pixels.shape[0] // out.shape[0]))


def _on_threads(threads: int, pieces: list[Any], work: Callable[[Any], int]) -> int:
    if threads == 1:
        return sum(work(p) for p in pieces)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, pieces))


def timed(work: Callable[[], int]) -> dict[str, Any]:
    """Return tiles, wall and CPU seconds of `work`, and the process's peak memory."""
    cpu, wall = time.process_time(), time.perf_counter()
    tiles = work()
    return {
        "tiles": tiles,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """The peak of this program alone; what getrusage tells begins with the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


KINDS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "ours": ours,
    "limit": limit,
    "peer": peer,
}


def plan_of(case: dict[str, Any]) -> TilePlan:
    """Return the plan of a case."""
    with open_tile_reader(case["slide"]) as reader:
        return reader.plan(request_of(case), tissue=case.get("tissue", False))


def main(text: str) -> int:
    """Measure one case. A peer that is missing or fails says so and is left out."""
    case = json.loads(text)
    try:
        answer = KINDS[case["kind"]](case)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # some readers' threads do not end
