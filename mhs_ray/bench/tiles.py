"""``mhs bench tiles``: our tiles beside the bare decoder and the other readers of slides, interleaved, in one run.

One-thread figures are tiles per second of CPU, which a busy machine changes little; figures on all cores are tiles per
second of wall time. Each figure is the median of some runs, each in a fresh process. Peers are measured when they are
installed (``pip install mhs-ray[bench]``); those whose pixels are not OpenSlide's do not count as exact.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Final

from mhs_ray.bench import Benchmark, Say
from mhs_ray.bench._tile_container import ensure_reading_image, feed_container
from mhs_ray.bench._tile_readers import EXACT, PEERS
from mhs_ray.bench._tile_remote import GIGABYTE, LINK_BYTES_PER_S, NoStorageError, line_seconds, measure_remote
from mhs_ray.domain.errors import MhsError
from mhs_ray.domain.settings import Settings
from mhs_ray.engines.select import pick_engine
from mhs_ray.slides.bands import cores
from mhs_ray.slides.demo import make_demo_slide
from mhs_ray.slides.plan import TileRequest
from mhs_ray.slides.tile_reader import open_tile_reader

FULL: Final = (40_960, 30_720)
QUARTER: Final = (20_480, 15_360)
ROUNDS: Final = 3
_TIMEOUT_S: Final = 600


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Return the figures; see the module and the keys below."""
    folder = settings.home / "cache" / "bench"
    return measure(settings, large_slide(folder, FULL, say), large_slide(folder, QUARTER, say), say, ROUNDS)


def large_slide(folder: Path, size: tuple[int, int], say: Say) -> Path:
    """Return a slide of `size`, made once."""
    path = folder / f"tiles-{size[0]}x{size[1]}.svs"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"making a slide of {size[0]} x {size[1]} pixels, once")
        make_demo_slide(path, *size, mpp=0.25, app_mag=40, seed=11)
    return path


def measure(
    settings: Settings, slide: Path, quarter: Path, say: Say, rounds: int, rows: int = 7680, sample: int = 600
) -> dict[str, Any]:
    """Measure everything on `slide`. rows: of level-0 pixels read per run. sample: tiles that slow peers read."""
    bench = _Bench(slide, say, rounds, rows, sample)
    found: dict[str, Any] = {"benchmark": "tiles", "cores": cores(), "rounds": rounds, "slide": slide.name}
    found["aligned256"] = bench.reading("aligned256", 256)
    found["unaligned224"] = bench.reading("unaligned224", 224)
    found["scaled"] = bench.reading("scaled", 256, mpp=0.5)
    found["tissue"] = bench.reading("tissue", 256, tissue=True)
    # What the decoder alone makes of the stored tiles: 0.77 of one for a tile of 224 pixels, four at half scale.
    limits = found["aligned256"]["medians"]
    for name, stored in (("aligned256", 1.0), ("unaligned224", (224 / 256) ** 2), ("scaled", 4.0)):
        medians = found[name]["medians"]
        for mode, suffix in (("one", ""), ("all", "_all_cores")):
            most = limits.get(f"limit_{mode}", 0) / stored
            found[name][f"ratio_to_limit{suffix}"] = _ratio(medians.get(f"ours_{mode}"), most)
            found[name][f"ratio_at_most{suffix}"] = _ratio(most, _fastest_exact(medians, f"_{mode}"))
            found[name][f"ratio_at_most_to_openslide{suffix}"] = _ratio(most, medians.get(f"openslide_{mode}"))
    scaled = found["scaled"]
    scaled["ratio_of_dct_to_fastest_exact_peer"] = _ratio(
        scaled["medians"].get("ours_dct_one"), _fastest_exact(scaled["medians"], "_one")
    )
    found["actors"] = bench.actors()
    found["container"] = bench.container(settings)
    found["remote"] = bench.remote()
    found["memory"] = bench.memory(quarter)
    return found


