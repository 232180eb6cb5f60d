"""Finding one's way in a stored log: how long it is, and which lines hold a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mhs_ray.attempt.logbook import log_prefix
from mhs_ray.ports import BlobStore


@dataclass(frozen=True, slots=True)
class Hits:
    """Numbers of the lines that hold the text, in order. more: there are others beyond the last one."""

    lines: list[int]
    more: bool


def count_lines(blobs: BlobStore, job_id: int, attempt: int) -> int:
    """Return how many lines of an attempt's log are stored now."""
    last = None
    for piece in _pieces(blobs, job_id, attempt):
        last = piece
    if last is None:
        return 0
    key, first = last
    with blobs.open(key) as stored:
        return first + sum(data.count(b"\n") for data in iter(lambda: stored.read(1 << 20), b""))


def search_log(blobs: BlobStore, job_id: int, attempt: int, text: str, *, start: int = 0, limit: int = 5000) -> Hits:
    """Return the lines from number `start` on that hold `text`, in capitals or not; times are not searched."""
    wanted = text.casefold()
    found: list[int] = []
    pieces = list(_pieces(blobs, job_id, attempt))
    for i, (key, first) in enumerate(pieces):
        if i + 1 < len(pieces) and pieces[i + 1][1] <= start:
            continue
        with blobs.open(key) as stored:
            whole = stored.read().decode("utf-8", "replace")
        if wanted not in whole.casefold():
            continue
        for number, line in enumerate(whole.split("\n")[:-1], start=first):
            if number >= start and wanted in line.split(" ", 2)[-1].casefold():
                if len(found) == limit:
                    return Hits(found, more=True)
                found.append(number)
    return Hits(found, more=False)


def _pieces(blobs: BlobStore, job_id: int, attempt: int) -> Iterator[tuple[str, int]]:
    """Yield (key, number of its first line) in order: the number is written with 12 digits."""
    prefix = log_prefix(job_id, attempt)
    for info in blobs.list(prefix):
        yield info.key, int(info.key.removeprefix(prefix))
