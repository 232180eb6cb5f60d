"""What a blob's key and a signed URL's life may be: the same on every store."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from mhs_ray.domain.errors import BlobError

MAX_KEY_LENGTH: Final = 1024
"""S3's own limit."""
MAX_EXPIRY: Final = timedelta(days=7)
"""S3's limit for signature version 4."""
_SEGMENT: Final = re.compile(r"[A-Za-z0-9!$&'()*+,;=:@ ._~-]{1,255}")


def split_key(key: str) -> list[str]:
    """Return the segments of `key`. Raises BlobError unless each is a plain ASCII file name, not ``.`` or ``..``."""
    segments = key.split("/")
    if len(key) > MAX_KEY_LENGTH or not all(_SEGMENT.fullmatch(s) and s not in {".", ".."} for s in segments):
        raise BlobError(
            f"{key[:120]!r} is no blob key: use up to {MAX_KEY_LENGTH} characters of ASCII letters, digits and "
            "punctuation in segments joined by single slashes, none of them '.' or '..'"
        )
    return segments


def check_expiry(expires_in: timedelta) -> int:
    """Return `expires_in` in whole seconds. Raises BlobError outside 1 s to 7 days."""
    seconds = int(expires_in.total_seconds())
    if not 1 <= seconds <= MAX_EXPIRY.total_seconds():
        raise BlobError(f"a signed URL cannot live for {expires_in}: choose 1 second to 7 days")
    return seconds


def check_range(key: str, start: int, end: int | None) -> None:
    """Raises BlobError unless 0 ≤ start ≤ end."""
    if start < 0 or (end is not None and end < start):
        raise BlobError(f"cannot read bytes {start} to {end} of blob {key}: give 0 ≤ start ≤ end")
