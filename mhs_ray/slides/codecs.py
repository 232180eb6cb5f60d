"""From a stored TIFF tile to RGB pixels, for what is bit for bit what OpenSlide gives; nothing else is taken.

Tried against OpenSlide: JPEG in RGB or YCbCr (libjpeg-turbo's default transform and upsampling), JPEG 2000 in RGB
(33005), and 8-bit RGB that is stored as it is or by LZW or deflate, with or without horizontal differencing.
33003 (JPEG 2000 in YCbCr) goes through OpenSlide: it converts the colours by a table of its own.
"""

from __future__ import annotations

from typing import Final, Protocol

import imagecodecs
import numpy as np
import simplejpeg

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.jpeg import TileDecoding
from mhs_ray.slides.reader import RGB
from mhs_ray.slides.tiff import TiffPage

NONE, LZW, JPEG, DEFLATE, DEFLATE_OLD, APERIO_RGB = 1, 5, 7, 8, 32946, 33005
_RGB, _YCBCR = 2, 6
DCT_FACTORS: Final = (2, 4, 8)


class TileCodec(Protocol):
    """Decodes the tiles of one TIFF directory. Safe to use from several threads; gives up the GIL while decoding."""

    def decode(self, data: bytes, out: RGB) -> None:
        """Decode a whole tile into `out`. Raises SlideError (``unreadable``) or ValueError; then `out` is undefined."""
        ...

    def decode_dct(self, data: bytes, out: RGB, factor: int) -> None:
        """Decode at 1/factor by leaving out high frequencies; only where `has_dct`."""
        ...

    @property
    def has_dct(self) -> bool:
        """Whether `decode_dct` works."""
        ...


def codec_for(page: TiffPage) -> TileCodec | None:
    """Return the codec of `page`, None when its pixels could differ from OpenSlide's."""
    if not (page.tiled and page.samples == 3 and page.bits == (8, 8, 8) and page.planar == 1):
        return None
    if page.compression == JPEG:
        return JpegCodec(page) if page.photometric in (_RGB, _YCBCR) else None
    if not page.is_plain or page.photometric != _RGB:
        return None
    if page.compression in (NONE, LZW, DEFLATE, DEFLATE_OLD) and page.predictor in (1, 2):
        return PlainCodec(page)
    if page.compression == APERIO_RGB:
        return Jpeg2000Codec(page)
    return None


class JpegCodec:
    """See TileCodec."""

    has_dct = True

    def __init__(self, page: TiffPage) -> None:
        self._size = (page.tile_width, page.tile_height, 8)
        self._decoding = TileDecoding(page.jpeg_tables, rgb=page.photometric == _RGB)

    def decode(self, data: bytes, out: RGB) -> None:
        """See TileCodec."""
        simplejpeg.decode_jpeg(self._stream(data), "RGB", False, False, buffer=out)

    def decode_dct(self, data: bytes, out: RGB, factor: int) -> None:
        """See TileCodec."""
        height, width = out.shape[:2]
        simplejpeg.decode_jpeg(self._stream(data), "RGB", False, False, height, width, factor, out)

    def _stream(self, data: bytes) -> bytes:
        stream, head = self._decoding.complete(data)
        if (head.width, head.height, head.bits) != self._size or len(head.sampling) != 3:
            raise SlideError("unreadable", f"it holds {head.width} x {head.height} pixels of {head.bits} bits")
        return stream


class _FullOnly:
    has_dct = False

    def decode_dct(self, data: bytes, out: RGB, factor: int) -> None:
        raise SlideError("bad-request", "only JPEG can be decoded at a smaller scale")


class PlainCodec(_FullOnly):
    """See TileCodec: stored as it is, LZW or deflate."""

    def __init__(self, page: TiffPage) -> None:
        self._compression, self._differences = page.compression, page.predictor == 2

    def decode(self, data: bytes, out: RGB) -> None:
        """See TileCodec."""
        if self._compression == LZW:
            plain = _decoded(imagecodecs.lzw_decode, data, out.nbytes)
        elif self._compression != NONE:
            plain = _decoded(imagecodecs.zlib_decode, data, out.nbytes)
        else:
            plain = data
        if len(plain) < out.nbytes:
            raise SlideError("unreadable", f"it holds {len(plain)} of {out.nbytes} bytes")
        pixels = np.frombuffer(plain, np.uint8, out.nbytes).reshape(out.shape)
        if self._differences and self._compression != NONE:
            np.cumsum(pixels, axis=1, dtype=np.uint8, out=out)
        else:
            out[:] = pixels


class Jpeg2000Codec(_FullOnly):
    """See TileCodec: Aperio's 33005, decoded by OpenJPEG as in OpenSlide."""

    def __init__(self, page: TiffPage) -> None:
        pass

    def decode(self, data: bytes, out: RGB) -> None:
        """See TileCodec."""
        try:
            pixels = imagecodecs.jpeg2k_decode(data)
        except (imagecodecs.Jpeg2kError, RuntimeError) as error:
            raise SlideError("unreadable", f"its JPEG 2000 stream is damaged: {str(error)[:100]}") from None
        if pixels.shape != out.shape or pixels.dtype != np.uint8:
            raise SlideError("unreadable", f"it holds {pixels.dtype} pixels of {pixels.shape}")
        out[:] = pixels


def _decoded(decode: object, data: bytes, size: int) -> bytes:
    """`size` bounds what is made of a bomb; a stream that is longer is cut as libtiff does."""
    assert callable(decode)
    buffer = bytearray(size)
    try:
        made = decode(data, out=buffer)
    except (RuntimeError, ValueError) as error:
        raise SlideError("unreadable", f"its stream is damaged: {str(error)[:100]}") from None
    return bytes(made)
