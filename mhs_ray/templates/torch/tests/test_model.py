import json
import tempfile
import unittest
from pathlib import Path

import numpy
from PIL import Image, ImageDraw

import main
import model

BROWN, BLUE, PALE = (134, 89, 56), (110, 118, 170), (232, 222, 226)


def picture(width=900, height=700):
    """Pale tissue with a brown disc of 200 pixels across, and blue nuclei of 12."""
    drawn = Image.new("RGB", (width, height), PALE)
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((500, 300, 700, 500), fill=BROWN)
    for x in range(60, 420, 60):
        pen.ellipse((x, 100, x + 12, 112), fill=BLUE)
    noise = numpy.random.default_rng(1).normal(0, 4, (height, width, 3))
    return Image.fromarray((numpy.asarray(drawn) + noise).clip(0, 255).astype("uint8"))


class ModelTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.slide = Path(folder.name) / "slide.tiff"
        picture().save(self.slide)

    def test_brown_is_positive_and_pale_is_background(self):
        classes = model.Segmenter().classify(numpy.asarray(picture()))
        self.assertEqual(model.CLASSES[classes[400, 600]], "positive")
        self.assertEqual(model.CLASSES[classes[600, 200]], "background")
        self.assertEqual(model.CLASSES[classes[106, 66]], "nucleus")

    def test_the_disc_is_found_whole_though_tiles_part_it(self):
        features, numbers = main.process_image(self.slide)
        area = sum(f["properties"]["area_um2"] for f in features)
        self.assertAlmostEqual(area / (3.14159 * 100**2), 1, delta=0.1)
        self.assertGreater(numbers["positive_percent"], 80)
        for feature in features:
            self.assertEqual(feature["properties"]["annotation_type"], "positive")
            for x, y in feature["geometry"]["coordinates"][0]:
                self.assertTrue(480 <= x <= 720 and 280 <= y <= 520)

    def test_results_can_be_posted(self):
        body = main.make_results("7", *main.process_image(self.slide))
        self.assertIsInstance(body["scanResults"][0]["results"]["summary"], str)
        json.dumps(body)

    @unittest.skipIf(model.torch is None, "PyTorch is not installed here")
    def test_pytorch_and_numpy_give_the_same(self):
        planes = numpy.asarray(picture(), numpy.float32).transpose(2, 0, 1) / 255
        with numpy.load(model.WEIGHTS) as file:
            arrays = {name: file[name] for name in file.files}
        net = model.StainNet()
        net.load_state_dict({name: model.torch.from_numpy(a) for name, a in arrays.items()})
        with model.torch.no_grad():
            found = net(model.torch.from_numpy(planes)[None])[0].numpy()
        numpy.testing.assert_allclose(found, model.forward_numpy(arrays, planes), atol=1e-2)

    def test_the_model_is_as_large_as_it_says(self):
        with numpy.load(model.WEIGHTS) as file:
            self.assertEqual(sum(file[name].size for name in file.files), 5139)
        self.assertEqual(model.MARGIN, 7)


if __name__ == "__main__":
    unittest.main()
