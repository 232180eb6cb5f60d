"""A slide read through OpenSlide: the reference that every faster path is tested against."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import openslide
from PIL import Image, ImageCms

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.geometry import Level0Point, Mpp, PixelSize
from mhs_ray.slides.reader import RGB, WHITE, LevelFacts, SlideFacts, check_request

T = TypeVar("T")
MAX_PLAUSIBLE_MPP = 50.0
"""Above this an "mpp" is a screen resolution (72 dpi is 352.8) that some tool wrote without meaning it."""


class OpenSlideReader:
    """See SlideReader. OpenSlide keeps failing after its first error: close a reader that raised SlideError."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._slide = _translated(path.name, "opened", lambda: openslide.OpenSlide(str(path)))
        try:
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
        image = _translated(
            self._name,
            "read",
            lambda: self._slide.read_region((origin.x, origin.y), level, (size.width, size.height)),
        )
        return _over(image, self._facts.background)

    def associated(self, name: str) -> RGB:
        """See SlideReader."""
        if name not in self._facts.associated:
            raise SlideError(
                "no-such-image", f"{self._name} has no {name!r} image, only {list(self._facts.associated)}"
            )
        image = _translated(self._name, "read", lambda: self._slide.associated_images[name])
        return _over(image, self._facts.background)

    def icc_profile(self) -> bytes | None:
        """See SlideReader."""
        profile = _translated(self._name, "read", lambda: self._slide.color_profile)
        if profile is None:
            return None
        return ImageCms.ImageCmsProfile(profile.profile).tobytes()

    def close(self) -> None:
        """See SlideReader."""
        self._slide.close()

    def __enter__(self) -> OpenSlideReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_facts(self) -> SlideFacts:
        slide, notes = self._slide, list[str]()
        properties = slide.properties
        levels = tuple(
            LevelFacts(width, height, downsample)
            for (width, height), downsample in zip(slide.level_dimensions, slide.level_downsamples, strict=True)
        )
        vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        tile = [properties.get(f"openslide.level[0].tile-{side}") for side in ("width", "height")]
        power = _positive(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER), "objective power", notes)
        return SlideFacts(
            format="dicom" if vendor == "dicom" else "tiff",
            vendor=vendor,
            width=levels[0].width,
            height=levels[0].height,
            levels=levels,
            mpp=mpp_of(
                properties.get(openslide.PROPERTY_NAME_MPP_X), properties.get(openslide.PROPERTY_NAME_MPP_Y), notes
            ),
            objective_power=power,
            tile_size=PixelSize(int(tile[0]), int(tile[1])) if tile[0] and tile[1] else None,
            background=_colour(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)),
            has_icc=int(properties.get("openslide.icc-size", "0")) > 0,
            associated=tuple(sorted(slide.associated_images.keys())),
            notes=tuple(notes),
        )


def mpp_of(x: object, y: object, notes: list[str]) -> Mpp | None:
    """Return the microns per pixel, or None with a note when what the file says cannot be."""
    wide, high = _positive(x, "microns per pixel", notes), _positive(y, "microns per pixel", notes)
    if wide is None or high is None:
        return None
    if max(wide, high) > MAX_PLAUSIBLE_MPP:
        notes.append(f"microns per pixel {wide:g} ignored: it is a screen's resolution, not a microscope's")
        return None
    return Mpp(wide, high)


def _positive(value: object, what: str, notes: list[str]) -> float | None:
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        number = float(str(value))
        if math.isfinite(number) and number > 0:
            return number
    notes.append(f"{what} {str(value)[:40]!r} ignored: not a positive number")
    return None


def _colour(text: str | None) -> tuple[int, int, int]:
    with contextlib.suppress(ValueError):
        if text and len(text) == 6:
            red, green, blue = bytes.fromhex(text)
            return red, green, blue
    return WHITE


def _over(image: Image.Image, background: tuple[int, int, int]) -> RGB:
    """Composite RGBA on `background`: OpenSlide marks sparse tiles and the outside by alpha 0."""
    if image.mode != "RGBA":
        return np.asarray(image.convert("RGB"))
    rgba = np.asarray(image)
    if rgba[..., 3].min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    base = Image.new("RGBA", image.size, (*background, 255))
    base.alpha_composite(image)
    return np.ascontiguousarray(np.asarray(base)[..., :3])


def _translated(name: str, verb: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except openslide.OpenSlideUnsupportedFormatError:
        raise SlideError("unsupported", f"{name} is in no format that OpenSlide reads") from None
    except (openslide.OpenSlideError, Image.DecompressionBombError, OSError, ValueError) as error:
        detail = str(error).rsplit("/", 1)[-1][:300]
        short = any(words in detail.lower() for words in ("end of file", "short read", "truncated", "premature"))
        reason = "truncated" if short else "unreadable"
        hint = "it is cut off or damaged; upload it again" if short else "the file is damaged or of a rare kind"
        raise SlideError(reason, f"{name} cannot be {verb}: {detail} ({hint})") from None
