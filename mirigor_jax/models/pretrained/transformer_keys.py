r"""The keys of vision transformers, timm's and others', and the encoders that they belong to: data for reading them.

A family is (rules, ignored, encoder).
rules: (regex of the whole key, path in the Flax tree, transform); the first matching rule applies. In the path,
    `\g<name>` is a group of the regex, and `N+1` is the number after N. Transforms: `same`, `dense` (out, in → in,
    out), `conv` (out, in, h, w → h, w, in, out). A path that ends in `[i]` is part i of three, which are joined along
    the last axis.
ignored: regexes of keys that are left out on purpose.
encoder: shapes by path → (the module, the side of its images in pixels).
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from mirigor_jax.errors import InputError
from mirigor_jax.models.vit import ENCODERS, CaiT, PiT, Swin, ViT, make

Rule = tuple[str, str, str]
Shapes = Mapping[str, tuple[int, ...]]
Family = tuple[tuple[Rule, ...], tuple[str, ...], Callable[[Shapes], tuple[nn.Module, int]]]


def _layer(source: str, target: str, transform: str) -> tuple[Rule, Rule]:
    weight = "scale" if transform == "same" else "kernel"
    return (
        (rf"{source}\.weight", f"params/{target}/{weight}", transform),
        (rf"{source}\.bias", f"params/{target}/bias", "same"),
    )


def _block(source: str, target: str, attention: str = "attn") -> tuple[Rule, ...]:
    return (
        *_layer(rf"{source}\.(?P<norm>norm[12])", rf"{target}/\g<norm>", "same"),
        *_layer(rf"{source}\.attn\.(?P<layer>\w+)", rf"{target}/{attention}/\g<layer>", "dense"),
        *_layer(rf"{source}\.mlp\.(?P<layer>fc[12])", rf"{target}/\g<layer>", "dense"),
        (rf"{source}\.(?P<gamma>gamma_[12])", rf"params/{target}/\g<gamma>", "same"),
    )


_TOKENS: Rule = ("(?P<token>cls_token|dist_token|pos_embed)", r"params/\g<token>", "same")
_PATCHES = _layer(r"patch_embed\.proj", "patch_embed", "conv")
_NORM = _layer("norm", "norm", "same")
_HEADS = (r"head\..*", r"head_dist\..*")
_STAGED = r"(?P<stage>\d+)\.blocks\.(?P<block>\d+)", r"stage\g<stage>_block\g<block>"


def _swin(downsample: str, merge: str) -> tuple[Rule, ...]:
    source, target = r"layers\." + _STAGED[0], _STAGED[1]
    table = "relative_position_bias_table"
    return (
        *_PATCHES,
        *_layer(r"patch_embed\.norm", "patch_norm", "same"),
        (rf"{source}\.attn\.{table}", f"params/{target}/attn/{table}", "same"),
        *_block(source, target, "attn/attention"),
        *_layer(rf"layers\.{downsample}\.downsample\.norm", f"{merge}_norm", "same"),
        (rf"layers\.{downsample}\.downsample\.reduction\.weight", f"params/{merge}/kernel", "dense"),
        *_NORM,
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


def _published(family: type, seen: dict[str, Any], *, size: int, **overrides: int) -> tuple[nn.Module, int]:
    """The encoder in `ENCODERS` with the arguments seen. Weights don't show all arguments, such as heads."""
    known = {name: arguments for name, (kind, arguments) in ENCODERS.items() if kind is family}
    for name, arguments in known.items():
        if seen.items() <= ({"distilled": False} | arguments).items():
            return make(name, size=size, dtype="float32", **overrides), size
    described = ", ".join(f"{field} {value}" for field, value in seen.items())
    raise InputError(f"a {family.__name__} of {described} is none of {', '.join(known)}")


def _size(shapes: Shapes, tokens: int) -> dict[str, int]:
    """The sides of images and patches in pixels. tokens: number of positions in pos_embed before those of patches."""
    patch = _shape(shapes, "patch_embed/kernel", 4)[0]
    patches = _shape(shapes, "pos_embed", 3)[1] - tokens
    return {"size": patch * math.isqrt(max(patches, 0)), "patch": patch}


def _vit(shapes: Shapes) -> tuple[nn.Module, int]:
    distilled = "params/dist_token" in shapes
    width, depth = _shape(shapes, "cls_token", 3)[2], _depth(shapes, "block")
    seen = {"width": width, "depth": depth, "distilled": distilled}
    return _published(ViT, seen, **_size(shapes, tokens=2 if distilled else 1))


def _cait(shapes: Shapes) -> tuple[nn.Module, int]:
    seen = {"width": _shape(shapes, "cls_token", 3)[2], "depth": _depth(shapes, "block")}
    return _published(CaiT, seen, **_size(shapes, tokens=0))


