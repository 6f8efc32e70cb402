"""Every setting once: its meaning, its default, its limits.

The configs, the check of their values, `--help`, docs/reference/settings.md and the defaults of the library's functions
all come from these dataclasses. This module imports only the standard library and `fields`, so every module may import
it.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from mirigor_jax.fields import Setting, of, setting, settings_of

Rows = Literal["checked", "independent"]
Resident = Literal["auto", "always", "never"]
Seen = Literal["train", "all", "none"]
WHICH = ("last", "best")  # the checkpoints that a training always keeps
KINDS_OF_RUNS = ("images", "restore", "layers", "arrays", "study", "invertible", "high_mi")
CDP_SIDE = 64  # pixels, as the paper has it


def _kind(name: str) -> Any:
    return setting(name, "Kind of run.", names=tuple(KINDS_OF_RUNS), table="mirigor_jax.kinds.RUN_KINDS")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _confidence(meaning: str) -> Any:
    return setting(0.95, meaning, least=0.5, below=1)


def _rows(meaning: str) -> Any:
    return setting(
        "checked",
        f"{meaning} 'checked': they are tested for dependence, and nothing is certified if they look "
        "dependent. 'independent': you state that they are independent.",
    )


def _stated_rows() -> Any:
    return setting(None, "Whether the images are independent draws; see estimate.rows.", none="as in the run")


def _restore() -> Any:
    return setting("", "Folder of the finished run. Must be given.")


def _l2(default: tuple[float, ...]) -> Any:
    return setting(default, "L2 penalties that the linear probe tries; validation chooses one.", least=0)


@dataclass(frozen=True)
class Cdp:
    """CDP images (data.source=cdp): a digit in a color at a position, over a background."""

    colors: int = setting(4, "Number of colors that digits can have, out of a list of 16.", least=1, most=16)
    digits: tuple[int, ...] = setting((2, 3, 4, 5), "Digits that are drawn, without duplicates.", least=0, most=9)
    grid: tuple[int, int] = setting((2, 2), "Rows and columns of positions; a cell needs at least 10 pixels.", least=1)
    mixing: float = setting(0.45, "Weight of the background; 0 makes it black.", least=0, most=1)
    jitter: float = setting(
        0.0,
        "Strength of the digit's random shift: the largest shift, as a share of the longer way that a digit can move "
        "in its cell. A larger value makes its shape slower to learn.",
        least=0,
        most=1,
    )
    clutter: float = setting(
        0.0,
        "Strength of the clutter: the probability of each of four pieces of digits a cell, which lie behind the digit "
        "anywhere in the image.",
        least=0,
        most=1,
    )
    blur: float = setting(
        0.0,
        "Strength of the blur: the largest standard deviation of an image's Gaussian blur, in eighths of a cell's "
        "side. Each image has its own, uniform from 0.",
        least=0,
        most=1,
    )
    noise: float = setting(
        0.0,
        "Strength of the noise: the standard deviation of Gaussian noise on each value of a pixel, in units of 128; "
        "sums are clipped to 0 to 255.",
        least=0,
        most=1,
    )
    background: str = setting(
        "spectrum",
        "Content of the background: spectrum (noise with the spectrum of natural "
        "scenes), folder:PATH (crops of the images in it) or tfds:NAME (crops of that set's images).",
    )
    glyphs: str = setting(
        "font", "Shapes of the digits: font, or idx:PATH (handwritten digits from an IDX images file)."
    )
    law: str = setting(
        "independent",
        "Joint distribution of an image's attributes: independent (and uniform); NAME+NAME=STRENGTH, such as "
        "color+digit=0.5, which links two of color, digit and position at a strength of 0 to 1; or npy:PATH, "
        "a table of probabilities (colors, digits, positions).",
    )


@dataclass(frozen=True)
class Patches:
    """Images of binary patches (data.source=patches): each of several independent bits lights one patch."""

    bits: int = setting(10, "Number of independent bits, each shown as a patch.", least=1, most=16, unit="bits")
    grid: tuple[int, int] = setting((4, 4), "Rows and columns of cells; a cell needs at least 4 pixels.", least=1)
    channels: int = setting(1, "Patches in a cell: 1, which is gray, or 3, one in each color channel.", least=1, most=3)
    mixing: float = setting(0.45, "Weight of the background; 0 makes it black.", least=0, most=0.9)
    jitter: int = setting(0, "Largest random shift of all patches of an image in their cells.", least=0, unit="pixels")
    background: str = setting(
        "spectrum",
        "Content of the background: spectrum (noise with the spectrum of natural scenes), folder:PATH (crops of the "
        "images in it) or tfds:NAME (crops of that set's images).",
    )


@dataclass(frozen=True)
class HuggingFace:
    """Columns of a data set's tables on the Hugging Face Hub (data.source=hf:REPO)."""

    image: str | None = setting(None, "Column of the images.", none="the only column of images, or the one named image")
    label: str | None = setting(
        None,
        "Column of the classes. Empty: the images have no labels.",
        none="the only column of class labels, or the one named label",
    )


