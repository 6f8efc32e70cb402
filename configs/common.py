"""What the configs share: arguments behind the colon, and settings that several of them depart from the defaults by."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict

from mirigor_jax.config_files import defaults
from mirigor_jax.errors import InputError
from mirigor_jax.fields import Setting, argument, either
from mirigor_jax.settings import Train, of_key


def parse_arg(text: str, arguments: Mapping[str, Setting] | None = None, **known: Any) -> ConfigDict:
    """The value of each argument: of those in `a=1,b=x+y` what stands there, of the others the default.

    arguments: what there is by name, as a config's ARGUMENTS.
    known: further ones by their defaults, or by their types if there is none (they are None then); a tuple stands for
        one or more values of its first one's type, joined by +.
    Raises InputError for an unknown name, listing the near ones, and for a value of the wrong type or none of the
    choices.
    """
    arguments = {**(arguments or {}), **{name: _argument(default) for name, default in known.items()}}
    values = {name: each.default for name, each in arguments.items()}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if name not in arguments or not equals:
            near = difflib.get_close_matches(name, arguments, n=3, cutoff=0.5) or list(arguments)
            raise InputError(f"unknown config argument '{part}'; did you mean {', '.join(f'{n}=' for n in near)}?")
        each = arguments[name]
        try:
            values[name] = tuple(map(each.kind, value.split("+"))) if each.several else each.kind(value)
        except ValueError:
            raise InputError(f"config argument {name}={value} is not of type {each.kind.__name__}") from None
        if each.choices and value not in each.choices:
            raise InputError(f"config argument {name}={value}: expected {either(each.choices)}")
    return ConfigDict(values)


def _argument(default: Any) -> Setting:
    """An argument by its default, or by its type."""
    first = default[0] if isinstance(default, tuple) else default
    if not isinstance(first, type):
        return argument(default, "")
    return argument(None, "", kind=first, several=isinstance(default, tuple))


def base() -> ConfigDict:
    """A run on images in which every setting has its default: CDP, a narrow ResNet-18, 64 pairs a batch."""
    return defaults("images")


# The widths of each scale: of `laptop` the defaults, of `paper` the paper's.
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {},
    "paper": {"encoder.width": 64, "head.hidden": (512,), "head.features": 128},
}
# Arguments that several configs have.
SCALE = argument("laptop", "Widths of the encoder and the head: a laptop's, or the paper's.", choices=tuple(SCALES))
SEED = of_key("seed")
PAIRS = argument(None, "Pairs that each run sees.", kind=int, none="as many as this study takes by itself")
ENCODER = replace(of_key("encoder.name"), key="", default=None, none="as this study takes by itself")
ENCODERS = replace(ENCODER, default=("resnet18", "resnet50"), several=True, none="")


def seeds(count: int, whose: str = "each run") -> Setting:
    """The argument of a study that says how many seeds there are. whose: what has them."""
    return argument(count, f"How many seeds {whose} has, from 0 on.")


def at_scale(scale: str) -> dict[str, Any]:
    """Settings of one of SCALES. Raises InputError for another."""
    SCALE.check("scale", scale)
    return SCALES[scale]


def at_batch_size(k: int, pairs: int) -> dict[str, Any]:
    """Settings for batch size k, with as many steps as it takes to see `pairs` pairs; small batches learn slower."""
    steps = pairs // max(k, 1)
    return {
        "train.k": k,
        "train.steps": steps,
        "train.checkpoint_every": max(50, steps // 20),
        "train.learning_rate": 5e-4 if k < 16 else Train.learning_rate,
    }


def encoder(name: str, config: ConfigDict) -> dict[str, Any]:
    """Settings that choose the encoder, and leave open options that a scale or a set gave and it does not have."""
    options = [option for option in ("width", "stem") if config.encoder[option] is not None]
    if not options:
        return {"encoder.name": name}
    from mirigor_jax import models  # which takes a second that most configs need not wait for

    return {"encoder.name": name, **{f"encoder.{option}": None for option in models.idle_options(name, options)}}


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


SET = argument("fashion", "Labeled images that the runs are on.", choices=tuple(SETS))


def on_set(config: ConfigDict, name: str, pairs: int | None = None) -> None:
    """Settings of a run on a set of images in SETS: its evaluation, and a training that sees so many pairs.

    pairs: None: the set's own number. Raises InputError for another set.
    """
    SET.check("set", name)
    settings, usual = SETS[name]
    evaluate_images(config, 1024)
    steps = (pairs or usual) // settings["train.k"]
    training = {"train.steps": steps, "train.checkpoint_every": max(50, steps // 20)}
    config.update_from_flattened_dict(settings | training)


def study(name: str, scale: str) -> ConfigDict:
    """A study without runs yet, whose runs have the settings of this scale in common."""
    config = defaults("study")
    config.study.name = name
    config.run.update_from_flattened_dict(at_scale(scale))
    return config
