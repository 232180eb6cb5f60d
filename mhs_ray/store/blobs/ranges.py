"""The Range header of RFC 9110, as far as a blob server needs it: one range of bytes."""

from __future__ import annotations

import re
from typing import Final

_ONE_RANGE: Final = re.compile(r"bytes=\s*(\d{1,18})?-(\d{1,18})?\s*", re.ASCII | re.IGNORECASE)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII | re.IGNORECASE)


class NotSatisfiableError(Exception):
    """A range that lies outside the blob: 416."""


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the bytes [start, end) asked of a blob of `size` bytes.

    None for what the RFC lets a server ignore, whole blob then: another unit, several ranges, last before first.
    Raises NotSatisfiableError.
    """
    match = _ONE_RANGE.fullmatch(header)
    if match is None or match.group(1) is match.group(2) is None:
        return None
    first, last = match.groups()
    if first is None:
        suffix = int(last)
        if suffix == 0 or size == 0:
            raise NotSatisfiableError
        return max(0, size - suffix), size
    start = int(first)
    if last is not None and int(last) < start:
        return None
    if start >= size:
        raise NotSatisfiableError
    return start, size if last is None else min(int(last) + 1, size)


def parse_content_range(header: str) -> tuple[int, int, int] | None:
    """Return start, end (exclusive) and total of a piece being uploaded; None when the header makes no sense."""
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        return None
    start, end, total = int(match.group(1)), int(match.group(2)) + 1, int(match.group(3))
    return (start, end, total) if start < end <= total else None
