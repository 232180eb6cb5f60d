"""Unpack the ``.zip`` of a DICOM series without trusting a word of it."""

from __future__ import annotations

import errno
import json
import lzma
import shutil
import struct
import sys
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.isolated import IsolationLimits, run_isolated, serve

_DAMAGE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
)
"""What the zip module raises on files that are damaged or made to be."""


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """max_bytes: unpacked, in all. max_ratio: unpacked over packed bytes per file, beyond `ratio_from_bytes`."""

    max_files: int = 10_000
    max_bytes: int = 200 << 30
    max_ratio: float = 200.0
    ratio_from_bytes: int = 64 << 20


def unpack_series(archive: Path, into: Path, limits: ArchiveLimits | None = None) -> list[Path]:
    """Unpack the files of `archive` flat into the new folder `into` as ``0000.dcm``, ``0001.dcm`` … and return them.

    The names inside are only used in messages, never as paths. Raises SlideError (``bomb``, ``truncated``,
    ``unsupported``, ``not-a-slide``) and then leaves nothing behind.
    """
    limits = limits or ArchiveLimits()
    into.mkdir(parents=True)
    try:
        return _unpack(archive, into, limits)
    except _DAMAGE as error:
        shutil.rmtree(into, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SlideError("no-space", f"{archive.name} cannot be unpacked: this node's disk is full") from None
        raise SlideError(
            "truncated", f"{archive.name} is a damaged or cut off zip ({str(error)[:120]}); upload it again"
        ) from None
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise


def _unpack(archive: Path, into: Path, limits: ArchiveLimits) -> list[Path]:
    files: list[Path] = []
    total = 0
    with zipfile.ZipFile(archive) as opened:
        members = [m for m in opened.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
        if len(members) > limits.max_files:
            raise SlideError("bomb", f"{archive.name} holds {len(members)} files; at most {limits.max_files} are taken")
        if sum(m.file_size for m in members) > limits.max_bytes:
            raise SlideError("too-large", f"{archive.name} unpacks to more than {limits.max_bytes >> 30} GiB")
        for member in members:
            shown = member.filename[:80]
            if member.flag_bits & 1:
                raise SlideError("unsupported", f"{archive.name}: {shown!r} is encrypted; send it without a password")
            target = into / f"{len(files):04d}.dcm"
            written = 0
            with opened.open(member) as source, target.open("wb") as sink:
                while piece := source.read(1 << 20):
                    written += len(piece)
                    packed = max(member.compress_size, 1)
                    if total + written > limits.max_bytes:
                        raise SlideError(
                            "too-large", f"{archive.name} unpacks to more than {limits.max_bytes >> 30} GiB"
                        )
                    if written > limits.ratio_from_bytes and written / packed > limits.max_ratio:
                        raise SlideError(
                            "bomb", f"{archive.name}: {shown!r} unpacks to over {limits.max_ratio:g} times its size"
                        )
                    sink.write(piece)
            total += written
            files.append(target)
    if not files:
        raise SlideError("not-a-slide", f"{archive.name} is a zip without files")
    return files


def unpack_series_isolated(
    archive: Path, into: Path, limits: ArchiveLimits | None = None, isolation: IsolationLimits | None = None
) -> list[Path]:
    """Do `unpack_series` in a process of its own: a zip's directory alone can be made to fill a memory."""
    limits = limits or ArchiveLimits()
    arguments = [str(archive.absolute()), str(into.absolute()), json.dumps(asdict(limits))]
    isolation = isolation or IsolationLimits(timeout_s=1800, cpu_s=1800, memory_bytes=2 << 30)
    try:
        answer = run_isolated("mhs_ray.slides.archive", archive.name, arguments, isolation)
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    return [into / str(name) for name in answer["files"]]


def unpacked_bytes_isolated(archive: Path, isolation: IsolationLimits | None = None) -> int:
    """Return how many bytes `archive` says it holds; `unpack_series` stops where it said too little."""
    isolation = isolation or IsolationLimits(timeout_s=60, cpu_s=60, memory_bytes=2 << 30)
    return int(run_isolated("mhs_ray.slides.archive", archive.name, [str(archive.absolute())], isolation)["bytes"])


def _declared(archive: Path) -> int:
    try:
        with zipfile.ZipFile(archive) as opened:
            return sum(m.file_size for m in opened.infolist())
    except _DAMAGE as error:
        raise SlideError("truncated", f"{archive.name} is a damaged or cut off zip ({str(error)[:120]})") from None


def _main(arguments: list[str]) -> int:
    archive = Path(arguments[1])
    if len(arguments) == 2:
        return serve(arguments, archive.name, lambda: {"bytes": _declared(archive)})
    into, limits = Path(arguments[2]), ArchiveLimits(**json.loads(arguments[3]))
    return serve(arguments, archive.name, lambda: {"files": [p.name for p in unpack_series(archive, into, limits)]})


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
