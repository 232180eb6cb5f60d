"""A small real model: which pixels are stained brown (DAB), which are nuclei stained blue (hematoxylin).

A fully convolutional network of 5,139 parameters. It sees 15 x 15 pixels around each pixel, at MPP microns per pixel.
`StainNet` is it in PyTorch, on the GPU where there is one. `forward_numpy` is the same sum without PyTorch: slower,
for tests and for machines that have none.
"""

from pathlib import Path

import numpy

try:
    import torch
except ImportError:
    torch = None

CLASSES = ("background", "nucleus", "positive")
MPP = 1.0  # what it was trained at
LAYERS = ((3, 16, 3, 1), (16, 16, 3, 2), (16, 16, 3, 4), (16, 3, 1, 1))  # (channels in, out, kernel, dilation)
MARGIN = sum(dilation * (kernel // 2) for _, _, kernel, dilation in LAYERS)  # pixels of surroundings that count
WEIGHTS = Path(__file__).with_name("weights.npz")  # plain arrays: every version of PyTorch can take them


if torch is not None:

    class StainNet(torch.nn.Module):
        """pixels: float (batch, 3, height, width), 0 to 1. Returns logits (batch, 3, height, width)."""

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.Conv2d(into, out, kernel, dilation=dilation, padding=dilation * (kernel // 2))
                for into, out, kernel, dilation in LAYERS
            )

        def forward(self, pixels):
            x = pixels * 2 - 1
            for layer in self.layers[:-1]:
                x = torch.relu(layer(x))
            return self.layers[-1](x)


def forward_numpy(arrays, pixels):
    """As StainNet, for one picture: float (3, height, width) → logits (3, height, width)."""
    x = (pixels * 2 - 1).astype(numpy.float32)
    for i, (_, out, kernel, dilation) in enumerate(LAYERS):
        weight, bias = arrays[f"layers.{i}.weight"], arrays[f"layers.{i}.bias"]
        reach = dilation * (kernel // 2)
        padded = numpy.pad(x, ((0, 0), (reach, reach), (reach, reach)))
        height, width = x.shape[1:]
        total = numpy.repeat(bias, height * width).reshape(out, height, width).astype(numpy.float32)
        for row in range(kernel):
            for column in range(kernel):
                top, left = row * dilation, column * dilation
                part = padded[:, top : top + height, left : left + width]
                total += numpy.tensordot(weight[:, :, row, column], part, axes=1)
        x = total if i == len(LAYERS) - 1 else numpy.maximum(total, 0)
    return x


class Segmenter:
    """The model with its weights, ready to be asked."""

    def __init__(self, weights=WEIGHTS):
        with numpy.load(weights) as file:
            self._arrays = {name: file[name] for name in file.files}
        if torch is None:
            self.device = "numpy"
            return
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._net = StainNet()
        self._net.load_state_dict({name: torch.from_numpy(a) for name, a in self._arrays.items()})
        self._net.eval().to(self.device)

    def classify(self, pixels):
        """Return the class of each pixel, uint8 (height, width). pixels: uint8 (height, width, 3), RGB, at MPP."""
        planes = numpy.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(numpy.float32) / 255
        if torch is None:
            return forward_numpy(self._arrays, planes).argmax(0).astype(numpy.uint8)
        with torch.no_grad():
            logits = self._net(torch.from_numpy(planes)[None].to(self.device))[0]
            return logits.argmax(0).to(torch.uint8).cpu().numpy()
