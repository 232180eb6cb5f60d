"""How weights.npz came to be. Needs PyTorch, NumPy and Pillow; a minute on a CPU.

    python3 train.py ihc.png        writes weights.npz, prints how good it is where it did not learn

The picture is the immunohistochemistry sample of scikit-image (skimage/data/ihc.png: 512 x 512 pixels of colon, brown
where FHL2 is, blue nuclei). No person drew labels: they come from colour deconvolution (Ruifrok and Johnston) with
Otsu's threshold, so the network learns to do what that does from the pixels around. Replace both by data of yours.
"""

import sys

import numpy
import torch
from PIL import Image

from model import MARGIN, WEIGHTS, StainNet

STAINS = numpy.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # hematoxylin, eosin, DAB
HELD_OUT = 128  # columns at the right that training never sees
STEPS, PATCH, BATCH, SEED = 1500, 64, 16, 1


def stain_amounts(pixels):
    """Return how much of each stain is in each pixel: float (height, width, 3)."""
    absorbed = -numpy.log10(numpy.maximum(pixels.astype(numpy.float64) / 255, 1e-6))
    return absorbed @ numpy.linalg.inv(STAINS / numpy.linalg.norm(STAINS, axis=1, keepdims=True))


def otsu(values):
    """Return the threshold that parts `values` best in two."""
    counts, edges = numpy.histogram(values, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    below, above = numpy.cumsum(counts), numpy.cumsum(counts[::-1])[::-1]
    mean_below = numpy.cumsum(counts * middles) / numpy.maximum(below, 1)
    mean_above = (numpy.cumsum((counts * middles)[::-1]) / numpy.maximum(above[::-1], 1))[::-1]
    return middles[numpy.argmax(below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2)]


def labels_of(pixels):
    """Return 0 background, 1 nucleus, 2 positive of each pixel."""
    amounts = stain_amounts(pixels)
    nucleus, positive = (amounts[..., i] > otsu(amounts[..., i]) for i in (0, 2))
    return numpy.where(positive, 2, numpy.where(nucleus, 1, 0)).astype(numpy.int64)


def dice(found, wanted, of):
    """Return 2 |A ∩ B| / (|A| + |B|) for class `of`."""
    a, b = found == of, wanted == of
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


def main(path):
    torch.manual_seed(SEED)
    random = numpy.random.default_rng(SEED)
    pixels = numpy.asarray(Image.open(path).convert("RGB"))
    labels = labels_of(pixels)
    planes = torch.from_numpy(pixels.transpose(2, 0, 1).astype(numpy.float32) / 255)
    targets = torch.from_numpy(labels)
    height, width = labels.shape
    net = StainNet()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    weight = 1 / torch.bincount(targets[:, : width - HELD_OUT].reshape(-1), minlength=3).float().sqrt()
    for step in range(STEPS):
        at = [(random.integers(height - PATCH), random.integers(width - HELD_OUT - PATCH)) for _ in range(BATCH)]
        x = torch.stack([planes[:, r : r + PATCH, c : c + PATCH] for r, c in at])
        y = torch.stack([targets[r : r + PATCH, c : c + PATCH] for r, c in at])
        # Scanners differ in brightness and colour: do not learn this one's by heart.
        x = (x * (1 + 0.1 * torch.randn(BATCH, 3, 1, 1)) + 0.03 * torch.randn(BATCH, 3, 1, 1)).clamp(0, 1)
        loss = torch.nn.functional.cross_entropy(net(x), y, weight=weight / weight.sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        found = net(planes[None])[0].argmax(0).numpy()
    unseen = numpy.s_[:, width - HELD_OUT + MARGIN :]
    for of, name in ((1, "nucleus"), (2, "positive")):
        print(f"Dice of {name} where it did not learn: {dice(found[unseen], labels[unseen], of):.3f}")
    numpy.savez(WEIGHTS, **{name: value.numpy() for name, value in net.state_dict().items()})


if __name__ == "__main__":
    main(sys.argv[1])
