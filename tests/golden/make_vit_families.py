"""Write vit_families.npz beside this file: features of DINOv2, DINOv3, CLIP and SigLIP with random weights.

Run where torch, timm, transformers and open_clip are installed; the versions used are in the file.

    python tests/golden/make_vit_families.py

The encoders are tiny. Weights have the keys of the files on the hub. They are rounded to float16 and stored as float16;
the features are computed from them in float64. Arrays:
    images, images_8, images_24: of the encoder's side, 16 pixels, and of two other sides
    <case>/weights/<key>
    <case>/features, <case>/pooled: the latter is CLIP's class token before the projection
    <case>/features_8, <case>/features_24: timm's features at these sides, with its interpolated position embeddings
    parameters/<timm's name>: the number of parameters of the model of full size
    versions
"""

import tempfile
from pathlib import Path

import numpy as np
import open_clip
import safetensors.torch
import timm
import torch
import transformers
from make_transformers import randomize

SIDES = (8, 24)
TIMM = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 0,
    "global_pool": "token",
}
OF_TIMM = {
    "dinov2": "vit_small_patch14_dinov2",
    "dinov2_registers": "vit_small_patch14_reg4_dinov2",
    "dinov2_giant": "vit_giant_patch14_dinov2",
    "deit3": "deit3_small_patch16_224",
    "timm_clip": "vit_base_patch32_clip_quickgelu_224",
    "timm_siglip": "vit_base_patch16_siglip_224",
    "timm_dinov3": "vit_small_patch16_dinov3",
    "timm_dinov3_gated": "vit_small_plus_patch16_dinov3",
}
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
WIDE = {**SIZES, "intermediate_size": 32}
EAGER = {"attn_implementation": "eager"}
OF_HUGGING_FACE = {
    "hf_dinov2": (transformers.Dinov2Model, transformers.Dinov2Config(**SIZES, **EAGER)),
    "hf_dinov2_registers": (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig(**SIZES, **EAGER, use_swiglu_ffn=True),
    ),
    "hf_clip": (
        transformers.CLIPVisionModelWithProjection,
        transformers.CLIPVisionConfig(**WIDE, **EAGER, projection_dim=6),
    ),
    "hf_clip_tower": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**WIDE, **EAGER, hidden_act="gelu")),
    "hf_siglip": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig(**WIDE, **EAGER)),
    "hf_dinov3": (
        transformers.DINOv3ViTModel,
        transformers.DINOv3ViTConfig(**WIDE, **EAGER, num_register_tokens=4),
    ),
    "hf_dinov3_gated": (
        transformers.DINOv3ViTModel,
        transformers.DINOv3ViTConfig(**WIDE, **EAGER, num_register_tokens=4, use_gated_mlp=True, hidden_act="silu"),
    ),
}
FULL_SIZE = (
    *(
        f"vit_{size}_patch14_{kind}"
        for size in ("small", "base", "large", "giant")
        for kind in ("dinov2", "reg4_dinov2")
    ),
    *("vit_base_patch32_clip_224", "vit_large_patch14_clip_224", "vit_huge_patch14_clip_224"),
    *("vit_base_patch16_siglip_224", "vit_so400m_patch14_siglip_384"),
    "deit3_medium_patch16_224",
    *("vit_small_patch16_dinov3", "vit_base_patch16_dinov3", "vit_huge_plus_patch16_dinov3"),
)


def of_timm(name, images):
    """(The weights, the features by name in the file.)"""
    arguments = {**TIMM, "global_pool": "map"} if "siglip" in name else TIMM
    model = timm.create_model(name, **arguments).double().eval()
    randomize(model, np.random.default_rng(0))
    features = {"features": model(images[16])}
    weights = dict(model.state_dict())
    for side in SIDES:
        other = timm.create_model(name, **{**arguments, "img_size": side}).double().eval()
        resampled = dict(weights)
        if "pos_embed" in weights:
            prefix = weights["pos_embed"].shape[1] - 16
            resampled["pos_embed"] = timm.layers.resample_abs_pos_embed(
                weights["pos_embed"], [side // 4] * 2, num_prefix_tokens=prefix
            )
        other.load_state_dict(resampled)
        features[f"features_{side}"] = other(images[side])
    return weights, features


def of_hugging_face(kind, config, images):
    model = kind(config).double().eval()
    randomize(model, np.random.default_rng(1))
    out = model(images[16])
    projected = hasattr(out, "image_embeds")
    features = {"features": out.image_embeds if projected else out.pooler_output}
    if projected:
        features["pooled"] = model.vision_model(images[16]).pooler_output
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return safetensors.torch.load_file(Path(folder) / "model.safetensors"), features


def of_open_clip(images):
    """A whole model, of images and text, with OpenAI's QuickGELU and keys."""
    vision = {"image_size": 16, "patch_size": 4, "width": 8, "layers": 2, "head_width": 4}
    text = {"context_length": 5, "vocab_size": 7, "width": 8, "heads": 2, "layers": 2}
    model = open_clip.CLIP(6, vision, text, quick_gelu=True).double().eval()
    randomize(model.visual, np.random.default_rng(2))
    return model.state_dict(), {"features": model.encode_image(images[16])}


def main():
    rng = np.random.default_rng(0)
    images = {side: rng.normal(size=(2, side, side, 3)).astype(np.float16) for side in (16, *SIDES)}
    packages = (torch, timm, transformers, open_clip, np)
    arrays = {"versions": np.array(", ".join(f"{package.__name__} {package.__version__}" for package in packages))}
    arrays |= {"images" if side == 16 else f"images_{side}": x for side, x in images.items()}
    tensors = {side: torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2) for side, x in images.items()}
    with torch.no_grad():
        cases = {case: of_timm(name, tensors) for case, name in OF_TIMM.items()}
        cases |= {case: of_hugging_face(*made, tensors) for case, made in OF_HUGGING_FACE.items()}
        cases["open_clip"] = of_open_clip(tensors)
    for case, (weights, features) in cases.items():
        arrays |= {f"{case}/weights/{key}": w.numpy().astype(np.float16) for key, w in weights.items()}
        arrays |= {f"{case}/{key}": h.numpy().astype(np.float32) for key, h in features.items()}
    for name in FULL_SIZE:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        arrays[f"parameters/{name}"] = np.array(sum(p.numel() for p in model.parameters()))
    np.savez_compressed(Path(__file__).with_name("vit_families.npz"), **arrays)


if __name__ == "__main__":
    main()
