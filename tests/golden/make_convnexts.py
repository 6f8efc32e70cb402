"""Write convnexts.npz beside this file: features of timm's, torchvision's and Hugging Face's ConvNeXt, random weights.

Run where torch, torchvision, timm and transformers are installed; the versions used are in the file.

    python tests/golden/make_convnexts.py

The encoders are tiny. Weights are rounded to float16 and stored as float16; the features are computed from them in
float64. Arrays: images, <case>/weights/<key>, <case>/features, parameters/<timm's name>, versions.
"""

import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
import torchvision
import transformers
from make_transformers import randomize
from torchvision.models.convnext import CNBlockConfig

DEPTHS, WIDTHS = (1, 2, 1, 1), (4, 6, 8, 10)
SIZES = {"depths": list(DEPTHS), "hidden_sizes": list(WIDTHS)}
FULL_SIZE = ("convnext_tiny", "convnext_base", "convnextv2_tiny", "convnextv2_huge")


def of_timm(name, images):
    model = timm.create_model(name, depths=DEPTHS, dims=WIDTHS, num_classes=3).double().eval()
    randomize(model, np.random.default_rng(0))
    return model.state_dict(), model.forward_head(model.forward_features(images), pre_logits=True)


def of_torchvision(images):
    outer = (*WIDTHS[1:], None)
    settings = [CNBlockConfig(*stage) for stage in zip(WIDTHS, outer, DEPTHS, strict=True)]
    model = torchvision.models.ConvNeXt(settings, num_classes=3).double().eval()
    randomize(model, np.random.default_rng(1))
    weights = dict(model.state_dict())
    model.classifier[2] = torch.nn.Identity()
    return weights, model(images)


def of_hugging_face(kind, config, images):
    model = kind(config).double().eval()
    randomize(model, np.random.default_rng(2))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = safetensors.torch.load_file(Path(folder) / "model.safetensors")
    return weights, model(images).pooler_output


def main():
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float16)
    packages = (torch, torchvision, timm, transformers, np)
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in packages)
    arrays = {"images": images, "versions": np.array(versions)}
    tensor = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2)
    with torch.no_grad():
        cases = {
            "timm": of_timm("convnext_tiny", tensor),
            "timm_v2": of_timm("convnextv2_tiny", tensor),
            "timm_conv": of_timm("convnext_atto", tensor),  # its MLPs are convolutions of 1×1
            "torchvision": of_torchvision(tensor),
            "hf": of_hugging_face(transformers.ConvNextModel, transformers.ConvNextConfig(**SIZES), tensor),
            "hf_v2": of_hugging_face(transformers.ConvNextV2Model, transformers.ConvNextV2Config(**SIZES), tensor),
        }
    for case, (weights, features) in cases.items():
        arrays |= {f"{case}/weights/{key}": w.numpy().astype(np.float16) for key, w in weights.items()}
        arrays[f"{case}/features"] = features.numpy().astype(np.float32)
    for name in FULL_SIZE:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        arrays[f"parameters/{name}"] = np.array(sum(p.numel() for p in model.parameters()))
    np.savez_compressed(Path(__file__).with_name("convnexts.npz"), **arrays)


if __name__ == "__main__":
    main()
