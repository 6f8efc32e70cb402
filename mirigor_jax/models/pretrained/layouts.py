"""LAYOUTS of public checkpoints, as data: the encoder's place and keys in a file, and its images' normalization."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn

from mirigor_jax.errors import InputError
from mirigor_jax.models.pretrained.convnext_keys import CONVNEXTS
from mirigor_jax.models.pretrained.transformer_keys import FAMILIES
from mirigor_jax.models.pretrained.vit_keys import KEY_BIAS, QKV_BIAS, VITS
from mirigor_jax.models.resnet import STAGES, make_encoder

Shapes = Mapping[str, tuple[int, ...]]
Channels = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Architecture:
    r"""A family of encoders: its keys in a state dict, and its module.

    rules, ignored, encoder: see `transformer_keys`. `encoder` raises InputError if the shapes fit none of the family.
    zeros: regexes of the paths of parameters, and of their parts, that are zero if no key gives them.
    """

    rules: tuple[tuple[str, str, str], ...]
    ignored: tuple[str, ...]
    encoder: Callable[[Shapes], tuple[nn.Module, int]]
    zeros: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The checkpoints of an architecture from one source.

    source: the projects that publish these checkpoints.
    place: regex of the encoder's whole place, "DICTIONARY/PREFIX.", without WRAPPERS. None: any place that no other
        layout of the architecture names.
    beside: regex of a key without WRAPPERS that the file has beside the encoder's. None: no such key is needed.
    mean, std: normalization of the images, for pixels in [0, 1].
    fields: fields of the module that neither keys nor shapes tell.
    """

    architecture: Architecture
    source: str
    place: str | None = None
    beside: str | None = None
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)
    fields: tuple[tuple[str, Any], ...] = ()


# Parts of keys that torch's wrappers add anywhere: DataParallel, torch.compile, FSDP and activation checkpointing.
WRAPPERS = r"(?<![^./])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
# The first parts of keys, beside an encoder's own, that belong to heads, queues and other networks.
COMPANIONS = (
    r"(?:fc|linear|classifier|head\w*|\w*_head|projector|projection\w*|predictor|prototypes\w*|queue\w*|decoder\w*|"
    r"mask_token|bn|criterion|loss\w*|\w*momentum\w*|encoder_k|teacher\w*|student\w*|target\w*|\w*ema|ema_\w*)"
)
# Of several equal encoders, one whose place has such a word is taken last.
SECOND = r"(?<![a-z])(?:ema|swa|averaged|momentum|encoder_k|key|target|student)(?![a-z])"
# A place with such a word has no images to encode.
TEXT = r"(?<![a-z])text(?![a-z])"

# Families without a module here → a regex of a plain key that no other family has, after any prefix.
UNSUPPORTED = {
    "a CLIP model with a ResNet": r"visual\.attnpool\..*",
    "a ResNet with Hugging Face's keys": r"embedder\.embedder\.convolution\..*",
    "a BEiT with Hugging Face's keys": r"encoder\.layer\.0\.lambda_1",
    "a ResNet with a stem of several convolutions": r"(?:conv1|stem)\.0\.weight",
    "a ResNet with squeeze and excitation": r"layer\d\.\d+\.se(?:_module)?\..*",
}


def _resnet(shapes: Shapes, *, stem: str, size: int) -> tuple[nn.Module, int]:
    inner: dict[tuple[int, int], int] = {}
    for path, shape in shapes.items():
        if match := re.fullmatch(r"params/stage(\d)_block(\d+)/conv1/kernel", path):
            inner[int(match[1]), int(match[2])] = shape[-1]
    depths = tuple(max((block for s, block in inner if s == stage), default=0) for stage in (1, 2, 3, 4))
    kind = "bottleneck" if any(path.endswith("/conv3/kernel") for path in shapes) else "basic"
    name = next((name for name, known in STAGES.items() if known == (depths, kind)), None)
    if name is None:
        names = ", ".join(name for name, (_, block) in STAGES.items() if block != "plain")
        raise InputError(f"a ResNet of {depths} {kind} blocks is none of {names}")
    if stem == "imagenet" and shapes.get("params/stem/kernel", (7, 7))[:2] == (3, 3):
        raise InputError(
            "its first convolution is 3×3, a stem for small images, and its keys don't tell the padding (1 in lightly, "
            "2 in solo-learn); encode your images by the code that trained it, and give the features as features:FILE"
        )
    width = next(width for (stage, _), width in inner.items() if stage == 1)
    if kind == "bottleneck" and len(conv := shapes.get("params/stage1_block1/conv2/kernel", ())) == 4:
        if conv[2] != conv[3]:
            raise InputError(f"its 3×3 convolutions have {conv[3] // max(conv[2], 1)} groups, so it is a ResNeXt")
        outer = shapes.get("params/stage1_block1/conv3/kernel", (4 * width,))[-1]
        if outer != 4 * width:
            raise InputError(f"its blocks are {4 * width / outer:g} times as wide inside as a {name}'s: a wide ResNet")
    return make_encoder(name, width=width, stem=stem, dtype="float32"), size


