"""The tile feed in a process of its own: decoders are C, and slides are strangers' files.

``python -m mhs_ray.slides.feed SLIDE SPEC FOLDER MEMORY THREADS`` serves until its standard input ends, and writes a
line of JSON per second at most: {"done": …, "planned": …, "left_s": …}.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from mhs_ray.domain.tile_feed import parse_tile_feed
from mhs_ray.slides.feed.server import FeedServer
from mhs_ray.slides.tile_reader import open_tile_reader


class _Teller:
    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, done: int, planned: int, left_s: float | None) -> None:
        now = time.monotonic()
        if now >= self._next or done == planned:
            self._next = now + 1
            sys.stdout.write(json.dumps({"done": done, "planned": planned, "left_s": left_s}) + "\n")
            sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Serve until standard input ends."""
    slide, spec, folder, memory, threads = arguments
    logging.basicConfig(level=logging.WARNING)
    server = FeedServer(
        lambda: open_tile_reader(slide, name=Path(slide).name),
        parse_tile_feed(spec),
        Path(folder),
        memory_bytes=int(memory),
        threads=int(threads),
        on_progress=_Teller(),
    )
    with server:
        sys.stdin.buffer.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
