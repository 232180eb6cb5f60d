"""Whether a slide is there, what it is, and a name for its content, from a few hundred KiB of it.

A cohort names thousands of slides of a gigabyte each: reading them whole to compare them would take days.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.bytesource import ByteSource, LocalFile
from mhs_ray.slides.fetch import FetchLimits
from mhs_ray.slides.remote import RemoteFile, RemoteOptions
from mhs_ray.slides.sniff import Kind, describe_bytes, kind_of
from mhs_ray.slides.url_guard import UrlPolicy

_PIECE: Final = 64 << 10
_PLACES: Final = 5
_LIMITS: Final = FetchLimits(max_bytes=1 << 50, stall_s=10, deadline_s=60, retries=1)
_BY_NAME: Final = {
    ".svs": "svs", ".tif": "tiff", ".tiff": "tiff", ".ndpi": "ndpi", ".scn": "scn", ".bif": "bif",
    ".svslide": "svslide", ".mrxs": "mrxs", ".vms": "vms", ".vmu": "vmu", ".czi": "czi", ".dcm": "dicom", ".zip": "zip",
}  # fmt: skip
_NO_MAGIC: Final = {"mrxs", "vms", "vmu", "czi", "svslide"}
"""Formats whose first bytes are not those of a TIFF, DICOM or zip file."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What a short look at a slide told. format: in a word; content: a name of its bytes, hex."""

    format: str
    size: int
    content: str


def glance(url: str, policy: UrlPolicy) -> Glance:
    """Look at the slide at `url` (http, https, or file where the policy says so), a folder being a DICOM series.

    content: of the size and five pieces of 64 KiB spread over the file, so that two copies have the same one wherever
    they lie. Raises SlideError when there is no slide, in words for the slide's owner.
    """
    policy.check_url(url)
    if urlsplit(url).scheme == "file":
        path = policy.check_file(url)
        if path.is_dir():
            return _folder(path)
        if not path.exists():
            raise SlideError("not-found", f"there is no file {path}")
        if not path.is_file():
            raise SlideError("not-a-slide", f"{path} is no file")
        if not path.stat().st_size:
            raise SlideError("not-a-slide", f"{path.name} is empty")
        source: ByteSource = LocalFile(path)
    else:
        source = RemoteFile(url, RemoteOptions(policy=policy, limits=_LIMITS))
    with ExitStack() as stack:
        stack.callback(source.close)
        head = source.read(0, min(132, source.size))
        name = _by_name(url)
        return Glance(_format(head, name, source.name), source.size, _digest([source]))


def _folder(path: Path) -> Glance:
    files = sorted(f for f in path.rglob("*") if f.is_file())
    if not files:
        raise SlideError("not-a-slide", f"the folder {path} is empty")
    if not any(_kind(f) is Kind.DICOM for f in files[:20]):
        raise SlideError("not-a-slide", f"the folder {path} holds no DICOM files")
    with ExitStack() as stack:
        sources = []
        for file in files:
            source = LocalFile(file)
            stack.callback(source.close)
            sources.append(source)
        return Glance("dicom", sum(s.size for s in sources), _digest(sources))


def _kind(file: Path) -> Kind:
    with file.open("rb") as opened:
        return kind_of(opened.read(132))


def _by_name(url: str) -> str:
    return _BY_NAME.get(PurePosixPath(unquote(urlsplit(url).path)).suffix.lower(), "")


def _format(head: bytes, name: str, shown: str) -> str:
    kind = kind_of(head)
    if kind is Kind.OTHER:
        if name in _NO_MAGIC:
            return name
        raise SlideError(
            "not-a-slide", f"{PurePosixPath(shown).name} is no slide: it looks like {describe_bytes(head)}"
        )
    if kind is Kind.TIFF:
        return name if name not in ("", "dicom", "zip") else "tiff"
    return "dicom" if kind is Kind.DICOM else "zip"


def _digest(sources: Sequence[ByteSource]) -> str:
    found = hashlib.sha256()
    for source in sources:
        size = source.size
        found.update(f"{size}\n".encode())
        places = {min(size * i // (_PLACES - 1), max(0, size - _PIECE)) for i in range(_PLACES)}
        if len(sources) > 1:  # of a series of many files the ends of each are enough
            places = {0, max(0, size - _PIECE)}
        for at in sorted(places):
            found.update(source.read(at, min(_PIECE, size - at)))
    return found.hexdigest()
