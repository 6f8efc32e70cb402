"""Every setting once: what it means, its default, its limits.

The configs, the check of their values, `--help`, docs/settings.md and the defaults of the library's functions all come
from these dataclasses. Plain Python, so that every module may import it.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from mirigor_jax.fields import Setting, of, setting, settings_of

Rows = Literal["checked", "independent"]
Resident = Literal["auto", "always", "never"]
Which = Literal["last", "best"]
KINDS_OF_RUNS = ("images", "restore", "arrays", "study", "invertible")
CDP_SIDE = 64  # pixels, as the paper has it


def _kind(name: str) -> Any:
    return setting(name, "What runs this config.", names=tuple(KINDS_OF_RUNS), table="mirigor_jax.kinds.RUN_KINDS")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _confidence(meaning: str) -> Any:
    return setting(0.95, meaning, least=0.5, below=1)


def _rows(meaning: str) -> Any:
    return setting(
        "checked",
        f"{meaning} 'checked': they are compared, and nothing is certified if they contradict "
        "it. 'independent': you state that they are.",
    )


def _l2(default: tuple[float, ...]) -> Any:
    return setting(default, "L2 penalties that the linear probe chooses from, on validation.", least=0)


@dataclass(frozen=True)
class Cdp:
    """CDP images (data.source=cdp): a digit in a color at a position, over a background."""

    colors: int = setting(4, "How many colors a digit can have, the first of 16.", least=1, most=16)
    digits: tuple[int, ...] = setting((2, 3, 4, 5), "Digits that are drawn, no two alike.", least=0, most=9)
    grid: tuple[int, int] = setting((2, 2), "Rows and columns of positions; a cell takes 10 pixels at least.", least=1)
    mixing: float = setting(0.45, "Weight of the background; 0 makes it black.", least=0, most=1)
    jitter: int = setting(
        0, "How far a digit moves about in its cell. More makes its shape slower to learn.", least=0, unit="pixels"
    )
    background: str = setting(
        "spectrum",
        "What the background shows: spectrum (noise with the spectrum of natural "
        "scenes), folder:PATH (crops of the images there) or tfds:NAME (of that set).",
    )
    glyphs: str = setting("font", "How digits look: font, or idx:PATH, handwritten ones of an IDX images file.")


@dataclass(frozen=True)
class Epsilon:
    """How often an attribute differs between the two views of a CDP pair, instead of data.mi."""

    color: float | None = setting(None, "Probability that the colors differ.", least=0, most=1, none="as data.mi says")
    digit: float | None = setting(None, "Probability that the digits differ.", least=0, most=1, none="as data.mi says")
    position: float | None = setting(
        None, "Probability that the positions differ.", least=0, most=1, none="as data.mi says"
    )


@dataclass(frozen=True)
class Augment:
    """SimCLR's augmentations, of pairings with simclr; a strength of 0 leaves one out."""

    crop: float = setting(
        0.92, "The largest share of an image's area that a random crop may cut off.", least=0, most=0.99
    )
    flip: float = setting(0.5, "Probability that an image is mirrored.", least=0, most=1)
    jitter: float = setting(1.0, "Strength of the color jitter; at 2.5 the hue turns all the way.", least=0, most=2.5)
    gray: float = setting(0.2, "Probability that an image becomes gray.", least=0, most=1)
    blur: float = setting(0.5, "Probability that an image is blurred.", least=0, most=1)