_NORM = (
    ("weight", "params", "scale"),
    ("bias", "params", "bias"),
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
)


_STAGES = ("layer1", "layer2", "layer3", "layer4")


def _resnet_rules(
    shortcut: str, stem: tuple[str, str] = ("conv1", "bn1"), stages: tuple[str, ...] = _STAGES
) -> tuple[tuple[str, str, str], ...]:
    """shortcut, stem, stages: the names of the shortcuts, the first convolution and its BatchNorm, and the stages."""
    kernels, norms = [(stem[0], "stem")], [(stem[1], "stem_norm")]
    for number, stage in enumerate(stages, 1):
        block, path = rf"{stage}\.(\d+)\.", rf"stage{number}_block\1+1/"
        kernels += [(rf"{block}conv(\d)", rf"{path}conv\2"), (rf"{block}{shortcut}\.0", f"{path}shortcut")]
        norms += [(rf"{block}bn(\d)", rf"{path}norm\2"), (rf"{block}{shortcut}\.1", f"{path}shortcut_norm")]
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
SEQUENTIAL_RESNET = Architecture(
    _resnet_rules("downsample", ("0", "1"), ("4", "5", "6", "7")),
    _HEAD_AND_COUNTERS,
    partial(_resnet, stem="imagenet", size=224),
)