@dataclass(frozen=True)
class Epsilon:
    """Probability that an attribute differs between the two views of a CDP pair; takes the place of data.mi."""

    color: float | None = setting(None, "Probability that the colors differ.", least=0, most=1, none="as data.mi says")
    digit: float | None = setting(None, "Probability that the digits differ.", least=0, most=1, none="as data.mi says")
    position: float | None = setting(
        None, "Probability that the positions differ.", least=0, most=1, none="as data.mi says"
    )


@dataclass(frozen=True)
class Augment:
    """SimCLR's augmentations, which pairings with simclr apply; 0 turns one off."""

    crop: float = setting(0.92, "Largest share of an image's area that a random crop may cut off.", least=0, most=0.99)
    flip: float = setting(0.5, "Probability that an image is mirrored.", least=0, most=1)
    jitter: float = setting(1.0, "Strength of the color jitter; at 2.5 the hue may take any value.", least=0, most=2.5)
    gray: float = setting(0.2, "Probability that an image becomes gray.", least=0, most=1)
    blur: float = setting(0.5, "Probability that an image is blurred.", least=0, most=1)


@dataclass(frozen=True)
class Data:
    """The images, and the views that make a pair."""

    source: str = setting(
        "cdp",
        "Source of the images: cdp and patches render them; tfds:NAME, folder:PATH, idx:PATH, "
        "npz:PATH, hf:REPO (of the Hugging Face Hub) and fashion_mnist are labeled sets; features:PATH holds "
        "representations.",
        names=("cdp", "patches", "tfds", "folder", "idx", "npz", "fashion_mnist", "features", "hf"),
        table="mirigor_jax.data.sources.table.SOURCES",
    )
    size: int | None = setting(
        CDP_SIDE,
        "Side of the square images; images of a set are resized to it, and the position embeddings of a public ViT are "
        "interpolated to it.",
        least=1,
        unit="pixels",
        none="the set's own side (cdp and patches need a number)",
    )
    cdp: Cdp = Cdp()
    patches: Patches = Patches()
    hf: HuggingFace = HuggingFace()
    pairing: str = setting(
        "all",
        "Attributes that the two views of a pair share: all, none, or some joined by +, such as "
        "color+digit. A labeled set has the attribute class. +simclr also augments each view; "
        "simclr alone pairs two augmentations of one image.",
        names=("class", "all", "none", "simclr"),
        table="mirigor_jax.data.pairing.PAIRINGS",
    )
    mi: float | None = setting(
        None,
        "True mutual information of a pair of rendered images: each shared attribute passes through a symmetric "
        "channel.",
        least=0,
        unit="bits",
        none="attributes are shared exactly",
    )
    epsilon: Epsilon = Epsilon()
    augment: Augment = Augment()
    negatives: str = setting(
        "",
        "Source of the negatives in training: own (the training images), uniform or gaussian "
        "(noise), classes:NAMES (classes of the same set) or another source. Empty: the other pairs of the batch.",
    )
    images: int | None = setting(
        None,
        "Number of training images, which the training reads again and again. With data.rotations, each of them is "
        "there at all four turns.",
        least=1,
        none="cdp and patches make new images for every batch; other sources give all of theirs",
    )
    resident: Resident = setting(
        "auto", "Whether the devices hold a finite set of images in their memory; auto: if it fits."
    )
    seed: int = setting(
        0,
        "Seed of the draws that all stages share: backgrounds, glyphs, noise, and the choice of images in a set.",
        least=0,
    )
    classes: str = setting(
        "all",
        "Classes of a labeled set that are used: all, first-half, second-half, file:PATH (one "
        "class per line), or names joined by +.",
    )
    rotations: bool = setting(
        False, "Whether images of a set are rotated by multiples of 90 degrees, which adds the attribute rotation."
    )
    noise: float = setting(0.0, "Share of the pixels of a set's images that become black or white.", least=0, most=1)
    corrupted: float = setting(
        0.0,
        "Probability that a label of a set is redrawn; above 0 it adds the attribute corrupted, the redrawn label.",
        least=0,
        most=1,
    )
    tfds_dir: str | None = setting(None, "Folder of the prepared TFDS sets.", none="TFDS's own, ~/tensorflow_datasets")
    threads: int = setting(2, "Threads that read batches ahead; their number does not affect results.", least=0)
    workers: int = setting(0, "Processes that read batches ahead; their number does not affect results.", least=0)


