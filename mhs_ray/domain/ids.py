"""Techcyte's ids: a plain integer or base64 of ``kind:integer``; both name the same thing."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from mhs_ray.domain.errors import InvalidInputError

OWN_IDS_FROM: Final = 1_000_000_000
"""Tasks and scans that are made here count from a billion, far above Techcyte's, so both can share a company."""

_MAX_ID: Final = (1 << 53) - 1  # what a JSON reader may hold exactly


def parse_id(text: str, kind: str, path: str = "$") -> int:
    """Return the integer of ``185714`` or of ``dGFzazoxODU3MTQ=`` (``task:185714``).

    kind: the word before the colon, e.g. ``task`` or ``humanCase``. Raises InvalidInputError at `path`.
    """
    text = text.strip()
    digits = text
    if not (text.isascii() and text.isdigit()):
        try:
            decoded = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            decoded = ""
        word, _, digits = decoded.partition(":")
        if word != kind:
            digits = ""
    if not (digits.isascii() and digits.isdigit()) or not 0 < int(digits[:20]) <= _MAX_ID or len(digits) > 20:
        raise InvalidInputError.at(
            path, f"{text[:60]!r} is no {kind} id: give a positive integer, or base64 of '{kind}:<integer>'"
        )
    return int(digits)


def encode_id(kind: str, number: int) -> str:
    """Return Techcyte's base64 form, e.g. ``task``, 185714 → ``dGFzazoxODU3MTQ=``."""
    return base64.b64encode(f"{kind}:{number}".encode()).decode()
