"""Write transformers.npz beside this file: features of timm's vision transformers with random weights on random images.

Run where torch and timm are installed; the versions used are in the file.

    python tests/golden/make_transformers.py

The encoders are tiny variants that have all the keys of the real ones. Weights are rounded to float16 and stored as
float16; the features are computed from them in float64. Arrays:
    images
    <case>/weights/<key>
    <case>/features/{block0, …, prelogits}: the blocks' outputs, averaged over the tokens that the case's head reads
    parameters/<timm's name>: the number of parameters of the model of full size, without its head
    versions
"""

from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
PIT = {"patch_size": 8, "stride": 4, "base_dims": (8, 8, 8), "depth": (1, 2, 1), "heads": (1, 2, 4)}
SWIN = {"window_size": 4, "embed_dim": 8, "depths": (2, 2, 1), "num_heads": (1, 2, 4)}
CASES = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit_mean": ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg", "fc_norm": False}),
    "deit": ("deit_tiny_patch16_224", VIT),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "cait": ("cait_xxs24_224", VIT),
    "pit": ("pit_s_224", PIT),
    "pit_distilled": ("pit_s_distilled_224", PIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}
BLOCKS = ("Block", "LayerScaleBlock", "LayerScaleBlockClassAttn", "SwinTransformerBlock")
FULL_SIZE = (
    *(f"{kind}_{size}_patch16_224" for kind in ("vit", "deit") for size in ("tiny", "small", "base")),
    *(f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")),
    *("cait_xxs24_224", "cait_xxs36_224", "cait_xs24_384", "cait_s24_224", "cait_s36_384", "cait_m36_384"),
    "cait_m48_448",
    *(f"pit_{size}{distilled}_224" for size in ("ti", "xs", "s", "b") for distilled in ("", "_distilled")),
    *(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")),
)


def randomize(model, rng):
    """Give every parameter, also of LayerNorms and biases, a random value, so a test notices if one is left out."""
    for key, parameter in model.named_parameters():
        noise = rng.normal(size=parameter.shape)
        if "gamma" in key or (parameter.ndim == 1 and key.endswith("weight")):
            values = 1 + 0.3 * noise
        elif parameter.ndim == 1 or key in ("cls_token", "dist_token", "pos_embed") or "table" in key:
            values = 0.5 * noise
        else:
            values = noise / np.sqrt(parameter[0].numel())
        parameter.data = torch.from_numpy(values.astype(np.float16).astype(np.float64))


def read(case, key, x):
    """(n, d) of a block's output: at the class token, the two tokens of a distilled one, or all patches."""
    if case == "swin":
        return x.mean((1, 2))
    if case == "cait" and not key.startswith("blocks_token_only"):
        return x.mean(1)
    if case == "vit_mean":
        return x[:, 1:].mean(1)
    return x[:, : 2 if case.endswith("distilled") else 1].mean(1)


def forward(case, model, images):
    features = {}

    def keep(key, module, inputs, output):
        features[f"block{len(features)}"] = read(case, key, output)

    for key, module in model.named_modules():
        if type(module).__name__ in BLOCKS:
            module.register_forward_hook(partial(keep, key))
    with torch.no_grad():
        x = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2)
        features["prelogits"] = model.forward_head(model.forward_features(x), pre_logits=True)
    return features


def main():
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float16)
    versions = f"torch {torch.__version__}, timm {timm.__version__}, numpy {np.__version__}"
    arrays = {"images": images, "versions": np.array(versions)}
    for seed, (case, (name, arguments)) in enumerate(CASES.items()):
        model = timm.create_model(name, img_size=32, num_classes=3, **arguments).double().eval()
        randomize(model, np.random.default_rng(seed))
        features = forward(case, model, images)
        arrays |= {f"{case}/weights/{key}": w.numpy().astype(np.float16) for key, w in model.state_dict().items()}
        arrays |= {f"{case}/features/{key}": h.numpy().astype(np.float32) for key, h in features.items()}
    for name in FULL_SIZE:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        arrays[f"parameters/{name}"] = np.array(sum(p.numel() for p in model.parameters()))
    np.savez_compressed(Path(__file__).with_name("transformers.npz"), **arrays)


if __name__ == "__main__":
    main()
