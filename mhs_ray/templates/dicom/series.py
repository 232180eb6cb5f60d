"""A DICOM whole slide image with all its levels: `open_slide` of the folder with its files, or of one file.

The slide has what slides in slide.py have; frames are decoded when they are needed, and the last ones are kept.
"""

import functools
import io
import itertools
from pathlib import Path

import numpy
import pydicom
from PIL import Image

from slide import Slide, is_dicom, slide_suffix
from slide import open_slide as open_one

__all__ = ["SeriesSlide", "open_slide", "slide_suffix"]

KEPT_FRAMES = 256
NOT_THE_SLIDE = {"LABEL", "OVERVIEW", "THUMBNAIL"}


def open_slide(path):
    """Open a folder of DICOM files as one slide, and anything else as slide.py does."""
    path = Path(path)
    if path.is_dir():
        return SeriesSlide(file for file in sorted(path.iterdir()) if file.is_file() and is_dicom(file))
    return SeriesSlide([path]) if is_dicom(path) else open_one(path)


class Level:
    """One resolution: one multi-frame file, or several that share its size (concatenations)."""

    def __init__(self, data):
        self.width, self.height = int(data.TotalPixelMatrixColumns), int(data.TotalPixelMatrixRows)
        self.tile_width, self.tile_height = int(data.Columns), int(data.Rows)
        self.places = {}  # (column, row) of a tile → (file, frame)
        self.spacing = None
        try:
            measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
            self.spacing = float(measures.PixelSpacing[0]) * 1000
        except (AttributeError, IndexError):
            pass

    def add(self, number, data):
        """Note where the frames of a file lie."""
        across = -(-self.width // self.tile_width)
        first = int(getattr(data, "ConcatenationFrameOffsetNumber", 0))
        groups = getattr(data, "PerFrameFunctionalGroupsSequence", None)
        for frame in range(int(getattr(data, "NumberOfFrames", 1))):
            column, row = (first + frame) % across, (first + frame) // across
            if groups is not None and "PlanePositionSlideSequence" in groups[frame]:
                place = groups[frame].PlanePositionSlideSequence[0]
                column = (int(place.ColumnPositionInTotalImagePixelMatrix) - 1) // self.tile_width
                row = (int(place.RowPositionInTotalImagePixelMatrix) - 1) // self.tile_height
            self.places[column, row] = (number, frame)


class SeriesSlide(Slide):
    """Files of one series; label, overview and thumbnail are left out."""

    def __init__(self, paths):
        self._files = []
        levels = {}
        for path in paths:
            data = pydicom.dcmread(path)
            kind = {str(part) for part in getattr(data, "ImageType", ())}
            if "TotalPixelMatrixColumns" not in data or "PixelData" not in data or kind & NOT_THE_SLIDE:
                continue
            if data.BitsAllocated != 8:
                raise ValueError(f"{path} has {data.BitsAllocated} bits a sample; 8 are supported")
            size = (int(data.TotalPixelMatrixColumns), int(data.TotalPixelMatrixRows))
            levels.setdefault(size, Level(data)).add(len(self._files), data)
            self._files.append((data, self._frames(data)))
        if not levels:
            raise ValueError("there is no DICOM file of a whole slide image here")
        self._levels = [level for _, level in sorted(levels.items(), reverse=True)]
        base = self._levels[0]
        self.dimensions, self.mpp = (base.width, base.height), base.spacing
        self.downsamples = tuple(base.width / level.width for level in self._levels)
        self._tile = functools.lru_cache(KEPT_FRAMES)(self._decode)

    @staticmethod
    def _frames(data):
        """Return the encoded frames of a file, or None where they are not compressed."""
        if not data.file_meta.TransferSyntaxUID.is_compressed:
            return None
        from pydicom import encaps

        count = int(getattr(data, "NumberOfFrames", 1))
        frames = getattr(encaps, "generate_frames", None)  # pydicom 3
        if frames is not None:
            return list(itertools.islice(frames(data.PixelData, number_of_frames=count), count))
        return list(encaps.generate_pixel_data_frame(data.PixelData, count))

    def _decode(self, number, frame):
        data, frames = self._files[number]
        if frames is not None:
            return Image.open(io.BytesIO(frames[frame])).convert("RGB")
        samples = int(data.SamplesPerPixel)
        shape = (int(data.Rows), int(data.Columns), samples) if samples > 1 else (int(data.Rows), int(data.Columns))
        size = int(numpy.prod(shape))
        pixels = numpy.frombuffer(data.PixelData, "uint8", size, frame * size)
        return Image.fromarray(pixels.reshape(shape)).convert("RGB")

    def read_region(self, location, level, size):
        of = self._levels[level]
        left, top = (round(v / self.downsamples[level]) for v in location)
        region = Image.new("RGB", size, (255, 255, 255))
        for row in range(max(0, top // of.tile_height), (top + size[1] - 1) // of.tile_height + 1):
            for column in range(max(0, left // of.tile_width), (left + size[0] - 1) // of.tile_width + 1):
                place = of.places.get((column, row))
                if place is not None:
                    region.paste(self._tile(*place), (column * of.tile_width - left, row * of.tile_height - top))
        return region

    def thumbnail(self, longest_side):
        # The smallest level that is large enough, a row of tiles at a time.
        enough = [i for i, v in enumerate(self._levels) if i == 0 or max(v.width, v.height) >= longest_side]
        level = enough[-1]
        of, downsample = self._levels[level], self.downsamples[level]
        scale = min(1, longest_side / max(of.width, of.height))
        small = Image.new("RGB", (max(1, round(of.width * scale)), max(1, round(of.height * scale))))
        for top in range(0, of.height, of.tile_height):
            height = min(of.tile_height, of.height - top)
            band = self.read_region((0, round(top * downsample)), level, (of.width, height))
            above, below = round(top * scale), round((top + height) * scale)
            small.paste(band.resize((small.width, max(1, below - above))), (0, above))
        return small

    def close(self):
        self._files = []
        self._tile.cache_clear()
