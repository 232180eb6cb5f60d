"""One way to open SVS, TIFF and DICOM slides: `open_slide`.

A slide has `dimensions` (width and height in level-0 pixels), `mpp` (microns per level-0 pixel, None where the file
does not tell), `downsamples` (level-0 pixels per pixel of each level), `thumbnail(longest_side)` and
`read_region((x, y), level, (width, height))` with x and y in level-0 pixels; both give RGB PIL images.
"""

import io
import itertools

import numpy
from PIL import Image

Image.MAX_IMAGE_PIXELS = None  # slides are larger than what Pillow takes for an attack

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUFFIX_BY_FORMAT = {"aperio": ".svs", "hamamatsu": ".ndpi", "leica": ".scn", "ventana": ".bif"}


def is_dicom(path):
    """True for a DICOM file."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def slide_suffix(path):
    """Return what the file should be called, by its content: .dcm, .svs, .tiff, …"""
    if is_dicom(path):
        return ".dcm"
    with open(path, "rb") as file:
        if file.read(4) not in TIFF_STARTS:
            return ".bin"
    import openslide

    return SUFFIX_BY_FORMAT.get(openslide.OpenSlide.detect_format(str(path)), ".tiff")


def open_slide(path):
    """Open a slide; close it by `with` or close()."""
    if is_dicom(path):
        return DicomSlide(path)
    import openslide

    try:
        return TiffSlide(openslide.OpenSlide(str(path)))
    except openslide.OpenSlideError:
        # OpenSlide wants tiles; a small plain TIFF is opened whole.
        return TiffSlide(openslide.ImageSlide(str(path)))


class Slide:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class TiffSlide(Slide):
    """What OpenSlide reads."""

    def __init__(self, slide):
        self._slide = slide
        self.dimensions = slide.dimensions
        self.downsamples = tuple(getattr(slide, "level_downsamples", (1.0,)))
        told = slide.properties.get("openslide.mpp-x")
        self.mpp = float(told) if told else None

    def read_region(self, location, level, size):
        return self._slide.read_region(location, level, size).convert("RGB")

    def thumbnail(self, longest_side):
        return self._slide.get_thumbnail((longest_side, longest_side)).convert("RGB")

    def close(self):
        self._slide.close()


class DicomSlide(Slide):
    """One file of a DICOM slide, as its only level. (All files of a series are in the zip at SCAN_URL_ZIP.)"""

    def __init__(self, path):
        import pydicom

        self._data = pydicom.dcmread(path)
        data = self._data
        for name in ("TotalPixelMatrixColumns", "TotalPixelMatrixRows", "PixelData"):
            if name not in data:
                raise ValueError(f"{path} is a DICOM file, but no whole slide image: it has no {name}")
        if data.BitsAllocated != 8:
            raise ValueError(f"{path} has {data.BitsAllocated} bits a sample; 8 are supported")
        self.dimensions = (int(data.TotalPixelMatrixColumns), int(data.TotalPixelMatrixRows))
        self.downsamples = (1.0,)
        try:
            measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
            self.mpp = float(measures.PixelSpacing[0]) * 1000
        except (AttributeError, IndexError):
            self.mpp = None

    def _frames(self):
        """Yield (x, y, picture) of each tile."""
        data = self._data
        rows, columns, samples = int(data.Rows), int(data.Columns), int(data.SamplesPerPixel)
        across = -(-self.dimensions[0] // columns)
        count = int(getattr(data, "NumberOfFrames", 1))
        if data.file_meta.TransferSyntaxUID.is_compressed:
            from pydicom import encaps

            frames = getattr(encaps, "generate_frames", None)  # pydicom 3
            if frames is not None:
                pieces = frames(data.PixelData, number_of_frames=count)
            else:
                pieces = encaps.generate_pixel_data_frame(data.PixelData, count)
            pictures = (Image.open(io.BytesIO(piece)).convert("RGB") for piece in pieces)
        else:
            shape = (rows, columns, samples) if samples > 1 else (rows, columns)
            size = rows * columns * samples
            pictures = (
                Image.fromarray(numpy.frombuffer(data.PixelData, "uint8", size, i * size).reshape(shape)).convert("RGB")
                for i in range(count)
            )
        places = getattr(data, "PerFrameFunctionalGroupsSequence", None)
        for i, picture in enumerate(itertools.islice(pictures, count)):
            x, y = i % across * columns, i // across * rows
            if places is not None and "PlanePositionSlideSequence" in places[i]:
                place = places[i].PlanePositionSlideSequence[0]
                x = int(place.ColumnPositionInTotalImagePixelMatrix) - 1
                y = int(place.RowPositionInTotalImagePixelMatrix) - 1
            yield x, y, picture

    def read_region(self, location, level, size):
        if level != 0:
            raise ValueError("a DICOM file has one level, 0")
        region = Image.new("RGB", size, (255, 255, 255))
        for x, y, picture in self._frames():
            at = (x - location[0], y - location[1])
            if -picture.width < at[0] < size[0] and -picture.height < at[1] < size[1]:
                region.paste(picture, at)
        return region

    def thumbnail(self, longest_side):
        # Tile by tile: a whole slide would not fit into memory.
        width, height = self.dimensions
        scale = min(1, longest_side / max(width, height))
        small = Image.new("RGB", (max(1, round(width * scale)), max(1, round(height * scale))), (255, 255, 255))
        for x, y, picture in self._frames():
            left, top = round(x * scale), round(y * scale)
            right, bottom = round((x + picture.width) * scale), round((y + picture.height) * scale)
            small.paste(picture.resize((max(1, right - left), max(1, bottom - top))), (left, top))
        return small

    def close(self):
        self._data = None
