"""Reads a layer as a stream in bounded memory: decompression with limits, then the headers of its tar archive.

Python's own tarfile reads extended headers of any length into memory, keeps every member and guesses at damage; here
sizes are capped as Go's ``archive/tar`` (what the engines use) caps them, and what it would refuse is refused.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from mhs_ray.domain.errors import AdmissionError
from mhs_ray.registry.media import REBUILD

_BLOCK: Final = 512
_ZEROS: Final = bytes(_BLOCK)
_PIECE: Final = 1 << 20
_MAX_SPECIAL: Final = 1 << 20  # extended headers; Go's maxSpecialFileSize
_MAX_NAME: Final = 4096
_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
_HEADER_ONLY: Final = frozenset(
    {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE}
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a layer. size: bytes on disk once unpacked, with a sparse file's holes; stored: in the archive."""

    name: str
    type: bytes
    size: int
    stored: int
    mode: int
    linkname: str


def _damaged(what: str) -> AdmissionError:
    return AdmissionError(what, REBUILD)


def decompress(pieces: Iterator[bytes], compression: str) -> Iterator[bytes]:
    """Yield the tar bytes in pieces of at most 1 MiB. compression: ``none``, ``gzip`` or ``zstd``."""
    if compression == "gzip":
        return _gunzip(pieces)
    if compression == "zstd":
        return _unzstd(pieces)
    return _plain(pieces)


def _plain(pieces: Iterator[bytes]) -> Iterator[bytes]:
    first = True
    for piece in pieces:
        if first and piece:
            first = False
            # Engines look at the bytes, not at the declared type, and would unpack what we had not looked into.
            for magic, name in _MAGIC.items():
                if piece.startswith(magic):
                    raise _damaged(f"it is declared an uncompressed tar but holds {name} data")
        yield piece


def _gunzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    inflater = None
    members = 0
    for piece in pieces:
        data = piece
        while data:
            if inflater is None:
                inflater = zlib.decompressobj(31)
                members += 1
            while True:
                try:
                    out = inflater.decompress(data, _PIECE)
                except zlib.error:
                    raise _damaged("its gzip data is damaged, or it is no gzip at all") from None
                if out:
                    yield out
                data = inflater.unconsumed_tail
                if inflater.eof or (not data and len(out) < _PIECE):
                    break
            if inflater.eof:
                data, inflater = inflater.unused_data, None
    if inflater is not None or not members:
        raise _damaged("its gzip data ends too early")


def _unzstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.PythonFile(_Pieces(pieces), "r"), "zstd") as stream:
            while out := stream.read(_PIECE):
                yield out
    except OSError:
        raise _damaged("its zstd data is damaged, or it is no zstd at all") from None


class _Pieces(io.RawIOBase):
    """A file over pieces of bytes, for readers that pull."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; b"" at the end only."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        out, self._rest = self._rest[:size], self._rest[size:]
        return out


class _Reader:
    """Exact reads over pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._buffer, self._at = pieces, b"", 0

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer at the end of the stream only."""
        out = self._buffer[self._at : self._at + size]
        self._at += len(out)
        while len(out) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            need = size - len(out)
            out += piece[:need]
            self._buffer, self._at = piece, min(need, len(piece))
        return out

    def skip(self, size: int) -> None:
        left = size - (len(self._buffer) - self._at)
        if left <= 0:
            self._at += size
            return
        self._buffer, self._at = b"", 0
        while left > 0:
            piece = next(self._pieces, None)
            if piece is None:
                raise _damaged("its tar archive ends in the middle of a file")
            if len(piece) > left:
                self._buffer, self._at = piece, left
            left -= len(piece)

    def drain(self) -> None:
        self._buffer = b""
        for _ in self._pieces:
            pass


def entries(pieces: Iterator[bytes]) -> Iterator[Entry]:
    """Yield the members of a tar stream and read it to its very end. Raises AdmissionError when it is damaged."""
    reader = _Reader(pieces)
    extended: dict[str, str] = {}
    while True:
        block = reader.read(_BLOCK)
        if not block or block == _ZEROS:
            if block and reader.read(_BLOCK).strip(b"\0"):
                raise _damaged("its tar archive goes on after its end mark")
            break
        if len(block) < _BLOCK:
            raise _damaged("its tar archive ends in the middle of a header")
        try:
            head = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise _damaged("it is no tar archive, or a header in it is damaged") from None
        if head.type == tarfile.XHDTYPE:
            gnu: dict[str, str] = {key: extended[key] for key in ("gnu-path", "gnu-linkpath") if key in extended}
            extended = {**_pax_records(_special(reader, head.size)), **gnu}  # the last of two counts
        elif head.type == tarfile.XGLTYPE:
            _special(reader, head.size)  # engines ignore global headers
        elif head.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            key = "gnu-path" if head.type == tarfile.GNUTYPE_LONGNAME else "gnu-linkpath"
            extended[key] = _text(_special(reader, head.size).split(b"\0", 1)[0])
        else:
            entry = _entry(head, block, extended)
            extended = {}
            if head.type == tarfile.GNUTYPE_SPARSE:
                _skip_sparse_maps(reader, block)
            yield entry
            reader.skip(-(-entry.stored // _BLOCK) * _BLOCK)
    reader.drain()


def _entry(head: tarfile.TarInfo, block: bytes, extended: dict[str, str]) -> Entry:
    name = extended.get("gnu-path") or extended.get("GNU.sparse.name") or extended.get("path") or head.name
    link = extended.get("gnu-linkpath") or extended.get("linkpath") or head.linkname
    stored = _number(extended["size"]) if "size" in extended else head.size
    if stored < 0:
        raise _damaged("a file in it has a negative size")
    if head.type in _HEADER_ONLY:
        stored = 0
    real = extended.get("GNU.sparse.realsize") or extended.get("GNU.sparse.size")
    size = max(stored, _number(real)) if real else stored
    if head.type == tarfile.GNUTYPE_SPARSE:
        try:
            size = max(size, tarfile.nti(block[483:495]))  # type: ignore[attr-defined]
        except tarfile.HeaderError:
            raise _damaged("a sparse file in it has no size") from None
    if len(name) > _MAX_NAME or len(link) > _MAX_NAME:
        raise AdmissionError(f"a path in it is longer than {_MAX_NAME} characters", "Use shorter paths")
    return Entry(name, head.type, size, stored, head.mode, link)


def _special(reader: _Reader, size: int) -> bytes:
    if not 0 <= size <= _MAX_SPECIAL:
        raise _damaged("an extended header in it is longer than 1 MiB")
    data = reader.read(size)
    if len(data) < size:
        raise _damaged("its tar archive ends in the middle of a header")
    reader.skip(-size % _BLOCK)
    return data


def _skip_sparse_maps(reader: _Reader, block: bytes) -> None:
    more = block[482]
    while more:
        block = reader.read(_BLOCK)
        if len(block) < _BLOCK:
            raise _damaged("its tar archive ends in the middle of a header")
        more = block[504]


def _pax_records(data: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 10)
        length = _number(_text(data[at:space])) if space > 0 else 0
        record = data[space + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if length <= 0 or at + length > len(data) or not equals or not value.endswith(b"\n"):
            raise _damaged("an extended header in it is damaged")
        records[_text(key)] = _text(value[:-1])
        at += length
    return records


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise _damaged("a number in its tar archive is damaged")
    return int(text)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def measured(pieces: Iterator[bytes], on_piece: Callable[[bytes], object]) -> Iterator[bytes]:
    """Yield `pieces` and tell `on_piece` of each first; it may raise to stop."""
    for piece in pieces:
        on_piece(piece)
        yield piece
