import json
import tempfile
import unittest
import zipfile
from pathlib import Path

import numpy
import pydicom
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import main
from series import open_slide

TILE = 64
SERIES, STUDY, FRAME = (generate_uid() for _ in range(3))


def picture(width, height):
    """Glass with one piece of tissue: the middle ninth."""
    drawn = Image.new("RGB", (width, height), (240, 240, 240))
    pen = ImageDraw.Draw(drawn)
    pen.rectangle((width // 3, height // 3, 2 * width // 3 - 1, 2 * height // 3 - 1), fill=(180, 90, 140))
    return drawn


def write_level(path, drawn, spacing, kind="VOLUME"):
    """Write a picture as a tiled DICOM file. spacing: microns per pixel."""
    across, down = -(-drawn.width // TILE), -(-drawn.height // TILE)
    padded = Image.new("RGB", (across * TILE, down * TILE), (255, 255, 255))
    padded.paste(drawn)
    pixels = numpy.asarray(padded)
    frames = [
        pixels[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE].tobytes()
        for r in range(down)
        for c in range(across)
    ]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = SERIES, STUDY, FRAME
    data.DimensionOrganizationType, data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = "TILED_FULL", 1, 1
    data.Modality, data.ImageType = "SM", ["ORIGINAL", "PRIMARY", kind, "NONE"]
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = drawn.size
    data.Rows = data.Columns = TILE
    data.NumberOfFrames, data.SamplesPerPixel, data.PhotometricInterpretation = len(frames), 3, "RGB"
    data.PlanarConfiguration, data.BitsAllocated, data.BitsStored, data.HighBit = 0, 8, 8, 7
    data.PixelRepresentation = 0
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [spacing / 1000, spacing / 1000]
    shared.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PixelData = b"".join(frames)
    data.is_little_endian, data.is_implicit_VR = True, False
    pydicom.dcmwrite(str(path), data, write_like_original=False)


class SeriesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.series = self.folder / "files"
        self.series.mkdir()
        self.whole = picture(600, 420)
        write_level(self.series / "small.dcm", self.whole.resize((150, 105), Image.NEAREST), 2.0)
        write_level(self.series / "large.dcm", self.whole, 0.5)
        write_level(self.series / "label.dcm", picture(64, 64), 1.0, "LABEL")

    def test_the_levels_of_a_series_are_one_slide(self):
        with open_slide(self.series) as slide:
            self.assertEqual(slide.dimensions, (600, 420))
            self.assertEqual(slide.downsamples, (1.0, 4.0))
            self.assertAlmostEqual(slide.mpp, 0.5)
            region = slide.read_region((190, 130), 0, (100, 90))
            self.assertEqual(region.tobytes(), self.whole.crop((190, 130, 290, 220)).tobytes())
            self.assertEqual(slide.read_region((0, 0), 1, (150, 105)).getpixel((75, 52)), (180, 90, 140))
            self.assertEqual(slide.thumbnail(150).size, (150, 105))

    def test_beyond_the_slide_is_white(self):
        with open_slide(self.series) as slide:
            self.assertEqual(slide.read_region((-50, -50), 0, (40, 40)).getpixel((5, 5)), (255, 255, 255))

    def test_tissue_is_outlined_where_it_is(self):
        features, numbers = main.process_image(self.series)
        self.assertEqual(numbers["pieces"], 1)
        self.assertAlmostEqual(numbers["tissue_mm2"], 200 * 140 * 0.25e-6, delta=0.0006)
        xs = [x for x, _ in features[0]["geometry"]["coordinates"][0]]
        self.assertTrue(190 <= min(xs) and max(xs) <= 410)
        json.dumps(main.make_results("7", features, numbers))

    def test_a_zip_of_the_series_is_the_series(self):
        archive = self.folder / "slide.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for file in self.series.iterdir():
                packed.write(file, f"../../{file.name}")
        self.assertEqual(main.process_image(main.unpack(archive, self.folder))[1]["levels"], 2)
        self.assertFalse(archive.exists())
        self.assertEqual({p.name for p in self.folder.iterdir()}, {"files", "series"})


if __name__ == "__main__":
    unittest.main()