def _pit(shapes: Shapes) -> tuple[nn.Module, int]:
    seen = {"depths": _depths(shapes), "distilled": _shape(shapes, "cls_token", 3)[1] == 2}
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
_HUGGING_FACE = r"encoder\.layer\.(?P<block>\d+)"
_BLOCK = r"block\g<block>"
_SWIN_LEFT = (*_HEADS, r".*\.relative_position_index", r".*\.attn_mask")
FAMILIES: dict[str, Family] = {
    "torchvision-vit": (
        (
            ("class_token", "params/cls_token", "same"),
            (r"encoder\.pos_embedding", "params/pos_embed", "same"),
            *_layer("conv_proj", "patch_embed", "conv"),
            *_layer(rf"{_TORCHVISION}\.ln_(?P<norm>[12])", rf"{_BLOCK}/norm\g<norm>", "same"),
            (rf"{_TORCHVISION}\.self_attention\.in_proj_weight", f"params/{_BLOCK}/attn/qkv/kernel", "dense"),
            (rf"{_TORCHVISION}\.self_attention\.in_proj_bias", f"params/{_BLOCK}/attn/qkv/bias", "same"),
            *_layer(rf"{_TORCHVISION}\.self_attention\.out_proj", f"{_BLOCK}/attn/proj", "dense"),
            *_layer(rf"{_TORCHVISION}\.mlp\.(?:0|linear_1)", f"{_BLOCK}/fc1", "dense"),
            *_layer(rf"{_TORCHVISION}\.mlp\.(?:3|linear_2)", f"{_BLOCK}/fc2", "dense"),
            *_layer(r"encoder\.ln", "norm", "same"),
        ),
        (r"heads\..*",),
        _vit,
    ),
    "huggingface-vit": (
        (
            (r"embeddings\.cls_token", "params/cls_token", "same"),
            (r"embeddings\.position_embeddings", "params/pos_embed", "same"),
            *_layer(r"embeddings\.patch_embeddings\.projection", "patch_embed", "conv"),
            *_layer(rf"{_HUGGING_FACE}\.layernorm_before", f"{_BLOCK}/norm1", "same"),
            *_layer(rf"{_HUGGING_FACE}\.layernorm_after", f"{_BLOCK}/norm2", "same"),
            *(
                (rf"{_HUGGING_FACE}\.attention\.attention\.{name}\.{kind}", f"params/{_BLOCK}/attn/qkv/{leaf}[{i}]", to)
                for i, name in enumerate(("query", "key", "value"))
                for kind, leaf, to in (("weight", "kernel", "dense"), ("bias", "bias", "same"))
            ),
            *_layer(rf"{_HUGGING_FACE}\.attention\.output\.dense", f"{_BLOCK}/attn/proj", "dense"),
            *_layer(rf"{_HUGGING_FACE}\.intermediate\.dense", f"{_BLOCK}/fc1", "dense"),
            *_layer(rf"{_HUGGING_FACE}\.output\.dense", f"{_BLOCK}/fc2", "dense"),
            *_layer("layernorm", "norm", "same"),
        ),
        (r"pooler\..*", r"embeddings\.mask_token"),
        _vit,
    ),
    "vit": ((_TOKENS, *_PATCHES, *_block(r"blocks\.(?P<block>\d+)", r"block\g<block>"), *_NORM), _HEADS, _vit),
    "cait": (
        (
            _TOKENS,
            *_PATCHES,
            *_block(r"blocks\.(?P<block>\d+)", r"block\g<block>"),
            *_block(r"blocks_token_only\.(?P<block>\d+)", r"class_block\g<block>"),
            *_NORM,
        ),
        _HEADS,
        _cait,
    ),
    "pit": (
        (
            _TOKENS,
            *_layer(r"patch_embed\.conv", "patch_embed", "conv"),
            *_layer(r"transformers\.(?P<stage>\d+)\.pool\.conv", r"pool\g<stage>_conv", "conv"),
            *_layer(r"transformers\.(?P<stage>\d+)\.pool\.fc", r"pool\g<stage>_fc", "dense"),
            # In Naver's own files, pooling belongs to the stage before it.
            *_layer(r"pools\.(?P<stage>\d+)\.conv", r"pool\g<stage>+1_conv", "conv"),
            *_layer(r"pools\.(?P<stage>\d+)\.fc", r"pool\g<stage>+1_fc", "dense"),
            *_block(r"transformers\." + _STAGED[0], _STAGED[1]),
            *_NORM,
        ),
        _HEADS,
        _pit,
    ),
    "swin": (_swin(r"(?P<stage>[1-3])", r"merge\g<stage>"), _SWIN_LEFT, _of_swin),
    # In Microsoft's own files, merging belongs to the stage before it.
    "swin-original": (_swin(r"(?P<stage>[0-2])", r"merge\g<stage>+1"), _SWIN_LEFT, _of_swin),
}
