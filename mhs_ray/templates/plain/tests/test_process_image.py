import tempfile
import unittest
from pathlib import Path

from PIL import Image

import main


class ProcessImageTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.slide = self.folder / "slide.tiff"
        Image.new("RGB", (600, 300), (240, 220, 230)).save(self.slide)

    def test_every_feature_can_be_posted(self):
        features = main.process_image(self.slide)
        self.assertGreater(len(features), 0)
        for feature in features:
            self.assertEqual(feature["type"], "Feature")
            self.assertIsInstance(feature["properties"]["annotation_type"], str)

    def test_features_lie_on_the_slide(self):
        for feature in main.process_image(self.slide):
            for x, y in feature["geometry"]["coordinates"][0]:
                self.assertTrue(0 <= x <= 600 and 0 <= y <= 300)

    def test_the_picture_shows_them_in_red(self):
        picture = self.folder / "result.png"
        main.draw(self.slide, main.process_image(self.slide), picture)
        with Image.open(picture) as drawn:
            self.assertIn((255, 0, 0), [colour for _, colour in drawn.getcolors(1 << 24)])


if __name__ == "__main__":
    unittest.main()
