"""Open a slide by what it holds, not by what it is called."""

from __future__ import annotations

import shutil
import tempfile
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.archive import ArchiveLimits, unpack_series
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.openslide_reader import OpenSlideReader
from mhs_ray.slides.reader import RGB, SlideFacts, SlideReader
from mhs_ray.slides.sniff import Kind, describe, sniff

_MAX_SERIES_FILES: Final = 10_000


def open_slide(path: Path, *, archive_limits: ArchiveLimits | None = None) -> SlideReader:
    """Open a TIFF-based slide (SVS, NDPI, generic tiled TIFF …), a DICOM file, a folder of a DICOM series, or its zip.

    A DICOM file's siblings in its folder belong to it when they are of its series. A zip is unpacked beside the
    system's temporary files until the reader is closed.
    Raises SlideError: ``not-a-slide``, ``unsupported``, ``truncated``, ``unreadable``, ``too-large``, ``bomb``.
    """
    match sniff(path):
        case Kind.TIFF:
            return _open_tiff(path)
        case Kind.DICOM:
            return _open_dicom(path, path)
        case Kind.FOLDER:
            return _open_folder(path)
        case Kind.ZIP:
            return _Unpacked(path, archive_limits)
        case Kind.OTHER:
            # OpenSlide also knows containers that are neither (Hamamatsu VMS, MIRAX, Zeiss CZI): let it look.
            try:
                return OpenSlideReader(path)
            except SlideError as error:
                if error.reason != "unsupported":
                    raise
                raise SlideError(
                    "not-a-slide",
                    f"{path.name} is no slide: it looks like {describe(path)}; send SVS, tiled TIFF, NDPI or DICOM",
                ) from None


def _open_tiff(path: Path) -> SlideReader:
    try:
        return OpenSlideReader(path)
    except SlideError as error:
        if error.reason != "unsupported":
            raise
        raise SlideError(
            "unsupported",
            f"{path.name} is a TIFF, but not one that can be read tile by tile; save it as a tiled, pyramidal TIFF "
            "(for example: vips tiffsave IN OUT --tile --pyramid --compression jpeg)",
        ) from None


def _open_dicom(path: Path, series: Path) -> SlideReader:
    """path: the file that OpenSlide starts from; series: what wsidicom is given when OpenSlide refuses it."""
    try:
        return OpenSlideReader(path)
    except SlideError as refused:
        if refused.reason == "truncated":
            raise
        from mhs_ray.slides.wsidicom_reader import WsiDicomReader

        try:
            return WsiDicomReader(series)
        except SlideError as error:
            raise SlideError(error.reason, f"{error.message}. OpenSlide says: {refused.message}") from None


def series_files(folder: Path) -> list[Path]:
    """Return the DICOM files under `folder`, in name order. Raises SlideError when there are none, or too many."""
    found = [p for p in islice(sorted(folder.rglob("*")), _MAX_SERIES_FILES + 1) if p.is_file() and not p.is_symlink()]
    if len(found) > _MAX_SERIES_FILES:
        raise SlideError("too-large", f"{folder.name} holds more than {_MAX_SERIES_FILES} files")
    files = [p for p in found if p.stat().st_size and sniff(p) is Kind.DICOM]
    if not files:
        raise SlideError("not-a-slide", f"{folder.name} holds {len(found)} files, but no DICOM file among them")
    return files


def _open_folder(folder: Path) -> SlideReader:
    """OpenSlide looks for siblings itself, but must start from an image file: labels alone are refused."""
    files = series_files(folder)
    last: SlideError | None = None
    for file in files[:50]:
        try:
            return OpenSlideReader(file)
        except SlideError as error:
            last = error
            if error.reason == "truncated":
                raise
    assert last is not None
    return _open_dicom(files[0], folder)


class _Unpacked:
    """A reader of an unpacked zip that takes the files away when it is closed."""

    def __init__(self, path: Path, limits: ArchiveLimits | None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mhs-series-"))
        try:
            unpack_series(path, self._folder / path.name, limits)
            self._inner = open_slide(self._folder / path.name)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def facts(self) -> SlideFacts:
        return self._inner.facts()

    def read_region(self, origin: Level0Point, size: PixelSize, *, level: int) -> RGB:
        return self._inner.read_region(origin, size, level=level)

    def associated(self, name: str) -> RGB:
        return self._inner.associated(name)

    def icc_profile(self) -> bytes | None:
        return self._inner.icc_profile()

    def close(self) -> None:
        self._inner.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> _Unpacked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
