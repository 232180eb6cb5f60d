"""A TIFF's directories, read once, with a bound on everything a hostile file can choose.

Only what finding and decoding tiles needs is read; pixels are not touched. Classic TIFF, BigTIFF, and NDPI (classic
with 64-bit directory pointers). Facts: TIFF 6.0; the BigTIFF design; OpenSlide's tifflike reader for NDPI's offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.bytesource import ByteSource, LocalFile

MAX_PAGES: Final = 2_000
MAX_ENTRIES: Final = 2_000
MAX_VALUE_BYTES: Final = 64 << 20  # eight million tile offsets
_SCALAR_VALUES: Final = 64

_DTYPES: Final = {
    1: "u1",
    2: "u1",
    3: "u2",
    4: "u4",
    6: "i1",
    7: "u1",
    8: "i2",
    9: "i4",
    13: "u4",
    16: "u8",
    17: "i8",
    18: "u8",
}
_ITEM_BYTES: Final = {**{k: int(v[1]) for k, v in _DTYPES.items()}, 5: 8, 10: 8, 11: 4, 12: 8}

SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 259, 262, 270
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, SUB_IFDS = 322, 323, 324, 325, 330
JPEG_TABLES, SUBSAMPLING, NDPI_FORMAT = 347, 530, 65420
FILL_ORDER, ORIENTATION, PREDICTOR, EXTRA_SAMPLES, SAMPLE_FORMAT, ICC, DEPTH = 266, 274, 317, 338, 339, 34675, 32997
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
_ICC_BYTES: Final = 8 << 20

_WANTED: Final = frozenset(
    {
        SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP,
        STRIP_COUNTS, PLANAR, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, SUB_IFDS, JPEG_TABLES, SUBSAMPLING,
        FILL_ORDER, ORIENTATION, PREDICTOR, EXTRA_SAMPLES, SAMPLE_FORMAT, DEPTH,
        X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT,
    }
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TiffPage:
    """One directory. offsets, byte_counts: of its tiles (or strips) in row-major order; a count of 0 is a sparse tile.

    tile_width, tile_height: of a strip page, the page's width and the rows per strip. is_plain: unsigned samples, in
    the usual order, upright, without alpha or depth. resolution: x and y in pixels per `resolution_unit` (2 inch,
    3 cm). icc: offset and length of the profile. in_chain: in the main chain of directories, not a SubIFD.
    """

    index: int
    width: int
    height: int
    tiled: bool
    tile_width: int
    tile_height: int
    compression: int
    photometric: int
    samples: int
    bits: tuple[int, ...]
    planar: int
    subfile: int
    subsampling: tuple[int, ...]
    description: str
    jpeg_tables: bytes | None
    offsets: NDArray[np.uint64]
    byte_counts: NDArray[np.uint64]
    is_plain: bool = True
    predictor: int = 1
    resolution: tuple[float, float] | None = None
    resolution_unit: int = 2
    icc: tuple[int, int] | None = None
    in_chain: bool = True

    @property
    def tiles_across(self) -> int:
        """Tiles in one row."""
        return -(-self.width // self.tile_width)

    @property
    def tiles_down(self) -> int:
        """Rows of tiles."""
        return -(-self.height // self.tile_height)

    @property
    def tiles_expected(self) -> int:
        """How many tiles (or strips) the dimensions call for, over all planes."""
        return self.tiles_across * self.tiles_down * (self.samples if self.planar == 2 else 1)


@dataclass(frozen=True, eq=False)
class TiffLayout:
    """All directories of a file, main chain first, then SubIFDs; `size` is the file's length in bytes."""

    size: int
    big_endian: bool
    bigtiff: bool
    ndpi: bool
    pages: tuple[TiffPage, ...]


def read_layout(path: Path) -> TiffLayout:
    """Read the directories of `path`. Raises SlideError: ``truncated``, ``unreadable``, ``bomb``, ``not-a-slide``."""
    file = LocalFile(path)
    try:
        return parse_layout(file)
    finally:
        file.close()


def parse_layout(source: ByteSource) -> TiffLayout:
    """Read the directories of `source`; see `read_layout`."""
    return _Parser(source).parse()


