"""Read the log file that conmon keeps of a container (podman's ``k8s-file`` driver), to its end.

``podman logs -f`` loses lines across a rotation; this reader holds the old file open until it is read out.
Lines look like ``2026-01-01T00:00:00.000000000+00:00 stdout F text``; ``P`` marks a piece of a longer line.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path

from mhs_ray.ports import Stream

_PAUSE_S = 0.05
_BLOCK = 1 << 16


def parse(line: bytes) -> tuple[Stream, bytes] | None:
    """Return the stream and the raw bytes of one line of the file, None for a line that is damaged."""
    parts = line.split(b" ", 3)
    if len(parts) < 4 or parts[1] not in (b"stdout", b"stderr"):
        return None
    text = parts[3] + (b"\n" if parts[2] == b"F" else b"")
    return ("stdout" if parts[1] == b"stdout" else "stderr"), text


class Alive:
    """Says whether any of some processes that are not our children still runs."""

    def __init__(self, *pids: int | None) -> None:
        self._fds: list[int] = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    self._fds.append(os.pidfd_open(pid))

    def any(self, wait_s: float) -> bool:
        """Wait for an end, at most `wait_s`, then say whether one of them is left."""
        if self._fds:
            ended, _, _ = select.select(self._fds, [], [], wait_s)
            for fd in ended:
                os.close(fd)
                self._fds.remove(fd)
        return bool(self._fds)

    def close(self) -> None:
        """Let go of the processes."""
        while self._fds:
            os.close(self._fds.pop())


def follow(path: Path, alive: Alive) -> Iterator[tuple[Stream, bytes]]:
    """Yield all that is in the file at `path` and all that comes, until nothing of `alive` is left."""
    file = None
    left = b""
    try:
        last_round = False
        while True:
            if file is None:
                with contextlib.suppress(FileNotFoundError):
                    file = path.open("rb", buffering=0)
            block = file.read(_BLOCK) if file else b""
            if block:
                *lines, left = (left + block).split(b"\n")
                yield from (item for line in lines if (item := parse(line)))
            elif file is not None and _replaced(file.fileno(), path):
                # conmon wrote its last to the old file before it put the new one in its place.
                rest = file.read()
                *lines, left = (left + rest).split(b"\n")
                yield from (item for line in [*lines, left] if (item := parse(line)))
                left = b""
                file.close()
                file = None
            elif last_round:
                break
            else:
                last_round = not alive.any(_PAUSE_S)
        if left and (item := parse(left)):
            yield item
    finally:
        alive.close()
        if file is not None:
            file.close()


def _replaced(fd: int, path: Path) -> bool:
    try:
        return os.fstat(fd).st_ino != path.stat().st_ino
    except FileNotFoundError:
        return False


def skipping(pieces: Iterator[tuple[Stream, bytes]], done: dict[Stream, int]) -> Iterator[tuple[Stream, bytes]]:
    """Leave out the first ``done[stream]`` bytes of each stream: they were delivered before."""
    left = dict(done)
    for stream, data in pieces:
        cut = min(left.get(stream, 0), len(data))
        left[stream] = left.get(stream, 0) - cut
        if cut < len(data):
            yield stream, data[cut:]
