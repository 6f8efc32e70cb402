"""Code that the configs share: their arguments (the part of --config behind the colon), and common settings."""

import difflib
import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mirigor_jax import hub
from mirigor_jax.config_files import defaults
from mirigor_jax.errors import InputError
from mirigor_jax.fields import Setting, argument, either
from mirigor_jax.files import local_path
from mirigor_jax.outside import read_text
from mirigor_jax.settings import Train, of_key


def parse_arg(text: str, arguments: Mapping[str, Setting] | None = None, **known: Any) -> ConfigDict:
    """Parse `a=1,b=x+y`. Returns the value of every argument; one that the text leaves out has its default.

    text: the part of --config behind the colon.
    arguments: name → argument, such as a config's ARGUMENTS.
    known: further arguments, name → default. A type instead of a default means None by default. A tuple means several
        values joined by +, each of the type of the tuple's first.
    Raises InputError if a name is unknown (the message lists similar names), or if a value has the wrong type or is
    not among the choices.
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
    """The argument that has this default, or this type."""
    first = default[0] if isinstance(default, tuple) else default
    if not isinstance(first, type):
        return argument(default, "")
    return argument(None, "", kind=first, several=isinstance(default, tuple))


def base() -> ConfigDict:
    """A run on images with every setting at its default: CDP, a narrow ResNet-18, 64 pairs a batch."""
    return defaults("images")


# Scale → its widths: `laptop` keeps the defaults, `paper` takes the paper's.
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {},
    "paper": {"encoder.width": 64, "head.hidden": (512,), "head.features": 128},
}
# Arguments that several configs share.
SCALE = argument("laptop", "Widths of the encoder and the head: a laptop's, or the paper's.", choices=tuple(SCALES))
SEED = of_key("seed")
PAIRS = argument(None, "Pairs that each run sees.", kind=int, none="this study's own number")
ENCODER = replace(of_key("encoder.name"), key="", default=None, none="this study's own choice")
PATHS = argument(None, "File that lists the encoders, one a line: name,path or name,path,layout.", none="no file")
ENCODERS = replace(ENCODER, default=("resnet18", "resnet50"), several=True, none="")


def seeds(count: int, whose: str = "each run") -> Setting:
    """A study's argument for the number of seeds. whose: the runs that it counts, for --help."""
    return argument(count, f"Number of seeds of {whose}, from 0 on.")


def at_scale(scale: str) -> dict[str, Any]:
    """The settings of a scale. Raises InputError if SCALES does not have it."""
    SCALE.check("scale", scale)
    return SCALES[scale]


def at_batch_size(k: int, pairs: int) -> dict[str, Any]:
    """The settings for k pairs a training batch and `pairs` pairs a training; the learning rate is lower if k < 16."""
    steps = pairs // max(k, 1)
    return {
        "train.k": k,
        "train.steps": steps,
        "train.checkpoint_every": max(50, steps // 20),
        "train.learning_rate": 5e-4 if k < 16 else Train.learning_rate,
    }


def encoder(name: str, config: ConfigDict) -> dict[str, Any]:
    """The settings that choose the encoder. They reset to None any width or stem in `config` that it does not take."""
    options = [option for option in ("width", "stem") if config.encoder[option] is not None]
    if not options:
        return {"encoder.name": name}
    from mirigor_jax import models  # imported here because it takes a second, which most configs can save

    return {"encoder.name": name, **{f"encoder.{option}": None for option in models.idle_options(name, options)}}


def evaluate_images(config: ConfigDict, k_est: int) -> None:
    """Make the run measure all images of its set: I_class, I_SimCLR and every metric. Changes `config`.

    k_est: pairs of a test batch, K_Est.
    """
    config.features.update({"fit": None, "validation": None, "test": None})
    config.estimate.k = k_est
    config.estimate.extra_pairings = ("class", "simclr")
    config.estimate.batch_size = 256  # the critic of SimCLR pairs runs the encoder in every step
    config.estimate.steps = 1000
    config.evaluate.metrics = True


# Mirroring keeps a garment's kind, so flips keep their default; the images are gray, so color jitter can be weak.
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
# Set of images → (the settings that `on_set` changes, the number of pairs that a run sees).
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
            "estimate.k": 4096,  # InfoNCE at K = 1,024 cannot show the 9.97 bits of H(C)
            "train.k": 1024,
            "train.learning_rate": 1e-3,
            "train.warmup_steps": 12_500,
        },
        100 * 1_281_167,
    ),
}


