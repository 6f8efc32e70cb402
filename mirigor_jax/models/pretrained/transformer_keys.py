r"""The keys of vision transformers, timm's and others', and the encoders that they belong to: data for reading them.

A family is (rules, ignored, encoder).
rules: (regex of the whole key, path in the Flax tree, transform); the first matching rule applies. In the path,
    `\g<name>` or `\1` is a group of the regex, and `N+1` is the number after N. Transforms: `same`, `dense` (out, in →
    in, out), `pointwise` (`dense`, or the same as a convolution, out, in, 1, 1), `conv` (out, in, h, w → h, w, in,
    out), `tokens` (t, d → 1, t, d), `token` (d → 1, 1, d), `flat` (all axes become one). A path that ends in `[i/n]` is
    part i of n, which are joined along the last axis. A path with `{a,b}` is split along the last axis into two paths;
    a part without a name is left out.
ignored: regexes of keys that are left out on purpose.
encoder: shapes by path → (the module, the side of its images in pixels).
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from mirigor_jax.errors import InputError
from mirigor_jax.models.vit import ENCODERS, GATED, CaiT, PiT, Swin, ViT

Rule = tuple[str, str, str]
Shapes = Mapping[str, tuple[int, ...]]
Sizes = dict[str, dict[str, Any]]  # name → the arguments of the module that tell the size
Family = tuple[tuple[Rule, ...], tuple[str, ...], Callable[[Shapes], tuple[nn.Module, int]]]


def layer(source: str, target: str, transform: str) -> tuple[Rule, Rule]:
    """The rules of the weight and the bias of a layer; the transform `same` is that of a LayerNorm."""
    weight = "scale" if transform == "same" else "kernel"
    return (
        (rf"{source}\.weight", f"params/{target}/{weight}", transform),
        (rf"{source}\.bias", f"params/{target}/bias", "same"),
    )


def parts(source: str, names: tuple[str, ...], target: str) -> tuple[Rule, ...]:
    """The rules of dense layers with these names, which are the parts of one layer."""
    return tuple(
        (rf"{source}{name}\.{kind}", f"params/{target}/{leaf}[{i}/{len(names)}]", transform)
        for i, name in enumerate(names)
        for kind, leaf, transform in (("weight", "kernel", "dense"), ("bias", "bias", "same"))
    )


def block(source: str, target: str, attention: str = "attn") -> tuple[Rule, ...]:
    """The rules of a block with timm's keys."""
    return (
        *layer(rf"{source}\.(?P<norm>norm[12])", rf"{target}/\g<norm>", "same"),
        *layer(rf"{source}\.attn\.(?P<layer>\w+)", rf"{target}/{attention}/\g<layer>", "dense"),
        *layer(rf"{source}\.mlp\.(?P<layer>fc[12])", rf"{target}/\g<layer>", "dense"),
        (rf"{source}\.(?P<gamma>gamma_[12])", rf"params/{target}/\g<gamma>", "same"),
    )


TOKENS: Rule = ("(?P<token>cls_token|dist_token|pos_embed)", r"params/\g<token>", "same")
PATCHES = layer(r"patch_embed\.proj", "patch_embed", "conv")
NORM = layer("norm", "norm", "same")
HEADS = (r"head\..*", r"head_dist\..*")
_STAGED = r"(?P<stage>\d+)\.blocks\.(?P<block>\d+)", r"stage\g<stage>_block\g<block>"


def _swin(downsample: str, merge: str) -> tuple[Rule, ...]:
    source, target = r"layers\." + _STAGED[0], _STAGED[1]
    table = "relative_position_bias_table"
    return (
        *PATCHES,
        *layer(r"patch_embed\.norm", "patch_norm", "same"),
        (rf"{source}\.attn\.{table}", f"params/{target}/attn/{table}", "same"),
        *block(source, target, "attn/attention"),
        *layer(rf"layers\.{downsample}\.downsample\.norm", f"{merge}_norm", "same"),
        (rf"layers\.{downsample}\.downsample\.reduction\.weight", f"params/{merge}/kernel", "dense"),
        *NORM,
    )


def _depth(shapes: Shapes, block: str) -> int:
    return sum(bool(re.fullmatch(rf"params/{block}\d+/norm1/scale", path)) for path in shapes)


def _depths(shapes: Shapes) -> tuple[int, ...]:
    depths: list[int] = []
    while depth := _depth(shapes, f"stage{len(depths)}_block"):
        depths.append(depth)
    return tuple(depths)


