"""Write vits.npz beside this file: features of torchvision's and Hugging Face's own ViTs with random weights.

Run where torch, torchvision and transformers are installed; the versions used are in the file.

    python tests/golden/make_vits.py

The encoders are tiny. Weights are rounded to float16 and stored as float16; the features, which are the class token
after the last LayerNorm, are computed from them in float64. Arrays: images, <case>/weights/<key>, <case>/features,
versions.
"""

import re
from pathlib import Path

import numpy as np
import torch
import torchvision
import transformers
from make_transformers import randomize

# The names in a model of transformers 5 → those in the files on the hub.
ON_THE_HUB = {
    r"^layers\.": "encoder.layer.",
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}


def of_torchvision(images):
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 64, num_classes=3).double().eval()
    randomize(model, np.random.default_rng(0))
    weights = model.state_dict()
    model.heads = torch.nn.Identity()
    return weights, model(images)


def of_hugging_face(images):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, attn_implementation="eager")
    model = transformers.ViTModel(config).double().eval()
    randomize(model, np.random.default_rng(1))
    weights = {}
    for key, w in model.state_dict().items():
        for pattern, name in ON_THE_HUB.items():
            key = re.sub(pattern, name, key)
        weights[key] = w
    return weights, model(images).last_hidden_state[:, 0]


def main():
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float16)
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (torch, torchvision, transformers, np))
    arrays = {"images": images, "versions": np.array(versions)}
    for case, make in (("torchvision", of_torchvision), ("huggingface", of_hugging_face)):
        with torch.no_grad():
            weights, features = make(torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2))
        arrays |= {f"{case}/weights/{key}": w.numpy().astype(np.float16) for key, w in weights.items()}
        arrays[f"{case}/features"] = features.numpy().astype(np.float32)
    np.savez_compressed(Path(__file__).with_name("vits.npz"), **arrays)


if __name__ == "__main__":
    main()