class _Parser:
    def __init__(self, source: ByteSource) -> None:
        self._file, self._name = source, source.name
        self._size = source.size
        self._ndpi = False

    def parse(self) -> TiffLayout:
        head = self._read(0, 16 if self._size >= 16 else 8, "its header")
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None:
            raise SlideError("not-a-slide", f"{self._name} is no TIFF")
        self._order = order
        version = self._int(head[2:4])
        self._big = version == 43
        if version not in (42, 43) or (self._big and (len(head) < 16 or self._int(head[4:6]) != 8)):
            raise SlideError("not-a-slide", f"{self._name} has a TIFF header of unknown version {version}")
        first = self._int(head[8:16]) if self._big else self._int(head[4:8])
        pages: list[TiffPage] = []
        seen: set[int] = set()
        subs: list[int] = []
        offset = first
        while offset:
            page, offset_next, sub = self._directory(offset, len(pages), seen)
            pages.append(page)
            subs += sub
            offset = offset_next
        for sub_offset in subs:
            page, _, _ = self._directory(sub_offset, len(pages), seen, in_chain=False)
            pages.append(page)
        if not pages:
            raise SlideError("truncated", f"{self._name} has a TIFF header but no images; its upload was cut off")
        return TiffLayout(self._size, order == ">", self._big, self._ndpi, tuple(pages))

    def _directory(
        self, offset: int, index: int, seen: set[int], *, in_chain: bool = True
    ) -> tuple[TiffPage, int, list[int]]:
        if offset in seen:
            raise SlideError("unreadable", f"{self._name} is damaged: its image directories form a loop")
        seen.add(offset)
        if index >= MAX_PAGES:
            raise SlideError("bomb", f"{self._name} has more than {MAX_PAGES} image directories")
        what = f"the directory of image {index}"
        count_bytes, entry_bytes = (8, 20) if self._big else (2, 12)
        count = self._int(self._read(offset, count_bytes, what))
        if not 0 < count <= MAX_ENTRIES:
            raise SlideError("unreadable", f"{self._name} is damaged: {what} claims {count} entries")
        body = self._read(offset + count_bytes, count * entry_bytes, what)
        tags: dict[int, bytes] = {}
        kinds: dict[int, tuple[int, int]] = {}
        for at in range(0, len(body), entry_bytes):
            entry = body[at : at + entry_bytes]
            tag = self._int(entry[:2])
            if tag == NDPI_FORMAT and not self._big:
                self._ndpi = True
            kinds[tag] = (self._int(entry[2:4]), self._int(entry[4:12] if self._big else entry[4:8]))
            tags[tag] = entry[12:20] if self._big else entry[8:12]
        pointer_bytes = 8 if self._big or self._ndpi else 4
        following = self._read(offset + count_bytes + len(body), pointer_bytes, what)
        page, sub = self._page(offset, index, tags, kinds, in_chain)
        return page, self._int(following), sub

    def _page(
        self,
        offset: int,
        index: int,
        tags: dict[int, bytes],
        kinds: dict[int, tuple[int, int]],
        in_chain: bool,
    ) -> tuple[TiffPage, list[int]]:
        values: dict[int, NDArray[np.uint64]] = {}
        raw: dict[int, bytes] = {}
        for tag in _WANTED & tags.keys():
            kind, count = kinds[tag]
            data = self._value(offset, index, tag, kind, count, tags[tag])
            raw[tag] = data
            if kind in _DTYPES:
                values[tag] = np.frombuffer(data, np.dtype(self._order + _DTYPES[kind])).astype(np.uint64)

        def one(tag: int, default: int | None = None) -> int:
            found = values.get(tag)
            if found is not None and len(found):
                return int(found[0])
            if default is None:
                raise SlideError("unreadable", f"{self._name} is damaged: image {index} lacks TIFF tag {tag}")
            return default

        def many(tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
            found = values.get(tag)
            return default if found is None else tuple(int(v) for v in found[:_SCALAR_VALUES])

        width, height = one(WIDTH), one(LENGTH)
        tiled = TILE_OFFSETS in values
        tile_width = one(TILE_WIDTH) if tiled else width
        tile_height = one(TILE_LENGTH) if tiled else min(one(ROWS_PER_STRIP, height), height)
        if not (width and height and tile_width and tile_height):
            raise SlideError("unreadable", f"{self._name} is damaged: image {index} has a side of 0 pixels")
        none = np.empty(0, np.uint64)
        offsets = values.get(TILE_OFFSETS if tiled else STRIP_OFFSETS, none)
        if self._ndpi:
            offsets = _ndpi_offsets(offset, offsets)
        page = TiffPage(
            index=index,
            width=width,
            height=height,
            tiled=tiled,
            tile_width=tile_width,
            tile_height=tile_height,
            compression=one(COMPRESSION, 1),
            photometric=one(PHOTOMETRIC, 0),
            samples=one(SAMPLES, 1),
            bits=many(BITS, (1,)),
            planar=one(PLANAR, 1),
            subfile=one(SUBFILE, 0),
            subsampling=many(SUBSAMPLING, (2, 2)),
            description=raw.get(DESCRIPTION, b"").split(b"\0")[0][:65536].decode("utf-8", "replace"),
            jpeg_tables=raw.get(JPEG_TABLES),
            offsets=offsets,
            byte_counts=values.get(TILE_COUNTS if tiled else STRIP_COUNTS, none),
            is_plain=(one(FILL_ORDER, 1), one(ORIENTATION, 1), one(DEPTH, 1)) == (1, 1, 1)
            and set(many(SAMPLE_FORMAT, (1,))) == {1}
            and EXTRA_SAMPLES not in values,
            predictor=one(PREDICTOR, 1),
            resolution=self._resolution(raw, kinds),
            resolution_unit=one(RESOLUTION_UNIT, 2),
            icc=self._blob(tags, kinds, ICC),
            in_chain=in_chain,
        )
        return page, [int(v) for v in values.get(SUB_IFDS, none)[:_SCALAR_VALUES]]

    def _resolution(self, raw: dict[int, bytes], kinds: dict[int, tuple[int, int]]) -> tuple[float, float] | None:
        found = []
        for tag in (X_RESOLUTION, Y_RESOLUTION):
            data = raw.get(tag, b"")
            if kinds.get(tag, (0, 0))[0] != 5 or len(data) < 8:
                return None
            above, below = self._int(data[:4]), self._int(data[4:8])
            if not above or not below:
                return None
            found.append(above / below)
        return found[0], found[1]

    def _blob(self, tags: dict[int, bytes], kinds: dict[int, tuple[int, int]], tag: int) -> tuple[int, int] | None:
        """Return where a long value lies, without reading it; None when it is absent, tiny or absurd."""
        kind, count = kinds.get(tag, (0, 0))
        inline = 8 if self._big else 4
        if kind not in (1, 7) or self._ndpi or not inline < count <= _ICC_BYTES:
            return None
        return self._int(tags[tag]), count

    def _value(self, offset: int, index: int, tag: int, kind: int, count: int, inline: bytes) -> bytes:
        length = _ITEM_BYTES.get(kind, 1) * count
        if length <= len(inline):
            return inline[:length]
        what = f"TIFF tag {tag} of image {index}"
        if length > MAX_VALUE_BYTES:
            raise SlideError("bomb", f"{self._name}: {what} claims {length} bytes; at most {MAX_VALUE_BYTES} are read")
        at = self._int(inline)
        if self._ndpi:
            at = int(_ndpi_offsets(offset, np.array([at], np.uint64))[0])
        return self._read(at, length, what)

    def _int(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self._order == "<" else "big")

    def _read(self, offset: int, length: int, what: str) -> bytes:
        if offset + length > self._size:
            raise SlideError(
                "truncated",
                f"{self._name} is cut off or damaged: {what} lies at byte {offset}, but the file ends at byte "
                f"{self._size}; upload it again",
            )
        return self._file.read(offset, length)


def _ndpi_offsets(directory: int, offsets: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """NDPI stores 32 bits of an offset; the data always lies before its directory (as OpenSlide assumes)."""
    high = np.uint64(directory & ~0xFFFFFFFF)
    full = (offsets & np.uint64(0xFFFFFFFF)) | high
    if high:
        full = np.where(full > np.uint64(directory), full - np.uint64(1 << 32), full)
    return full.astype(np.uint64)
