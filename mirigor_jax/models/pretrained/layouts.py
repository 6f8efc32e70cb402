"""LAYOUTS of public checkpoints, as data: the encoder's place and keys in a file, and its images' normalization."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import flax.linen as nn

from mirigor_jax.errors import InputError
from mirigor_jax.models.pretrained.timm_keys import TIMM
from mirigor_jax.models.resnet import STAGES, make_encoder

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    r"""A family of encoders: its keys in a state dict, and its module.

    rules: (regex of the whole key, path in the Flax tree, transform); the first matching rule applies. In the path,
        `\1` is a group of the regex, and `N+1` is the number after N. Transforms: `same`, `conv` (OIHW → HWIO) and
        `dense` (OI → IO).
    ignored: regexes of keys that are left out on purpose.
    encoder: shapes by path → (the module, the side in pixels of the images that it was trained on). It raises
        InputError if the shapes fit no encoder of the family.
    """

    rules: tuple[tuple[str, str, str], ...]
    ignored: tuple[str, ...]
    encoder: Callable[[Shapes], tuple[nn.Module, int]]


@dataclass(frozen=True)
class Layout:
    """The checkpoints of an architecture from one source.

    where: paths to the state dict in the file's nested dictionaries, with `/` between the names. The file itself is
        tried as a state dict too.
    prefix: regex of the text before the architecture's keys.
    beside: regexes of the other keys in the state dict, such as heads, queues and the momentum encoder.
    source: the projects that publish these checkpoints.
    mean, std: normalization of the images, for pixels in [0, 1].
    """

    architecture: Architecture
    where: tuple[str, ...]
    prefix: str
    beside: tuple[str, ...]
    source: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def _resnet(shapes: Shapes, *, stem: str, size: int) -> tuple[nn.Module, int]:
    widths: dict[tuple[int, int], int] = {}
    for path, shape in shapes.items():
        if match := re.fullmatch(r"params/stage(\d)_block(\d+)/conv1/kernel", path):
            widths[int(match[1]), int(match[2])] = shape[-1]
    depths = tuple(max((block for s, block in widths if s == stage), default=0) for stage in (1, 2, 3, 4))
    kind = "bottleneck" if any(path.endswith("/conv3/kernel") for path in shapes) else "basic"
    name = next((name for name, known in STAGES.items() if known == (depths, kind)), None)
    if name is None:
        names = ", ".join(name for name, (_, block) in STAGES.items() if block != "plain")
        raise InputError(f"a ResNet of {depths} {kind} blocks is none of {names}")
    width = next(width for (stage, _), width in widths.items() if stage == 1)
    return make_encoder(name, width=width, stem=stem, dtype="float32"), size


_NORM = (
    ("weight", "params", "scale"),
    ("bias", "params", "bias"),
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
)


def _resnet_rules(shortcut: str) -> tuple[tuple[str, str, str], ...]:
    block = r"layer(\d)\.(\d+)\."
    kernels = (
        (r"conv1", r"stem"),
        (block + r"conv(\d)", r"stage\1_block\2+1/conv\3"),
        (block + shortcut + r"\.0", r"stage\1_block\2+1/shortcut"),
    )
    norms = (
        (r"bn1", r"stem_norm"),
        (block + r"bn(\d)", r"stage\1_block\2+1/norm\3"),
        (block + shortcut + r"\.1", r"stage\1_block\2+1/shortcut_norm"),
    )
    return (
        *((rf"{key}\.weight", f"params/{path}/kernel", "conv") for key, path in kernels),
        *(
            (rf"{key}\.{torch}", f"{collection}/{path}/{name}", "same")
            for key, path in norms
            for torch, collection, name in _NORM
        ),
    )


_HEAD_AND_COUNTERS = (r"fc\..*", r".*\.num_batches_tracked")
RESNET = Architecture(_resnet_rules("downsample"), _HEAD_AND_COUNTERS, partial(_resnet, stem="imagenet", size=224))
# Keys don't tell the padding of a 3×3 stem (1 in SupContrast, 2 elsewhere), so only SupContrast's own fit here.
CIFAR_RESNET = Architecture(_resnet_rules("shortcut"), _HEAD_AND_COUNTERS, partial(_resnet, stem="cifar", size=32))


def _timm(
    family: str,
    source: str,
    *,
    where: tuple[str, ...] = ("state_dict", "model"),
    prefix: str = r"(?:module\.)?",
    beside: tuple[str, ...] = (),
    mean: tuple[float, float, float] = Layout.mean,
    std: tuple[float, float, float] = Layout.std,
) -> Layout:
    return Layout(Architecture(*TIMM[family]), where, prefix, beside, source, mean, std)


LAYOUTS = {
    "torchvision": Layout(
        RESNET,
        where=("state_dict", "model", "model_state_dict"),
        prefix=r"(?:module\.)?",
        beside=(),
        source="torchvision; the bare backbones of Barlow Twins and DINO; VISSL's, converted to torchvision's keys",
    ),
    "vissl": Layout(
        RESNET,
        where=("classy_state_dict/base_model/model/trunk", "model_state_dict"),
        prefix=r"_feature_blocks\.",
        beside=(),
        source="VISSL: PIRL, NPID, NPID++, ClusterFit, RotNet, Jigsaw, SimCLR, …",
    ),
    "swav": Layout(
        RESNET,
        where=("state_dict",),
        prefix=r"module\.",
        beside=(r"module\.(?:projection_head|prototypes)\..*",),
        source="SwAV, DeepCluster-v2, SeLa",
    ),
    "dino": Layout(
        RESNET,
        where=("teacher", "student"),
        prefix=r"(?:module\.)?backbone\.",
        beside=(r"(?:module\.)?head\..*",),
        source="DINO's full checkpoints, the teacher",
    ),
    "barlow-twins": Layout(
        RESNET,
        where=("model",),
        prefix=r"(?:module\.)?backbone\.",
        beside=(r"(?:module\.)?(?:projector|bn)\..*",),
        source="Barlow Twins' full checkpoints",
    ),
    "moco": Layout(
        RESNET,
        where=("state_dict",),
        prefix=r"(?:module\.)?encoder_q\.",
        beside=(r"(?:module\.)?(?:encoder_k\..*|queue|queue_ptr)",),
        source="MoCo v1, v2",
    ),
    "moco-v3": Layout(
        RESNET,
        where=("state_dict",),
        prefix=r"(?:module\.)?base_encoder\.",
        beside=(r"(?:module\.)?(?:momentum_encoder|predictor)\..*",),
        source="MoCo v3",
    ),
    "supcon": Layout(
        RESNET,
        where=("model",),
        prefix=r"(?:module\.)?encoder\.(?:module\.)?",
        beside=(r"(?:module\.)?(?:head|fc)\..*",),
        source="SupContrast on ImageNet",
    ),
    "supcon-cifar10": Layout(
        CIFAR_RESNET,
        where=("model",),
        prefix=r"(?:module\.)?encoder\.(?:module\.)?",
        beside=(r"(?:module\.)?(?:head|fc)\..*",),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        source="SupContrast on CIFAR-10: SupCon, SimCLR, cross-entropy",
    ),
    # Keys don't tell who trained a ViT, nor how its images were normalized, so users have to name the layout.
    "deit": _timm("vit", "DeiT, distilled or not; timm's ViTs that are normalized alike"),
    "timm-vit": _timm("vit", "timm's ViTs of AugReg", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "dino-vit": _timm(
        "vit",
        "DINO's full checkpoints of ViTs, the teacher",
        where=("teacher", "student"),
        prefix=r"(?:module\.)?backbone\.",
        beside=(r"(?:module\.)?head\..*",),
    ),
    "moco-v3-vit": _timm(
        "vit",
        "MoCo v3's ViTs",
        prefix=r"(?:module\.)?base_encoder\.",
        beside=(r"(?:module\.)?(?:momentum_encoder|predictor)\..*",),
    ),
    "cait": _timm("cait", "CaiT"),
    "pit": _timm("pit", "PiT, distilled or not, with timm's keys or their authors'"),
    "swin": _timm("swin", "Swin with timm's keys"),
    "swin-original": _timm("swin-original", "Swin with its authors' keys"),
}
