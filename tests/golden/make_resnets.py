"""Write the ResNet goldens beside this file: narrow torchvision networks with random weights and statistics.

python tests/golden/make_resnets.py        with torch 2.14.1 and torchvision 0.29.1

Weights are rounded to float16 and stored as float16. The features are computed from them in float64.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn.functional import adaptive_max_pool2d
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.transforms.functional import normalize, to_tensor

WIDTH = 4
GRIDS = {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (2, 4), 32: (4, 8)}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


class Narrow(ResNet):
    """torchvision's own ResNet, 4 channels wide instead of 64; `cifar` changes the stem as SupContrast does."""

    def __init__(self, block, layers, cifar):
        super().__init__(block, layers, num_classes=10)
        self.inplanes = WIDTH
        self.conv1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
        if cifar:
            self.conv1, self.maxpool = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False), nn.Identity()
        self.bn1 = nn.BatchNorm2d(WIDTH)
        for stage, depth in enumerate(layers):
            blocks = self._make_layer(block, WIDTH * 2**stage, depth, stride=2 if stage else 1)
            setattr(self, f"layer{stage + 1}", blocks)
        self.fc = nn.Linear(8 * WIDTH * block.expansion, 10)


def randomize(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 1.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.half())


def stages(model, images):
    """The maps after the stem's ReLU and each layer, max-pooled to the prelogits' size, and the prelogits."""
    maps = {}
    names = {"relu": "B0", "layer1": "B1", "layer2": "B2", "layer3": "B3", "layer4": "B4", "avgpool": "prelogits"}
    for module, name in names.items():
        getattr(model, module).register_forward_hook(lambda _, __, output, name=name: maps.update({name: output}))
    model(images)
    features = maps["prelogits"].shape[1]
    for name, x in maps.items():
        pooled = adaptive_max_pool2d(x, GRIDS[features // x.shape[1]])
        yield name, pooled.permute(0, 2, 3, 1).flatten(1)


def main():
    torch.manual_seed(0)
    variants = {
        "resnet18": (BasicBlock, (2, 2, 2, 2), False),
        "resnet50": (Bottleneck, (3, 4, 6, 3), False),
        "resnet18_cifar": (BasicBlock, (2, 2, 2, 2), True),
    }
    for name, (block, layers, cifar) in variants.items():
        size, (mean, std) = (28, CIFAR10) if cifar else (60, IMAGENET)
        model = Narrow(block, layers, cifar).eval()
        with torch.no_grad():
            randomize(model)
            weights = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
            weights = {key: a.astype(np.float16) if a.dtype == np.float32 else a for key, a in weights.items()}
            images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
            x = torch.stack([normalize(to_tensor(image), mean, std) for image in images])
            features = {stage: h.float().numpy() for stage, h in stages(model.double(), x.double())}
        arrays = {f"weights/{key}": a for key, a in weights.items()} | {f"features/{k}": h for k, h in features.items()}
        versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
        np.savez_compressed(Path(__file__).parent / f"{name}.npz", images=images, versions=versions, **arrays)
        print(name, {stage: float(np.abs(h).max()) for stage, h in features.items()})


if __name__ == "__main__":
    main()
