"""Finding lines in a stored log without reading what cannot hold them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhs_ray.attempt.log_search import count_lines, search_log
from mhs_ray.attempt.logbook import log_prefix
from mhs_ray.store.blobs.local import LocalBlobs, LocalLimits


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path, "http://127.0.0.1:1", b"k" * 32, LocalLimits(min_free_bytes=0))


def _piece(blobs: LocalBlobs, first: int, *texts: str) -> None:
    lines = "".join(f"2026-01-01T00:00:00.000000Z o {text}\n" for text in texts)
    blobs.put(f"{log_prefix(7, 1)}{first:012d}", lines.encode())


def test_a_log_without_pieces_has_no_lines(blobs: LocalBlobs) -> None:
    assert count_lines(blobs, 7, 1) == 0
    assert search_log(blobs, 7, 1, "x").lines == []


def test_lines_are_counted_by_the_last_piece_alone(blobs: LocalBlobs) -> None:
    _piece(blobs, 0, "a", "b")
    _piece(blobs, 2, "c")
    _piece(blobs, 900_000_000, "d", "e", "f")
    assert count_lines(blobs, 7, 1) == 900_000_003
    assert count_lines(blobs, 7, 2) == 0


def test_capitals_do_not_matter_and_times_are_not_searched(blobs: LocalBlobs) -> None:
    _piece(blobs, 0, "Loss is NaN", "epoch 2026", "straße")
    assert search_log(blobs, 7, 1, "nan").lines == [0]
    assert search_log(blobs, 7, 1, "2026").lines == [1]
    assert search_log(blobs, 7, 1, "STRASSE").lines == [2]
    assert search_log(blobs, 7, 1, " o ").lines == []


def test_a_search_can_go_on_and_says_when_it_was_cut(blobs: LocalBlobs) -> None:
    for first in range(0, 30, 10):
        _piece(blobs, first, *(f"hit {i}" if i % 2 else "miss" for i in range(first, first + 10)))
    assert search_log(blobs, 7, 1, "hit", start=17).lines == [17, 19, 21, 23, 25, 27, 29]
    cut = search_log(blobs, 7, 1, "hit", limit=3)
    assert (cut.lines, cut.more) == ([1, 3, 5], True)
    exact = search_log(blobs, 7, 1, "hit", limit=15)
    assert (len(exact.lines), exact.more) == (15, False)


def test_bytes_that_are_no_text_do_no_harm(blobs: LocalBlobs) -> None:
    blobs.put(f"{log_prefix(7, 1)}{0:012d}", b"2026-01-01T00:00:00Z o \xff\xfe needle\n")
    assert search_log(blobs, 7, 1, "needle").lines == [0]
