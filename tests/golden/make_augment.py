"""Make augment.npz: results of torchvision's transforms at given parameters, and the distribution of its random crops.

Made with torch 2.14.1 and torchvision 0.29.1: python tests/golden/make_augment.py
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

torch.manual_seed(0)
n, size = 4, 20
images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
images[0] = images[0].float().mean(dim=(1, 2), keepdim=True).expand(3, size, size)  # without color differences
images[1, 1] = images[1, 0]  # and one whose red and green are equal
floats = images.float() / 255
crops = np.array([(0, 0, 20, 20), (3, 5, 9, 14), (12, 0, 1, 20), (7, 19, 13, 1)])
orders = np.array([(0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2)])
factors = np.array([(0.3, 1.7, 0.2, 0.2), (1.6, 0.4, 1.8, -0.13), (0.9, 1.2, 0.0, 0.5), (1.1, 0.7, 1.3, -0.31)])
sigmas = np.array([0.1, 0.6, 1.3, 2.0])
changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def jittered(image, factors, order):
    for which in order:
        image = changes[which](image, float(factors[which]))
    return image


shapes = [RandomResizedCrop.get_params(torch.zeros(3, 64, 64), (0.08, 1), (3 / 4, 4 / 3)) for _ in range(20_000)]
_, _, height, width = np.array(shapes, float).T
found = {
    "crop": [F.resized_crop(x, *map(int, c), (size, size), antialias=True) for x, c in zip(floats, crops, strict=True)],
    "jitter": [jittered(x, f, o) for x, f, o in zip(floats, factors, orders, strict=True)],
    "grey": [F.rgb_to_grayscale(x, 3) for x in floats],
    "blur": [F.gaussian_blur(x, [3, 3], [float(s)] * 2) for x, s in zip(floats, sigmas, strict=True)],
}
np.savez_compressed(
    Path(__file__).with_name("augment.npz"),
    images=images.permute(0, 2, 3, 1).numpy(),
    crops=crops,
    orders=orders,
    factors=factors,
    sigmas=sigmas,
    areas=np.quantile(height * width / 64**2, np.linspace(0.1, 0.9, 9)),
    aspects=np.quantile(width / height, np.linspace(0.1, 0.9, 9)),
    **{name: torch.stack(outputs).permute(0, 2, 3, 1).numpy() for name, outputs in found.items()},
)
