"""What a file is, by its content: presigned URLs seldom keep a useful extension."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import SlideError

_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06")
_KNOWN: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xff\xd8\xff", "a plain JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"%PDF", "a PDF document"),
    (b"<?xml", "an XML document (an error page of the storage?)"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BM", "a BMP image"),
)


class Kind(StrEnum):
    """What kind of container a file is."""

    TIFF = "tiff"
    DICOM = "dicom"
    ZIP = "zip"
    FOLDER = "folder"
    OTHER = "other"


def sniff(path: Path) -> Kind:
    """Return the kind of `path`. Raises SlideError (``not-a-slide``) when it is empty, missing or no plain file."""
    if path.is_dir():
        return Kind.FOLDER
    if not path.is_file():
        raise SlideError("not-a-slide", f"{path.name} is no file")
    head = _head(path)
    if not head:
        raise SlideError("not-a-slide", f"{path.name} is empty")
    return kind_of(head)


def kind_of(head: bytes) -> Kind:
    """Return what a file is whose first 132 bytes are `head`."""
    if head[:4] in _TIFF:
        return Kind.TIFF
    if head[128:132] == b"DICM":
        return Kind.DICOM
    if head[:4] in _ZIP:
        return Kind.ZIP
    return Kind.OTHER


def describe(path: Path) -> str:
    """Return what a file that is no slide looks like, for an error message."""
    return describe_bytes(_head(path))


def describe_bytes(head: bytes) -> str:
    """`describe` of a file's first bytes."""
    head = head.lstrip()
    for magic, words in _KNOWN:
        if head.startswith(magic):
            return words
    return "no format that this platform reads"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(132)