HUGGING_FACE_VIT = Architecture(*FAMILIES["huggingface-vit"])
VIT = Architecture(*FAMILIES["vit"])
_DINO = (r"(?:(?:teacher|student)/)?backbone\.", r"head\.(?:mlp|last_layer)\..*")
_CLIP = Architecture(*VITS["clip"])
_HUGGING_FACE_CLIP = Architecture(*VITS["huggingface-clip"])
_TIMM_CLIP = Architecture(*VITS["timm-clip"])
_TIMM_SIGLIP = Architecture(*VITS["timm-siglip"])
_OF_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_OF_SIGLIP = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_QUICK, _TANH = (("mlp", "quick_gelu"),), (("mlp", "gelu_tanh"),)
LAYOUTS = {
    "torchvision": Layout(
        RESNET,
        "torchvision, also inside modules of Lightning, solo-learn and others; the bare backbones of Barlow Twins and "
        "DINO; VISSL's, converted to torchvision's keys",
    ),
    "vissl": Layout(RESNET, "VISSL: PIRL, NPID, NPID++, ClusterFit, RotNet, Jigsaw, SimCLR, …", r".*_feature_blocks\."),
    "swav": Layout(
        RESNET, "SwAV, DeepCluster-v2, SeLa", r"(?:state_dict/)?", beside=r"(?:projection_head|prototypes)\..*"
    ),
    "dino": Layout(RESNET, "DINO's full checkpoints, the teacher", *_DINO),
    "barlow-twins": Layout(
        RESNET, "Barlow Twins' full checkpoints", r"(?:model/)?backbone\.", beside=r"(?:projector|bn)\..*"
    ),
    "moco": Layout(RESNET, "MoCo v1, v2", r"(?:state_dict/)?encoder_q\."),
    "moco-v3": Layout(RESNET, "MoCo v3", r"(?:state_dict/)?base_encoder\."),
    "supcon": Layout(RESNET, "SupContrast on ImageNet", r"(?:model/)?encoder\."),
    "supcon-cifar10": Layout(
        CIFAR_RESNET,
        "SupContrast on CIFAR-10: SupCon, SimCLR, cross-entropy",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    "sequential": Layout(SEQUENTIAL_RESNET, "torchvision's layers in a torch.nn.Sequential, as in lightly's examples"),
    # Keys don't tell who trained a ViT, nor how its images were normalized, so users have to name the layout.
    "deit": Layout(VIT, "DeiT, distilled or not; timm's ViTs that are normalized alike"),
    "timm-vit": Layout(VIT, "timm's ViTs of AugReg", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "mae": Layout(VIT, "MAE with its decoder", r"(?:model/)?", beside=r"decoder_(?:embed|pos_embed|blocks)\b.*"),
    "dino-vit": Layout(VIT, "DINO's full checkpoints of ViTs, the teacher", *_DINO),
    # Its small ViT has the base ViT's number of heads.
    "moco-v3-vit": Layout(VIT, "MoCo v3's ViTs", r"(?:state_dict/)?base_encoder\.", fields=(("heads", 12),)),
    "torchvision-vit": Layout(Architecture(*FAMILIES["torchvision-vit"]), "torchvision's ViTs with its own keys"),
    # As for timm's keys, users have to name one of these.
    "huggingface-vit": Layout(
        HUGGING_FACE_VIT, "Google's ViTs with Hugging Face's keys", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    ),
    "huggingface-deit": Layout(HUGGING_FACE_VIT, "DeiT, DINO and MAE with Hugging Face's keys"),
    # timm's files of DINOv3 have no key that Meta's or a DINOv2 has not, so they come first.
    "timm-dinov3": Layout(Architecture(*VITS["timm-dinov3"], (QKV_BIAS,)), "DINOv3's ViTs with timm's keys"),
    "dinov3": Layout(Architecture(*VITS["dinov3"], (KEY_BIAS,)), "DINOv3's ViTs with Meta's keys"),
    **{
        name: Layout(Architecture(*VITS[name], (KEY_BIAS,)), f"DINOv3's {kind} with Hugging Face's keys")
        for name, kind in (("huggingface-dinov3", "ViTs"), ("huggingface-dinov3-gated", "ViTs with a gated MLP"))
    },
    "dinov2": Layout(Architecture(*VITS["dinov2"]), "DINOv2 with Meta's or timm's keys, also with registers; DeiT III"),
    "huggingface-dinov2": Layout(Architecture(*VITS["huggingface-dinov2"]), "DINOv2 with Hugging Face's keys"),
    # Keys don't tell the activation. OpenAI's own files have their images' side beside the weights.
    "clip": Layout(_CLIP, "OpenAI's own CLIP files", "", "input_resolution", *_OF_CLIP, _QUICK),
    "clip-quickgelu": Layout(_CLIP, "OpenAI's weights, and others with QuickGELU", None, None, *_OF_CLIP, _QUICK),
    "open-clip": Layout(_CLIP, "open_clip's weights, with GELU", None, None, *_OF_CLIP),
    "huggingface-clip": Layout(
        _HUGGING_FACE_CLIP, "OpenAI's CLIP with Hugging Face's keys: QuickGELU", None, None, *_OF_CLIP, _QUICK
    ),
    "huggingface-open-clip": Layout(
        _HUGGING_FACE_CLIP, "open_clip's models with Hugging Face's keys: GELU", None, None, *_OF_CLIP
    ),
    "timm-clip": Layout(_TIMM_CLIP, "timm's CLIP ViTs with GELU", None, None, *_OF_CLIP),
    "timm-clip-quickgelu": Layout(_TIMM_CLIP, "timm's CLIP ViTs with QuickGELU", None, None, *_OF_CLIP, _QUICK),
    "timm-siglip": Layout(_TIMM_SIGLIP, "timm's SigLIP with GELU, also in open_clip", None, None, *_OF_SIGLIP),
    "timm-siglip-tanh": Layout(
        _TIMM_SIGLIP, "timm's SigLIP with GELU's approximation by tanh", None, None, *_OF_SIGLIP, _TANH
    ),
    "huggingface-siglip": Layout(
        Architecture(*VITS["huggingface-siglip"]),
        "SigLIP and SigLIP 2 with Hugging Face's keys",
        None,
        None,
        *_OF_SIGLIP,
        _TANH,
    ),
    "timm-convnext": Layout(Architecture(*CONVNEXTS["timm-convnext"]), "ConvNeXt, version 1 and 2, with timm's keys"),
    "convnext": Layout(Architecture(*CONVNEXTS["convnext"]), "ConvNeXt, version 1 and 2, with its authors' keys"),
    "torchvision-convnext": Layout(
        Architecture(*CONVNEXTS["torchvision-convnext"]), "ConvNeXt with torchvision's keys"
    ),
    "huggingface-convnext": Layout(
        Architecture(*CONVNEXTS["huggingface-convnext"]), "ConvNeXt, version 1 and 2, with Hugging Face's keys"
    ),
    "cait": Layout(Architecture(*FAMILIES["cait"]), "CaiT"),
    "pit": Layout(Architecture(*FAMILIES["pit"]), "PiT, distilled or not, with timm's keys or their authors'"),
    "swin": Layout(Architecture(*FAMILIES["swin"]), "Swin with timm's keys"),
    "swin-original": Layout(Architecture(*FAMILIES["swin-original"]), "Swin with its authors' keys"),
}
