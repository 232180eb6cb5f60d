"""Make a TIFF's JPEG tile a stream of its own that every decoder takes the same way.

A tile may lack its tables (they are in the JPEGTables tag), and what its components mean is said by the TIFF's
Photometric tag, which a decoder never sees: Aperio stores RGB without an Adobe marker, and a plain decoder takes that
for YCbCr (pink and green). So markers that speak of colour are dropped, and one Adobe marker with the tag's word is
put in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mhs_ray.domain.errors import SlideError

_SOI: Final = b"\xff\xd8"
_EOI: Final = b"\xff\xd9"
_APP0, _APP14, _SOS = 0xE0, 0xEE, 0xDA
_SOF: Final = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: what libjpeg decodes to 8 bits
_OTHER_SOF: Final = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})


@dataclass(frozen=True, slots=True)
class JpegHead:
    """Facts of the frame header. sampling: (horizontal, vertical) factors of each component."""

    width: int
    height: int
    bits: int
    sampling: tuple[tuple[int, int], ...]


class TileDecoding:
    """Turns the tiles of one TIFF directory into complete streams. rgb: the Photometric tag says RGB, else YCbCr."""

    def __init__(self, tables: bytes | None, *, rgb: bool) -> None:
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x00" if rgb else b"\x01")
        self._prefix = _SOI + adobe
        if tables:
            if tables[:2] != _SOI:
                raise SlideError("unreadable", "a JPEGTables tag does not start as JPEG does")
            body, _, _ = _segments(tables.removesuffix(_EOI) + b"\xff\xda", "a JPEGTables tag")
            self._prefix += body
        self._last: tuple[bytes, bytes, JpegHead] | None = None  # a stored head, what becomes of it, its facts

    def complete(self, tile: bytes) -> tuple[bytes, JpegHead]:
        """Return `tile` as a whole stream, and its size. Raises SlideError (``unreadable``) when it is no JPEG."""
        last = self._last  # all tiles of a scanner begin alike, so their heads are taken apart once
        if last is not None and tile.startswith(last[0]):
            return last[1] + tile[len(last[0]) :], last[2]
        body, head, scan = _segments(tile, "a tile")
        if head is None:
            raise SlideError("unreadable", "a JPEG tile has no frame header")
        stream = self._prefix + body
        if scan + 2 < len(tile):
            self._last = (tile[: scan + 2], stream[: len(stream) - (len(tile) - scan - 2)], head)
        return stream, head


def _segments(data: bytes, what: str) -> tuple[bytes, JpegHead | None, int]:
    """Return `data` without SOI, APP0 and APP14, scan included, the frame header if any, and where the scan begins."""
    if data[:2] != _SOI:
        raise SlideError("unreadable", f"{what} is no JPEG")
    kept: list[bytes] = []
    head: JpegHead | None = None
    at = 2
    while True:
        if at + 2 > len(data) or data[at] != 0xFF:
            raise SlideError("unreadable", f"{what} is damaged: its JPEG markers end at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == _SOS:
            if at + 2 < len(data):
                kept.append(data[at:])
            return b"".join(kept), head, at
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at : at + 2 + length]
        if length < 2 or len(segment) != 2 + length:
            raise SlideError("unreadable", f"{what} is damaged: a JPEG segment at byte {at} is cut off")
        if marker in _OTHER_SOF:
            raise SlideError("unreadable", f"{what} is of a JPEG kind that is not decoded here (SOF{marker - 0xC0})")
        if marker in _SOF:
            head = _frame(segment, what)
        if marker not in (_APP0, _APP14):
            kept.append(segment)
        at += 2 + length


def _frame(segment: bytes, what: str) -> JpegHead:
    if len(segment) < 10 or len(segment) != 10 + 3 * segment[9]:
        raise SlideError("unreadable", f"{what} is damaged: its JPEG frame header has a wrong length")
    factors = [segment[11 + 3 * i] for i in range(segment[9])]
    return JpegHead(
        width=int.from_bytes(segment[7:9], "big"),
        height=int.from_bytes(segment[5:7], "big"),
        bits=segment[4],
        sampling=tuple((f >> 4, f & 15) for f in factors),
    )