@dataclass(frozen=True)
class Data:
    """Images, and which two of them are a pair."""

    source: str = setting(
        "cdp",
        "Where the images come from: cdp renders them; tfds:NAME, folder:PATH, idx:PATH, "
        "npz:PATH and fashion_mnist are labeled sets; features:PATH holds representations.",
        names=("cdp", "tfds", "folder", "idx", "npz", "fashion_mnist", "features"),
        table="mirigor_jax.data.sources.table.SOURCES",
    )
    size: int | None = setting(
        CDP_SIDE,
        "Side of the square images; those of a set are resized to it.",
        least=1,
        unit="pixels",
        none="the set's own side (cdp needs a number)",
    )
    cdp: Cdp = Cdp()
    pairing: str = setting(
        "all",
        "What the two views of a pair share: all attributes, none, or some joined by +, such "
        "as color+digit; of a labeled set class. With +simclr each view is augmented too; simclr "
        "alone pairs two augmentations of one image.",
        names=("class", "all", "none", "simclr"),
        table="mirigor_jax.data.pairing.PAIRINGS",
    )
    mi: float | None = setting(
        None,
        "True mutual information of a CDP pair: each shared attribute passes through a symmetric channel.",
        least=0,
        unit="bits",
        none="attributes are shared exactly",
    )
    epsilon: Epsilon = Epsilon()
    augment: Augment = Augment()
    negatives: str = setting(
        "",
        "Where the negatives of a training come from: own, uniform, gaussian, classes:NAMES "
        "or a source. Empty: the other pairs of the batch.",
    )
    images: int | None = setting(
        None,
        "How many images are trained on, again and again.",
        least=1,
        none="new ones for every batch of cdp, all of a set",
    )
    resident: Resident = setting("auto", "Whether devices hold a finite set of images; auto: if it fits.")
    seed: int = setting(
        0,
        "Seed of what all parts of a run share: backgrounds, glyphs, noise, and which images of a set are taken.",
        least=0,
    )
    classes: str = setting(
        "all",
        "Classes of a labeled set that are used: all, first-half, second-half, file:PATH (one "
        "a line), or names joined by +.",
    )
    rotations: bool = setting(
        False, "Whether images of a set are also turned by quarters, which gives the attribute rotation."
    )
    noise: float = setting(0.0, "Share of the pixels of a set that become black or white.", least=0, most=1)
    corrupted: float = setting(
        0.0, "Probability that a label of a set is redrawn, which gives the attribute corrupted.", least=0, most=1
    )
    tfds_dir: str | None = setting(None, "Folder of the prepared TFDS sets.", none="TFDS's own, ~/tensorflow_datasets")
    threads: int = setting(2, "Threads that read batches ahead; they change no number.", least=0)
    workers: int = setting(0, "Processes that read batches ahead; they change no number.", least=0)


