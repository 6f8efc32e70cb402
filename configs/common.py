"""What the configs share: typed arguments behind the colon, and the base of every image run."""

import difflib
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mirigor_jax.errors import InputError


def parse_arg(text: str, **known: Any) -> ConfigDict:
    """`a=1,b=x+y` → a ConfigDict of `known`, whose values are defaults, or types where there is none (None then).

    A tuple stands for one or more values of its first one's type, joined by +.
    Raises InputError for an unknown name, listing the near ones, and for a value of the wrong type.
    """
    ones = {name: default[0] if isinstance(default, tuple) else default for name, default in known.items()}
    values = {name: None if isinstance(ones[name], type) else default for name, default in known.items()}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if name not in known or not equals:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known)
            raise InputError(f"unknown config argument '{part}'; did you mean {', '.join(f'{n}=' for n in near)}?")
        kind = ones[name] if isinstance(ones[name], type) else type(ones[name])
        try:
            values[name] = tuple(map(kind, value.split("+"))) if isinstance(known[name], tuple) else kind(value)
        except ValueError:
            raise InputError(f"config argument {name}={value} is not of type {kind.__name__}") from None
    return ConfigDict(values)


def at_batch_size(k: int, pairs: int) -> dict[str, Any]:
    """Training settings at K_Tr = k that see so many pairs, whatever k; small batches take a smaller rate."""
    steps = pairs // max(k, 1)
    return {
        "train.k": k,
        "train.steps": steps,
        "train.checkpoint_every": max(50, steps // 20),
        "train.learning_rate": 5e-4 if k < 16 else 4e-3,
    }


def at_scale(scale: str) -> dict[str, Any]:
    """Settings of a scale: none of `laptop`, which is `base`; the encoder's and the head's widths of `paper`."""
    scales: dict[str, dict[str, Any]] = {
        "laptop": {},
        "paper": {"encoder.width": 64, "head.hidden": (512,), "head.features": 128},
    }
    if scale not in scales:
        raise InputError(f"unknown scale '{scale}'; choose laptop or paper")
    return scales[scale]


def encoder(name: str, config: ConfigDict) -> dict[str, Any]:
    """Settings that choose the encoder, without the options of others that a scale or a set gave the config."""
    options = [option for option in ("width", "stem") if config.encoder[option] is not None]
    if not options:
        return {"encoder.name": name}
    from mirigor_jax import models  # which takes a second that most configs need not wait for

    return {"encoder.name": name, **{f"encoder.{option}": None for option in models.idle_options(name, options)}}


def base() -> ConfigDict:
    """An image run at laptop scale: CDP data, ResNet-18 of width 16, 64 pairs a batch."""
    config = ConfigDict()
    config.kind = "images"
    config.seed = 0

    config.data = ConfigDict()
    config.data.source = "cdp"  # or fashion_mnist, tfds:NAME, folder:PATH, idx:PATH, npz:PATH
    config.data.size = placeholder(int)  # pixels; of an image set None for its own
    config.data.update({"size": 64})
    config.data.cdp = ConfigDict()  # of source=cdp
    config.data.cdp.colors = 4
    config.data.cdp.digits = (2, 3, 4, 5)
    config.data.cdp.grid = (2, 2)
    config.data.cdp.mixing = 0.45
    config.data.cdp.jitter = 0  # pixels; more makes the digits' shape slower to learn
    config.data.cdp.background = "spectrum"  # or folder:PATH, tfds:NAME
    config.data.cdp.glyphs = "font"  # or idx:PATH of an IDX images file
    config.data.pairing = "all"  # all | none | attributes joined by +, and +simclr; class+simclr | simclr
    config.data.mi = placeholder(float)  # bits; None: the attributes are shared exactly
    config.data.epsilon = ConfigDict({name: placeholder(float) for name in ("color", "digit", "position")})
    config.data.augment = ConfigDict()  # of the pairings with simclr; 0 leaves an augmentation out
    config.data.augment.crop = 0.92  # the largest part of the area that may go
    config.data.augment.flip = 0.5  # probability
    config.data.augment.jitter = 1.0  # strength; 2.5 turns the hue all the way
    config.data.augment.gray = 0.2  # probability
    config.data.augment.blur = 0.5  # probability
    config.data.negatives = ""  # own, uniform, gaussian, cdp, classes:…, or a source; else the batch's other pairs
    config.data.images = placeholder(int)  # to train on, drawn again and again; None: every image is new
    config.data.resident = "auto"  # those images on every device: where they fit, always or never
    config.data.seed = 0  # of the bank of backgrounds and glyphs, which all parts of a run draw from
    config.data.classes = "all"  # of an image set: first-half, second-half, file:PATH, or names joined by +
    config.data.rotations = False  # its images at four turns, an attribute `rotation`
    config.data.noise = 0.0  # share of black and white pixels
    config.data.corrupted = 0.0  # an attribute `corrupted`: the class, redrawn with this probability
    config.data.tfds_dir = placeholder(str)
    config.data.threads = 2
    config.data.workers = 0

    config.encoder = ConfigDict()
    config.encoder.path = ""  # of a public checkpoint, which is then estimated without training; else we train:
    config.encoder.layout = placeholder(str)  # of it, where its keys don't tell; see models/pretrained/layouts.py
    config.encoder.stage = ""  # whose features to measure: B0 to B4, block0 to …, prelogits; the last unless given
    config.encoder.name = "resnet18"
    # Of ResNets; None: their own default, and the only value for an encoder without that option.
    config.encoder.width = placeholder(int)  # channels of the first stage: 16, published 64
    config.encoder.stem = placeholder(str)  # imagenet, or cifar for small images
    config.encoder.remat = placeholder(bool)  # False; True: less memory for a third more arithmetic
    config.encoder.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU

    config.head = ConfigDict()
    config.head.hidden = (128,)
    config.head.features = 64

    config.train = ConfigDict()
    config.train.k = 64
    config.train.steps = 300
    config.train.objective = "simclr"  # or supcon, decoupled, cross_entropy, rotation
    config.train.temperature = 0.1
    config.train.optimizer = "adamw"
    config.train.learning_rate = 4e-3
    config.train.warmup_steps = 20
    config.train.weight_decay = 1e-4
    config.train.global_batch_norm = True
    config.train.accumulate = 1  # parts that a device's pairs go through the encoder in; the loss stays the batch's
    config.train.checkpoint_every = 100  # steps

    config.features = ConfigDict()  # images, or pairs, of the three disjoint parts
    config.features.fit = placeholder(int)  # of an image set all that there are
    config.features.validation = placeholder(int)
    config.features.test = placeholder(int)
    config.features.update({"fit": 8192, "validation": 2048, "test": 8192})
    config.features.batch_size = 256
    config.features.checkpoint = "last"  # or best

    config.estimate = ConfigDict()
    config.estimate.estimators = ("info_nce_symmetric", "nt_xent")  # of mi.ESTIMATORS
    config.estimate.k = 2048  # pairs a test batch: the candidates that InfoNCE is quoted at
    config.estimate.nt_xent_k = 256  # the same of the NT-Xent estimate, and of the contrastive losses among the metrics
    config.estimate.k_curve = (64, 256, 1024)  # further K to read the test part at
    config.estimate.batch_size = 512  # pairs that the critic is fitted on at a time
    config.estimate.steps = 1500
    config.estimate.learning_rate = 1e-3  # of the critic of the head's architecture, as is the next
    config.estimate.eval_every = 100
    config.estimate.stream = False  # fit the head's critic alone, on fresh images, and certify by it
    config.estimate.extra_pairings = ()  # further pairings to estimate the encoder under, as configs/estimate.py does
    config.estimate.confidence = 0.95
    config.estimate.tolerance_bits = 0.1
    config.estimate.rows = "checked"  # or "independent", to state that the images of a set are

    config.evaluate = ConfigDict()
    config.evaluate.l2 = (1e-5, 1e-4, 1e-3, 1e-2)
    config.evaluate.mlp_steps = 20_000  # of the non-linear probe at most
    config.evaluate.metrics = False  # also alignment, uniformity, tolerance, kNN, a non-linear probe, …
    config.evaluate.classes = placeholder(str)  # that the metrics are about; None: those that the pairing shares
    return config


def evaluate_images(config: ConfigDict, k_est: int) -> None:
    """Settings of a run on a set of images: all of them, I_class and I_SimCLR, and every metric."""
    config.features.update({"fit": None, "validation": None, "test": None})
    config.estimate.k = k_est
    config.estimate.extra_pairings = ("class", "simclr")
    config.estimate.batch_size = 256  # views of one image are fitted on with the encoder in the step
    config.estimate.steps = 1000
    config.evaluate.metrics = True


# A garment's mirror image is its kind, and color says nothing of gray images.
GARMENTS = {"crop": 0.7, "jitter": 0.5, "blur": 0.0}
IMAGENET = {"data.source": "tfds:imagenet2012", "data.size": 224, "encoder.name": "resnet50", "estimate.k": 1024}
CIFAR = {
    "data.size": 32,
    "data.augment.jitter": 0.5,
    "data.augment.blur": 0.0,
    "encoder.stem": "cifar",
    "train.k": 512,
    "train.learning_rate": 1e-3,
    "train.warmup_steps": 1000,
}
# Of each set of images: what `on_set` changes, and how many pairs a run sees.
SETS: dict[str, tuple[dict[str, Any], int]] = {
    "fashion": (
        {
            "data.source": "fashion_mnist",
            "data.size": 28,
            **{f"data.augment.{name}": strength for name, strength in GARMENTS.items()},
            "train.k": 128,
            "train.learning_rate": 2e-3,
            "train.warmup_steps": 50,
            "estimate.steps": 600,
            "evaluate.mlp_steps": 3000,
        },
        76_800,
    ),
    "cifar10": ({**CIFAR, "data.source": "tfds:cifar10"}, 500 * 50_000),
    "cifar100": ({**CIFAR, "data.source": "tfds:cifar100"}, 500 * 50_000),
    "imagenet100": (
        {
            **IMAGENET,
            "data.classes": "file:imagenet100.txt",
            "train.k": 512,
            "train.learning_rate": 1e-3,
            "train.warmup_steps": 2500,
        },
        200 * 126_689,
    ),
    "imagenet1k": (
        {
            **IMAGENET,
            "estimate.k": 4096,  # 1,024 cannot show its 9.97 bits
            "train.k": 1024,
            "train.learning_rate": 1e-3,
            "train.warmup_steps": 12_500,
        },
        100 * 1_281_167,
    ),
}


def on_set(config: ConfigDict, name: str, pairs: int | None = None) -> None:
    """Settings of a run on a set of images of `SETS`: its evaluation, and a training that sees so many pairs."""
    if name not in SETS:
        raise InputError(f"unknown set '{name}'; choose one of {', '.join(SETS)}")
    settings, usual = SETS[name]
    evaluate_images(config, 1024)
    steps = (pairs or usual) // settings["train.k"]
    training = {"train.steps": steps, "train.checkpoint_every": max(50, steps // 20)}
    config.update_from_flattened_dict(settings | training)


def study(name: str, scale: str) -> ConfigDict:
    """A study without cells yet: what is common to its runs, and what each of them is."""
    config = ConfigDict()
    config.kind = "study"
    config.study = ConfigDict()
    config.study.name = name  # its table and its figures
    config.study.only = ""  # 3/16: that run alone
    config.study.sources = ""  # folders of other studies, joined by commas, whose finished runs are its cells too
    config.study.cells = ()  # a run each: {"name", "run": {key of config.run: value}, "tags": what its row says of it}
    config.study.estimates = ()  # what configs/estimate.py would be asked of every run
    config.run = base()
    config.run.update_from_flattened_dict(at_scale(scale))
    return config