def _shape(shapes: Shapes, path: str, axes: int) -> tuple[int, ...]:
    shape = shapes.get(f"params/{path}", ())
    if len(shape) != axes:
        raise InputError(f"{path} has {len(shape)} axes, not {axes}" if shape else f"nothing gives {path}")
    return shape


# ViTs that are published, but not in ENCODERS: those of DeiT III, MAE, DINOv2, CLIP, open_clip and SigLIP.
LARGE_VITS: Sizes = {
    "vit_m": {"width": 512, "depth": 12, "heads": 8},
    "vit_l": {"width": 1024, "depth": 24, "heads": 16},
    "vit_so400m": {"width": 1152, "depth": 27, "heads": 16},
    "vit_h": {"width": 1280, "depth": 32, "heads": 16},
    "vit_g": {"width": 1408, "depth": 40, "heads": 16},
    "dinov2_g": {"width": 1536, "depth": 40, "heads": 24},
    "vit_bigg": {"width": 1664, "depth": 48, "heads": 16},
}


def _published(
    family: type, seen: dict[str, Any], more: Sizes | None = None, *, size: int, **overrides: Any
) -> tuple[nn.Module, int]:
    """The encoder in `ENCODERS` or `more` with the arguments seen. Weights don't show all arguments, such as heads."""
    known = {name: arguments for name, (kind, arguments) in ENCODERS.items() if kind is family} | (more or {})
    for arguments in known.values():
        told = {"distilled": False} | arguments
        if family is PiT:  # weights show only the channels of all heads together
            told["channels"] = arguments["width"] * arguments["heads"][0]
        if seen.items() <= told.items():
            encoder = family(size=size, dtype="float32", **arguments | overrides)
            encoder.check()
            return encoder, size
    described = ", ".join(f"{field} {value}" for field, value in seen.items())
    raise InputError(f"a {family.__name__} of {described} is none of {', '.join(known)}")


def vit(shapes: Shapes, *, more: Sizes = LARGE_VITS, side: int = 224, **fields: Any) -> tuple[nn.Module, int]:
    """The ViT of these shapes.

    more: the sizes that are published beside those in `ENCODERS`.
    side: the images' side in pixels, if the encoder has no learned position embeddings.
    fields: fields of the module that every encoder of the family has.
    """
    *_, width = patch_embed = _shape(shapes, "patch_embed/kernel", 4)
    depth, distilled = _depth(shapes, "block"), "params/dist_token" in shapes
    if fields.get("position") != "rotary":
        positions = _shape(shapes, "pos_embed", 3)[1]
        of_patches = fields.get("pool") == "attention" or math.isqrt(positions) ** 2 == positions
        side = patch_embed[0] * math.isqrt(max(positions - (0 if of_patches else 1 + distilled), 0))
        fields["position"] = "patches" if of_patches else "tokens"
    if depth:
        first, last = _shape(shapes, "block0/fc1/kernel", 2)[1], _shape(shapes, "block0/fc2/kernel", 2)[0]
        fields |= {"mlp": GATED} if first == 2 * last else {}
        fields["mlp_width"] = None if last == 4 * width else last
    if registers := shapes.get("params/registers"):
        fields["registers"] = registers[1]
    if projection := shapes.get("params/projection/kernel"):
        fields["projection"] = projection[-1]
    seen = {"width": width, "depth": depth, "distilled": distilled}
    return _published(ViT, seen, more, size=side, patch=patch_embed[0], **fields)


def _cait(shapes: Shapes) -> tuple[nn.Module, int]:
    seen = {"width": _shape(shapes, "cls_token", 3)[2], "depth": _depth(shapes, "block")}
    patch = _shape(shapes, "patch_embed/kernel", 4)[0]
    return _published(CaiT, seen, size=patch * math.isqrt(_shape(shapes, "pos_embed", 3)[1]), patch=patch)


def _pit(shapes: Shapes) -> tuple[nn.Module, int]:
    _, tokens, channels = _shape(shapes, "cls_token", 3)
    seen = {"depths": _depths(shapes), "channels": channels, "distilled": tokens == 2}
    patch, side = _shape(shapes, "patch_embed/kernel", 4)[0], _shape(shapes, "pos_embed", 4)[2]
    stride = patch // 2  # in every published PiT; weights don't show the stride
    return _published(PiT, seen, size=patch + (side - 1) * stride)


def _of_swin(shapes: Shapes) -> tuple[nn.Module, int]:
    patch, *_, width = _shape(shapes, "patch_embed/kernel", 4)
    depths = _depths(shapes)
    offsets = _shape(shapes, "stage0_block0/attn/relative_position_bias_table", 2)[0]
    window = (math.isqrt(offsets) + 1) // 2
    # Weights don't show the images' size. In every published Swin, the last map is one window.
    size = patch * window * 2 ** (len(depths) - 1)
    return _published(Swin, {"width": width, "depths": depths}, size=size, patch=patch, window=window)


