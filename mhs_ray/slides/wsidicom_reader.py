"""DICOM slides that OpenSlide refuses (RLE, JPEG-LS, HTJ2K, odd headers), read through wsidicom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.openslide_reader import mpp_of
from mhs_ray.slides.reader import RGB, WHITE, LevelFacts, SlideFacts, check_request

T = TypeVar("T")


class WsiDicomReader:
    """See SlideReader. path: one DICOM file, or a folder with a series' files."""

    def __init__(self, path: Path) -> None:
        import wsidicom  # imported late: it costs half a second that other slides need not pay

        self._name = path.name
        self._slide: Any = _translated(path.name, "opened", lambda: wsidicom.WsiDicom.open(path))
        try:
            self._levels: list[Any] = list(self._slide.levels)
            self._facts = _translated(self._name, "opened", self._read_facts)
        except BaseException:
            self._slide.close()
            raise

    def facts(self) -> SlideFacts:
        """See SlideReader."""
        return self._facts

    def read_region(self, origin: Level0Point, size: PixelSize, *, level: int) -> RGB:
        """See SlideReader."""
        check_request(self._name, self._facts, size, level)
        chosen = self._facts.levels[level]
        left, top = int(origin.x // chosen.downsample), int(origin.y // chosen.downsample)
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + size.width, chosen.width), min(top + size.height, chosen.height)
        out = np.empty((size.height, size.width, 3), np.uint8)
        out[:] = self._facts.background
        if x0 < x1 and y0 < y1:
            number = int(self._levels[level].level)
            image = _translated(
                self._name, "read", lambda: self._slide.read_region((x0, y0), number, (x1 - x0, y1 - y0))
            )
            out[y0 - top : y1 - top, x0 - left : x1 - left] = np.asarray(image.convert("RGB"))
        return out

    def associated(self, name: str) -> RGB:
        """See SlideReader."""
        read = {"label": "read_label", "macro": "read_overview"}.get(name)
        if name not in self._facts.associated or read is None:
            raise SlideError(
                "no-such-image", f"{self._name} has no {name!r} image, only {list(self._facts.associated)}"
            )
        image = _translated(self._name, "read", lambda: getattr(self._slide, read)())
        return np.asarray(image.convert("RGB"))

    def icc_profile(self) -> bytes | None:
        """See SlideReader."""
        profile = self._optical_path().get("ICCProfile")
        return None if profile is None else bytes(profile)

    def close(self) -> None:
        """See SlideReader."""
        self._slide.close()

    def __enter__(self) -> WsiDicomReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _optical_path(self) -> Any:
        paths = self._levels[0].datasets[0].as_dataset().get("OpticalPathSequence")
        return paths[0] if paths else {}

    def _read_facts(self) -> SlideFacts:
        notes: list[str] = []
        base = self._levels[0]
        width, height = int(base.size.width), int(base.size.height)
        levels = tuple(
            LevelFacts(int(v.size.width), int(v.size.height), (width / v.size.width + height / v.size.height) / 2)
            for v in self._levels
        )
        power = self._optical_path().get("ObjectiveLensPower")
        named = (("label", self._slide.labels), ("macro", self._slide.overviews))
        return SlideFacts(
            format="dicom",
            vendor="dicom",
            width=width,
            height=height,
            levels=(LevelFacts(width, height, 1.0), *levels[1:]),
            mpp=mpp_of(base.mpp.width, base.mpp.height, notes) if base.mpp is not None else None,
            objective_power=float(power) if power else None,
            tile_size=PixelSize(int(base.tile_size.width), int(base.tile_size.height)),
            background=WHITE,
            has_icc=self._optical_path().get("ICCProfile") is not None,
            associated=tuple(name for name, images in named if images),
            notes=tuple(notes),
        )


def _translated(name: str, verb: str, call: Callable[[], T]) -> T:
    """wsidicom's errors share no base, and pydicom's come through it, so every Exception is caught here."""
    try:
        return call()
    except SlideError:
        raise
    except Exception as error:
        kind = type(error).__name__
        if kind == "WsiDicomNotFoundError":
            raise SlideError(
                "unsupported", f"{name} is DICOM, but holds no whole slide image (VL Whole Slide Microscopy, VOLUME)"
            ) from None
        detail = str(error).replace("\n", " ")[:300]
        short = "doesn't match the expected length" in detail or "end of file" in detail.lower()
        raise SlideError("truncated" if short else "unreadable", f"{name} cannot be {verb}: {kind}: {detail}") from None