class _Bench:
    def __init__(self, slide: Path, say: Say, rounds: int, rows: int, sample: int) -> None:
        self._slide, self._say, self._rounds, self._rows, self._sample = slide, say, rounds, rows, sample
        with open_tile_reader(slide) as reader:
            self._width, self._height = reader.facts.width, reader.facts.height
        self._missing: set[str] = set()

    def reading(self, name: str, size: int, **more: Any) -> dict[str, Any]:
        """Ours and the peers, in one thread (per CPU second) and on all cores (wall)."""
        raw: dict[str, list[float]] = {}
        for number in range(self._rounds):
            self._say(f"{name}: round {number + 1} of {self._rounds}")
            for threads, mode, per in ((1, "one", "cpu_s"), (cores(), "all", "wall_s")):
                if name == "aligned256":
                    self._note(raw, f"limit_{mode}", per, kind="limit", size=size, threads=threads, **more)
                self._note(raw, f"ours_{mode}", per, kind="ours", size=size, threads=threads, **more)
                if "mpp" in more:
                    self._note(
                        raw, f"ours_dct_{mode}", per, kind="ours", size=size, threads=threads, scaling="dct", **more
                    )
                for peer in PEERS:
                    sample = self._sample if peer in ("openslide", "tiffslide", "fastslide", "large_image") else None
                    # A library's own tile cache only helps who reads neighbours, so all but the slow read all.
                    self._note(
                        raw, f"{peer}_{mode}", per, kind="peer", reader=peer, size=size, threads=threads,
                        sample=sample, **more,
                    )  # fmt: skip
        medians = {key: round(median(values), 1) for key, values in raw.items()}
        ours_one, ours_all = medians.get("ours_one"), medians.get("ours_all")
        return {
            "medians": medians,
            "raw": {k: [round(v, 1) for v in values] for k, values in raw.items()},
            "ratio_to_openslide": _ratio(ours_one, medians.get("openslide_one")),
            "ratio_to_openslide_all_cores": _ratio(ours_all, medians.get("openslide_all")),
            "ratio_to_fastest_exact_peer": _ratio(ours_one, _fastest_exact(medians, "_one")),
            "ratio_to_fastest_exact_peer_all_cores": _ratio(ours_all, _fastest_exact(medians, "_all")),
            "scaling_per_core": _ratio(ours_all, (ours_one or 0) * cores()),
        }

    def actors(self) -> dict[str, Any]:
        """The pool of reader actors, one per core, over the whole slide, in turns with the same tiles read here."""
        rates, local = [], []
        for number in range(self._rounds):
            self._say(f"actors: round {number + 1} of {self._rounds}")
            here = self._local()
            answer = _child("mhs_ray.actors.tile_bench", str(self._slide), "256", str(cores()))
            if "error" in answer or "error" in here:
                return answer if "error" in answer else here
            local.append(here["tiles"] / here["wall_s"])
            rates.append(answer["tiles"] / answer["wall_s"])
        return _flow(rates, local)

    def container(self, settings: Settings) -> dict[str, Any]:
        """The tile feed into a real container, in turns with the same tiles read here without one."""
        rates, local = [], []
        try:
            engine = pick_engine(settings.engine, docker_host=settings.docker_host)
            image = ensure_reading_image(engine)
            for number in range(self._rounds):
                self._say(f"container: round {number + 1} of {self._rounds}, by {engine.name}")
                # The feed reads the whole slide, whose share of background is its own: so does its local figure.
                here = self._local()
                if "error" in here:
                    return here
                local.append(here["tiles"] / here["wall_s"])
                with tempfile.TemporaryDirectory(prefix="mhs-bench-") as folder:
                    Path(folder).chmod(0o711)  # the container's user passes through
                    answer = feed_container(engine, image, self._slide, "size=256 drop-edges", Path(folder))
                rates.append(answer["tiles"] / answer["wall_s"])
        except MhsError as error:
            self._say(f"container is left out: {error}")
            return {"left_out": str(error)}
        return {"engine": engine.name, **_flow(rates, local)}

    def remote(self) -> dict[str, Any]:
        """From S3 over a line of 20 ms and 50 MB/s: the first tile of a 1 GB slide, and all tissue of this one."""
        try:
            found, peer = measure_remote(self._slide, self._rounds, self._say, self._fastest_peer)
        except NoStorageError as error:
            self._say(f"remote is left out: {error}")
            return {"left_out": str(error)}
        middle = {name: round(median(values), 3) for name, values in found.items()}
        both = median(d + r for d, r in zip(found["download_s"], found["read_s"], strict=True))
        gigabyte_s = GIGABYTE / LINK_BYTES_PER_S
        line_s, tissue_s = line_seconds(self._slide), median(found["tissue_s"])
        return {
            "medians": {**middle, "download_of_1_gb_s": gigabyte_s, "download_then_read_s": round(both, 2)},
            "raw": {name: [round(v, 3) for v in values] for name, values in found.items()},
            "peer": peer,
            "first_tile_share_of_download": round(median(found["first_tile_s"]) / gigabyte_s, 4),
            "ratio_to_download_then_read": _ratio(both, tissue_s),
            # What the line itself allows: the tissue's bytes at its bandwidth, with nothing before or after.
            "line_s": round(line_s, 2),
            "share_of_line": _ratio(line_s, tissue_s),
            "ratio_at_most": _ratio(both, line_s),
        }

    def memory(self, quarter: Path) -> dict[str, Any]:
        """The peak of a process that reads unaligned tiles within 128 MiB: of a slide, and of one four times as big."""
        peaks = {}
        for name, slide in (("1x", quarter), ("4x", self._slide)):
            self._say(f"memory: {name}")
            case = {"kind": "ours", "slide": str(slide), "size": 224, "threads": cores(), "memory": 128 << 20}
            peaks[name] = _child("mhs_ray.bench._tile_readers", json.dumps(case)).get("peak_bytes")
        ratio = _ratio(peaks["4x"], peaks["1x"])
        return {"setting_bytes": 128 << 20, "medians": peaks, "peak_bytes": peaks, "ratio_4x_to_1x": ratio}

    def _local(self, **more: Any) -> dict[str, Any]:
        """Stored tiles read on all cores and looked at by this process's caller."""
        case = {"kind": "ours", "slide": str(self._slide), "size": 256, "threads": cores(), "touch": True, **more}
        return _child("mhs_ray.bench._tile_readers", json.dumps(case))

    def _fastest_peer(self, slide: Path) -> tuple[float, str]:
        """Seconds of the fastest exact peer for all tissue tiles of a local file; OpenSlide's when no other is here.

        Finding the tissue, for which no peer has anything, is ours and counts for both.
        """
        for peer in ("cucim", "pyvips"):
            case = {"kind": "peer", "reader": peer, "slide": str(slide), "size": 256, "threads": cores()}
            answer = _child("mhs_ray.bench._tile_readers", json.dumps({**case, "tissue": True}))
            if "error" not in answer:
                return float(answer["wall_s"]) + float(answer["plan_s"]), peer
        case = {"kind": "peer", "reader": "openslide", "slide": str(slide), "size": 256, "threads": cores()}
        answer = _child("mhs_ray.bench._tile_readers", json.dumps({**case, "tissue": True, "sample": self._sample}))
        with open_tile_reader(slide) as reader:
            count = len(reader.plan(TileRequest(256, edge="drop"), tissue=True))
        return float(answer["wall_s"]) / answer["tiles"] * count + float(answer["plan_s"]), "openslide"

    def _note(self, raw: dict[str, list[float]], key: str, per: str, **case: Any) -> None:
        if key in self._missing:
            return
        whole = {"slide": str(self._slide), "width": self._width, "height": self._height, "rows": self._rows, **case}
        answer = _child("mhs_ray.bench._tile_readers", json.dumps(whole))
        if "error" in answer or not answer.get(per):
            self._missing.add(key)
            self._say(f"{key} is left out: {answer.get('error', 'it read nothing')}")
            return
        raw.setdefault(key, []).append(answer["tiles"] / answer[per])


def _fastest_exact(medians: dict[str, float], mode: str) -> float | None:
    return max((v for k, v in medians.items() if k.endswith(mode) and k.removesuffix(mode) in EXACT), default=None)


def _child(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module of ours in a fresh process and return the JSON of its last line."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], capture_output=True, timeout=_TIMEOUT_S, check=False
        )
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return {"error": type(error).__name__}
    return answer


def _flow(rates: list[float], local: list[float]) -> dict[str, Any]:
    return {
        "medians": {"tiles_per_s": round(median(rates), 1), "local": round(median(local), 1)},
        "raw": [round(r, 1) for r in rates],
        "raw_local": [round(v, 1) for v in local],
        "ratio_to_local": _ratio(median(rates), median(local)),
    }


def _ratio(ours: float | None, other: float | None) -> float | None:
    return round(ours / other, 3) if ours and other else None


BENCHMARK: Final = Benchmark(
    "tiles",
    "tiles a second: ours beside the bare JPEG decoder, OpenSlide, cuCIM, pyvips and others; through actors, into a "
    "container, from S3 over a slow line; and memory",
    run,
)