_TORCHVISION = r"encoder\.layers\.encoder_layer_(?P<block>\d+)"
HUGGING_FACE = r"encoder\.layer\.(?P<block>\d+)"
BLOCK = r"block\g<block>"
_SWIN_LEFT = (*HEADS, r".*\.relative_position_index", r".*\.attn_mask")
FAMILIES: dict[str, Family] = {
    "torchvision-vit": (
        (
            ("class_token", "params/cls_token", "same"),
            (r"encoder\.pos_embedding", "params/pos_embed", "same"),
            *layer("conv_proj", "patch_embed", "conv"),
            *layer(rf"{_TORCHVISION}\.ln_(?P<norm>[12])", rf"{BLOCK}/norm\g<norm>", "same"),
            (rf"{_TORCHVISION}\.self_attention\.in_proj_weight", f"params/{BLOCK}/attn/qkv/kernel", "dense"),
            (rf"{_TORCHVISION}\.self_attention\.in_proj_bias", f"params/{BLOCK}/attn/qkv/bias", "same"),
            *layer(rf"{_TORCHVISION}\.self_attention\.out_proj", f"{BLOCK}/attn/proj", "dense"),
            *layer(rf"{_TORCHVISION}\.mlp\.(?:0|linear_1)", f"{BLOCK}/fc1", "dense"),
            *layer(rf"{_TORCHVISION}\.mlp\.(?:3|linear_2)", f"{BLOCK}/fc2", "dense"),
            *layer(r"encoder\.ln", "norm", "same"),
        ),
        (r"heads\..*",),
        vit,
    ),
    "huggingface-vit": (
        (
            (r"embeddings\.cls_token", "params/cls_token", "same"),
            (r"embeddings\.position_embeddings", "params/pos_embed", "same"),
            *layer(r"embeddings\.patch_embeddings\.projection", "patch_embed", "conv"),
            *layer(rf"{HUGGING_FACE}\.layernorm_before", f"{BLOCK}/norm1", "same"),
            *layer(rf"{HUGGING_FACE}\.layernorm_after", f"{BLOCK}/norm2", "same"),
            *parts(rf"{HUGGING_FACE}\.attention\.attention\.", ("query", "key", "value"), f"{BLOCK}/attn/qkv"),
            *layer(rf"{HUGGING_FACE}\.attention\.output\.dense", f"{BLOCK}/attn/proj", "dense"),
            *layer(rf"{HUGGING_FACE}\.intermediate\.dense", f"{BLOCK}/fc1", "dense"),
            *layer(rf"{HUGGING_FACE}\.output\.dense", f"{BLOCK}/fc2", "dense"),
            *layer("layernorm", "norm", "same"),
        ),
        (r"pooler\..*", r"embeddings\.mask_token"),
        vit,
    ),
    "vit": ((TOKENS, *PATCHES, *block(r"blocks\.(?P<block>\d+)", r"block\g<block>"), *NORM), HEADS, vit),
    "cait": (
        (
            TOKENS,
            *PATCHES,
            *block(r"blocks\.(?P<block>\d+)", r"block\g<block>"),
            *block(r"blocks_token_only\.(?P<block>\d+)", r"class_block\g<block>"),
            *NORM,
        ),
        HEADS,
        _cait,
    ),
    "pit": (
        (
            TOKENS,
            *layer(r"patch_embed\.conv", "patch_embed", "conv"),
            *layer(r"transformers\.(?P<stage>\d+)\.pool\.conv", r"pool\g<stage>_conv", "conv"),
            *layer(r"transformers\.(?P<stage>\d+)\.pool\.fc", r"pool\g<stage>_fc", "dense"),
            # In Naver's own files, pooling belongs to the stage before it.
            *layer(r"pools\.(?P<stage>\d+)\.conv", r"pool\g<stage>+1_conv", "conv"),
            *layer(r"pools\.(?P<stage>\d+)\.fc", r"pool\g<stage>+1_fc", "dense"),
            *block(r"transformers\." + _STAGED[0], _STAGED[1]),
            *NORM,
        ),
        HEADS,
        _pit,
    ),
    "swin": (_swin(r"(?P<stage>[1-3])", r"merge\g<stage>"), _SWIN_LEFT, _of_swin),
    # In Microsoft's own files, merging belongs to the stage before it.
    "swin-original": (_swin(r"(?P<stage>[0-2])", r"merge\g<stage>+1"), _SWIN_LEFT, _of_swin),
}