@dataclass(frozen=True)
class Encoder:
    """The encoder: one to train, or a public checkpoint."""

    path: str = setting(
        "", "Checkpoint of a public encoder, which is measured without training. Empty: one is trained."
    )
    layout: str | None = setting(
        None,
        "Library that the checkpoint's parameter names come from.",
        none="recognized by the names",
        names=_names(
            "torchvision vissl swav dino barlow-twins moco moco-v3 supcon supcon-cifar10 deit timm-vit "
            "dino-vit moco-v3-vit cait pit swin swin-original"
        ),
        table="mirigor_jax.models.pretrained.layouts.LAYOUTS",
    )
    stage: str = setting(
        "",
        "Stage whose features are measured: B0 to B4 of ResNets, block0 and so on of transformers, "
        "prelogits. Empty: the last.",
    )
    name: str = setting(
        "resnet18",
        "Architecture that is trained.",
        names=_names(
            "resnet18 resnet34 resnet50 plainnet18 plainnet34 vit_ti vit_s vit_b deit_ti deit_s deit_b "
            "deit_ti_distilled deit_s_distilled deit_b_distilled cait_xxs24 cait_xxs36 pit_s pit_b "
            "pit_s_distilled pit_b_distilled swin_t swin_s swin_b lenet5 mlp"
        ),
        table="mirigor_jax.models.ENCODERS",
    )
    width: int | None = setting(
        None,
        "Channels of a ResNet's first stage; published ones have 64.",
        least=1,
        none="its own, and the only value of other encoders",
    )
    stem: str | None = setting(
        None,
        "First layers of a ResNet: imagenet, or cifar for small images.",
        none="its own, and the only value of other encoders",
    )
    remat: bool | None = setting(
        None,
        "Whether blocks of a ResNet are computed again for gradients: less memory for a third more arithmetic.",
        none="its own, and the only value of other encoders",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = setting(
        "auto", "What the encoder computes in; auto: bfloat16 on accelerators, float32 on CPUs."
    )


@dataclass(frozen=True)
class Head:
    """The projection head of a training, and the critic of the same architecture."""

    hidden: tuple[int, ...] = setting((128,), "Widths of the hidden layers.", least=1, may_be_empty=True)
    features: int = setting(64, "Outputs that the contrastive loss compares.", least=1)


@dataclass(frozen=True)
class Train:
    """Training of the encoder."""

    k: int = setting(64, "Pairs a batch, K_Tr.", least=2, unit="pairs")
    steps: int = setting(300, "Updates; 0 leaves the encoder untrained.", least=0)
    objective: str = setting(
        "simclr",
        "Loss that the training lowers.",
        names=("simclr", "supcon", "decoupled", "cross_entropy", "rotation"),
        table="mirigor_jax.objectives.OBJECTIVES",
    )
    temperature: float = setting(0.1, "Temperature of contrastive losses, those among the metrics too.", above=0)
    optimizer: Literal["adamw", "sgd", "lars"] = setting(
        "adamw", "Rule of the updates; the rate rises, then falls by a cosine."
    )
    learning_rate: float = setting(4e-3, "Largest learning rate.", above=0)
    warmup_steps: int = setting(20, "Updates over which the learning rate rises to its largest value.", least=0)
    weight_decay: float = setting(1e-4, "Weight decay; biases and norms have none.", least=0)
    global_batch_norm: bool = setting(True, "Whether BatchNorm is over the images of all devices, or of each alone.")
    accumulate: int = setting(
        1,
        "Parts into which a device's pairs are split to save memory. The loss is still that of the whole batch.",
        least=1,
    )
    checkpoint_every: int = setting(100, "How often the training is saved.", least=1, unit="steps")


@dataclass(frozen=True)
class Features:
    """Features of the frozen encoder, in three disjoint parts."""

    fit: int | None = setting(8192, "Images that critics and probes are fitted on.", least=1, none="all of a set")
    validation: int | None = setting(
        2048, "Pairs on which critics, penalties and the certificate are chosen.", least=2, none="all of a set"
    )
    test: int | None = setting(8192, "Pairs that are read once, for the results.", least=2, none="all of a set")
    batch_size: int = setting(256, "Images that are encoded at once.", least=1)
    checkpoint: Which = setting(
        "last", "Which of the training's checkpoints is measured: the last, or the best of its log."
    )


@dataclass(frozen=True)
class Estimate:
    """Post-training estimate of the mutual information, and its certificate."""

    estimators: tuple[str, ...] = setting(
        ("info_nce_symmetric", "nt_xent"),
        "What reads the fitted critic; info_nce_symmetric, by which it is fitted, comes first.",
        names=_names("info_nce info_nce_symmetric nt_xent dv mine nwj js js_nwj smile flo anchor"),
        table="mirigor_jax.mi.ESTIMATORS",
    )
    k: int = setting(
        2048,
        "Pairs of a test batch, K_Est. InfoNCE is quoted at this K, and cannot exceed log2 K.",
        least=2,
        unit="pairs",
    )
    nt_xent_k: int = setting(
        256,
        "Pairs of a test batch for the NT-Xent estimate, and for the contrastive losses among the metrics.",
        least=2,
        unit="pairs",
    )
    k_curve: tuple[int, ...] = setting((64, 256, 1024), "Further K at which the test part is read.", least=2)
    batch_size: int = setting(512, "Pairs of a batch that critics are fitted on.", least=2, unit="pairs")
    steps: int = setting(1500, "Most steps of a critic's fit, which ends early once validation gains no more.", least=1)
    learning_rate: float = setting(1e-3, "Largest learning rate of the critic of the head's architecture.", above=0)
    eval_every: int = setting(100, "How often that critic is read on validation.", least=1, unit="steps")
    stream: bool = setting(
        False, "Whether only the critic of the head's architecture is fitted, on fresh images, and certifies."
    )
    extra_pairings: tuple[str, ...] = setting((), "Further pairings under which the encoder is measured.")
    confidence: float = _confidence("Confidence of certificates and intervals.")
    tolerance_bits: float = setting(
        0.1, "The verdict is 'certified' if the certified interval is at most this wide.", least=0, unit="bits"
    )
    rows: Rows = _rows("Whether the images of a set are independent draws.")


@dataclass(frozen=True)
class Evaluate:
    """Probes and metrics of the encoder."""

    l2: tuple[float, ...] = _l2((1e-5, 1e-4, 1e-3, 1e-2))
    mlp_steps: int = setting(20_000, "Most steps of the non-linear probe.", least=1)
    metrics: bool = setting(
        False, "Whether alignment, uniformity, tolerance, kNN, a non-linear probe and so on are computed too."
    )
    classes: str | None = setting(
        None, "Attributes that the metrics are about, joined by +.", none="those that the pairing shares"
    )


@dataclass(frozen=True)
class Images:
    """A run on images: an encoder is trained or loaded, and measured."""

    kind: str = _kind("images")
    seed: int = setting(0, "Root of the run's random numbers: weights, images, pairs, augmentations, critics.", least=0)
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
    restore: str = setting("", "Folder of the finished run. Must be given.")
    name: str = setting("", "Folder of the estimate in RUN/estimates. Empty: named after what differs from the run.")
    pairing: str | None = setting(None, "What the two views of a pair share, as data.pairing.", none="as in the run")
    mi: float | None = setting(
        None,
        "True mutual information of a CDP pair.",
        least=0,
        unit="bits",
        none="as in the run, or exact sharing with another pairing",
    )
    k: int | None = setting(None, "Pairs of a test batch, K_Est.", least=2, unit="pairs", none="as in the run")
    k_curve: tuple[int, ...] | None = setting(
        None, "Further K at which the test part is read.", least=2, none="as in the run"
    )
    seed: int | None = setting(
        None, "Seed of a fresh sample of images and pairs, and of the critic.", least=0, none="the run's own sample"
    )
    test: int | None = setting(None, "Pairs that are read.", least=2, none="as in the run")
    steps: int | None = setting(None, "Most steps of the critic's fit.", least=1, none="as in the run")
    stream: bool | None = setting(
        None, "Whether the critic is fitted on fresh images, with the encoder in the step.", none="as in the run"
    )
    checkpoint: Which | None = setting(None, "Which of the training's checkpoints is measured.", none="as in the run")
    rows: Rows | None = setting(
        None, "Whether the images are independent draws, as estimate.rows.", none="as in the run"
    )


@dataclass(frozen=True)
class Arrays:
    """Mutual information of two arrays in files, by several estimators."""

    kind: str = _kind("arrays")
    x: str | None = setting(
        None, "File of the first view, a row a sample: .npy, .npz (PATH:NAME) or .csv.", none="must be given"
    )
    y: str | None = setting(
        None, "File of the second view, whose row i is the partner of x's row i.", none="labels are given instead"
    )
    labels: str | None = setting(
        None, "File of the classes of x's rows: two rows of one class are then a pair.", none="y is given instead"
    )
    estimators: tuple[str, ...] = setting(
        ("info_nce_symmetric", "nwj", "js_nwj", "mine", "smile", "anchor"),
        "Estimators, side by side: bounds, and some that are none.",
        names=of(Estimate, "estimators").names,
        table="mirigor_jax.mi.ESTIMATORS",
    )
    critic: str = setting(
        "joint",
        "Critic that is fitted to x and y.",
        names=("joint", "separable", "bilinear", "cosine"),
        table="mirigor_jax.mi.api.CRITICS",
    )
    k: int | None = setting(None, "Pairs of a test batch.", least=2, unit="pairs", none="all, up to 4,096")
    batch_size: int = setting(64, "Pairs of a batch that critics are fitted on.", least=1, unit="pairs")
    steps: int | None = setting(
        None,
        "Most steps of a fit, which ends early once validation gains no more.",
        least=1,
        none="the library's own choice",
    )
    seeds: int = setting(1, "Critics that are fitted; the value is that of their averaged scores.", least=1)
    seed: int = setting(0, "Seed of the critics' start and of their batches.", least=0)
    confidence: float = _confidence("Confidence of certificates and intervals.")
    rows: Rows = _rows("Whether rows are independent draws.")


@dataclass(frozen=True)
class Grid:
    """Which runs the study has."""

    name: str = setting(
        "",
        "The study's table and figures.",
        names=("batch_size", "infomin_tasks", "infomin_strength", "certified", "objectives", "negatives", "quality"),
        table="mirigor_jax.studies.table.STUDIES",
    )
    only: str = setting("", "One of the runs alone, such as 3/16, for job arrays. Empty: all.")
    sources: str = setting("", "Folders of other studies, joined by commas, whose finished runs are read too.")
    cells: tuple[dict[str, Any], ...] = setting(
        (), "The runs: each has a name, a dict `run` of keys that it sets, and perhaps `tags` of its row."
    )
    estimates: tuple[dict[str, Any], ...] = setting((), "Estimates of each run, as configs/estimate.py makes one.")


@dataclass(frozen=True)
class Study:
    """A study: a grid of runs on images, and one table of them."""

    kind: str = _kind("study")
    study: Grid = Grid()
    run: Images = Images()


@dataclass(frozen=True)
class Invertible:
    """Invertible encoders, whose mutual information cannot change."""

    kind: str = _kind("invertible")
    source: str = setting("fashion_mnist", "A labeled set, as data.source of a run on images.")
    size: int | None = setting(None, "Side of the images.", least=1, unit="pixels", none="the set's own side")
    objectives: tuple[str, ...] = setting(
        ("critic", "infonce", "adversarial"),
        "What is trained: the critic alone, the encoders too, or encoders that also hide the class.",
        names=("critic", "infonce", "adversarial"),
        table="mirigor_jax.studies.invertible_encoders.OBJECTIVES",
    )
    layers: int = setting(8, "Coupling layers of each encoder.", least=1)
    hidden: tuple[int, ...] = setting(
        (256, 256), "Widths of the hidden layers in a coupling.", least=1, may_be_empty=True
    )
    k: int = setting(256, "Images of a batch.", least=2)
    steps: int = setting(1200, "Updates.", least=1)
    record_every: int = setting(100, "How often encoders and critic are measured.", least=1, unit="steps")
    learning_rate: float = setting(3e-4, "Learning rate.", above=0)
    adversarial_weight: float = setting(
        20.0,
        "Penalty on adversarial encoders for all that a linear classifier can tell of the class.",
        least=0,
        unit="nats",
    )
    ridge: float = setting(1.0, "Ridge penalty of that classifier.", least=0)
    probed: int = setting(10_000, "Training images that the linear probe is fitted on.", least=1)
    l2: tuple[float, ...] = _l2((1e-4, 1e-3, 1e-2))
    seed: int = setting(0, "Seed of weights, batches and noise.", least=0)


# The settings of each kind of run.
KINDS: dict[str, type] = dict(zip(KINDS_OF_RUNS, (Images, Restore, Arrays, Study, Invertible), strict=True))


def of_key(key: str, default: Any = ..., *, kind: type = Images) -> Setting:
    """An argument of a config that sets this dotted key of it.

    default: the argument's own. Without one it is the key's.
    kind: the class of the config, of those in `KINDS`.
    """
    known = settings_of(kind)[key]
    return replace(known, key=key, default=known.default if default is ... else default)
