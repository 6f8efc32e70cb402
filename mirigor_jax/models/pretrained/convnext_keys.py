"""The keys of ConvNeXt: timm's, torchvision's, Hugging Face's and its authors' own. See `transformer_keys`."""

import re

import flax.linen as nn

from mirigor_jax.errors import InputError
from mirigor_jax.models.convnext import ConvNeXt
from mirigor_jax.models.pretrained.transformer_keys import Family, Rule, Shapes, layer

_BLOCK = r"stage\g<stage>_block\g<block>"


def _convnext(shapes: Shapes) -> tuple[nn.Module, int]:
    kernels = [path for path in shapes if re.fullmatch(r"params/stage\d+_block\d+/conv/kernel", path)]
    depths: list[int] = []
    while depth := sum(f"/stage{len(depths)}_" in path for path in kernels):
        depths.append(depth)
    widths = [shapes.get(f"params/merge{stage}/kernel", (0,))[-1] for stage in range(len(depths))]
    if not depths or 0 in widths:
        raise InputError(f"nothing gives {'stage0_block0/conv' if not depths else f'merge{widths.index(0)}/kernel'}")
    gamma, response = (any(path.endswith(end) for path in shapes) for end in ("/gamma", "/response_norm/scale"))
    encoder = ConvNeXt(tuple(depths), tuple(widths), dtype="float32", layer_scale=gamma, response_norm=response)
    return encoder, 224  # weights don't show the images' side; the encoder takes any


def _block(
    source: str, names: tuple[str, str, str, str], gamma: str, response: tuple[str, str, str] | None
) -> list[Rule]:
    """The rules of a block.

    names: the convolution's, the LayerNorm's, and those of the MLP's two layers.
    gamma: the name of LayerScale.
    response: the names of the response normalization, its scale and its bias; None if there is none.
    """
    conv, norm, first, second = names
    rules: list[Rule] = [
        *layer(rf"{source}\.{conv}", f"{_BLOCK}/conv", "conv"),
        *layer(rf"{source}\.{norm}", f"{_BLOCK}/norm", "same"),
        *layer(rf"{source}\.{first}", f"{_BLOCK}/fc1", "pointwise"),
        *layer(rf"{source}\.{second}", f"{_BLOCK}/fc2", "pointwise"),
        (rf"{source}\.{gamma}", f"params/{_BLOCK}/gamma", "flat"),
    ]
    if response is not None:
        name, *kinds = response
        rules += [
            (rf"{source}\.{name}\.{kind}", f"params/{_BLOCK}/response_norm/{leaf}", "flat")
            for kind, leaf in zip(kinds, ("scale", "bias"), strict=True)
        ]
    return rules


def _merges(source: str, norm: str, conv: str, stage: str) -> tuple[Rule, ...]:
    return (
        *layer(rf"{source}\.{norm}", f"merge{stage}_norm", "same"),
        *layer(rf"{source}\.{conv}", f"merge{stage}", "conv"),
    )


_STAGE = r"stages\.(?P<stage>\d+)"
_POINTS = ("pwconv1", "pwconv2")
_TORCHVISION = [
    rule
    for stage in range(4)
    for rule in (
        *_merges(rf"features\.{2 * stage}", *(("1", "0") if stage == 0 else ("0", "1")), str(stage)),
        *(
            (source, target.replace(r"\g<stage>", str(stage)), transform)
            for source, target, transform in _block(
                rf"features\.{2 * stage + 1}\.(?P<block>\d+)",
                (r"block\.0", r"block\.2", r"block\.3", r"block\.5"),
                "layer_scale",
                None,
            )
        ),
    )
]
CONVNEXTS: dict[str, Family] = {
    "timm-convnext": (
        (
            *_merges("stem", "1", "0", "0"),
            *_merges(rf"{_STAGE}\.downsample", "0", "1", r"\g<stage>"),
            *_block(
                rf"{_STAGE}\.blocks\.(?P<block>\d+)",
                ("conv_dw", "norm", r"mlp\.fc1", r"mlp\.fc2"),
                "gamma",
                (r"mlp\.grn", "weight", "bias"),
            ),
            *layer(r"head\.norm", "norm", "same"),
        ),
        (r"head\.fc\..*",),
        _convnext,
    ),
    "convnext": (
        (
            *_merges(r"downsample_layers\.0", "1", "0", "0"),
            *_merges(r"downsample_layers\.(?P<stage>[1-9])", "0", "1", r"\g<stage>"),
            *_block(rf"{_STAGE}\.(?P<block>\d+)", ("dwconv", "norm", *_POINTS), "gamma", ("grn", "gamma", "beta")),
            *layer("norm", "norm", "same"),
        ),
        (r"head\..*",),
        _convnext,
    ),
    "torchvision-convnext": (
        (*_TORCHVISION, *layer(r"classifier\.0", "norm", "same")),
        (r"classifier\.2\..*",),
        _convnext,
    ),
    "huggingface-convnext": (
        (
            *_merges("embeddings", "layernorm", "patch_embeddings", "0"),
            *_merges(rf"encoder\.{_STAGE}\.downsampling_layer", "0", "1", r"\g<stage>"),
            *_block(
                rf"encoder\.{_STAGE}\.layers\.(?P<block>\d+)",
                ("dwconv", "layernorm", *_POINTS),
                "layer_scale_parameter",
                ("grn", "weight", "bias"),
            ),
            *layer("layernorm", "norm", "same"),
        ),
        (r"classifier\..*",),
        _convnext,
    ),
}
