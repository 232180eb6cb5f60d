"""The tile pool, measured for ``mhs bench tiles``: ``python -m mhs_ray.actors.tile_bench SLIDE SIZE READERS``."""

from __future__ import annotations

import json
import logging
import sys
import time

import ray

from mhs_ray.actors.tile_readers import TileSlide
from mhs_ray.actors.tiles import PoolOptions, TilePool
from mhs_ray.slides.plan import TileRequest


def main(arguments: list[str]) -> int:
    """Print {"tiles", "wall_s"} once the readers are there, planning included; every page of every tile is touched."""
    slide, size, readers = arguments[0], *(int(v) for v in arguments[1:3])
    request = TileRequest(size, edge="drop")
    ray.init(num_cpus=readers, include_dashboard=False, logging_level=logging.ERROR, address="local")
    try:
        with TilePool([TileSlide(slide)], request, PoolOptions(readers=readers)) as pool:
            pool.wait_for_readers()
            begun, count = time.perf_counter(), 0
            for batch in pool.batches():
                batch.pixels[:, ::5, 0, 0].max()  # a page has five rows and a third
                count += len(batch)
            wall = time.perf_counter() - begun
    finally:
        ray.shutdown()
    sys.stdout.write("\n" + json.dumps({"tiles": count, "wall_s": wall}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