@dataclass(frozen=True)
class Encoder:
    """The encoder: one to train, or a public checkpoint."""

    path: str = setting(
        "",
        "Checkpoint of a public encoder, which is measured without training: a path, or hf:REPO of the Hugging Face "
        "Hub. Empty: the run trains an encoder.",
    )
    layout: str | None = setting(
        None,
        "Library that the checkpoint's parameter names come from.",
        none="recognized by the names",
        names=_names(
            "torchvision vissl swav dino barlow-twins moco moco-v3 supcon supcon-cifar10 sequential deit "
            "timm-vit mae dino-vit moco-v3-vit torchvision-vit huggingface-vit huggingface-deit timm-dinov3 "
            "dinov3 huggingface-dinov3 huggingface-dinov3-gated dinov2 huggingface-dinov2 clip clip-quickgelu "
            "open-clip huggingface-clip huggingface-open-clip timm-clip timm-clip-quickgelu timm-siglip "
            "timm-siglip-tanh huggingface-siglip timm-convnext convnext torchvision-convnext huggingface-convnext "
            "cait pit swin swin-original"
        ),
        table="mirigor_jax.models.pretrained.layouts.LAYOUTS",
    )
    place: str | None = setting(
        None,
        "Where the encoder is in the checkpoint, if there are several: such as state_dict_ema, teacher or encoder_k.",
        none="the most complete encoder, and rather the original than an average or a copy of it",
    )
    stage: str = setting(
        "",
        "Stage that the features come from: B0 to B4 of ResNets, block0 and so on of transformers and ConvNeXt, "
        "pooled of CLIP (before its projection), prelogits. Empty: the last stage.",
    )
    name: str = setting(
        "resnet18",
        "Architecture of the encoder to train.",
        names=_names(
            "resnet18 resnet34 resnet50 resnet101 resnet152 plainnet18 plainnet34 vit_ti vit_s vit_b deit_ti deit_s "
            "deit_b deit_ti_distilled deit_s_distilled deit_b_distilled cait_xxs24 cait_xxs36 cait_xs24 cait_s24 "
            "cait_s36 cait_m36 cait_m48 pit_ti pit_xs pit_s pit_b pit_ti_distilled pit_xs_distilled pit_s_distilled "
            "pit_b_distilled swin_t swin_s swin_b swin_l lenet5 mlp"
        ),
        table="mirigor_jax.models.ENCODERS",
    )
    width: int | None = setting(
        None,
        "Channels of a ResNet's first stage; published ResNets have 64.",
        least=1,
        none="the ResNet's own width; other encoders take only None",
    )
    stem: str | None = setting(
        None,
        "First layers of a ResNet: imagenet, or cifar for small images.",
        none="the ResNet's own stem; other encoders take only None",
    )
    remat: bool | None = setting(
        None,
        "Whether a ResNet recomputes its blocks for gradients, which takes less memory and a third more arithmetic.",
        none="the ResNet's own choice; other encoders take only None",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = setting(
        "auto", "Data type that the encoder computes in; auto: bfloat16 on accelerators, float32 on CPUs."
    )


@dataclass(frozen=True)
class Head:
    """Architecture of the projection head in training, and of the critic that the NT-Xent estimate reads."""

    hidden: tuple[int, ...] = setting((128,), "Widths of the hidden layers.", least=1, may_be_empty=True)
    features: int = setting(64, "Outputs that the contrastive loss compares.", least=1)


@dataclass(frozen=True)
class Train:
    """Training of the encoder."""

    k: int = setting(64, "Pairs in a training batch, K_Tr.", least=2, unit="pairs")
    steps: int = setting(300, "Number of updates; 0 leaves the encoder untrained.", least=0)
    objective: str = setting(
        "simclr",
        "Loss that the training minimizes.",
        names=_names(
            "simclr supcon decoupled anchor mige cross_entropy rotation supervised_autoencoder masked barlow_twins "
            "vicreg byol swav"
        ),
        table="mirigor_jax.objectives.OBJECTIVES",
    )
    temperature: float = setting(
        0.1,
        "Temperature of the contrastive losses, in training and in the metrics.",
        above=0,
    )
    embedding_noise: float = setting(
        0.1,
        "Standard deviation of the Gaussian noise that train.objective='mige' adds to each coordinate of the "
        "embeddings, which have length 1.",
        above=0,
    )
    decoder: Literal["linear", "mlp"] = setting(
        "linear",
        "Decoder of an objective that reconstructs images, from the encoder's features to pixels: a linear map, or an "
        "MLP with three hidden layers.",
    )
    decoder_width: int = setting(512, "Width of the hidden layers of train.decoder='mlp'.", least=1, unit="units")
    reconstruction: float | None = setting(
        0.25,
        "Weight λ that train.objective='supervised_autoencoder' gives to the squared error of a pixel on the scale "
        "[-1, 1]; cross-entropy has weight 1.",
        least=0,
        none="reconstruction alone, λ = ∞",
    )
    masked: float = setting(
        0.75, "Share of the patches that train.objective='masked' hides from the encoder.", above=0, below=1
    )
    patch: int = setting(
        4, "Side of the patches of train.objective='masked', a divisor of the images' side.", least=1, unit="pixels"
    )
    redundancy: float = setting(
        5e-3,
        "Weight λ that train.objective='barlow_twins' gives to the squared correlations of different coordinates.",
        least=0,
    )
    vicreg_weights: tuple[float, float, float] = setting(
        (25.0, 25.0, 1.0),
        "Weights λ, μ and ν that train.objective='vicreg' gives to invariance, variance and covariance.",
        least=0,
    )
    target_decay: float = setting(
        0.996,
        "Share of the target network's weights that stays at the first update of train.objective='byol'; the share "
        "rises to 1 along a cosine.",
        least=0,
        below=1,
    )
    prototypes: int = setting(
        100, "Number of prototypes of train.objective='swav', more than there are classes.", least=2
    )
    optimizer: Literal["adamw", "sgd", "lars"] = setting(
        "adamw", "Optimizer; the learning rate rises linearly, then falls as train.schedule says."
    )
    learning_rate: float = setting(4e-3, "Largest learning rate.", above=0)
    warmup_steps: int = setting(20, "Updates during which the learning rate rises to its largest value.", least=0)
    schedule: Literal["cosine", "steps"] = setting(
        "cosine", "Fall of the learning rate: along a cosine to 0, or in steps, a tenth at each of train.drops."
    )
    drops: tuple[float, ...] = setting(
        (0.5, 0.75),
        "Shares of the updates after which train.schedule='steps' divides the learning rate by 10.",
        above=0,
        below=1,
    )
    weight_decay: float = setting(1e-4, "Weight decay; it leaves out biases and norms.", least=0)
    global_batch_norm: bool = setting(
        True, "Whether BatchNorm uses the images of all devices. False: each device uses its own images."
    )
    accumulate: int = setting(
        1,
        "Number of parts that a device splits its pairs into to save memory. The loss still covers the whole batch.",
        least=1,
    )
    checkpoint_every: int = setting(100, "Steps between two checkpoints.", least=1, unit="steps")
    keep_every: int | None = setting(
        None,
        "Steps between two checkpoints that are kept, so that they can be measured later; a multiple of "
        "train.checkpoint_every. The last two checkpoints and the best one are kept in any case.",
        least=1,
        unit="steps",
        none="no others are kept",
    )


@dataclass(frozen=True)
class Features:
    """Features of the frozen encoder, in disjoint parts."""

    fit: int | None = setting(8192, "Images that critics and probes are fitted on.", least=1, none="all of a set")
    validation: int | None = setting(
        2048, "Pairs on which critics, penalties and the certificate are chosen.", least=2, none="all of a set"
    )
    test: int | None = setting(8192, "Pairs that are read once, for the results.", least=2, none="all of a set")
    unseen: int | None = setting(
        None,
        "Number of training images to encode among those that data.images leaves out. Usable information is measured "
        "on these, too.",
        least=0,
        none="all that are left out",
    )
    batch_size: int = setting(256, "Images that are encoded at once.", least=1)
    checkpoint: str = setting(
        "last",
        "Training checkpoint that is measured: the last, the best (the least mean loss over its last 50 steps), or "
        "that of a step which train.keep_every keeps.",
        choices=WHICH,
        or_number=True,
    )


@dataclass(frozen=True)
class Estimate:
    """Post-training estimate of the mutual information, and its certificate."""

    estimators: tuple[str, ...] = setting(
        ("info_nce_symmetric", "nt_xent"),
        "Estimators that read the fitted critic. The first is info_nce_symmetric, which the fit maximizes.",
        names=_names("info_nce info_nce_symmetric nt_xent dv mine nwj js js_nwj smile flo f_divergence anchor"),
        table="mirigor_jax.mi.ESTIMATORS",
    )
    k: int = setting(
        2048,
        "Pairs in a test batch, K_Est. InfoNCE is quoted at this K, and cannot exceed log2 K.",
        least=2,
        unit="pairs",
    )
    nt_xent_k: int = setting(
        256,
        "Pairs in a test batch for the NT-Xent estimate, and for the contrastive losses among the metrics.",
        least=2,
        unit="pairs",
    )
    k_curve: tuple[int, ...] = setting(
        (64, 256, 1024), "Further values of K at which the estimators read the test part.", least=2
    )
    batch_size: int = setting(512, "Pairs in a batch of a critic's fit.", least=2, unit="pairs")
    steps: int = setting(
        1500,
        "Largest number of steps of a critic's fit. The critic with the head's architecture takes all of them; "
        "the critic that starts from a class posterior stops early once validation no longer improves.",
        least=1,
    )
    learning_rate: float = setting(1e-3, "Largest learning rate of the critic with the head's architecture.", above=0)
    eval_every: int = setting(
        100,
        "Steps between two evaluations, on the validation part, of the critic with the head's architecture.",
        least=1,
        unit="steps",
    )
    stream: bool = setting(
        False,
        "Whether to fit only the critic with the head's architecture, on fresh images; the InfoNCE certificate then "
        "uses this critic.",
    )
    extra_pairings: tuple[str, ...] = setting((), "Further pairings under which the encoder is measured.")
    confidence: float = _confidence("Confidence level of certificates and intervals.")
    tolerance_bits: float = setting(
        0.1, "The verdict is 'certified' if the certified interval is at most this wide.", least=0, unit="bits"
    )
    rows: Rows = _rows("Whether the images of a set are independent draws.")


@dataclass(frozen=True)
class Evaluate:
    """Probes and metrics of the encoder."""

    l2: tuple[float, ...] = _l2((1e-5, 1e-4, 1e-3, 1e-2))
    mlp_steps: int = setting(20_000, "Largest number of steps of the non-linear probe.", least=1)
    metrics: bool = setting(
        False, "Whether to compute alignment, RankMe, LogME, kNN, a non-linear probe and the other metrics too."
    )
    classes: str | None = setting(
        None,
        "Attributes that define the classes of the metrics and of usable information, joined by +.",
        none="the attributes that the pairing shares",
    )
    seen: Seen | None = setting(
        None,
        "Images that the encoder was trained or chosen on, if you give a checkpoint or features: train (the set's "
        "training part, and validation images that the run splits off from it), all or none. Nothing is certified on "
        "images that the encoder has seen.",
        none="as train if the set has a test part of its own, else as none",
    )


@dataclass(frozen=True)
class Images:
    """A run on images: an encoder is trained or loaded, and measured."""

    kind: str = _kind("images")
    seed: int = setting(0, "Seed of the run's random numbers: weights, images, pairs, augmentations, critics.", least=0)
    data: Data = Data()
    encoder: Encoder = Encoder()
    head: Head = Head()
    train: Train = Train()
    features: Features = Features()
    estimate: Estimate = Estimate()
    evaluate: Evaluate = Evaluate()


@dataclass(frozen=True)
class Restore:
    """Another estimate of a finished run's encoder."""

    kind: str = _kind("restore")
    restore: str = _restore()
    name: str = setting("", "Name of the estimate's folder in RUN/estimates. Empty: the changed settings name it.")
    pairing: str | None = setting(
        None, "Attributes that the two views of a pair share; see data.pairing.", none="as in the run"
    )
    mi: float | None = setting(
        None,
        "True mutual information of a CDP pair.",
        least=0,
        unit="bits",
        none="as in the run; with a pairing given, attributes are shared exactly",
    )
    k: int | None = setting(None, "Pairs in a test batch, K_Est.", least=2, unit="pairs", none="as in the run")
    k_curve: tuple[int, ...] | None = setting(
        None, "Further values of K at which the estimators read the test part.", least=2, none="as in the run"
    )
    seed: int | None = setting(
        None, "Seed of a fresh sample of images and pairs, and of the critic.", least=0, none="the run's own sample"
    )
    test: int | None = setting(None, "Pairs of the test part.", least=2, none="as in the run")
    steps: int | None = setting(None, "Largest number of steps of the critic's fit.", least=1, none="as in the run")
    stream: bool | None = setting(
        None,
        "Whether the critic is fitted on fresh images, which the encoder encodes in every step.",
        none="as in the run",
    )
    checkpoint: str | None = setting(
        None,
        "Training checkpoint that is measured; see features.checkpoint.",
        choices=WHICH,
        or_number=True,
        none="as in the run",
    )
    rows: Rows | None = _stated_rows()


@dataclass(frozen=True)
class Layers:
    """Every stage of a finished run's encoder, measured against depth."""

    kind: str = _kind("layers")
    restore: str = _restore()
    pairing: str | None = setting(
        None,
        "Attributes that make the class, joined by +; see data.pairing.",
        none="the attributes that the run's pairs share; if the pairs are two views of one image, or share nothing: "
        "all attributes for CDP, the class for a set",
    )
    images: int | None = setting(
        None,
        "Largest number of images of each part to encode. The features of all stages are in memory at once, so "
        "a smaller number saves memory.",
        least=2,
        none="as many as in the run",
    )
    seed: int | None = setting(
        None, "Seed of a fresh sample of images and pairs, and of the critics.", least=0, none="the run's own sample"
    )
    confidence: float | None = setting(
        None,
        "Confidence level of the certificates of I_class, and of the lower and upper end of usable information.",
        least=0.5,
        below=1,
        none="as in the run",
    )
    rows: Rows | None = _stated_rows()


@dataclass(frozen=True)
class Arrays:
    """Mutual information of two arrays in files, by several estimators."""

    kind: str = _kind("arrays")
    x: str | None = setting(
        None, "File with the first view, one sample per row: .npy, .npz (PATH:NAME) or .csv.", none="must be given"
    )
    y: str | None = setting(
        None, "File with the second view; its row i is the partner of row i of x.", none="labels are given instead"
    )
    labels: str | None = setting(
        None, "File with the class of each row of x; two rows of one class are a pair.", none="y is given instead"
    )
    estimators: tuple[str, ...] = setting(
        ("info_nce_symmetric", "nwj", "js_nwj", "mine", "smile", "anchor"),
        "Estimators to compare; some are lower bounds, and some are not.",
        names=of(Estimate, "estimators").names,
        table="mirigor_jax.mi.ESTIMATORS",
    )
    critic: str = setting(
        "joint",
        "Critic that is fitted to x and y.",
        names=("joint", "separable", "bilinear", "cosine"),
        table="mirigor_jax.mi.api.CRITICS",
    )
    k: int | None = setting(None, "Pairs in a test batch.", least=2, unit="pairs", none="all, up to 4,096")
    batch_size: int = setting(64, "Pairs in a batch of a critic's fit.", least=1, unit="pairs")
    steps: int | None = setting(
        None,
        "Largest number of steps of a fit, which stops early once validation no longer improves.",
        least=1,
        none="the library's own choice",
    )
    seeds: int = setting(1, "Number of critics that are fitted; the value comes from their averaged scores.", least=1)
    seed: int = setting(0, "Seed of the critics' initial weights and of their batches.", least=0)
    confidence: float = _confidence("Confidence level of certificates and intervals.")
    rows: Rows = _rows("Whether rows are independent draws.")
    seen: bool = setting(
        False,
        "Whether the encoder that computed x was trained or chosen on these rows. Then nothing is certified, neither "
        "I_class nor usable information.",
    )


@dataclass(frozen=True)
class Grid:
    """The runs of the study."""

    name: str = setting(
        "",
        "Name of the study, which decides its table and figures.",
        names=_names(
            "batch_size infomin_tasks infomin_strength certified objectives negatives rank quality anchor label_noise "
            "auxiliary_labels v_infomax supervised_autoencoder others width stability nuisance patches"
        ),
        table="mirigor_jax.studies.table.STUDIES",
    )
    only: str = setting("", "The one run to make, for job arrays: 3/16 is the third of 16. Empty: all runs.")
    sources: str = setting("", "Folders of other studies, joined by commas; their finished runs are read too.")
    cells: tuple[dict[str, Any], ...] = setting(
        (),
        "The runs. Each has a name, a dict `run` of the keys that it sets, and optionally `tags`, facts that its table "
        "row shows.",
    )
    estimates: tuple[dict[str, Any], ...] = setting(
        (), "Further estimates of each run, as configs/estimate.py makes them."
    )
    fits: tuple[dict[str, Any], ...] = setting(
        (),
        "Fits that the study makes besides its runs. Each has a name and the keys that the study's function takes: "
        "`make` of anchor_fits, label_noise_fits, auxiliary_stages, v_infomax_fits, supervised_autoencoder_fits or "
        "stability_fits in "
        "mirigor_jax.studies.",
    )


@dataclass(frozen=True)
class Study:
    """A study: a grid of runs on images, and one table of their results."""

    kind: str = _kind("study")
    study: Grid = Grid()
    run: Images = Images()


@dataclass(frozen=True)
class Invertible:
    """Invertible encoders, whose mutual information cannot change."""

    kind: str = _kind("invertible")
    source: str = setting("fashion_mnist", "Labeled set; see data.source of a run on images.")
    size: int | None = setting(None, "Side of the images.", least=1, unit="pixels", none="the set's own side")
    objectives: tuple[str, ...] = setting(
        ("critic", "infonce", "adversarial"),
        "Objectives of training: critic trains the critic alone, infonce also the encoders, adversarial also "
        "makes the encoders hide the class.",
        names=("critic", "infonce", "adversarial"),
        table="mirigor_jax.studies.invertible_encoders.OBJECTIVES",
    )
    layers: int = setting(8, "Coupling layers of each encoder.", least=1)
    hidden: tuple[int, ...] = setting(
        (256, 256), "Widths of the hidden layers in a coupling.", least=1, may_be_empty=True
    )
    k: int = setting(256, "Images in a batch.", least=2)
    steps: int = setting(1200, "Number of updates.", least=1)
    record_every: int = setting(
        100, "Steps between two measurements of the encoders and the critic.", least=1, unit="steps"
    )
    usable_every: int = setting(
        300,
        "Steps between two measurements of usable information; a multiple of record_every. It is also measured before "
        "the first and after the last step.",
        least=1,
        unit="steps",
    )
    learning_rate: float = setting(3e-4, "Learning rate.", above=0)
    adversarial_weight: float = setting(
        20.0,
        "Penalty on adversarial encoders if a linear classifier explains all variance of the class (R² = 1); "
        "a lower R² costs proportionally less.",
        least=0,
        unit="nats",
    )
    ridge: float = setting(
        1.0, "Ridge penalty of the linear classifier that adversarial encoders hide the class from.", least=0
    )
    probed: int = setting(10_000, "Training images that the linear probe is fitted on.", least=1)
    l2: tuple[float, ...] = _l2((1e-4, 1e-3, 1e-2))
    seed: int = setting(0, "Seed of weights, batches and noise.", least=0)


@dataclass(frozen=True)
class FreshPairs:
    """Critics that are trained on fresh pairs, at several levels of information at once."""

    estimator: str = setting(
        "nwj",
        "Estimator whose loss trains the critics.",
        names=of(Estimate, "estimators").names,
        table="mirigor_jax.mi.ESTIMATORS",
    )
    readers: tuple[str, ...] = setting(
        (),
        "Estimators whose values are read from the scores of each batch before its step. Empty: the estimator alone.",
        names=of(Estimate, "estimators").names,
        table="mirigor_jax.mi.ESTIMATORS",
    )
    negatives: Literal["shuffle", "derange", "in-batch"] = setting(
        "shuffle",
        "Negatives: one for each x by a random permutation, which leaves one pair of a batch unchanged on average "
        "(shuffle), one by a permutation without fixed points (derange), or all other y of the batch (in-batch).",
    )
    levels: tuple[float, ...] = setting(
        tuple(2.5 * i for i in range(1, 13)),
        "True mutual information; each level has its own critic.",
        above=0,
        unit="nats",
    )
    k: int = setting(512, "Pairs in a batch.", least=2, unit="pairs")
    hidden: tuple[int, ...] = setting((64,), "Widths of the critic's hidden layers.", least=1)
    activation: Literal["relu", "elu"] = setting("elu", "Activation function of the hidden layers.")
    dropout: tuple[float, ...] = setting(
        (), "Dropout rate of each hidden layer in training. Empty: no dropout.", least=0, below=1, may_be_empty=True
    )
    learning_rate: float = setting(5e-4, "Learning rate of Adam, which stays the same.", above=0)
    weight_decay: float = setting(0.0, "Weight decay, which Adam sees as a part of the gradient.", least=0)
    epochs: int = setting(
        80, "Epochs of training. If it has not settled, they are doubled, at most run.doublings times.", least=5
    )
    settled_nats: float = setting(
        0.1,
        "A training has settled if at no level the smoothed values of the first reader rise by this much over the last "
        "fifth of its epochs.",
        above=0,
        unit="nats",
    )
    doublings: int = setting(
        0, "How often, at most, the epochs of a training that has not settled are doubled.", least=0
    )
    seeds: int = setting(1, "Critics of each level, each with its own start and pairs.", least=1)


@dataclass(frozen=True)
class Trainings:
    """The trainings of the study."""

    only: str = setting("", "The one training to make: 3/16 is the third of 16. Empty: all of them.")
    cells: tuple[dict[str, Any], ...] = setting(
        (), "The trainings. Each has a name and a dict `run` of the keys that it sets."
    )


@dataclass(frozen=True)
class HighMi:
    """Estimators at high information: critics that see fresh pairs of Gaussians, and mi.estimate."""

    kind: str = _kind("high_mi")
    study: Trainings = Trainings()
    run: FreshPairs = FreshPairs()
    dimension: int = setting(20, "Components of x and of y, which share the information equally.", least=1)
    batches: int = setting(
        100,
        "Batches in an epoch if a batch has 512 pairs or more. If it has fewer, an epoch has as many batches as give "
        "512 pairs times this number.",
        least=1,
    )
    pairs: int = setting(
        10_000, "Pairs that mi.estimate gets at each level, with its defaults.", least=110, unit="pairs"
    )
    seed: int = setting(0, "Seed of starts, pairs and batches.", least=0)


@dataclass(frozen=True)
class Export:
    """Export of CDP pairs to files for any framework."""

    out: str = setting("", "Folder that is made; it must be new or empty. Must be given.")
    format: Literal["npz", "folder", "array_record", "parquet"] = setting(
        "npz",
        "Format of the files: npz (one file of arrays), folder (PNG images in a folder for each class), array_record "
        "(a set of TFDS, for tfds and grain) or parquet (a table, PNG images in its cells).",
    )
    pairs: int = setting(10_000, "Pairs of the part train.", least=1, unit="pairs")
    test: int = setting(2_000, "Pairs of the part test. 0: there is no such part.", least=0, unit="pairs")


# Kind of run → the class of its settings.
KINDS: dict[str, type] = dict(
    zip(KINDS_OF_RUNS, (Images, Restore, Layers, Arrays, Study, Invertible, HighMi), strict=True)
)


def of_key(key: str, default: Any = ..., *, kind: type = Images) -> Setting:
    """An argument of a config that sets one of the config's keys.

    key: dotted.
    default: the argument's default. If it is not given, the argument has the key's default.
    kind: the class of the config's settings, one of those in `KINDS`.
    """
    known = settings_of(kind)[key]
    return replace(known, key=key, default=known.default if default is ... else default)
