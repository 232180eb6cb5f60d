"""One stable colour per class of annotation."""

from __future__ import annotations

import zlib
from typing import Final, TypeAlias

from PIL import ImageColor

Rgb: TypeAlias = tuple[int, int, int]

_KNOWN: Final[dict[str, Rgb]] = {"tumor": (255, 0, 0), "mitosis": (0, 60, 220), "positive": (200, 60, 0)}
_PALETTE: Final[tuple[Rgb, ...]] = (
    # Okabe–Ito without black and yellow (lost on glass), and dark tones: told apart on pink and violet tissue
    (0, 114, 178), (0, 158, 115), (213, 94, 0), (86, 180, 233), (230, 159, 0), (0, 0, 160), (0, 100, 0),
    (120, 0, 150), (139, 69, 19), (0, 130, 130),
)  # fmt: skip


def parse_color(value: object) -> Rgb | None:
    """Return the colour of ``"#ff0000"``, ``"red"`` or ``[255, 0, 0]``; None for anything else."""
    if isinstance(value, str) and len(value) <= 40:
        try:
            r, g, b, *_ = ImageColor.getrgb(value)
        except ValueError:
            return None
        return r, g, b
    if isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return value[0], value[1], value[2]
    return None


def class_color(name: str) -> Rgb:
    """Return the colour of a class, the same in every picture and export."""
    return _KNOWN.get(name.lower()) or _PALETTE[zlib.crc32(name.encode("utf-8", "replace")) % len(_PALETTE)]


def hex_color(color: Rgb) -> str:
    """Return ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*color)
