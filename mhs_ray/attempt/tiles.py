"""The tile feed beside a container that asked for it (``MHS_TILES``), and how far it is, told in the job's log."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final

import mhs_ray
from mhs_ray.domain.errors import BlobError
from mhs_ray.domain.tile_feed import SOCKET_VARIABLE
from mhs_ray.ports import BlobStore, Mount

log = logging.getLogger(__name__)

_TARGET: Final = "/run/mhs-tiles"
_MEMORY: Final = 512 << 20
_SAY_EVERY_S: Final = 15.0
_TELL_EVERY_S: Final = 2.0


def progress_key(job_id: int, attempt: int) -> str:
    """Return the key of the blob that tells how far an attempt's tiles are."""
    return f"jobs/{job_id}/attempts/{attempt}/tiles.json"


def read_progress(blobs: BlobStore, job_id: int, attempt: int) -> dict[str, Any] | None:
    """Return tiles `done` of `planned` and seconds left (`left_s`, None at first); None where no tiles are fed."""
    try:
        with blobs.open(progress_key(job_id, attempt)) as kept:
            found: dict[str, Any] = json.loads(kept.read())
    except (BlobError, ValueError):
        return None
    return found


class TileFeedProcess:
    """A process that serves `slide` in `folder` as long as this is open. spec: what MHS_TILES says, checked before.

    progress: tiles done and planned so far, and seconds left; {} before the plan is made. on_progress: told of it every
    few seconds.
    """

    def __init__(
        self, slide: Path, spec: str, folder: Path, threads: int, say: Callable[[str], None],
        on_progress: Callable[[dict[str, Any]], None] = lambda _progress: None,
    ) -> None:  # fmt: skip
        self._slide, self._spec, self._folder = slide, spec, folder
        self._threads, self._say, self._on_progress = threads, say, on_progress
        self.progress: dict[str, Any] = {}

    @property
    def mount(self) -> Mount:
        """The folder with the socket. A socket takes connections from a read-only mount, too."""
        return Mount(self._folder, _TARGET)

    @property
    def env(self) -> dict[str, str]:
        """What tells the container where the socket is."""
        return {SOCKET_VARIABLE: f"{_TARGET}/feed.sock"}

    def __enter__(self) -> TileFeedProcess:
        self._folder.mkdir(parents=True, exist_ok=True)
        root = Path(mhs_ray.__file__).resolve().parents[1]
        arguments = [str(self._slide), self._spec, str(self._folder), str(_MEMORY), str(self._threads)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mhs_ray.slides.feed", *arguments],
            env={"PYTHONPATH": str(root), "LC_ALL": "C.UTF-8", "HOME": str(self._folder)},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._ears = [
            threading.Thread(target=self._hear, name="tile progress", daemon=True),
            threading.Thread(target=self._hear_errors, name="tile errors", daemon=True),
        ]
        for ear in self._ears:
            ear.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for ear in self._ears:
            ear.join(5)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        if self.progress:
            self._say(f"tiles: {self.progress['done']} of {self.progress['planned']} were read")

    def _hear(self) -> None:
        assert self._process.stdout is not None
        following = telling = monotonic()
        for line in self._process.stdout:
            try:
                found = json.loads(line)
                done, planned = int(found["done"]), int(found["planned"])
            except (ValueError, KeyError, TypeError):
                continue
            first = not self.progress
            left = found.get("left_s")
            left = round(left, 1) if isinstance(left, int | float) else None
            self.progress = {"done": done, "planned": planned, "left_s": left}
            if monotonic() >= telling or done >= planned:
                self._on_progress(self.progress)
                telling = monotonic() + _TELL_EVERY_S
            if first:
                self._say(f"tiles: {planned} planned")
            elif monotonic() >= following and done < planned:
                rest = f", {left:.0f} s left" if left is not None else ""
                self._say(f"tiles: {done} of {planned}{rest}")
                following = monotonic() + _SAY_EVERY_S

    def _hear_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            log.warning("tile feed: %s", line.decode("utf-8", "replace").rstrip()[:500])