SET = argument("fashion", "Labeled set of images that encoders are trained and measured on.", choices=tuple(SETS))


def on_set(config: ConfigDict, name: str, pairs: int | None = None) -> None:
    """Set up `config` for a set of images: its source, training and evaluation.

    name: the set, a key of SETS.
    pairs: number of pairs that the training sees. None: as many as SETS says.
    Raises InputError if SETS does not have the set.
    """
    SET.check("set", name)
    settings, usual = SETS[name]
    evaluate_images(config, 1024)
    steps = (pairs or usual) // settings["train.k"]
    training = {"train.steps": steps, "train.checkpoint_every": max(50, steps // 20)}
    config.update_from_flattened_dict(settings | training)


# Settings of runs on a set that train on same-class pairs, and measure I_class and usable information alone.
SAME_CLASS: dict[str, Any] = {
    "data.pairing": "class",
    "estimate.extra_pairings": (),
    "estimate.estimators": ("info_nce_symmetric",),
    "estimate.k_curve": (64,),
    "evaluate.metrics": False,
}


def study(name: str, scale: str) -> ConfigDict:
    """A study that has no runs yet. All of its runs will have the settings of this scale."""
    config = defaults("study")
    config.study.name = name
    config.run.update_from_flattened_dict(at_scale(scale))
    return config


def listed(paths: str, prefix: str = "") -> dict[str, dict[str, Any]]:
    """The encoders that the file `paths` lists, for a study's cells: prefix + name → the settings that choose it.

    Each line is name,path or name,path,layout. The path leads to a checkpoint, or is hf:REPO or features:FILE.
    Raises InputError if the file cannot be read, or for a line that is something else or repeats a name.
    """
    lines = [line for line in read_text(local_path(paths), f"paths={paths}").splitlines() if line.strip()]
    cells: dict[str, dict[str, Any]] = {}
    for line in lines:
        name, path, layout, *optional = [*(part.strip() for part in line.split(",")), "", ""]
        if not name or not path or any(optional) or "/" in name or prefix + name in cells:
            raise InputError(f"{paths}: '{line}' is not name,path or name,path,layout with a new name")
        cells[prefix + name] = _chosen(path) | ({"encoder.layout": layout} if layout else {})
    return cells


def found(patterns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The encoders whose files match: name → the settings that choose it.

    patterns: paths of checkpoints, or features:PATH of files of features; a path may have * and ? in place of letters.
        hf:REPO is an encoder on the Hugging Face Hub, and features:hf:REPO:FILE a file there.
    Names are those of the files, without endings, and of as many folders as tell them apart.
    Raises InputError if a pattern matches no file, or if two patterns match the same file.
    """
    paths: list[str] = []
    for pattern in patterns:
        prefix = "features:" if _holds_features(pattern) else ""
        if hub.is_hub(pattern.removeprefix(prefix)):
            if set("*?") & set(pattern):
                raise InputError(f"encoders: '{pattern}' is on the Hub, where names have no * and ?; give whole names")
            paths.append(pattern)
            continue
        matched = sorted(glob.glob(pattern.removeprefix(prefix), recursive=True))
        if not matched:
            raise InputError(f"encoders: no file matches '{pattern}'; give a path, or a pattern with * and ? in quotes")
        paths += [prefix + path for path in matched]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise InputError(f"encoders: '{twice[0]}' is matched twice; leave one out")
    parts = [_parts(path) for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return {name: _chosen(path) for name, path in zip(names, paths, strict=True)}
    if parts:
        raise InputError("encoders: some files differ only in their endings; name each in a list and give paths=LIST")
    return {}


def _parts(path: str) -> tuple[str, ...]:
    """The folders of an encoder's file and its name, without its ending."""
    path = path.removeprefix("features:")
    if not hub.is_hub(path):
        return Path(path).with_suffix("").parts
    reference = hub.parse(path)
    revision = f"@{reference.revision.replace('/', '-')}" if reference.revision else ""
    file = Path(reference.part).with_suffix("").parts if reference.part else ()
    return (*f"{reference.repo}{revision}".split("/"), *file)


def _holds_features(path: str) -> bool:
    from mirigor_jax.data.sources.table import holds_features  # importing it takes seconds, which most configs save

    return holds_features(path)


def _chosen(path: str) -> dict[str, Any]:
    return {"data.source" if _holds_features(path) else "encoder.path": path}
